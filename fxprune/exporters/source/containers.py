"""The modules and tensors of a network as the body of an `__init__` that gives them their dotted names."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fxprune.exporters.source.literals import quoted

WIDTH = 110
# A list may name items that are not there (a layer that the network does not run); a few can be filled up.
_MOST_FILLED = 8


@dataclass
class Container:
    """What has names below one dotted name: leaves (source text) and further containers, in order."""

    children: dict[str, Container | str] = field(default_factory=dict)

    def add(self, path: str, text: str) -> None:
        """Put a leaf at a dotted path."""
        *parents, name = path.split(".")
        self.enclosing(parents).children[name] = text

    def enclosing(self, parents: Iterable[str]) -> Container:
        """The container at the path, made where it is not there yet."""
        here = self
        for parent in parents:
            child = here.children.setdefault(parent, Container())
            if isinstance(child, str):
                # Tensors inside a leaf need no container: the leaf owns them.
                return Container()
            here = child
        return here

    @property
    def is_list(self) -> bool:
        """Whether all names are numbers, with few of them missing: an nn.ModuleList."""
        names = list(self.children)
        return (
            bool(names)
            and all(name.isdecimal() and str(int(name)) == name for name in names)
            and max(map(int, names)) < len(names) + _MOST_FILLED
        )


def reference(root: Container, path: str) -> str:
    """How the forward calls what sits at a dotted path: `self.layer1[0].conv1`."""
    text, here = "self", root
    for name in path.split("."):
        if isinstance(here, Container) and here.is_list:
            text = f"{text}[{name}]"
        elif is_plain(name):
            text = f"{text}.{name}"
        else:
            text = f"getattr({text}, {quoted(name)})"
        child = here.children.get(name) if isinstance(here, Container) else None
        here = child if isinstance(child, Container) else Container()
    return text


def is_plain(name: str) -> bool:
    """Whether a name can follow a dot inside a class (two leading underscores would be mangled there)."""
    return name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("__")


def base_class(root: Container) -> str:
    """What the network derives from: one that is numbered itself (a Sequential once) is a list."""
    return "nn.ModuleList" if root.is_list else "nn.Module"


def assignments(root: Container, indent: str) -> list[str]:
    """The call of the base class, and `self.conv1 = nn.Conv2d(...)`, one statement a child of the root."""
    if root.is_list:
        _, _, items = _parts(root)
        inner = [line for prefix, item in items for line in _render(item, f"{indent}    ", prefix, ",")]
        return [f"{indent}super().__init__([", *inner, f"{indent}])"]
    lines = [f"{indent}super().__init__()"]
    for name, child in root.children.items():
        head = f"self.{name} = " if is_plain(name) else f"setattr(self, {quoted(name)}, "
        tail = "" if is_plain(name) else ")"
        lines += _render(child, indent, head, tail)
    return lines


def uses_container_class(root: Container) -> bool:
    """Whether a container below the root is no list, so that the file needs the class `Container`."""
    below = [child for child in root.children.values() if isinstance(child, Container)]
    return any(not child.is_list or uses_container_class(child) for child in below)


def _render(child: Container | str, indent: str, head: str, tail: str) -> list[str]:
    if isinstance(child, str):
        return [f"{indent}{head}{child}{tail}"]
    opening, closing, items = _parts(child)
    flat = f"{indent}{head}{opening}{', '.join(_flat(text) for text in items)}{closing}{tail}"
    if len(items) <= 2 and len(flat) <= WIDTH and all(isinstance(item, str) for _, item in items):
        return [flat]
    lines = [f"{indent}{head}{opening}"]
    for prefix, item in items:
        lines += _render(item, f"{indent}    ", prefix, ",")
    return [*lines, f"{indent}{closing}{tail}"]


def _flat(item: tuple[str, Container | str]) -> str:
    return f"{item[0]}{item[1]}"


def _parts(container: Container) -> tuple[str, str, list[tuple[str, Container | str]]]:
    """Opening and closing text, and what goes between: (prefix, child)."""
    children: Mapping[str, Container | str] = container.children
    if container.is_list:
        filled = range(max(map(int, children)) + 1)
        return "nn.ModuleList([", "])", [("", children.get(str(index), "nn.Identity()")) for index in filled]
    if all(name.isidentifier() and not keyword.iskeyword(name) for name in children):
        return "Container(", ")", [(f"{name}=", child) for name, child in children.items()]
    return "Container(**{", "})", [(f"{quoted(name)}: ", child) for name, child in children.items()]
