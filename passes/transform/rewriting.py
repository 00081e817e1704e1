"""One rewriting of a graph: new nodes, resized layers and restated sizes for the units that stay."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from passes.analysis.coupling import Coupling
from passes.analysis.tape import map_together
from passes.axes.expressions import Axis, Reason
from passes.graph.annotations import KEY, Facts, specialised_in
from passes.graph.lazy_codegen import graph_module
from passes.graph.module_copies import copy_module, modules_of, shell
from passes.graph.nodes import copied, source_of
from passes.nested_values import tree_leaves_only
from passes.ops import Record, Value, traits_of
from passes.ops.literals import Site, varies
from passes.ops.meta_shapes import OnMeta
from passes.process.torch_private import codegen_of, name_taken, no_dispatch_modes, pytree, set_codegen
from passes.stream.inference import composite_attention
from passes.transform.erase_blocks import erase_blocks
from passes.transform.resize_modules import is_sized, resize_view_module
from passes.transform.restate_sizes import pin_values, restating
from passes.transform.slicing import Masks, Slicing


class Rewriting:
    """One rewriting: the new graph is run on meta as it is made, so that every size is known and checked.

    Only nodes that may take sizes are run; of the others, which are most, the axes give the shapes. With `whole`
    unset the new graph holds no more than the former, and a placeholder for each of the others that they read.
    """

    def __init__(self, gm: fx.GraphModule, coupling: Coupling, masks: Masks, whole: bool = True) -> None:
        self.gm, self.coupling = gm, coupling
        self.slicing = Slicing(coupling, masks)
        self.size, self.narrowed, self.remain = self.slicing.size, self.slicing.narrowed, self.slicing.remain
        self.records: dict[str, list[Record]] = defaultdict(list)
        for record in coupling.structure.records:
            self.records[record.node].append(record)
        self._called = {str(n.target): n for n in gm.graph.nodes if n.op == "call_module"}
        self.following = self._following()
        self.graph = self._copied_graph(whole)
        self.refused: list[tuple[Axis, Reason]] = []
        self.numbers: dict[str, object] = {}  # what nodes that hold no tensor (sizes and their arithmetic) are now
        with torch.no_grad(), composite_attention(), OnMeta():
            _Run(self).run()

    def _following(self) -> set[str]:
        """The nodes that take no number which could be the length of a pruned axis: their shapes follow."""
        values, modules = self.coupling.structure.values, modules_of(self.gm)

        def takes_none(n: fx.Node) -> bool:
            if n.op == "call_module" and type(modules[str(n.target)]) in _SIZED_BY_TENSORS:
                return True
            records = self.records.get(n.name)
            if records:
                sizeless = all(traits_of(record.func).sizeless for record in records)
                return sizeless and restating(n, records) is None
            # It gives back a tensor that it was given, as dropout does in eval mode.
            return values[n.name].key in [values[i.name].key for i in n.all_input_nodes]

        return {
            n.name
            for n in self.gm.graph.nodes
            if all(isinstance(values.get(known.name), Value) for known in (n, *n.all_input_nodes))
            and (n.op in ("placeholder", "get_attr") or takes_none(n))
        }

    def _copied_graph(self, whole: bool) -> fx.Graph:
        graph = fx.Graph(tracer_cls=getattr(self.gm, "_tracer_cls", None))
        set_codegen(graph, codegen_of(self.gm.graph))
        copies: dict[fx.Node, fx.Node] = {}

        def known(node: fx.Node) -> fx.Node:
            if node not in copies:
                copies[node] = graph.create_node("placeholder", node.name, name=node.name)
            return copies[node]

        for node in self.gm.graph.nodes:
            if whole or node.name not in self.following:
                copies[node] = new = copied(graph, node, known)
                for stale in ("tensor_meta", "example_value"):
                    new.meta.pop(stale, None)
        for node in self.gm.graph.nodes:
            if node not in copies:
                name_taken(graph, node.name)  # no node that restating inserts may take it
        return graph

    def _resized(self, path: str, module: nn.Module, meta: bool) -> nn.Module:
        """A copy of the module at `path`, sliced, with its sizes made to agree."""
        prefix = f"{path}." if path else ""
        copied = copy_module(module, lambda name, tensor: self.slicing.sliced(prefix + name, tensor, meta))
        for name, inner in modules_of(copied).items():
            if is_sized(type(inner)):
                full = prefix + name if name else path
                self._resize(full, inner, self._called.get(full))
        return copied

    def _resize(self, path: str, module: nn.Module, node: fx.Node | None) -> None:
        before = self._shape(node.args[0]) if node is not None and node.args else None
        channels = None
        if before is not None and len(before) > 1:
            channels = before[-1] if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) else before[1]
        self.slicing.resize(path, module, node.name if node is not None else "", channels)
        after = self._shape(node) if node is not None else None
        if before is not None and after is not None:
            resize_view_module(module, before, after)

    def _shape(self, node: object) -> list[int] | None:
        value = self.coupling.structure.values.get(node.name) if isinstance(node, fx.Node) else None
        return [self.size(a) for a in value.axes] if isinstance(value, Value) else None

    def on_meta(self, path: str) -> nn.Module:
        """The new module at `path` on the meta device, in eval mode."""
        with no_dispatch_modes():
            return self._resized(path, self.gm.get_submodule(path), meta=True).eval()

    def build(self, removed_blocks: Sequence[str] = ()) -> fx.GraphModule:
        """The new graph with real, sliced tensors, and without some residual branches."""
        root = self._resized("", shell(self.gm), meta=False)
        if removed_blocks:
            erase_blocks(root, self.graph, self.coupling, removed_blocks)
        pruned = graph_module(root, self.graph, type(self.gm).__name__)
        pruned.meta.update(self.gm.meta)
        pruned.meta[KEY] = Facts(specialised=specialised_in(self.gm))
        return pruned

    def refuse(self, node: fx.Node, text: str) -> None:
        """Note that `node` cannot follow; the axes that occur there must stay."""
        touching = [self.coupling.structure.values.get(node.name)]
        seen, stack = set(), list(node.all_input_nodes)
        while stack:
            source = stack.pop()
            if source in seen:
                continue
            seen.add(source)
            value = self.coupling.structure.values.get(source.name)
            touching.append(value)
            numbers = pytree.tree_leaves(self.coupling.structure.vals.get(source.name))
            if not isinstance(value, Value) and any(isinstance(number, (int, float)) for number in numbers):
                stack.extend(source.all_input_nodes)
        if node.op == "call_module":
            prefix = f"{node.target}."
            touching += [Value(n, a) for n, a in self.coupling.structure.tensors.items() if n.startswith(prefix)]
        reason = Reason(text, node.name, str(node.target), source_of(node))
        values = tree_leaves_only(Value, touching)
        for axis in self.narrowed(a for v in values for a in v.axes):
            self.refused.append((axis, reason))


class _Run(fx.Interpreter):
    """Runs the new graph on meta; restates each node's literals just before it is run, and checks what comes out."""

    def __init__(self, rewriting: Rewriting) -> None:
        super().__init__(nn.Module(), garbage_collect_values=False, graph=rewriting.graph)
        self.rewriting = rewriting
        self.env = _Results(self._promised)
        self._olds: dict[fx.Node, object] = {}

    def run(self) -> None:  # type: ignore[override]
        """Run all nodes whose results do not follow from their axes."""
        for node in self.graph.nodes:
            if node.name not in self.rewriting.following:
                self.env[node] = self.run_node(node)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        return fx.map_arg((n.args, n.kwargs), self.env.__getitem__)

    def fetch_attr(self, target: str) -> object:
        return self.rewriting.on_meta(target)

    def run_node(self, n: fx.Node) -> object:
        rewriting = self.rewriting
        value = rewriting.coupling.structure.values.get(n.name)
        followed: tuple[Any, Any] | None = None
        try:
            self._restate(n, value)
            restated = n.args, n.kwargs
            if self._holds_tensors(n, value) and pin_values(n, self._old, rewriting.records.get(n.name, ())):
                followed = restated
        except Exception as error:  # what a node's arguments do not fit is the reason that its axes stay
            result, failure = None, _refusal(error)
        else:
            result, failure = self._attempt(n, value)
            if failure and followed is not None:  # a number of an operator that nobody knows was a size, not a value
                pinned = n.args, n.kwargs
                n.args, n.kwargs = followed
                result, still = self._attempt(n, value)
                if still:
                    n.args, n.kwargs = pinned
                failure = failure if still else ""
        if any(isinstance(leaf, (int, float)) for leaf in pytree.tree_leaves(result)):
            rewriting.numbers[n.name] = result
        if failure:
            rewriting.refuse(n, failure)
            return self._promised(n)
        return result

    def _attempt(self, n: fx.Node, value: object) -> tuple[object, str]:
        """What `n` gives on the smaller sizes, and why that is not what its axes promise."""
        try:
            for argument in n.all_input_nodes:
                self._run_inserted(argument)
            result = self._promised(n) if n.op in ("placeholder", "get_attr") else super().run_node(n)
        except Exception as error:  # whatever a node raises on smaller sizes is the reason that its axes stay
            return None, _refusal(error)
        return result, self._difference(value, result)

    def _holds_tensors(self, n: fx.Node, value: object) -> bool:
        """Whether `n` makes, writes or returns tensors: there a number that was a width keeps its old value."""
        if n.op == "output" or n.target is operator.setitem:
            return True
        return bool(tree_leaves_only(Value, value))

    def _run_inserted(self, n: fx.Node) -> None:
        """Run arithmetic that restating has put before a node."""
        if n not in self.env and n.name not in self.rewriting.following:
            for argument in n.all_input_nodes:
                self._run_inserted(argument)
            self.env[n] = self.rewriting.numbers[n.name] = super().run_node(n)

    def _restate(self, n: fx.Node, value: object) -> None:
        values = self.rewriting.coupling.structure.values
        records = self.rewriting.records.get(n.name, ())
        restate_node = restating(n, records)
        if restate_node is None:
            return

        def numbers_of(argument: object) -> Any:
            known = values.get(argument.name) if isinstance(argument, fx.Node) else None
            return known.numbers if isinstance(known, Value) else None

        leaves_ = tree_leaves_only(Value, value)
        if leaves_ or n.target is operator.setitem:
            near = [a for v in leaves_ for a in v.axes] + [a for i in n.all_input_nodes for a in self._axes_of(i) or ()]
            if self.rewriting.narrowed(near) or any(self._pinned(i) is not None for i in n.all_input_nodes):
                restate_node(
                    Site(
                        n, value, self._axes_of, self.rewriting.remain, lambda a: self.env[a],
                        lambda a: self.rewriting.coupling.structure.vals.get(a.name), records, numbers_of,
                    )
                )  # fmt: skip

    def _old(self, argument: fx.Node) -> Any:
        """The dense network's number, or shape, where `argument` is another one now; None for all others.

        A literal, or nodes that compute it where it depends on a size that may vary as well (``c * h * w``).
        """
        dense, now = self.rewriting.coupling.structure.vals.get(argument.name), self.env.get(argument)
        if type(dense) not in (int, float, torch.Size) or type(now) is not type(dense) or dense == now:
            return None
        if not isinstance(dense, torch.Size) and not varies(self._axes_of, argument):
            return dense
        if argument not in self._olds:
            self._olds[argument] = self._old_nodes(argument, dense, now)
        return self._olds[argument]

    def _old_nodes(self, argument: fx.Node, dense: Any, now: Any) -> Any:
        """The same computation over the dense network's widths, inserted behind `argument`."""
        graph = argument.graph
        olds = {used: self._old(used) for used in argument.all_input_nodes if self._axes_of(used) is None}
        if len(olds) == len(argument.all_input_nodes) and any(old is not None for old in olds.values()):
            args, kwargs = fx.map_arg(
                (argument.args, argument.kwargs), lambda used: used if olds[used] is None else olds[used]
            )
            with graph.inserting_after(argument):
                return graph.create_node(argument.op, argument.target, args, kwargs)
        if isinstance(dense, torch.Size):
            parts: list[Any] = list(dense)
            at = argument
            for place in range(len(dense)):
                if dense[place] == now[place]:
                    with graph.inserting_after(at):
                        at = parts[place] = graph.call_function(operator.getitem, (argument, place))
            with graph.inserting_after(at):
                return graph.call_function(torch.Size, (tuple(parts),))
        with graph.inserting_after(argument):  # of all lengths of a tensor, one of which is a width: in proportion
            product = graph.call_function(operator.mul, (argument, dense))
        with graph.inserting_after(product):
            return graph.call_function(operator.floordiv, (product, now))

    def _axes_of(self, argument: object) -> tuple[Axis, ...] | None:
        known = self.rewriting.coupling.structure.values.get(argument.name) if isinstance(argument, fx.Node) else None
        return known.axes if isinstance(known, Value) else None

    def _pinned(self, argument: fx.Node) -> object:
        dense = self.rewriting.coupling.structure.vals.get(argument.name)
        now = self.env.get(argument)
        number = isinstance(dense, (int, float)) and not isinstance(dense, bool)
        return dense if number and now != dense else None

    def _difference(self, value: object, result: object) -> str:
        expected = [[self.rewriting.size(a) for a in v.axes] for v in tree_leaves_only(Value, value)]
        got = [list(t.shape) for t in tree_leaves_only(torch.Tensor, result)]
        if expected == got:
            return ""
        return f"its size does not follow: expected {expected}, got {got}"

    def _promised(self, n: fx.Node) -> object:
        """What follows from the axes of a node's result."""
        structure = self.rewriting.coupling.structure

        def made(val: Any, known: Any) -> Any:
            if not isinstance(known, Value):
                return val
            return torch.empty([self.rewriting.size(a) for a in known.axes], dtype=val.dtype, device="meta")

        return map_together(made, structure.vals.get(n.name), structure.values.get(n.name))


def _refusal(error: Exception) -> str:
    return f"the operator cannot follow a smaller size: {str(error).splitlines()[0] if str(error) else error!r}"


class _Results(dict[fx.Node, object]):
    """Results by node; missing ones are made when they are asked for."""

    def __init__(self, make: Callable[[fx.Node], object]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, node: fx.Node) -> object:
        self[node] = self._make(node)
        return self[node]


# Layers that take their sizes from their tensors, which are sliced, and from attributes that `resize` makes agree.
_SIZED_BY_TENSORS = frozenset({nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear, nn.LayerNorm})
