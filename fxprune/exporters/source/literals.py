"""Python values and functions as source text, and the imports that the text needs."""

from __future__ import annotations

import builtins
import enum
import math
import operator
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fxprune.errors import ExportError
from passes.process.torch_private import OpOverload, OpOverloadPacket

# Where torch's functions are looked up, the name that people write first.
_TORCH_HOMES: tuple[tuple[str, object], ...] = (
    ("F", F),
    ("torch", torch),
    ("torch.special", torch.special),
    ("torch.linalg", torch.linalg),
    ("torch.fft", torch.fft),
    ("torch.Tensor", torch.Tensor),
    ("nn.init", nn.init),
    ("torch.utils.checkpoint", sys.modules.get("torch.utils.checkpoint")),
)
_NOT_EXPORTABLE = ("fxprune", "passes", "__main__")


@dataclass
class Imports:
    """The import statements of one source file, gathered while its expressions are written."""

    modules: set[str] = field(default_factory=set)
    names: dict[str, str] = field(default_factory=dict)
    functional: bool = False

    def module(self, name: str) -> str:
        """Import a module of the standard library and return how to call it."""
        self.modules.add(name)
        return name

    def torch_home(self, home: str) -> str:
        """Note the use of one of torch's namespaces."""
        if home == "F":
            self.functional = True
        elif home == "torch.utils.checkpoint":
            self.modules.add(home)
        return home

    def foreign(self, target: object, what: str) -> str:
        """Import a class or function of another package from where it is defined; ExportError where that cannot be."""
        module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", "")
        if not module or not name:
            raise ExportError(f"{what}: {target!r} has no module and name to import it by")
        if module.split(".")[0] in _NOT_EXPORTABLE:
            raise ExportError(
                f"{what}: {name} is defined in {module}, which a source file that stands alone cannot import; "
                "move it into a module of your own, or let capture trace through it"
            )
        top, *rest = name.split(".")
        found = getattr(sys.modules.get(module), top, None)
        for part in rest:
            found = getattr(found, part, None)
        if found is not target:
            raise ExportError(f"{what}: {module}.{name} cannot be imported; define it at the top of a module")
        known = self.names.setdefault(top, module)
        if known != module:
            raise ExportError(f"{what}: two different {top} are needed, of {known} and {module}; rename one")
        return name

    def lines(self) -> list[str]:
        """The statements that torch and foreign names need, in isort's order."""
        plain = sorted(self.modules - {"math", "operator"} | {"torch"})
        after = ["import torch.nn.functional as F"] if self.functional else []
        statements = [(name, f"import {name}") for name in plain] + [("torch.nn.functional", line) for line in after]
        straight = [line for _, line in sorted(statements)]
        gathered: dict[str, list[str]] = {"torch": ["nn"]}
        for name, module in self.names.items():
            gathered.setdefault(module, []).append(name)
        return [
            *straight,
            *(f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(gathered.items())),
        ]

    def standard(self) -> list[str]:
        """The statements for the standard library."""
        return [f"import {name}" for name in sorted(self.modules & {"math", "operator"})]


def literal(value: object, imports: Imports, what: str) -> str:
    """The value as an expression; `what` names the place for the error of a value that has none."""
    if isinstance(value, enum.Enum):
        return f"{imports.foreign(type(value), what)}.{value.name}"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return quoted(value)
    if value is None or isinstance(value, bool | int | bytes):
        return repr(value)
    if value is Ellipsis:
        return "..."
    if isinstance(value, float):
        return _float(value, imports)
    if isinstance(value, complex):
        return f"complex({_float(value.real, imports)}, {_float(value.imag, imports)})"
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
        return str(value)
    if isinstance(value, torch.device):
        return f"torch.device({quoted(str(value))})"
    if isinstance(value, slice):
        parts = (literal(part, imports, what) for part in (value.start, value.stop, value.step))
        return f"slice({', '.join(parts)})"
    if isinstance(value, range):
        return f"range({value.start}, {value.stop}, {value.step})"
    if isinstance(value, list | tuple | dict | set | frozenset):
        return sequence(value, lambda item: literal(item, imports, what), imports, what)
    if callable(value):
        return function_name(value, imports, what)
    raise ExportError(f"{what}: a {type(value).__name__} cannot be written as Python source")


def quoted(text: str) -> str:
    """A string literal, in double quotes where that needs no escapes."""
    plain = repr(text)
    return f'"{plain[1:-1]}"' if plain[0] == "'" and '"' not in plain else plain


def sequence(value: Iterable[object], render: Callable[[object], str], imports: Imports, what: str) -> str:
    """A list, tuple (named or torch.Size too), dict or set, its items written by `render`."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(key, imports, what)}: {render(item)}" for key, item in value.items()) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(render, value))) + "}" if value else "set()"
    items = [render(item) for item in value]
    if isinstance(value, list):
        return f"[{', '.join(items)}]"
    if hasattr(value, "_fields"):
        return f"{imports.foreign(type(value), what)}({', '.join(items)})"
    text = f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    return f"torch.Size({text})" if isinstance(value, torch.Size) else text


def function_name(target: Callable[..., object], imports: Imports, what: str) -> str:
    """How to call a function or class in source: a name of torch, the standard library, or the package it is from."""
    if isinstance(target, OpOverload | OpOverloadPacket):
        return _operator_name(target, what)
    name = getattr(target, "__name__", "")
    if getattr(builtins, name, None) is target:
        return name
    for module in (operator, math):
        if getattr(module, name, None) is target:
            return f"{imports.module(module.__name__)}.{name}"
    if isinstance(target, type) and getattr(nn, name, None) is target:
        return f"nn.{name}"
    for home, namespace in _TORCH_HOMES:
        # What stands at torch.linalg.norm calls itself linalg_norm.
        for short in (name, name.removeprefix(f"{home.rpartition('.')[2]}_")):
            if namespace is not None and getattr(namespace, short, None) is target:
                return f"{imports.torch_home(home)}.{short}"
    return imports.foreign(target, what)


def _operator_name(target: object, what: str) -> str:
    namespace = str(target).split(".")[0]
    if namespace not in ("aten", "prims", "prim"):
        raise ExportError(f"{what}: {target} belongs to {namespace}, which plain torch does not have")
    return f"torch.ops.{target}"


def _float(value: float, imports: Imports) -> str:
    if math.isfinite(value):
        return repr(value)
    constant = "nan" if math.isnan(value) else "inf"
    return f"{'-' if value < 0 else ''}{imports.module('math')}.{constant}"
