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
VIEWS = frozenset({aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default, aten.alias.default})
# Whether reshape copies is a matter of strides, and whether something is detached one of the mode of gradients.
COPIES = frozenset({aten.clone.default, aten.alias.default, aten.detach.default})
NUMBER = aten._local_scalar_dense.default
_INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor}
_VALUES = {NUMBER, aten.is_nonzero.default, aten.equal.default}
_SILENT = {aten.sym_size.int, aten.sym_numel.default, aten._version.default}


class Facts:
    """What is known of one operator.

    is_silent: its calls say nothing of axes, as it asks for sizes alone. is_indexing: tensors among its arguments are
    positions. is_copy, is_view: it is one of `COPIES`, of `VIEWS`. asks_values: it gives numbers to the program, which
    the meta device does not hold. is_view_in_place: it sees its operand otherwise and changes no number (``squeeze_``).
    places_of_numbers: where among its arguments numbers may stand that it computes with, which are no sizes, each with
    its name. roles: those of `Traits`, each with the place and the name of its argument.
    """

    __slots__ = (
        "asks_values", "func", "is_copy", "is_indexing", "is_mutable", "is_silent", "is_view", "is_view_in_place",
        "places_of_numbers", "roles", "rule", "signature", "spelled", "traits",
    )  # fmt: skip

    def __init__(self, func: OpOverload) -> None:
        self.func, self.spelled, self.signature = func, spelled(func), signature(func)
        self.rule, self.traits = find(func), traits_of(func)
        self.is_silent = func in _SILENT or func.namespace == "prim"
        self.is_copy, self.is_view = func in COPIES, func in VIEWS
        self.is_indexing, self.asks_values = func in _INDEXING, func in _VALUES
        self.is_mutable: bool = schema_of(func).is_mutable
        self.is_view_in_place = torch.Tag.inplace_view in func.tags
        self.places_of_numbers = _places_of_numbers(func)
        names = self.signature[0]
        self.roles = [(names.index(n), n, role) for n, role in (self.traits.roles or {}).items() if n in names]

    def run_on_meta(self, args: tuple[object, ...], kwargs: dict[str, object]) -> Any:
        """The operator's result for its shapes: as its trait `meta` says, or else torch."""
        meta = self.traits.meta
        found = None if meta is None else meta(*args, **kwargs)
        return self.func(*args, **kwargs) if found is None else found


def _places_of_numbers(func: OpOverload) -> tuple[tuple[int, str], ...]:
    arguments = schema_of(func).arguments
    kinds = [str(formal.type).removeprefix("Optional[") for formal in arguments]
    return tuple(
        (place, formal.name)
        for place, (formal, kind) in enumerate(zip(arguments, kinds, strict=True))
        if kind.startswith(("number", "float", "Tensor"))  # a number may stand for a tensor
    )


def facts_of(func: OpOverload) -> Facts:
    """What is known of `func`; made anew after rules or traits were stated."""
    known: Facts | None = known_facts.get(id(func))  # which keeps `func`, so that no other object has its id
    if known is None:
        known = known_facts[id(func)] = Facts(func)
    return known
