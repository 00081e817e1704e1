"""What `train` may do to a network: train its weights in place. What else it changed could not be in the result, which
is built anew of the program that was handed in and of the weights and buffers that were trained."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxprune.errors import InputError
from fxprune.io.sample import give_the_same
from fxprune.io.tensors import buffer_places, named_tensors, put_tensors
from fxprune.training.own_forwards import REMEDY, own_forwards
from passes.documents.described_values import Described
from passes.equality.comparison import all_finite, readable
from passes.graph.module_copies import PLAIN
from passes.process.torch_private import buffers_of, hooks_of
from passes.stream.network_copies import clone

_WRONG = "{} changed the network itself: {}; it must train its weights in place."


@dataclass(frozen=True)
class Untrained:
    """A network before it is trained.

    described: the shape and type of each of its parameters, and whether it was to be trained; None for a buffer, which
    holds what any call of the network leaves there. kept: the names of the buffers that a state_dict holds. program: a
    copy of its modules with the network's own parameters and buffers; None where nothing says what they take.
    """

    described: Mapping[str, tuple | None]
    kept: frozenset[str]
    program: nn.Module | None
    inputs: Sequence[Described]

    @classmethod
    def of(cls, network: nn.Module, inputs: Sequence[Described] = ()) -> Untrained:
        """inputs: those of `Plan.inputs`, on which the program is run."""
        places = buffer_places(network)
        described = {
            **dict.fromkeys(places),
            **{n: (p.shape, p.dtype, p.requires_grad) for n, p in network.named_parameters(remove_duplicate=False)},
        }
        kept = frozenset(
            name for name, (module, attribute) in places.items()
            if buffers_of(module)[attribute] is not None
            and attribute not in getattr(module, "_non_persistent_buffers_set", ())
        )  # fmt: skip
        own = (tensor for _, tensor in named_tensors(network))
        return cls(described, kept, clone(network, own) if inputs else None, inputs)

    def check(self, network: nn.Module, doing: str = "train") -> None:
        """Refuse a network that `doing` made another, or whose weights it drove to NaN: no later round could use it."""
        self.check_tensors(network, doing)
        self._check_numbers(network)
        if self.program is None:
            return
        for parameter in network.parameters():
            parameter.grad = None  # no longer needed, and not to be copied
        put_tensors(self.program, dict(named_tensors(network)))
        with own_forwards(network, self.program):
            if not give_the_same(network, self.program, self.inputs):
                raise InputError(
                    f"{doing} changed something that no weight and no buffer holds: "
                    f"{_difference(self.program, network)}. The score would count it, and the result could not have "
                    "it. Keep it in a parameter or in a buffer of the model, or set it before the search."
                )

    def check_tensors(self, network: nn.Module, doing: str) -> None:
        """Refuse a network whose parameters are others than they were, or whose norms lost their statistics."""
        after = dict(named_tensors(network))
        for name, described in self.described.items():
            if described is None:
                if name in self.kept and name not in after:
                    raise InputError(_WRONG.format(doing, f"the buffer {name} is gone, or None"))
                continue
            if name not in after:
                raise InputError(_WRONG.format(doing, f"{name} is gone"))
            (shape, dtype, _), tensor = described, after[name]
            if (tensor.shape, tensor.dtype) != (shape, dtype):
                differs = f"shape {tuple(tensor.shape)}, had {tuple(shape)}"
                if tensor.shape == shape:
                    differs = f"type {tensor.dtype}, had {dtype}"
                raise InputError(_WRONG.format(doing, f"{name} has {differs}"))
            if tensor.is_meta:
                raise InputError(_WRONG.format(doing, f"{name} is on the meta device, without values"))
        if added := [name for name in after if name not in self.described]:
            raise InputError(_WRONG.format(doing, f"{added[0]} is new"))

    def _check_numbers(self, network: nn.Module) -> None:
        for name, tensor in network.named_parameters(remove_duplicate=False):
            described = self.described[name]
            if described is not None and described[2] and not all_finite(readable(tensor)):
                raise InputError(
                    f"training diverged: {name} holds NaN or infinity; lower the learning rate (netadapt_lr)."
                )


def _difference(program: nn.Module, network: nn.Module) -> str:
    """What two copies of one network have that is not alike, in words."""
    before, after = (dict(one.named_modules(remove_duplicate=False)) for one in (program, network))
    for path, module in after.items():
        where, known = path or "the network", before.get(path)
        if known is None:
            return f"{where} ({type(module).__name__}) is new"
        if type(module).__qualname__ != type(known).__qualname__:
            return f"{where} is a {type(module).__name__}, was a {type(known).__name__}"
        if ("forward" in vars(module)) != ("forward" in vars(known)):
            return f"{where}.forward is another function; {REMEDY}"
        if len(hooks_of(module)) != len(hooks_of(known)):
            return f"{where} has {len(hooks_of(module))} hooks around its forward, had {len(hooks_of(known))}"
        prefix = f"{path}." if path else ""
        for name, value in vars(module).items():
            if name.startswith("_") or name == "training":
                continue
            old = vars(known).get(name)
            if _differs(old, value):
                return f"{prefix}{name} is {_shown(value)}, was {_shown(old)}"
    if gone := [path for path in before if path not in after]:
        return f"{gone[0]} is gone"
    return "something in its objects or in its code (no attribute of a module that could be named)"


def _differs(old: object, new: object) -> bool:
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return old.shape != new.shape or old.dtype != new.dtype or not torch.equal(old, new)
    if type(old) is not type(new):
        return True
    if isinstance(new, types.FunctionType | types.BuiltinFunctionType):
        return new is not old
    plain = type(new) in PLAIN or (isinstance(new, tuple | list) and PLAIN.issuperset(map(type, new)))
    return plain and new != old


def _shown(value: object) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:80]
