"""How the page looks: colours for light and dark, columns where there is room, tables that become cards where not."""

import colorsys
import re

HUES = 12  # colours of groups that can be told apart

# The names of the colours, each with a stand-in that the plots are drawn with: matplotlib knows no CSS variables.
COLOURS = {
    "ink": "#010101",
    "muted": "#020202",
    "line": "#030303",
    "accent": "#040404",
    "warm": "#050505",
    "faint": "#060606",
    "page": "#070707",
}

CSS = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --surface: #f5f7f9; --ink: #1a222c; --muted: #586472; --line: #d9e0e7;
  --accent: #1c63d5; --warm: #c2570c; --faint: #9fb3c8; --good: #17753a; --bad: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #10151b; --surface: #19212a; --ink: #e4ebf2; --muted: #9eabb8; --line: #303b47;
    --accent: #6aa9ff; --warm: #f0935a; --faint: #57697c; --good: #57c07a; --bad: #ff8a80;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 1200px; padding: 1.5rem clamp(0.8rem, 3vw, 2rem) 4rem;
  background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 0.4rem; padding-top: 0.9rem; border-top: 1px solid var(--line); }
p { margin: 0.3rem 0 0.8rem; max-width: 75ch; }
.muted, .note { color: var(--muted); }
.note { font-size: 0.88rem; }
code, .name { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 0.88em; }
.name { overflow-wrap: anywhere; }
.good { color: var(--good); } .bad { color: var(--bad); }
.badge {
  display: inline-block; border: 1px solid currentColor; border-radius: 1rem; padding: 0 0.7rem; font-size: 0.85rem;
  font-weight: 600; margin-top: 0.5rem;
}
.alert { border-left: 4px solid var(--bad); background: var(--surface); padding: 0.6rem 1rem; margin: 1rem 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 0.8rem; margin: 1.2rem 0 0; }
.tile { background: var(--surface); border-radius: 8px; padding: 0.7rem 0.9rem; min-width: 0; }
.tile b { display: block; font-size: 1.35rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: 0.85rem; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: minmax(0, 1fr); gap: 1.5rem; }
@media (min-width: 1000px) { .charts { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
figure { margin: 0.6rem 0 0; min-width: 0; }
figcaption { color: var(--muted); font-size: 0.88rem; margin-bottom: 0.3rem; }
figcaption b { color: var(--ink); }
figure svg { width: 100%; height: auto; display: block; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
.small { display: none; }
@media (max-width: 560px) { .large { display: none; } .small { display: block; } }
.legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; font-size: 0.85rem; color: var(--muted); }
.legend i { display: inline-block; width: 0.75rem; height: 0.75rem; margin-right: 0.35rem; vertical-align: -1px; }
.legend .dot { border-radius: 50%; }
.legend .ring { border: 2px solid var(--ink); border-radius: 50%; }
.legend .down {
  width: 0; height: 0; border: 0.35rem solid transparent; border-top-color: var(--faint); border-bottom: 0;
  vertical-align: 1px;
}
.legend .rule { height: 0; border-top: 2px dashed var(--warm); vertical-align: 4px; width: 1.1rem; }
.bars { display: grid; gap: 0.55rem 1rem; grid-template-columns: minmax(9rem, 19rem) 10rem minmax(0, 1fr); }
.bars > div { min-width: 0; }
.bars .count { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bars small { display: block; color: var(--muted); overflow-wrap: anywhere; line-height: 1.35; }
.bars .count small { display: inline; margin-left: 0.5rem; }
.track { height: 1.1rem; background: var(--faint); border-radius: 3px; margin-top: 0.15rem; min-width: 3px; }
.track div { height: 100%; background: var(--accent); border-radius: 3px; min-width: 2px; }
.track.same div { background: var(--muted); }
@media (max-width: 640px) {
  .bars { grid-template-columns: minmax(0, 1fr) auto; gap: 0.1rem 0.8rem; }
  .bars .bar { grid-column: 1 / -1; margin-bottom: 0.7rem; }
}
.stack { display: flex; height: 1.3rem; border-radius: 4px; overflow: hidden; background: var(--surface); }
.stack div { min-width: 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td {
  text-align: left; padding: 0.38rem 0.7rem 0.38rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
}
th { color: var(--muted); font-weight: 600; }
.num { text-align: right; white-space: nowrap; }
td { overflow-wrap: anywhere; }
td.num { overflow-wrap: normal; }
tr.chosen td { font-weight: 600; }
tr.chosen td:first-child { box-shadow: inset 3px 0 var(--accent); padding-left: 0.6rem; }
details { border-bottom: 1px solid var(--line); padding: 0.4rem 0; }
summary { cursor: pointer; }
details > table, details > .scroll { margin: 0.5rem 0 0.7rem; }
.reasons th:first-child { width: 30%; }
.facts td:first-child { width: 14rem; color: var(--muted); }
@media (max-width: 640px) {
  table.cards thead { display: none; }
  table.cards, table.cards tbody { display: block; }
  table.cards tr {
    display: flex; flex-wrap: wrap; gap: 0 1.1rem; border-bottom: 1px solid var(--line); padding: 0.5rem 0;
  }
  table.cards td { min-width: 0; border: 0; padding: 0.05rem 0; text-align: left; white-space: normal; }
  table.cards td:empty { display: none; }
  table.cards td::before { content: attr(data-label) ": "; color: var(--muted); font-weight: 400; }
  tr.chosen td:first-child { box-shadow: none; padding-left: 0; }
  .facts td:first-child { width: 9rem; }
}
.network .whole { display: block; min-width: 8rem; }
.network .bar {
  display: block; position: relative; height: 1.25rem; min-width: 1.1rem; border-radius: 3px; overflow: hidden;
}
.network .bar span { position: absolute; top: 0; bottom: 0; overflow: hidden; text-align: center; }
.network td:first-child { width: 24%; } .network td:nth-child(2) { width: 14%; white-space: nowrap; }
/* Bars of both dimensions are compared by their length. */
.network td:nth-child(n + 3) { width: 31%; }
.g, .chip { font-size: 0.78rem; line-height: 1.25rem; font-weight: 600; color: var(--on); background: var(--fill); }
.chip { display: inline-block; min-width: 1.9rem; text-align: center; border-radius: 3px; }
.frozen { background: repeating-linear-gradient(45deg, var(--line) 0 4px, var(--surface) 4px 8px); }
@media (max-width: 640px) {
  .network td { width: 100% !important; } .network .whole { width: 100%; }
}
@media print { body { max-width: none; } details { break-inside: avoid; } }
"""

# The colours of the light page, by name.
LIGHT = dict(re.findall(r"--(\w+): (#\w{6})", CSS.partition("@media")[0]))


def group_colours(count: int) -> str:
    """Fills for groups, far apart in hue and alternating in lightness, with text that can be read on them."""
    rules = []
    for number in range(count):
        hue, dark = (number * 5 % count) / count, number % 2 == 0
        red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, 0.28 if dark else 0.8, 0.6))
        on = "#ffffff" if dark else "#10151b"
        rules.append(f".g{number} {{ --fill: #{red:02x}{green:02x}{blue:02x}; --on: {on}; }}")
    return "\n".join(rules)
