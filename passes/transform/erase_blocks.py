"""Residual branches taken out of a graph: each sum becomes its other addend, and what only the branch read goes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from torch import fx, nn

from passes.analysis.coupling import Coupling
from passes.analysis.residual_blocks import Block, addends
from passes.errors import PassError
from passes.ops import Value
from passes.process.torch_private import buffers_of, parameters_of


class Erasing:
    """Erases branches from `graph`, whose nodes have the names of those that `coupling` knows."""

    def __init__(self, graph: fx.Graph, coupling: Coupling) -> None:
        self.graph, self.coupling = graph, coupling
        self.nodes: dict[str, fx.Node] = {node.name: node for node in graph.nodes}
        self.place = {node: number for number, node in enumerate(graph.nodes)}

    @cached_property
    def calls_of(self) -> dict[str, set[int]]:
        """By node the numbers of its calls."""
        found: dict[str, set[int]] = {}
        for number, record in enumerate(self.coupling.structure.records):
            found.setdefault(record.node, set()).add(number)
        return found

    def refusal(self, block: Block) -> str:
        """Why a branch cannot be erased node by node; "" where it can."""
        records = self.coupling.structure.records
        node = records[block.sum].node
        if self.calls_of[node] != {block.sum}:
            return f"the sum is made inside {node}, which computes more than that"
        nodes = {records[number].node for number in block.calls}
        parts = [name for name in nodes if not self.calls_of[name] <= block.calls]
        if parts:
            return f"{min(parts)} computes a part of the branch, and something else as well"
        if self._ends(block) is None:
            return f"the addends of {node} are no nodes of the graph"
        left = nodes - {dead.name for dead in self._dead([block])}
        return f"{min(left)} is used outside of the branch" if left else ""

    def erase(self, blocks: Sequence[Block]) -> set[str]:
        """Erase branches; the modules that no node calls any more."""
        dead = self._dead(blocks)
        for block in sorted(blocks, key=lambda block: block.sum):
            self._forward_sum(block)
        called = {str(node.target) for node in dead if node.op == "call_module"}
        for node in dead:
            if node.users:
                raise PassError(f"{node.name} is used outside of its branch, although that was found to be removable")
            self.graph.erase_node(node)
        return called - {str(node.target) for node in self.graph.nodes if node.op in ("call_module", "get_attr")}

    def _ends(self, block: Block) -> tuple[fx.Node, fx.Node, fx.Node] | None:
        """The addition, its branch and its other addend, as they stand in the graph now."""
        record = self.coupling.structure.records[block.sum]
        node, branch = self.nodes[record.node], addends(record, block.operand)[0]
        inputs = node.all_input_nodes
        mine = [source for source in inputs if self._key(source) == branch.key]
        others = [source for source in inputs if source not in mine]
        return (node, mine[0], others[0]) if len(mine) == len(others) == 1 else None

    def _key(self, node: fx.Node) -> int | None:
        value = self.coupling.structure.values.get(node.name)
        return value.key if isinstance(value, Value) else None

    def _readers_of_sum(self, block: Block) -> list[tuple[fx.Node, fx.Node]]:
        """Nodes that read the sum, each with the node that it reads: the addition, or what it wrote into in place."""
        total = self.coupling.structure.records[block.sum].outputs[0].key
        ends = self._ends(block)
        assert ends is not None, "a block is offered where its addends are nodes"
        addition, _, other = ends
        sources = [
            node for node in self.graph.nodes if node is addition or self._key(node) == total and node is not other
        ]
        after = self.place[addition]
        return [(user, source) for source in sources for user in source.users if self.place[user] > after]

    def _forward_sum(self, block: Block) -> None:
        ends = self._ends(block)
        assert ends is not None, "a block is offered where its addends are nodes"
        for user, source in self._readers_of_sum(block):
            user.replace_input_with(source, ends[2])

    def _dead(self, blocks: Sequence[Block]) -> list[fx.Node]:
        """The nodes that nothing reads once the sums are read no more, the last first."""
        records = self.coupling.structure.records
        chosen = {records[number].node for block in blocks for number in (*block.calls, block.sum)}
        forwarded = {pair for block in blocks for pair in self._readers_of_sum(block)}
        sums = {records[block.sum].node for block in blocks}
        skips = [ends[2] for block in blocks if (ends := self._ends(block)) is not None]
        kept = {node for node in skips if node.name not in sums}  # what stands for a sum, an identity's node perhaps
        sizes: set[fx.Node] = set()  # what is made of the branch's sizes, which no call of the tape is
        for node in self.graph.nodes:
            reads = any(source.name in chosen or source in sizes for source in node.all_input_nodes)
            if reads and node.name not in self.calls_of and node.op != "output":
                sizes.add(node)
        dead: dict[fx.Node, None] = {}
        for node in reversed(self.graph.nodes):
            if node in kept:
                continue
            idle = node.name not in self.calls_of and node.op not in ("placeholder", "output") and node.users
            if (node.name in chosen or node in sizes or idle) and all(
                user in dead or (user, node) in forwarded for user in node.users
            ):
                dead[node] = None
        return list(dead)


def erase_blocks(root: nn.Module, graph: fx.Graph, coupling: Coupling, removed: Iterable[str]) -> None:
    """Take residual branches out of a graph over the modules of `root`, and what only they read out of these."""
    blocks = [coupling.blocks[name] for name in removed]
    unused = Erasing(graph, coupling).erase(blocks)
    dropped = {tensor for block in blocks for tensor in block.tensors}
    for name, first in coupling.aliases.items():
        if first in dropped:
            path, _, attribute = name.rpartition(".")
            holder = root.get_submodule(path)
            for held in (parameters_of(holder), buffers_of(holder)):
                held.pop(attribute, None)
    for path in sorted(unused, key=len, reverse=True):
        delete_module(root, path)


def delete_module(root: nn.Module, path: str) -> None:
    """Take a module out of what holds it, and holders that are plain and then hold nothing out of theirs."""
    while path:
        above, _, name = path.rpartition(".")
        holder = root.get_submodule(above)
        delattr(holder, name)
        if any(True for _ in holder.children()) or parameters_of(holder) or buffers_of(holder):
            return
        path = above
