"""`python docs/generate.py`: writes the reference pages from the code; a test compares them with what is there.

docs/reference/yaml.md from the configuration's keys, api.md from the docstrings of public names, command-line.md from
the commands' help, rooms.md from the folders' charters in the order of imports that tests/test_architecture.py states.
"""

from __future__ import annotations

import ast
import inspect
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "docs" / "reference"
NOTE = "<!-- Written by docs/generate.py; change the code instead. -->\n"


def yaml_page() -> str:
    from fxprune.config.reference import described_keys

    lines = [
        NOTE, "# YAML keys", "",
        "Every key may be left out. `fxprune init` writes a file with all of them and these words, and beside it "
        "`fxprune-schema.json`, a JSON Schema for editors. An unknown key is an error that names the nearest "
        "known one. A dash in front marks a key inside the table above it.", "",
        "| key | meaning | default | range |", "|---|---|---|---|",
    ]  # fmt: skip
    for key in described_keys():
        name = f"`{key.name}`" if not key.table else f"– `{key.name}`"
        lines.append(f"| {name} | {_cell(key.meaning)} | `{key.default}` | {_cell(key.expected)} |")
    return "\n".join(lines) + "\n"


def api_page() -> str:
    import fxprune
    import passes

    parts = [
        NOTE, "# API", "",
        "`fxprune` is the search and what belongs to it; `passes` is the compiler, which needs torch, numpy and "
        "networkx only. Each name is imported from its package: `from fxprune import netadapt`.", "",
    ]  # fmt: skip
    for package in (fxprune, passes):
        parts += [f"## {package.__name__}", ""]
        for name in sorted(package.__all__):
            if not inspect.ismodule(value := getattr(package, name)):
                parts += _entry(name, value)
    return "\n".join(parts)


def command_line_page() -> str:
    import typer

    from fxprune.cli.main import app

    parts = [NOTE, "# Command line", "", "`fxprune COMMAND --help` prints the same.", ""]

    def commands(group: Any, above: str) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from commands(command, f"{above} {name}")
            else:
                yield f"{above} {name}", command

    for name, command in commands(typer.main.get_command(app), "fxprune"):
        text = inspect.cleandoc(command.help or "").replace(r"\[", "[")
        parts += [f"## {name}", "", text, "", "| option | meaning |", "|---|---|"]
        for parameter in command.params:
            spelled = ", ".join(parameter.opts) if parameter.param_type_name == "option" else parameter.name.upper()
            parts.append(f"| `{spelled}` | {_cell(parameter.help or '')} |")
        parts.append("")
    return "\n".join(parts)


def rooms_page() -> str:
    floors = runpy.run_path(str(ROOT / "tests" / "test_architecture.py"))["FLOORS"]
    parts = [
        NOTE,
        "# Rooms",
        "",
        "From the bottom to the top: a module imports only from what stands above it.",
        "",
    ]
    for package, names in floors.items():
        parts += [f"## {package}", "", "| room | what it is |", "|---|---|"]
        for name in names:
            folder = ROOT / package / name
            file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
            charter = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
            parts.append(f"| `{name}` | {_cell(charter)} |")
        parts.append("")
    return "\n".join(parts)


def _entry(name: str, value: Any) -> list[str]:
    kind = "class " if inspect.isclass(value) else ""
    try:
        signature = str(inspect.signature(value))
    except (TypeError, ValueError):
        signature = ""
    signature = re.sub(r" at 0x[0-9a-f]+", "", signature)
    call = f"{kind}{name}{signature}"
    if len(call) > 100:
        call = call.replace("(", "(\n    ", 1)
        call = re.sub(r", (?=[\w*]+[:=,])", ",\n    ", call)
    return [f"### {name}", "", "```text", call, "```", "", _markdown(inspect.getdoc(value) or ""), ""]


def _markdown(doc: str) -> str:
    """A docstring, its examples fenced."""
    parts = []
    for paragraph in re.split(r"\n\n", doc):
        example = paragraph.lstrip().startswith(">>>")
        parts.append(f"```pycon\n{paragraph}\n```" if example else re.sub(r"``(.+?)``", r"`\1`", paragraph))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PAGES: dict[str, Callable[[], str]] = {
    "yaml.md": yaml_page, "api.md": api_page, "command-line.md": command_line_page, "rooms.md": rooms_page,
}  # fmt: skip


def main() -> None:
    HERE.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
