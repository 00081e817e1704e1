"""`couple` for a module of any class: its groups, found by running it."""

from __future__ import annotations

import hashlib
import weakref
from typing import Any

from torch import nn

from passes.coupling import Coupling, ModuleFacts
from passes.errors import PassError
from passes.module_inputs import Arguments, bound, described
from passes.module_stream import ModuleInferred, infer_module
from passes.reach import unused_axes
from passes.roles import names_of
from passes.skeleton import modules_of, owned_tensors
from passes.structure import Structure


def couple_module(module: nn.Module, example_inputs: Any) -> Coupling:
    """`couple` for a module."""
    if not isinstance(module, nn.Module):
        raise PassError(f"couple: got a {type(module).__name__}; expected a torch.nn.Module")
    arguments = bound(module, example_inputs)
    inferred = infer_module(module, arguments)
    coupling = resolved(module, inferred, arguments)
    remember_module(module, coupling)
    return coupling


def resolved(module: nn.Module, inferred: ModuleInferred, arguments: Arguments) -> Coupling:
    trainable = frozenset(name for name, _ in module.named_parameters(remove_duplicate=False))
    own = [name for name, first in inferred.canonical.items() if first == name]
    structure = Structure.of(inferred)
    for axis, reason in unused_axes(structure.tensors, [n for n in own if n in trainable], structure.records):
        inferred.space.freeze(axis, reason)
    structure = Structure.of(inferred)
    facts = ModuleFacts(real=inferred.real, specialised=tuple(inferred.specialised))
    return Coupling(
        structure, names_of(structure, own, trainable), module_fingerprint(module), described(arguments), {},
        inferred.canonical, trainable, module=facts,
    )  # fmt: skip


def module_fingerprint(module: nn.Module) -> str:
    """A digest of a module's classes and of its tensors' shapes: equal for equal networks, whatever the weights."""
    lines = [f"{path}|{type(part).__module__}.{type(part).__qualname__}" for path, part in modules_of(module).items()]
    lines += [f"{name}|{list(tensor.shape)}" for name, tensor in owned_tensors(module)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


_couplings: weakref.WeakKeyDictionary[nn.Module, tuple[Coupling, str]] = weakref.WeakKeyDictionary()


def remember_module(module: nn.Module, coupling: Coupling) -> None:
    """Keep the coupling of `module` for later passes."""
    _couplings[module] = coupling, module_fingerprint(module)


def recall_module(module: nn.Module) -> Coupling | None:
    """The coupling that was last found for `module`, unless its shape has changed since."""
    coupling, digest = _couplings.get(module, (None, ""))
    return coupling if digest == module_fingerprint(module) else None
