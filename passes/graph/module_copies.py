"""A copy of a GraphModule's modules in which every tensor is replaced: on meta, in float64, or sliced.

As with `copy.deepcopy`, a memo is asked first; filling it with replacements copies the modules, shared and nested ones
included, without ever touching the weights.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, TypeGuard

import torch
from torch import nn

from passes.errors import PassError
from passes.process.torch_private import children_of

# What holds no tensor, and is nothing to copy or to trace.
PLAIN = frozenset({int, float, str, bool, type(None), torch.Size, torch.dtype})
OF_TORCH = frozenset(nn.Module().__dict__) | {"_call_impl", "call_super_init", "dump_patches"}  # no state of a program
_EMPTIED = frozenset({dict, OrderedDict, set, list})
TENSORS = frozenset({torch.Tensor, nn.Parameter})
_NO_TENSORS = PLAIN | _EMPTIED | {tuple}  # asked first: isinstance of a tensor runs Python


def evaluate_mode(network: nn.Module) -> nn.Module:
    """The network, put in eval mode. What torch.export gives refuses `eval()`, and has one mode alone."""
    try:
        return network.eval()
    except NotImplementedError:
        for module in network.modules():
            module.training = False
        return network


def owned_tensors(root: nn.Module, skipped: Mapping[int, object] | None = None) -> list[tuple[str, torch.Tensor]]:
    """Every parameter, buffer and plain tensor attribute below `root` with its qualified name; tied ones repeat.

    skipped: the ids of modules to leave out.
    """
    found: list[tuple[str, torch.Tensor]] = []
    _add_tensors(root, "", skipped or {}, found)
    return found


def _add_tensors(
    module: nn.Module, prefix: str, skipped: Mapping[int, object], found: list[tuple[str, torch.Tensor]]
) -> None:
    for held in (_kept(module, "_parameters"), _kept(module, "_buffers"), module.__dict__):
        if held and not _NO_TENSORS.issuperset(map(type, held.values())):
            for name, value in held.items():
                if type(value) in TENSORS or (type(value) not in _NO_TENSORS and isinstance(value, torch.Tensor)):
                    found.append((prefix + name, value))
    for name, child in _kept(module, "_modules").items():
        if child is not None and id(child) not in skipped:
            _add_tensors(child, f"{prefix}{name}.", skipped, found)


def _kept(module: nn.Module, kind: str) -> Mapping[str, Any]:
    """The parameters, buffers or children of `module`; one that torch.jit.trace made keeps them outside of Python."""
    found: Mapping[str, object] | None = module.__dict__.get(kind)
    return found if found is not None else dict(getattr(module, kind).items())


def attributes_of(modules: Mapping[str, nn.Module], kinds: tuple[type, ...]) -> Iterator[tuple[str, Any]]:
    """Plain attributes of these classes (tensors, or what holds some) with their qualified names."""
    for path, module in modules.items():
        attributes = module.__dict__
        if not _NO_TENSORS.issuperset(map(type, attributes.values())):
            for name, value in attributes.items():
                if type(value) not in _NO_TENSORS and isinstance(value, kinds):
                    yield f"{path}.{name}" if path else name, value


def modules_of(root: nn.Module) -> dict[str, nn.Module]:
    """Every module by its path, `root` by ""; a shared one by each of its paths."""
    found: dict[str, nn.Module] = {"": root}
    _add_modules(children_of(root), "", found)
    return found


def _add_modules(children: Mapping[str, nn.Module | None], prefix: str, found: dict[str, nn.Module]) -> None:
    for name, child in children.items():
        if child is not None:
            path = prefix + name
            found[path] = child
            if below := children_of(child):
                _add_modules(below, path + ".", found)


def parameters_of(root: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Every parameter below `root` with its qualified name; a shared one by each of its names."""
    return parameters_among(modules_of(root))


def parameters_among(modules: Mapping[str, nn.Module]) -> list[tuple[str, torch.Tensor]]:
    """Every parameter of these modules, by path, with its qualified name."""
    return [
        (f"{path}.{name}" if path else name, tensor)
        for path, module in modules.items()
        for name, tensor in _kept(module, "_parameters").items()
        if tensor is not None
    ]


def shell(gm: nn.Module) -> nn.Module:
    """A plain module with the children, parameters and attributes of `gm`, without its graph and code."""
    plain = nn.Module()
    skip = {"_graph", "_code", "meta", "_replace_hooks", "_create_node_hooks", "_erase_node_hooks", "_deepcopy_hooks"}
    plain.__dict__.update({k: v for k, v in gm.__dict__.items() if k not in skip})
    return plain


Replace = Callable[[str, torch.Tensor], torch.Tensor]


class Copies:
    """Copies of the modules below `root`, each made when it is asked for.

    Every tensor is replaced by ``replace(name, tensor)``, by its first name; tied tensors stay tied.
    instead: by the id of an object below the root, what stands for it in every copy.
    """

    def __init__(self, root: nn.Module, replace: Replace, instead: Mapping[int, object] | None = None) -> None:
        self._memo: dict[int, Any] = dict(instead or {})
        self.names: dict[str, str] = {}  # the first name of each
        first: dict[int, str] = {}
        for name, tensor in owned_tensors(root, self._memo):
            self.names[name] = first.setdefault(id(tensor), name)
            if id(tensor) not in self._memo:
                self._memo[id(tensor)] = replace(name, tensor)

    def tensor(self, original: torch.Tensor | None) -> torch.Tensor | None:
        """What `original`, owned by some module below the root, is replaced by."""
        return None if original is None else self._memo[id(original)]

    def module(self, original: nn.Module) -> nn.Module:
        """The copy of `original`, the same one each time."""
        return _copied(original, self._memo)

    def attributes(self, original: nn.Module) -> dict[str, object]:
        """Copies of the attributes of `original`, in which what `instead` named stands for it."""
        for child in original.children():
            self.module(child)
        found = {name: copied_or_shared(value, self._memo) for name, value in vars(original).items()}
        found.pop(_COMPILED, None)
        return found


def copy_with(gm: nn.Module, replace: Replace) -> nn.Module:
    """Copy the modules of `gm` with each tensor replaced by ``replace(name, tensor)``; tied tensors stay tied."""
    return copy_module(shell(gm), replace)


def copy_module(module: nn.Module, replace: Replace) -> nn.Module:
    """A copy of a module of any class, with each tensor replaced as `copy_with` does."""
    return Copies(module, replace).module(module)


# What `module.compile()` leaves: a function of the original's code and weights, which deepcopy leaves out too.
_COMPILED = "_compiled_call_impl"
_OWN_COPYING = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__")


def _copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """What ``copy.deepcopy(module, memo)`` gives, without its detours for what modules mostly hold."""
    known = memo.get(id(module))
    if known is not None:
        return known
    kind: Any = type(module)
    if not copies_as_module(kind) or "__deepcopy__" in module.__dict__:
        return _copied_by_itself(module, memo)
    made: nn.Module = kind.__new__(kind)
    memo[id(module)] = made
    attributes = made.__dict__
    attributes.update(module.__dict__)
    attributes.pop(_COMPILED, None)
    for name, value in module.__dict__.items():
        kind = type(value)
        if kind in PLAIN or name == _COMPILED:
            continue
        if kind in _EMPTIED and not value:
            value = kind()
        elif name == "_modules":
            value = {key: None if child is None else _copied(child, memo) for key, child in value.items()}
        elif name in ("_parameters", "_buffers"):
            value = {key: None if tensor is None else memo[id(tensor)] for key, tensor in value.items()}
        elif name == "_non_persistent_buffers_set":
            value = value.copy()
        elif kind is tuple and PLAIN.issuperset(map(type, value)):
            continue
        else:
            value = copied_or_shared(value, memo)
        attributes[name] = value
    return made


def _copied_by_itself(module: nn.Module, memo: dict[int, object]) -> nn.Module:
    try:
        with torch.no_grad():  # a scripted module clones its parameters, which would be no leaves
            made: nn.Module = copy.deepcopy(module, memo)
        if isinstance(module, torch.jit.ScriptModule):
            for own, other in zip(module.parameters(), made.parameters(), strict=True):
                other.requires_grad_(own.requires_grad)
        return made
    except PassError:
        raise
    except Exception as error:  # the module's own copying may raise anything
        raise PassError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}), and every analysis runs on a "
            "copy; have its __deepcopy__, __getstate__ or __reduce__ give one"
        ) from error


def copied_or_shared(value: object, memo: dict[int, object]) -> Any:
    """A deep copy of an attribute; a lock, a file or what else refuses to be copied is shared."""
    if is_plain_list(value):  # each convolution has one
        return memo[id(value)] if id(value) in memo else memo.setdefault(id(value), value.copy())
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # an object's own copying may raise anything, and none of them holds the module's weights
        return value


def is_plain_list(value: object) -> TypeGuard[list[Any]]:
    """Whether `value` is a list of numbers, texts and the like, which hold nothing."""
    return type(value) is list and PLAIN.issuperset(map(type, value))


@cache
def copies_as_module(kind: type[nn.Module]) -> bool:
    """Whether modules of this class are copied attribute by attribute, and not by a method of their own."""
    changed = [name for name in _OWN_COPYING if getattr(kind, name, None) is not getattr(nn.Module, name, None)]
    # Those of torch's layers add what old checkpoints lack; that of recurrent ones refers to the weights anew.
    settled = kind.__setstate__.__module__.startswith("torch.nn.modules.") and not issubclass(kind, nn.RNNBase)
    return not changed or (changed == ["__setstate__"] and settled)


def like(tensor: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """`data` as a parameter where `tensor` is one, with its `requires_grad`."""
    kind = type(tensor)
    if kind is nn.Parameter or (kind is not torch.Tensor and isinstance(tensor, nn.Parameter)):  # which runs Python
        differentiable = data.is_floating_point() or data.is_complex()
        return nn.Parameter(data, requires_grad=tensor.requires_grad and differentiable)
    return data
