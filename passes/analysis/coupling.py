"""Channel coupling: which units of which parameters can only be removed together, and what must stay and why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx

from passes.analysis.groups import Coverage, Frozen, Group, Slice, in_order
from passes.analysis.module_facts import ModuleFacts
from passes.analysis.plan_arguments import checked_blocks, checked_units, unknown
from passes.analysis.residual_blocks import NO_BLOCKS, Blocks
from passes.analysis.tape import Structure, map_values
from passes.analysis.ties import ties_of, why_tied
from passes.analysis.without_blocks import without
from passes.analysis.zero_propagation import unmasked_sums
from passes.arguments import is_a
from passes.axes.expressions import Axis, Variable, constants, leaves
from passes.axes.index_sets import BlockMask, Mask, kept, length, positions
from passes.axes.outer_blocks import block_of, outer_variables
from passes.documents.described_values import Described
from passes.documents.plan import Plan, is_plan
from passes.errors import PlanError
from passes.graph.annotations import facts_of, note
from passes.graph.fingerprint import fingerprint

if TYPE_CHECKING:
    import networkx as nx


class Coupling:
    """The groups of a network, what is frozen, and the evidence. Made by `couple`; never changed.

    module: facts that hold where the network is a module and not a graph. blocks: the residual branches that plans may
    remove, where they were looked for (``couple(..., depth=True)``). gone: the widths of what plans have removed whole.
    """

    def __init__(
        self, structure: Structure, variables: Mapping[str, Variable], fingerprint: str, inputs: list[Described],
        sources: Mapping[str, str], aliases: Mapping[str, str], trainable: frozenset[str],
        orders: Mapping[str, np.ndarray] | None = None, module: ModuleFacts | None = None,
        blocks: Blocks = NO_BLOCKS, gone: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.structure, self.variables, self.fingerprint = structure, dict(variables), fingerprint
        self.inputs, self.sources, self.aliases, self.trainable = inputs, sources, aliases, trainable
        self.orders, self.module, self.gone = dict(orders or {}), module, dict(gone or {})
        self.blocks, self.refused_blocks, self.knows_blocks = blocks.offered, blocks.refused, blocks is not NO_BLOCKS

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The groups, in the order of the network."""
        roles = self.structure.roles
        mixed = {v for r in self.structure.all_records for a in r.mixed for v in leaves(a)}
        mixed.update(*self.unmasked.values())
        if self.structure.beside:
            mixed.update(*unmasked_sums(self.structure.beside).values())
        slices: dict[Variable, list[Slice]] = {v: [] for v in self.variables.values()}
        for tensor, axes in self._own_tensors():
            for dim, axis in enumerate(axes):
                found = positions(axis)
                for variable, index in found.items():
                    if variable in slices:
                        outer = self.outers.get(variable)
                        blocks = block_of(found[outer], index) if outer is not None else None
                        role = roles.get((tensor, variable, dim), "other")
                        slices[variable].append(Slice(tensor, dim, index, role, blocks))
        groups = []
        for name, v in self.variables.items():
            apart = self.outers[v].size if v in self.outers and v not in mixed else 1
            limits = self.least.get(v, 1), self.multiple.get(v, 1)
            group = Group(name, v.size, tuple(slices[v]), v in mixed, apart, *limits)
            groups.append(in_order(group, self.orders[name]) if name in self.orders else group)
        return tuple(groups)

    @cached_property
    def outers(self) -> dict[Variable, Variable]:
        """For each variable that may be chosen apart in the blocks of an outer one, that outer one."""
        values = [v.axes for r in self.structure.all_records for v in (*r.inputs, *r.outputs)]
        return outer_variables(self.structure.tensors.values(), values, self.variables.values())

    def formed(self, orders: Mapping[str, np.ndarray]) -> Coupling:
        """This coupling with the units of some groups formed apart in each outer block.

        orders: for a group with ``blocks > 1`` an integer array (blocks, size), each row a permutation: unit u becomes
        what was unit ``order[b, u]`` in block b. Ranked by importance within each block, the first units are each
        block's best. Plans made from the result carry the orders with them.

        Raises PlanError for a group without blocks, one that is formed already, and rows that are no permutations.
        """
        is_a(orders, Mapping, "formed: orders", "a mapping of group names to integer arrays (blocks, units)", PlanError)
        checked = dict(self.orders)
        for name, order in orders.items():
            if name in self.orders:
                raise PlanError(f"group {name!r}: its units are formed already; start from what couple() gave")
            checked[name] = self._checked_order(name, order)
        return Coupling(
            self.structure, self.variables, self.fingerprint, self.inputs, self.sources, self.aliases, self.trainable,
            checked, self.module, self._found_blocks, self.gone,
        )  # fmt: skip

    def _checked_order(self, name: str, order: object) -> np.ndarray:
        """The rows that form a group's units apart in each outer block. Raises PlanError as `formed` says."""
        group = self.group(name)
        try:
            rows = np.asarray(order, dtype=np.int64)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # a tensor without values among them
            raise PlanError(f"group {name!r}: expected integers (blocks, units)") from None
        if group.blocks == 1:
            raise PlanError(f"group {name!r}: its units cannot be chosen apart; it has no outer blocks")
        if rows.shape != (group.blocks, group.size):
            expected = (group.blocks, group.size)
            raise PlanError(f"group {name!r}: got an order of shape {rows.shape}, expected {expected}, blocks by units")
        if not (np.sort(rows, axis=1) == np.arange(group.size)).all():
            raise PlanError(f"group {name!r}: each row of an order is a permutation of 0..{group.size - 1}")
        return rows

    @property
    def _found_blocks(self) -> Blocks:
        return Blocks(self.blocks, self.refused_blocks) if self.knows_blocks else NO_BLOCKS

    def tensors_gone(self, removed_blocks: Iterable[str]) -> set[str]:
        """The tensors that go with these residual blocks, by their first names."""
        return {tensor for name in removed_blocks for tensor in self.blocks[name].tensors}

    def with_blocks(self, blocks: Blocks) -> Coupling:
        """This coupling with the residual branches that plans may remove."""
        return Coupling(
            self.structure, self.variables, self.fingerprint, self.inputs, self.sources, self.aliases, self.trainable,
            self.orders, self.module, blocks, self.gone,
        )  # fmt: skip

    @cached_property
    def least(self) -> dict[Variable, int]:
        """How many units must stay where calls choose some of them (experts), whatever stays of other variables."""
        found: dict[Variable, int] = {}
        for axis, count in (need for record in self.structure.all_records for need in record.needs):
            fewest = {v: _fewest(axis, v, count) for v in leaves(axis)}
            chosen = min(fewest, key=lambda v: fewest[v] / v.size, default=None)
            if chosen is not None:
                found[chosen] = max(found.get(chosen, 1), fewest[chosen])
        return found

    @cached_property
    def multiple(self) -> dict[Variable, int]:
        """The factor of a variable: as many of its units as stay are a multiple of it, whatever stays of others."""
        found: dict[Variable, int] = {}
        for axis, count in (item for record in self.structure.all_records for item in record.multiples):
            for v in leaves(axis):
                times = axis.size // v.size if leaves(axis) == (v,) and axis.size % v.size == 0 else 1
                found[v] = math.lcm(found.get(v, 1), count // math.gcd(count, times))
        return {v: count for v, count in found.items() if v.size % count == 0}

    @cached_property
    def unmasked(self) -> dict[int, set[Variable]]:
        """For each operator call (by its number on the tape) the variables that it sums although they are not zero."""
        return unmasked_sums(self.structure.records)

    def _own_tensors(self) -> Iterator[tuple[str, tuple[Axis, ...]]]:
        for tensor, axes in self.structure.tensors.items():
            if self.aliases[tensor] == tensor:
                yield tensor, axes

    def group(self, name: str) -> Group:
        """The group called `name`. Raises PlanError that names the nearest one."""
        is_a(name, str, "group", "the name of a group of this coupling", PlanError)
        for group in self.groups:
            if group.name == name:
                return group
        raise PlanError(unknown(name, self.variables))

    @property
    def widths(self) -> dict[str, int]:
        """The size of each group."""
        return {name: v.size for name, v in self.variables.items()}

    @property
    def full_widths(self) -> dict[str, int]:
        """The size of each group, and 1 for each residual block, which is 0 where its branch is removed."""
        return {**self.widths, **dict.fromkeys(self.blocks, 1)}

    @cached_property
    def frozen(self) -> tuple[Frozen, ...]:
        """Every run of a trainable parameter's dimension, longer than one position, that stays."""
        found = []
        for tensor, axes in self._own_tensors():
            if tensor not in self.trainable:
                continue
            for dim, axis in enumerate(axes):
                for constant, start in constants(axis):
                    if constant.reason is not None and constant.size > 1:
                        found.append(Frozen(tensor, dim, start, start + constant.size, constant.reason))
        return tuple(found)

    @cached_property
    def unread(self) -> frozenset[str]:
        """The parameters that no run of the analysis used at all."""
        tensors = self.structure.tensors
        return frozenset(
            name
            for name in self.trainable
            if not any(True for axis in tensors.get(name, ()) for _ in leaves(axis))
            and any(c.reason and c.reason.node == name for axis in tensors.get(name, ()) for c, _ in constants(axis))
        )

    @property
    def unused(self) -> frozenset[str]:
        """Those of `unread` on which nothing depends that the network computes of arguments like the example's: a token
        that stands for what is masked, but not an expert to which other values lead."""
        return frozenset() if self.module is not None and self.module.real else self.unread

    def coverage(self) -> Coverage:
        """Which share of MACs and parameters is in prunable groups."""
        grouped = set(self.variables.values())

        def prunable(axes: Iterable[Axis]) -> bool:
            return any(v in grouped for axis in axes for v in leaves(axis))

        def product(axes: Sequence[Axis]) -> int:
            return int(np.prod([a.size for a in axes], dtype=object))

        macs = [(product(m), prunable(m)) for r in self.structure.records for m in r.macs]
        params = [(product(a), prunable(a), t) for t, a in self._own_tensors() if t in self.trainable]
        missing: dict[str, int] = {}
        for size, free, tensor in params:
            if not free:
                reasons = {c.reason.text for a in self.structure.tensors[tensor] for c, _ in constants(a) if c.reason}
                text = "; ".join(sorted(reasons)) or "a single unit"
                missing[text] = missing.get(text, 0) + size

        def share(pairs: Iterable[tuple]) -> float:
            pairs = list(pairs)
            total = sum(p[0] for p in pairs)
            return sum(p[0] for p in pairs if p[1]) / total if total else 0.0

        return Coverage(share(macs), share(params), missing)

    @cached_property
    def graph(self) -> nx.Graph:
        """The evidence: nodes are ``tensor:dim`` of parameters and values, edges the operators that tie them.

        A shortest path answers "why is conv3 tied to conv7?"; see `explain`.
        """
        return ties_of(self.structure.records, self.variables)

    def explain(self, first: str, second: str) -> list[str]:
        """Why two axes (``"conv1.weight:0"``) shrink together: the operators on the shortest path between them.

        Raises PlanError where an axis is unknown or they are independent.
        """
        return why_tied(self.graph, first, second)

    def plan(self, keep: Mapping[str, Sequence[int]], removed_blocks: Iterable[str] = ()) -> Plan:
        """A plan that keeps the given units, sorted, of the named groups, and everything of the others.

        removed_blocks: residual branches to remove whole, by their names in `blocks`.

        Raises PlanError for an unknown group or block, and for empty, duplicate, unsorted or out-of-range indices.
        """
        is_a(keep, Mapping, "plan: keep", "a mapping of groups to kept units, such as {'conv1': range(8)}", PlanError)
        checked = {}
        for name, units in keep.items():
            if name not in self.variables:
                raise PlanError(unknown(name, self.variables))
            variable = self.variables[name]
            checked[name] = checked_units(name, units, variable.size)
            if len(checked[name]) % self.multiple.get(variable, 1):
                raise PlanError(
                    f"group {name!r}: {len(checked[name])} units are kept; keep a multiple of "
                    f"{self.multiple[variable]}: a kernel that the network calls takes no other sizes"
                )
            if len(checked[name]) < self.least.get(variable, 1):
                raise PlanError(
                    f"group {name!r}: {len(checked[name])} units are kept; keep at least {self.least[variable]} of "
                    f"{variable.size}: so many experts are chosen for each token"
                )
        full = {n: checked.get(n, tuple(range(v.size))) for n, v in self.variables.items()}
        narrowed = [n for n in self.orders if len(full[n]) < self.variables[n].size]
        names = {v: n for n, v in self.variables.items()}
        orders = {n: tuple(tuple(map(int, row)) for row in self.orders[n]) for n in narrowed}
        outers = {n: names.get(self.outers[self.variables[n]], "") for n in narrowed}
        return Plan(
            full,
            self.fingerprint,
            self.widths,
            self.inputs,
            orders,
            outers,
            checked_blocks(removed_blocks, self._found_blocks),
            self.gone,
        )

    def axes_of(self, name: str, tensor: torch.Tensor) -> tuple[Axis, ...] | None:
        """The axes of a tensor of the network; None for one that is not what was coupled.

        None also for one that a module has kept of a call since then, or whose shape has changed.
        """
        is_a(tensor, torch.Tensor, "axes_of: tensor", "the tensor of the network that has the name")
        axes = self.structure.tensors[self.aliases[name]] if isinstance(name, str) and name in self.aliases else None
        return axes if axes is not None and [axis.size for axis in axes] == list(tensor.shape) else None

    def masks(self, plan: Plan) -> dict[Variable, Mask]:
        """The kept units of each variable that the plan narrows."""
        is_plan(plan, "masks: plan", "a Plan, which coupling.plan(...) makes")
        masks: dict[Variable, Mask] = {}
        for name, units in plan.keep.items():
            if name not in self.variables:
                self.group(name)  # which says so
            variable = self.variables[name]
            if len(units) == variable.size:
                continue
            if name in plan.orders:
                order = self._checked_order(name, plan.orders[name])
                rows = np.zeros((self.outers[variable].size, variable.size), dtype=bool)
                np.put_along_axis(rows, order[:, list(units)], True, axis=1)
                masks[variable] = BlockMask(self.outers[variable], rows)
            else:
                masks[variable] = mask = np.zeros(variable.size, dtype=bool)
                mask[list(units)] = True
        return masks

    def after(self, plan: Plan, numbers: Mapping[str, object] | None = None) -> Coupling:
        """The coupling of the network that `plan` gives: the same groups, smaller. Nothing is analysed again.

        numbers: by node, what sizes and their arithmetic are in that network, where the rewriting has found them.
        """
        is_plan(plan, "after: plan", "a Plan, which coupling.plan(...) makes")
        plan.check(self)
        keep = self.masks(plan)
        new = {v: Variable(v.number, kept(mask)) for v, mask in keep.items()}
        left = self.without(plan.removed_blocks)
        gone = {name: width for name, width in plan.widths.items() if name not in left.variables}
        return Coupling(
            left.structure.renamed(new, keep, numbers or {}),
            {name: new.get(v, v) for name, v in left.variables.items()},
            plan.result_fingerprint,
            self.inputs, self.sources, left.aliases, left.trainable,
            module=None if self.module is None else self.module.renamed(new, keep), blocks=left._found_blocks,
            gone={**self.gone, **gone},
        )  # fmt: skip

    def without(self, removed_blocks: Iterable[str]) -> Coupling:
        """The coupling of the network without some residual branches, and without the groups that lie in them alone."""
        removed = checked_blocks(removed_blocks, self._found_blocks)
        if not removed:
            return self
        structure, blocks = without(self.structure, self.blocks, removed)
        tensors = structure.tensors
        aliases = {name: first for name, first in self.aliases.items() if first in tensors}
        trainable = frozenset(name for name in self.trainable if name in aliases)
        left = {v for name in trainable for axis in tensors[aliases[name]] for v in leaves(axis)}
        return Coupling(
            structure, {name: v for name, v in self.variables.items() if v in left}, self.fingerprint, self.inputs,
            self.sources, aliases, trainable, {n: o for n, o in self.orders.items() if self.variables[n] in left},
            self.module, Blocks(blocks, self.refused_blocks), self.gone,
        )  # fmt: skip


def _fewest(axis: Axis, variable: Variable, count: int) -> int:
    """How many units of `variable` make `count` positions of `axis` with one of each other; all, where none do."""
    widths = np.arange(variable.size)
    lengths = length(axis, lambda other: widths if other is variable else 1)
    return int(np.searchsorted(lengths, count))


def remember(gm: fx.GraphModule, coupling: Coupling, digest: str = "") -> None:
    """Keep the coupling of `gm` (whose fingerprint is `digest`) for later passes, and write axes beside each node."""
    note(gm, coupling=coupling, digest=digest or fingerprint(gm))
    for node in gm.graph.nodes:
        values = coupling.structure.values.get(node.name)
        node.meta["val"] = coupling.structure.vals.get(node.name)
        node.meta["axes"] = map_values(lambda v: v.axes, values)


def recall(gm: fx.GraphModule) -> Coupling | None:
    """The coupling that `gm` was last given, unless its graph has changed since."""
    facts = facts_of(gm)
    return facts.coupling if facts.coupling is not None and facts.digest == fingerprint(gm) else None
