"""What an analysing run asks of an operator at each of its calls, looked up once a call.

Tables that are keyed by operators are slow to ask: the hash of an operator is Python code of torch. A run makes
thousands of calls of few operators, and asks several such tables at each.
"""

from __future__ import annotations

from typing import Any

import torch

from passes.ops.call import signature, spelled
from passes.ops.table import find, known_facts, traits_of
from passes.process.torch_private import OpOverload, schema_of

aten = torch.ops.aten
NUMBER = aten._local_scalar_dense.default
_INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor}
_VALUES = {NUMBER, aten.is_nonzero.default, aten.equal.default}
_SILENT = {aten.sym_size.int, aten.sym_numel.default, aten._version.default}


class Facts:
    """What is known of one operator.

    is_silent: its calls say nothing of axes, as it asks for sizes alone. is_indexing: tensors among its arguments are
    positions. asks_values: it gives numbers to the program, which the meta device does not hold. is_view_in_place: it
    sees its operand otherwise and changes no number (``squeeze_``).
    """

    __slots__ = (
        "asks_values", "func", "is_indexing", "is_mutable", "is_silent", "is_view_in_place", "rule", "signature",
        "spelled", "traits",
    )  # fmt: skip

    def __init__(self, func: OpOverload) -> None:
        self.func, self.spelled, self.signature = func, spelled(func), signature(func)
        self.rule, self.traits = find(func), traits_of(func)
        self.is_silent = func in _SILENT or func.namespace == "prim"
        self.is_indexing, self.asks_values = func in _INDEXING, func in _VALUES
        self.is_mutable: bool = schema_of(func).is_mutable
        self.is_view_in_place = torch.Tag.inplace_view in func.tags

    def run_on_meta(self, args: tuple[object, ...], kwargs: dict[str, object]) -> Any:
        """The operator's result for its shapes: as its trait `meta` says, or else torch."""
        meta = self.traits.meta
        found = None if meta is None else meta(*args, **kwargs)
        return self.func(*args, **kwargs) if found is None else found


def facts_of(func: OpOverload) -> Facts:
    """What is known of `func`; made anew after rules or traits were stated."""
    known: Facts | None = known_facts.get(id(func))  # which keeps `func`, so that no other object has its id
    if known is None:
        known = known_facts[id(func)] = Facts(func)
    return known
