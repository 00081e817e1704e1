"""What a module calls, written down without computing it: which runs of a proof would repeat others.

On the meta device a run of any network takes a fraction of a second. Two runs that make the same calls, on what the
same calls gave, compute the same function: in train mode as in evaluation, on a long input as on a short one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from passes.ops import Value
from passes.ops.facts import COPIES, VIEWS
from passes.process.torch_private import no_dispatch_modes
from passes.stream.call_arguments import Arguments, replaced, tensors_of
from passes.stream.module_run import analysing_run
from passes.stream.module_stream import Watching

aten = torch.ops.aten


@dataclass(frozen=True)
class Call:
    """One call of an ATen operator.

    operands: names of tensors of the module, numbers of inputs and of the calls that gave the others. plain: arguments
    that are no sizes, and what constants of the program hold. sizes: whole numbers, which inputs of another size and
    cut widths change.
    """

    func: object
    operands: tuple[str, ...]
    plain: tuple[object, ...] = field(repr=False)
    sizes: tuple[int, ...] = field(repr=False)

    @property
    def at_any_size(self) -> tuple[object, tuple[str, ...]]:
        """What does not depend on sizes."""
        return self.func, self.operands

    @property
    def at_any_width(self) -> tuple[object, tuple[str, ...], tuple[object, ...]]:
        """What does not depend on the sizes of the module's tensors."""
        return self.func, self.operands, self.plain


Calls = Sequence[Call]


class MetaRuns:
    """A module that can be run on the meta device, as often as wanted."""

    def __init__(self, module: nn.Module) -> None:
        self._run = analysing_run(module, real=False)

    def calls(self, arguments: Arguments, training: bool = False, gradients: bool = False) -> Calls | None:
        """What it calls on these arguments; None where it does not run on them there."""
        mode = _Tape()
        try:
            self._run.again(mode, arguments, training, gradients=gradients)
        except Exception:  # what a module raises at a size, or in a mode, that it does not take, or for want of values
            return None
        return mode.calls


def in_types_of(arguments: Arguments, drawn: object) -> Arguments:
    """What was drawn, in the types of the example."""
    pairs = zip(tensors_of(arguments), tensors_of(drawn), strict=True)
    made: Arguments = replaced(drawn, {id(there): there.to(here.dtype) for here, there in pairs})
    return made


def of_any_size(calls: Calls | None) -> list[object] | None:
    """A run, without what another size of the inputs changes."""
    return None if calls is None else [call.at_any_size for call in calls]


def of_any_width(calls: Calls | None) -> list[object] | None:
    """A run, without what cut widths change."""
    return None if calls is None else [call.at_any_width for call in calls]


class _Tape(Watching):
    def __init__(self) -> None:
        super().__init__(real=False)
        self.calls: list[Call] = []
        self._inputs = 0

    def attach(self, tensor: torch.Tensor, value: Value) -> None:
        if value.label == "input":
            self._inputs += 1
            value = Value(f"input {self._inputs}", ())
        super().attach(tensor, value)

    def watch(self, func, args, kwargs, operands, outputs) -> None:
        labels, constants = [], []
        for tensor in operands:
            value = self.value(tensor)
            computed = value.label.startswith(("#", "input ")) or value.parameters
            labels.append(value.label if computed else "constant")
            if not computed:
                with no_dispatch_modes():  # what is looked at here is no call of the program
                    constants.append(_content(tensor))
        label = f"#{labels[0].lstrip('#')}" if func in COPIES and labels else f"#{len(self.calls)}"
        if func not in COPIES:
            given = list(_arguments(args, kwargs))
            sizes = [v for v in given if type(v) is int and torch.Tag.pointwise not in func.tags]
            plain = [v for v in given if type(v) is not int or torch.Tag.pointwise in func.tags]
            func = aten.view.default if func in VIEWS else func
            self.calls.append(Call(func, tuple(labels), (*plain, *constants), tuple(sizes)))
        for number, tensor in enumerate(outputs):
            if not any(tensor is operand for operand in operands):
                self.attach(tensor, Value(f"{label}.{number}", ()))


def _arguments(args: Iterable[object], kwargs: Mapping[str, object]) -> Iterator[object]:
    """The arguments of a call that are no tensors, lists taken apart."""
    for value in (*args, *(part for item in sorted(kwargs.items()) for part in item)):
        if isinstance(value, (tuple, list)):
            yield from _arguments(value, {})
        elif not isinstance(value, (torch.Tensor, torch.device)):
            yield value


def _content(tensor: torch.Tensor) -> object:
    """What distinguishes a constant from another one."""
    if tensor.is_meta:
        return tuple(tensor.shape)
    data = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(data.view(torch.uint8).numpy().tobytes()).hexdigest() if data.numel() else ""
