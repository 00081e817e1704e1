"""A graph run once on the meta device, node by node under the dispatch mode, with the axes of each node's result.

Nothing is computed and no weight is read or copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from passes.axes.expressions import Axis, Constant, Reason
from passes.errors import PassError
from passes.graph.emitted_layers import emit_node
from passes.graph.module_copies import Copies, copy_module, like, modules_of, owned_tensors, shell
from passes.graph.nodes import call, input_nodes, source_of
from passes.ops import Value
from passes.ops import constant_indices as numbers
from passes.ops.call import COMPUTED
from passes.process.torch_private import buffers_of, no_dispatch_modes, parameters_of, pytree
from passes.stream.example_values import ExampleValues
from passes.stream.inference import Inference, composite_attention
from passes.stream.results import Left, tensors_in


def as_arguments(example_inputs: object, gm: fx.GraphModule) -> tuple[Any, ...]:
    """Example inputs (a tensor, a tuple or list, or a dict by placeholder name) in the order of the placeholders.

    Raises PassError naming the placeholder that has no value, or a name that is no placeholder.
    """
    placeholders = input_nodes(gm.graph)
    gathered = [str(n.target) for n in gm.graph.nodes if n.op == "placeholder" and n not in placeholders]
    gathers = (
        f", and gathers others in {' and '.join(gathered)}, which no analysis of a graph follows: give them names in "
        "forward, or use the module itself" if gathered else ""
    )  # fmt: skip
    if isinstance(example_inputs, Mapping):
        named = dict(example_inputs)
        values = []
        for node in placeholders:
            key = str(node.target)
            if key in named:
                values.append(named.pop(key))
            elif node.args:
                values.append(node.args[0])
            else:
                raise PassError(f"example inputs lack {key!r}; the graph takes {[str(p.target) for p in placeholders]}")
        if named:
            raise PassError(
                f"example inputs name {sorted(named)}, which the graph does not take; "
                f"it takes {[str(p.target) for p in placeholders]}{gathers}"
            )
        return tuple(values)
    values = list(example_inputs) if isinstance(example_inputs, (tuple, list)) else [example_inputs]
    needed = [n for n in placeholders if not n.args]
    if not len(needed) <= len(values) <= len(placeholders):
        raise PassError(
            f"{len(values)} example inputs given, but the graph takes {len(needed)}"
            + (f" to {len(placeholders)}" if len(needed) != len(placeholders) else "")
            + f": {[str(p.target) for p in placeholders]}"
            + (gathers or "; pass a tensor, a tuple in that order, or a dict by name")
        )
    return tuple(values) + tuple(node.args[0] for node in placeholders[len(values) :])


def to_meta(tree: object) -> Any:
    """`tree` with every tensor as an empty one of the same shape, dtype and strides on the meta device."""
    return pytree.tree_map_only(torch.Tensor, lambda t: t.detach().to("meta"), tree)


class GraphInference(fx.Interpreter):
    """Interprets a graph over modules on meta, one node at a time, and collects each node's result."""

    def __init__(self, gm: fx.GraphModule, copies: Copies, mode: Inference, example: ExampleValues) -> None:
        super().__init__(nn.Module(), garbage_collect_values=False, graph=gm.graph)
        self.mode, self._example = mode, example
        self.extra_traceback = False
        self.vals: dict[str, object] = {}
        self.values: dict[str, object] = {}
        self._originals, self._copies = {**modules_of(gm), "": shell(gm)}, copies
        self._left = Left(())

    def on(self, arguments: Sequence[object]) -> None:
        """Run once on a value for each placeholder."""
        self._left = Left(arguments)
        self.run(*arguments, enable_io_processing=False)

    def run_node(self, n: fx.Node) -> object:
        self.mode.enter_node(n)
        try:
            args, kwargs = fx.map_arg((n.args, n.kwargs), self.env.__getitem__)
            result = emit_node(n, args, kwargs, self.mode.emit, self._originals.get, self._copies.tensor)
            if result is NotImplemented:
                with self.mode:
                    result = getattr(self, n.op)(n.target, args, kwargs)
        except Exception as error:
            result = self._opaque(n, error)
        self._finish(n, result)
        return result

    def fetch_attr(self, target: str) -> Any:
        """A module, tensor or setting, on the meta device and in eval mode."""
        path, names = target, list[str]()
        while path not in self._originals:
            path, _, name = path.rpartition(".")
            names.insert(0, name)
        holder = self._originals[path]
        if names == ["training"] and type(holder).train is nn.Module.train:
            return False
        if len(names) == 1:
            for held in (parameters_of(holder), buffers_of(holder), holder.__dict__):
                if isinstance(held.get(names[0]), torch.Tensor):
                    return self._copies.tensor(held[names[0]])
        found: object = self._copies.module(holder).eval()
        for name in names:
            found = getattr(found, name)
        return found

    def _finish(self, n: fx.Node, result: Any) -> None:
        single = isinstance(result, torch.Tensor)
        for tensor in [result] if single else pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                value = self.mode.value(tensor)
                if "/" in value.label:
                    value.label = n.name
        if n.op == "output":
            self._freeze([*tensors_in(result, caches=True), *self._left.tensors()])
        value_of = self.mode.value
        self.vals[n.name] = result
        self.values[n.name] = value_of(result) if single else pytree.tree_map_only(torch.Tensor, value_of, result)

    def _freeze(self, given: Iterable[torch.Tensor]) -> None:
        """What a caller can read keeps its shape."""
        reason = self.mode.reason("", "an output of the model keeps its shape")
        for value in map(self.mode.value, given):
            for axis in value.axes:
                self.mode.space.freeze(axis, reason)
            for axis in value.watched:
                self.mode.space.freeze(axis, self.mode.reason("", COMPUTED))

    def _opaque(self, n: fx.Node, error: Exception) -> object:
        """A node that cannot run on meta: run it to learn its shapes, and freeze what it touches.

        Its sizes may depend on values (`x[mask]`), so it is run on those of the example, where that has some; else on
        zeros, and where nothing comes of these, on ones.
        """
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        touched = [t for t in pytree.arg_tree_leaves(*args, **kwargs) if isinstance(t, torch.Tensor)]
        if n.op == "call_module":
            touched += [t for _, t in owned_tensors(self.fetch_attr(str(n.target)))]
        try:
            if self._example.known:
                result = self._example.of(n)
            else:
                result = self._on_made_values(n, args, kwargs, 0)
                if any(isinstance(t, torch.Tensor) and not t.numel() for t in pytree.tree_leaves(result)):
                    result = self._on_made_values(n, args, kwargs, 1)
        except Exception as second:
            place = ", ".join(p for p in (n.format_node(), source_of(n)) if p)
            raise PassError(
                f"node {n.name} ({place}) cannot be run on the example inputs: {second} "
                f"(on the meta device: {error}); check the example inputs' shapes and dtypes"
            ) from second
        reason = self.mode.reason(
            str(n.target), f"the operator cannot be analysed without data ({error})".split("\n")[0]
        )
        for tensor in touched:
            for axis in self.mode.value(tensor).axes:
                self.mode.space.freeze(axis, reason)
        return to_meta(result)

    def _on_made_values(self, n: fx.Node, args: tuple, kwargs: dict[str, object], value: int) -> object:
        """What a node gives on tensors that are `value` everywhere."""

        def real(tensor: torch.Tensor) -> torch.Tensor:
            with no_dispatch_modes():  # which keep all that is made on meta
                return torch.full(tensor.shape, value, dtype=tensor.dtype)

        args, kwargs = pytree.tree_map_only(torch.Tensor, real, (args, kwargs))
        module = None
        if n.op == "call_module":
            module = copy_module(self.fetch_attr(str(n.target)), lambda _, t: like(t, real(t)))
        with no_dispatch_modes():
            if module is not None:
                return module(*args, **kwargs)
            return call(n, args, kwargs)


class Inferred:
    """All that one inference found, unresolved axes included.

    known: what was stated of any tensor. vals, values: results by node, on meta and as axes.
    """

    def __init__(
        self, mode: Inference, run: GraphInference, tensors: dict[str, tuple[Axis, ...]], names: dict[str, str]
    ):
        self.space, self.records, self.known = mode.space, mode.records, mode.values
        self.vals, self.values = run.vals, run.values
        self.tensors, self.canonical = tensors, names


@torch.inference_mode(False)
def infer(gm: fx.GraphModule, example_inputs: object) -> Inferred:
    """Infer the axes of every tensor of `gm` for inputs of these shapes and dtypes; `gm` is not changed.

    Values of the example are read only where a size depends on them.

    Raises PassError where the inputs do not fit the graph.
    """
    mode = Inference()
    axes: dict[str, tuple[Axis, ...]] = {}

    def meta_placeholder(name: str, tensor: torch.Tensor) -> torch.Tensor:
        meta = like(tensor, torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"))
        axes[name] = tuple(mode.space.variable(int(s)) for s in tensor.shape)
        mode.attach(meta, Value(name, axes[name], frozenset([name]), numbers=numbers.stated(tensor)))
        return meta

    copies = Copies(gm, meta_placeholder)
    given = as_arguments(example_inputs, gm)
    arguments, placeholders = to_meta(given), input_nodes(gm.graph)
    for node, argument in zip(placeholders, arguments, strict=True):
        for tensor in pytree.tree_leaves(argument):
            if isinstance(tensor, torch.Tensor):
                reason = Reason("an input of the model keeps its shape", node.name)
                axes_ = tuple(Constant(int(s), reason) for s in tensor.shape)
                mode.attach(tensor, Value(node.name, axes_, from_inputs=True))
    example = ExampleValues(gm, dict(zip(placeholders, given, strict=True)))
    run = GraphInference(gm, copies, mode, example)
    with torch.no_grad(), composite_attention():
        run.on(arguments)
    return Inferred(mode, run, axes, copies.names)
