"""What inference found, resolved: the axes of every tensor and the tape of operator calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from passes.axes import Axis, Mask, Variable, rename
from passes.infer import Inferred
from passes.ops import Record, Value


@dataclass(frozen=True)
class Structure:
    """Axes of tensors by name, of node results by node, the tape of operator calls, and node results on meta."""

    tensors: Mapping[str, tuple[Axis, ...]]
    values: Mapping[str, Any]
    records: tuple[Record, ...]
    vals: Mapping[str, Any]

    @classmethod
    def of(cls, inferred: Inferred) -> Structure:
        """Resolve every axis of an inference."""
        found = cls(inferred.tensors, inferred.values, tuple(inferred.records), inferred.vals)
        return found._map(inferred.space.resolve)

    def renamed(
        self, new: Mapping[Variable, Axis], keep: Mapping[Variable, Mask], numbers: Mapping[str, Any]
    ) -> Structure:
        """The structure after pruning: variables replaced by smaller ones, nodes of `numbers` by these."""
        def shrink(val: Any, value: Any) -> Any:
            if not isinstance(value, Value):
                return val
            return torch.empty([a.size for a in value.axes], dtype=val.dtype, device="meta")

        found = self._map(lambda axis: rename(axis, new, keep))
        vals = {name: map_together(shrink, val, found.values[name]) for name, val in self.vals.items()}
        return replace(found, vals={**vals, **numbers})

    def _map(self, function: Callable[[Axis], Axis]) -> Structure:
        known: dict[int, Axis] = {}  # by identity: many tensors share an axis, and to hash a long sum takes time

        def change(axis: Axis) -> Axis:
            made = known.get(id(axis))
            if made is None:
                made = known[id(axis)] = function(axis)
            return made

        def value(v: Value) -> Value:
            return replace(v, axes=tuple(map(change, v.axes)))

        records = tuple(
            replace(
                r,
                inputs=[value(v) for v in r.inputs],
                outputs=[value(v) for v in r.outputs],
                contracted=[change(a) for a in r.contracted],
                mixed=[change(a) for a in r.mixed],
                macs=[tuple(map(change, m)) for m in r.macs],
                literals={k: change(a) for k, a in r.literals.items()},
            )
            for r in self.records
        )
        return Structure(
            {name: tuple(map(change, axes)) for name, axes in self.tensors.items()},
            {name: pytree.tree_map_only(Value, value, v) for name, v in self.values.items()},
            records,
            self.vals,
        )


def map_together(function: Callable[[Any, Any], Any], first: Any, second: Any) -> Any:
    """``function(a, b)`` for the leaves of two trees of one shape, arranged as the first."""
    leaves, spec = pytree.tree_flatten(first)
    return pytree.tree_unflatten(map(function, leaves, pytree.tree_leaves(second)), spec)
