"""HTML as text: elements, tables and numbers, everything that comes from outside escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from fxprune.io.printed_text import printed
from fxprune.resources.kinds import unit_of


class Markup(str):
    """Text that is HTML already, and is not escaped again."""

    __slots__ = ()


def escape(value: object) -> Markup:
    return value if isinstance(value, Markup) else Markup(html.escape(printed(value)))


def element(tag: str, *content: object, **attributes: object) -> Markup:
    """An element; a trailing underscore keeps Python's words apart (class_), an inner one is a dash (data_label)."""
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(printed(value))}"'
        for name, value in attributes.items()
        if value
    )
    return Markup(f"<{tag}{given}>{''.join(escape(part) for part in content)}</{tag}>")


def joined(parts: Iterable[Markup]) -> Markup:
    return Markup("".join(parts))


def table(
    header: Sequence[str], rows: Iterable[Sequence[object]], figures: Iterable[str] = (), chosen: Iterable[int] = ()
) -> Markup:
    """A table whose rows become cards on a narrow page. `figures`: the columns of numbers; `chosen`: rows to stress."""
    right, stressed = set(figures), set(chosen)
    kind = ["num" if title in right else "" for title in header]
    head = element("tr", *(element("th", title, class_=kind[i]) for i, title in enumerate(header)))
    body = (
        element(
            "tr",
            *(element("td", cell, class_=kind[i], data_label=header[i]) for i, cell in enumerate(row)),
            class_="chosen" if number in stressed else "",
        )
        for number, row in enumerate(rows)
    )
    return element("table", element("thead", head), element("tbody", joined(body)), class_="cards")


def facts(rows: Iterable[tuple[str, object]]) -> Markup:
    """Names and values in two columns."""
    body = (element("tr", element("td", name), element("td", value)) for name, value in rows)
    return element("table", element("tbody", joined(body)), class_="facts")


def folded(title: object, content: Markup) -> Markup:
    """Content that opens on a click."""
    return element("details", element("summary", title), content)


def amount(value: float, resource: str) -> str:
    """A resource with its unit's usual digits: 12.3 ms, 40.55 M MACs."""
    unit = unit_of(resource)
    if unit == "ms":
        return f"{value:.3f} ms"
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g} {prefix} {unit}"
    return f"{value:,.0f} {unit}"


def score(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def seconds(value: float) -> str:
    """A time in the unit that suits it.

    >>> seconds(0.25), seconds(75), seconds(9000)
    ('0.25 s', '1 min 15 s', '2 h 30 min')
    """
    if value < 0.1:
        return f"{1e3 * value:.3g} ms"
    if value < 60:
        return f"{value:.3g} s"
    if value < 3600:
        return f"{value // 60:.0f} min {value % 60:.0f} s"
    return f"{value // 3600:.0f} h {value % 3600 // 60:.0f} min"
