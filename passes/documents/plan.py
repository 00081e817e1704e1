"""A plan: which units of each group are kept. Plain data that can be stored, compared and applied again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Protocol, cast

from passes.arguments import got, integer, is_a, quoted
from passes.documents.described_values import Described
from passes.documents.plan_json import check_contents, read, written
from passes.errors import PlanError


class Coupled(Protocol):
    """What a plan is checked against: a `Coupling`, by what names it."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def widths(self) -> Mapping[str, int]: ...
    @property
    def blocks(self) -> Mapping[str, object]: ...


@dataclass(frozen=True)
class Plan:
    """Kept units of every group of one graph, relative to that graph.

    keep: group name to ascending unit indices. fingerprint: of the graph. sizes: of the groups before.
    inputs: shapes and dtypes of the example inputs, so that the plan can be applied with no data.
    orders: for groups whose units were formed apart in each outer block (see `Coupling.formed`), the rows that formed
    them. outers: for these the group that their blocks belong to, or "" where that one is no group.
    removed_blocks: the residual branches that are removed whole (see `Coupling.blocks`). gone: of a plan for a network
    that other plans made, the widths of what these have removed whole.
    """

    keep: Mapping[str, tuple[int, ...]]
    fingerprint: str
    sizes: Mapping[str, int]
    inputs: list[Described] = field(default_factory=list)
    orders: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    outers: Mapping[str, str] = field(default_factory=dict)
    removed_blocks: tuple[str, ...] = ()
    gone: Mapping[str, int] = field(default_factory=dict)

    @property
    def widths(self) -> dict[str, int]:
        """How many units each group keeps; 0 for each residual block that is removed."""
        return {name: len(units) for name, units in self.keep.items()} | dict.fromkeys(self.removed_blocks, 0)

    @property
    def narrows(self) -> bool:
        """Whether any unit or block is removed."""
        return bool(self.removed_blocks) or any(len(units) < self.sizes[name] for name, units in self.keep.items())

    @property
    def calls_a_module(self) -> bool:
        """Whether its inputs are arguments of a call, as plans for modules have them: positional and named ones."""
        return [next(iter(item)) for item in self.inputs] == ["tuple", "dict"]

    @property
    def result_fingerprint(self) -> str:
        """Names the network that this plan makes of its graph: the first graph and the widths, by whatever steps."""
        if not self.narrows:
            return self.fingerprint
        first_graph = self.fingerprint.partition("+")[0]
        kept = json.dumps({**self.widths, **self.gone}, sort_keys=True)
        return f"{first_graph}+{hashlib.sha256(kept.encode()).hexdigest()[:32]}"

    def check(self, coupling: Coupled) -> None:
        """Raise PlanError unless this plan was made for `coupling`."""
        if not hasattr(coupling, "widths") or not hasattr(coupling, "fingerprint"):
            raise PlanError(f"check: got {got(coupling)}; expected a Coupling, which couple(...) returns")
        if unknown := [name for name in self.removed_blocks if name not in coupling.blocks]:
            raise PlanError(
                f"the plan removes {unknown[0]!r}, which this coupling does not offer; couple with depth=True"
            )
        if self.fingerprint != coupling.fingerprint or dict(self.sizes) != coupling.widths:
            differing = sorted(
                name for name in {*self.sizes, *coupling.widths} if self.sizes.get(name) != coupling.widths.get(name)
            )
            detail = (
                f"groups differ: {', '.join(differing[:5])}" if differing else "the graphs differ, the groups do not"
            )
            raise PlanError(
                f"the plan is for graph {self.fingerprint[:12]}, got {coupling.fingerprint[:12]} ({detail}); "
                "make the plan from couple() of this graph, or load it into the model that it was made for"
            )

    def then(self, later: Plan) -> Plan:
        """This plan followed by one for its result: the kept units relative to this plan's graph."""
        is_plan(self, "then", "a Plan")
        is_plan(later, "then", "a later Plan, for the network that this one makes")
        if later.fingerprint != self.result_fingerprint:
            raise PlanError("the later plan is not for the network that this plan makes")
        left = {name: later.keep[name] for name in self.keep if name in later.keep}  # others went with their block
        keep = {n: tuple(units[u] for u in left[n]) if n in left else units for n, units in self.keep.items()}
        outers = {**self.outers, **later.outers}
        orders = {
            name: self._joined_rows(later, name, outer) if name in left else self.orders[name]
            for name, outer in outers.items()
        }
        keep.update({name: tuple(range(len(left[name]))) for name in orders if name in left})
        removed = (*self.removed_blocks, *later.removed_blocks)
        return Plan(keep, self.fingerprint, self.sizes, self.inputs, orders, outers, removed, self.gone)

    def kept_in_block(self, name: str, block: int) -> list[int]:
        """The positions, ascending, that group `name` keeps in one outer block of this plan's graph."""
        is_a(name, str, "kept_in_block: name", "the name of a group of this plan", PlanError)
        block = integer(block, "kept_in_block: block", least=0, below=len(self.orders.get(name, ())) or None)
        if name not in self.keep:
            raise PlanError(f"no group of this plan is called {quoted(name)}; it has {', '.join(list(self.keep)[:10])}")
        rows = self.orders.get(name)
        return sorted(rows[block][u] for u in self.keep[name]) if rows else list(self.keep[name])

    def _joined_rows(self, later: Plan, name: str, outer: str) -> tuple[tuple[int, ...], ...]:
        """For each block of this plan's graph its finally kept positions first, the others after them."""
        blocks = (
            len(self.orders[name]) if name in self.orders else self.sizes.get(outer, len(later.orders.get(name, ())))
        )
        left = list(self.keep[outer]) if outer in self.keep else list(range(blocks))
        rows = []
        for block in range(blocks):
            here = self.kept_in_block(name, block)
            taken = [here[u] for u in later.kept_in_block(name, left.index(block) if block in left else 0)]
            rows.append((*taken, *(u for u in range(self.sizes[name]) if u not in set(taken))))
        return tuple(rows)

    def to_json(self) -> str:
        """This plan as JSON with a checksum: one group a line, sorted, so that a diff compares two plans."""
        is_plan(self, "to_json", "a Plan")
        found = self._contents()
        blocks = {key: found[key] for key in ("removed_blocks", "gone")}
        try:
            text = written(self.fingerprint, found["inputs"], found["groups"], blocks if any(blocks.values()) else {})
        except (TypeError, ValueError) as error:
            raise PlanError(
                f"to_json: a part of the plan cannot be written ({error!r}); make plans with coupling.plan(...)"
            ) from error
        read(text)  # what is written can be read
        return text

    def _contents(self) -> dict[str, Any]:
        """What its JSON holds, as `plan_json.read` gives it. Raises PlanError for a field that is of another type."""
        for name, (kind, expected) in _FIELDS.items():
            is_a(getattr(self, name), kind, f"its {name}", expected, PlanError)
        for names, part, whole in (
            (self.sizes.keys() ^ self.keep.keys(), "sizes", "keep"),
            (self.outers.keys() ^ self.orders.keys(), "outers", "orders"),
            (self.orders.keys() - self.keep.keys(), "orders", "keep"),
        ):
            if names:
                raise PlanError(f"its {part} and {whole} do not name the same groups: {quoted(min(names, key=str))}")
        return {
            "fingerprint": self.fingerprint,
            "inputs": list(self.inputs),
            "groups": {name: self._entry(name) for name in self.keep},
            "removed_blocks": list(self.removed_blocks),
            "gone": dict(self.gone),
        }

    def _entry(self, name: str) -> dict[str, object]:
        entry: dict[str, object] = {"size": self.sizes[name], "keep": _items(self.keep[name], f"group {name!r}: keep")}
        if name in self.orders:
            where = f"group {name!r}: its order"
            rows = [_items(row, where) for row in _items(self.orders[name], where)]
            entry |= {"outer": self.outers[name], "order": rows}
        return entry

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what `to_json` wrote. Raises PlanError that says what is missing, wrong or altered."""
        data = read(text)
        groups = data["groups"]
        orders = {n: tuple(map(tuple, g["order"])) for n, g in groups.items() if "order" in g}
        return cls(
            {name: tuple(group["keep"]) for name, group in groups.items()},
            data["fingerprint"],
            {name: group["size"] for name, group in groups.items()},
            data["inputs"],
            orders,
            {name: groups[name]["outer"] for name in orders},
            tuple(data["removed_blocks"]),
            data["gone"],
        )


_GROUPS = "a mapping by the names of groups"
_FIELDS: dict[str, tuple[type | UnionType, str]] = {
    "keep": (Mapping, _GROUPS),
    "sizes": (Mapping, _GROUPS),
    "inputs": (list | tuple, "a list of described inputs"),
    "orders": (Mapping, _GROUPS),
    "outers": (Mapping, _GROUPS),
    "removed_blocks": (list | tuple, "a tuple of names"),
    "gone": (Mapping, "a mapping of names to widths"),
}


def is_plan(value: object, where: str, expected: str, error: type[Exception] = PlanError) -> None:
    """Raise unless `value` is a Plan that holds what plans hold, however it was made; `expected` says what to pass.

    What is refused of a plan's JSON is refused of the plan: PlanError.
    """
    is_a(value, Plan, where, expected, error)
    assert isinstance(value, Plan), "it was checked"
    try:
        check_contents(value._contents())
    except PlanError as wrong:
        raise PlanError(f"{where}: {wrong}; make plans with coupling.plan(...)") from None


def _items(values: object, where: str) -> list[object]:
    is_a(values, tuple | list, where, "a tuple", PlanError)
    return list(cast(Sequence[object], values))
