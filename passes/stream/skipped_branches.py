"""Modules that stand where a residual branch was taken out: plain data in place of a forward, which pickles keep.

A module that was no more than ``g(x + f(x))`` keeps its class and its attributes, and hands its argument on to what is
left of `g`. Where a module does more, those that its branch is made of are replaced by ones that give zero and can be
asked for the settings that they had.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from types import MethodType
from typing import Any, TypeAlias

import torch
from torch import nn

from passes.graph.left_behind import plain_of_class
from passes.graph.module_copies import OF_TORCH, PLAIN
from passes.process.torch_private import buffers_of, children_of, parameters_of, pytree
from passes.stream.head_attention import no_nested_tensors
from passes.stream.replicas import called_module


@dataclass(frozen=True)
class Given:
    """An argument of a forward, by its place among the positional ones (-1: a keyword) and by its name."""

    place: int
    name: str

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return kwargs[self.name] if self.name in kwargs else args[self.place]


@dataclass(frozen=True)
class Step:
    """What is left to do after the sum: a call of a module below by its path, or of an ATen operator.

    arguments: those of the operator behind the tensor.
    """

    module: str = ""
    operator: str = ""
    arguments: tuple[object, ...] = ()


class Result:
    """In a result, where the tensor goes."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Result)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Silenced:
    """A module that gives zero.

    given: the argument of whose type it is. result: what it returns, `Result` where the zero goes. whole: as a tensor
    of the shape of that argument; else as one number, which the sum spreads.
    """

    path: str
    given: Given
    result: object
    whole: bool = False


@dataclass(frozen=True)
class Shortened:
    """A module that was ``g(x + f(x))`` and is ``g(x)``: `given` is x, `steps` are g.

    result: what it returns, with `Result` where the tensor goes. gone: names, below the module, of modules and tensors
    that only `f` had.
    """

    path: str
    given: Given
    steps: tuple[Step, ...]
    result: object
    gone: tuple[str, ...] = ()


Detached: TypeAlias = Silenced | Shortened


_SETTINGS = PLAIN - {int, torch.Size}


class Silent(nn.Module):
    """Stands for a module whose output only a removed branch read.

    What programs ask a module for without calling it, flags, texts and real numbers, is as it was; its tensors are
    None, as the bias of a layer without one. It has no whole numbers: one may be a width, and nobody would cut it here
    any more, so a branch is not offered where the program reads some. A hook says that the module has to be called:
    who would hand its weights to a fused kernel instead, as torch's encoder layers do, asks for hooks first.
    """

    def __init__(self, silenced: Silenced, original: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(_settings_of(original))
        for name in parameters_of(original):
            self.register_parameter(name, None)
        for name in buffers_of(original):
            self.register_buffer(name, None)
        self._silenced, self._instead_of = silenced, type(original).__name__
        self.train(original.training)
        self.register_forward_pre_hook(_has_to_be_called)

    def forward(self, *args: object, **kwargs: object) -> object:
        """Zero."""
        like = self._silenced.given.of(args, kwargs)
        zero = torch.zeros_like(like) if self._silenced.whole else torch.zeros((), dtype=like.dtype, device=like.device)
        return _filled(self._silenced.result, zero)

    def extra_repr(self) -> str:
        return f"in place of {self._instead_of}"


def _settings_of(module: nn.Module) -> dict[str, object]:
    """The settings among the attributes of a module and of its class; a tensor that is an attribute is None."""
    held = {name: None if isinstance(value, torch.Tensor) else value for name, value in vars(module).items()}
    attributes = plain_of_class(type(module)) | {name: held[name] for name in held.keys() - OF_TORCH}
    return {name: value for name, value in attributes.items() if type(value) in _SETTINGS}


def _has_to_be_called(module: nn.Module, args: object) -> None:
    """Changes nothing."""


class WithoutBranch:
    """The forward of a shortened module."""

    def __init__(self, module: nn.Module, shortened: Shortened) -> None:
        self.module, self.shortened = module, shortened

    def __call__(self, *args: object, **kwargs: object) -> object:
        module = self.module
        if not torch.compiler.is_compiling():
            module = called_module(self, "forward", module, sys._getframe(1))
        value = self.shortened.given.of(args, kwargs)
        for step in self.shortened.steps:
            run = module.get_submodule(step.module) if step.module else _operator(step.operator)
            value = run(value, *step.arguments)
        return _filled(self.shortened.result, value)

    @property
    def _original(self) -> Callable[..., object]:
        return MethodType(type(self.module).forward, self.module)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._original)


def _filled(result: Any, value: torch.Tensor) -> Any:
    return pytree.tree_map(lambda leaf: value if isinstance(leaf, Result) else leaf, result)


def _operator(name: str) -> Any:
    return reduce(getattr, name.split("."), torch.ops)


def detach(root: nn.Module, detached: Detached) -> None:
    """Take a part of a branch out of a network, in place."""
    module = root.get_submodule(detached.path)
    if isinstance(detached, Silenced):
        above, _, name = detached.path.rpartition(".")
        holder = root.get_submodule(above)
        children_of(holder)[name] = Silent(detached, module)
        for part in root.modules():
            if isinstance(part, nn.TransformerEncoder) and any(inner is holder for inner in part.modules()):
                no_nested_tensors(part)
        return
    for name in detached.gone:
        path, _, last = name.rpartition(".")
        holder = module.get_submodule(path)
        for held in (parameters_of(holder), buffers_of(holder), children_of(holder)):
            if last in held:
                held[last] = None
    module.forward = WithoutBranch(module, detached)
