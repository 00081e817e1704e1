"""The masked original of a cut module, as it runs: removed units are zero, operators that mix see the others alone.

The axes of every tensor are inferred again while it runs, from those of the parameters that the coupling knows. So an
input of another length, a branch that another value takes and another mode are masked as well as the example was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from passes.analysis.coupling import Coupling
from passes.axes.expressions import Axis, Variable, leaves
from passes.axes.index_sets import Mask, survivors
from passes.errors import EquivalenceError
from passes.masked.cleared import cleared_arguments
from passes.ops import Record, Value, spelled, traits_of
from passes.ops.references import Masked, narrowed
from passes.process.torch_private import OpOverload, schema_of
from passes.stream.inference import tensors_in
from passes.stream.module_stream import ModuleInference

_LATER = 1 << 40  # new variables are numbered after those of the coupling, which therefore stay when two are tied


class MaskedInference(ModuleInference):
    """Runs a module whose removed units are zero, and corrects what operators that mix them give.

    removed_blocks: residual branches that add nothing to their sums. tape: whether the calls are kept. results: if set,
    what each call gave, the removed positions left out.
    """

    def __init__(
        self, coupling: Coupling, masks: Mapping[Variable, Mask], removed_blocks: Sequence[str] = (), tape: bool = False
    ) -> None:
        super().__init__(real=True)
        self.masks, self.tape = masks, tape
        self.results: list[tuple[object, str, list[torch.Tensor]]] | None = None
        self._branches = branch_places(coupling, removed_blocks)
        self._met: Counter[tuple[str, object]] = Counter()
        self.space.start_at(_LATER)
        self._summed = {v for found in coupling.unmasked.values() for v in found}
        self._summed |= {coupling.variables[g.name] for g in coupling.groups if g.mixed}

    def begin(self) -> None:
        """A run begins."""
        self._met.clear()

    def call(self, func, args, kwargs):
        before = len(self.records)
        operand = self._branch_of(func) if self._branches else None
        other = args[1 - operand].clone() if operand is not None else None
        kept = _copies_of_written(func, args) if schema_of(func).is_mutable else None
        result = super().call(func, args, kwargs)
        if len(self.records) == before:
            return result
        record, outputs = self.records[-1], _listed(result)
        if other is not None:
            outputs[0].copy_(other)
        if self._is_masked(record):
            self._correct(record, func, args if kept is None else kept, kwargs, outputs)
        if self.results is not None:
            left = [self._surviving(t, v) for t, v in zip(outputs, record.outputs, strict=True)]
            self.results.append((func, self.label(), left))
        if not self.tape:
            self.records.pop()
            self.values.clear()
        return result

    def _branch_of(self, func: object) -> int | None:
        """Which operand of the running call is the output of a removed branch, if it is one of these sums."""
        key = self.label(), func
        if key not in self._branches:
            return None
        self._met[key] += 1
        return self._branches[key].get(self._met[key] - 1)

    def constants_among(self, operands: Sequence[torch.Tensor]) -> dict[int, list[object]]:
        return super().constants_among(operands) if self.tape else {}

    def _is_masked(self, record: Record) -> bool:
        if self._mixes(record):
            return True
        return any(v in self.masks and v in self._summed for axis in record.contracted for v in leaves(axis))

    def _mixes(self, record: Record) -> bool:
        """Whether statistics are taken over units of which the coupling says so: over others, which only this run
        has (a branch that the analysis has not seen), zeros count and the cut module differs."""
        pruned = [axis for axis in record.mixed if narrowed(axis, self.masks)]
        return any(v in self._summed for axis in pruned for v in leaves(axis) if v in self.masks)

    def _correct(self, record: Record, func: OpOverload, args: tuple, kwargs: dict[str, object], outputs: list) -> None:
        """Overwrite what a call gave with what it gives on the surviving positions."""
        if self._mixes(record):
            reference = traits_of(func).reference
            if reference is None:
                raise EquivalenceError(
                    f"{spelled(func)} mixes a pruned axis at {self.label()} ({self.source()}), and no reference says "
                    "what it should give"
                )
            found = reference(Masked(func, args, kwargs, record, self.masks))
        else:
            summed = {v for axis in record.contracted for v in leaves(axis)} & self._summed
            given = cleared_arguments(args, kwargs, record, self.masks, summed)
            if given is None:
                return
            found = func(*given[0], **given[1])
        for tensor, right in zip(outputs, _listed(found), strict=False):
            tensor.copy_(right)

    def _surviving(self, tensor: torch.Tensor, value: Value) -> torch.Tensor:
        for dim, axis in enumerate(value.axes):
            if narrowed(axis, self.masks):
                index = torch.from_numpy(survivors(axis, self.masks).nonzero()[0])
                tensor = tensor.index_select(dim, index.to(tensor.device))
        return tensor.detach().clone()

    def bound_since(self, axes: list[Axis]) -> list[Variable]:
        """Units that this run ties to others although the coupling keeps them apart."""
        known = {v for axis in axes for v in leaves(axis)}
        return [v for v in known if self.space.resolve(v) is not v]


def branch_places(coupling: Coupling, removed_blocks: Sequence[str]) -> dict[tuple[str, object], dict[int, int]]:
    """By the label and operator of a call, and by how many such came before it, the operand that is a branch."""
    blocks = {block.sum: block.operand for block in (coupling.blocks[name] for name in removed_blocks)}
    met: Counter[tuple[str, object]] = Counter()
    found: dict[tuple[str, object], dict[int, int]] = {}
    for number, record in enumerate(coupling.structure.records if blocks else ()):
        key = record.node, record.func
        if number in blocks:
            found.setdefault(key, {})[met[key]] = blocks[number]
        met[key] += 1
    return found


def _listed(result: object) -> list[torch.Tensor]:
    return tensors_in(*result) if isinstance(result, (tuple, list)) else tensors_in(result)


def _copies_of_written(func: OpOverload, args: tuple) -> tuple | None:
    """The arguments of a call that writes into some, with copies of those: to run it again on what they held."""
    written = [
        number
        for number, formal in enumerate(schema_of(func).arguments)
        if formal.alias_info is not None and formal.alias_info.is_write and number < len(args)
    ]
    if torch.Tag.pointwise in func.tags or not written:
        return None
    return tuple(arg.clone() if n in written and isinstance(arg, torch.Tensor) else arg for n, arg in enumerate(args))
