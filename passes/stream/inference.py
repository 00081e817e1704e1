"""Run a graph once on the meta device and write down, operator by operator, what its axes are.

The graph is interpreted node by node under a dispatch mode, so rules see normalised ATen calls: composites are
decomposed and every spelling of an operator is one. Nothing is computed and no weight is read or copied.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn

from passes import ops
from passes.axes.expressions import Axis, Constant, Reason
from passes.axes.unification import Space
from passes.errors import PassError
from passes.graph.emitted_layers import emit_node
from passes.graph.module_copies import PLAIN, Copies, copy_module, like, modules_of, owned_tensors, shell
from passes.graph.nodes import call, input_nodes, source_of
from passes.ops import Call, Record, Value
from passes.ops import constant_indices as numbers
from passes.ops.call import COMPUTED, slot
from passes.ops.meta_shapes import LightMode, on_meta, run_on_meta
from passes.process.torch_private import OpOverload, buffers_of, no_dispatch_modes, parameters_of, pytree, schema_of
from passes.stream.example_values import ExampleValues

ATTRIBUTE = "_fxprune_value"
_NONE: frozenset[str] = frozenset()
_size = attrgetter("size")
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten._unsafe_index.Tensor}
NUMBER = torch.ops.aten._local_scalar_dense.default
EXACT = {torch.int64, torch.int32, torch.float64, torch.float32}  # types that hold every position
ASKED = "positions of this axis are asked for as numbers, by which a program may do anything"
_SILENT = {torch.ops.aten.sym_size.int, torch.ops.aten.sym_numel.default, torch.ops.aten._version.default}


@contextmanager
def composite_attention() -> Iterator[None]:
    """Switch the fused encoder path off: it hides its operators from dispatch modes and from FLOP counters."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


# Attention in one kernel (flash, memory-efficient, or the CPU's) keeps no attention matrix; on meta it is many calls.
ONE_KERNEL: tuple[object, ...] = (
    torch.nn.functional.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
)


def as_arguments(example_inputs: object, gm: fx.GraphModule) -> tuple[Any, ...]:
    """Example inputs (a tensor, a tuple or list, or a dict by placeholder name) in the order of the placeholders.

    Raises PassError naming the placeholder that has no value, or a name that is no placeholder.
    """
    placeholders = input_nodes(gm.graph)
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
                f"it takes {[str(p.target) for p in placeholders]}"
            )
        return tuple(values)
    values = list(example_inputs) if isinstance(example_inputs, (tuple, list)) else [example_inputs]
    needed = [n for n in placeholders if not n.args]
    if not len(needed) <= len(values) <= len(placeholders):
        raise PassError(
            f"{len(values)} example inputs given, but the graph takes {len(needed)}"
            + (f" to {len(placeholders)}" if len(needed) != len(placeholders) else "")
            + f": {[str(p.target) for p in placeholders]}; pass a tensor, a tuple in that order, or a dict by name"
        )
    return tuple(values) + tuple(node.args[0] for node in placeholders[len(values) :])


def to_meta(tree: object) -> Any:
    """`tree` with every tensor as an empty one of the same shape, dtype and strides on the meta device."""
    return pytree.tree_map_only(torch.Tensor, lambda t: t.detach().to("meta"), tree)


def tensors_in(*arguments: Any) -> list[torch.Tensor]:
    """The tensors among the arguments of an ATen call, which nests lists at most one deep."""
    found = []
    for argument in arguments:
        kind = type(argument)
        if kind is torch.Tensor or kind is nn.Parameter:
            found.append(argument)
        elif kind in PLAIN:
            continue
        elif isinstance(argument, torch.Tensor):
            found.append(argument)
        elif isinstance(argument, (tuple, list)) and not PLAIN.issuperset(map(type, argument)):
            found += [part for part in argument if isinstance(part, torch.Tensor)]
    return found


def _template(args: tuple, kwargs: dict[str, object]) -> tuple[object, ...]:
    slots, made = itertools.count(), list[object]()
    for value in args:
        made.append(value if type(value) in PLAIN else _slotted(value, slots))
    return tuple(made), {k: _slotted(v, slots) for k, v in kwargs.items()} if kwargs else {}


def _slotted(value: object, slots: Iterator[int]) -> object:
    if type(value) in PLAIN:
        return value
    if isinstance(value, torch.Tensor):
        return slot(next(slots), value.dtype)
    if isinstance(value, (tuple, list)) and not PLAIN.issuperset(map(type, value)):
        return type(value)([_slotted(v, slots) for v in value])
    return value


@cache
def is_silent(func: Any) -> bool:
    """Whether calls of an operator say nothing of axes: it asks for sizes alone."""
    return func in _SILENT or func.namespace == "prim"


class Inference(LightMode):
    """The dispatch mode: attaches axes to tensors as they pass, and keeps the tape of calls."""

    on_values = False  # whether calls are computed, and not on the meta device

    def __init__(self) -> None:
        super().__init__()
        self.space = Space()
        self.records: list[Record] = []
        self.values: list[Value] = []  # all that were ever attached
        self.node: fx.Node | None = None
        self.sought: tuple[Axis, int] | None = None  # see `Call.sought`
        self.one_kernel = False  # whether what runs is called in parts that a device makes in one kernel
        self.rewritten = False  # an integer tensor was written to: what numbers it holds is no longer known

    def enter_node(self, node: fx.Node) -> None:
        """Calls from here on belong to `node`."""
        self.node = node
        self.one_kernel = any(node.target is operator for operator in ONE_KERNEL)

    def label(self) -> str:
        """What the running call belongs to: the name of its node."""
        return self.node.name if self.node is not None else ""

    def source(self) -> str:
        """``file.py:line`` of the user's code that makes the running call."""
        return source_of(self.node) if self.node is not None else ""

    def value(self, tensor: torch.Tensor) -> Value:
        """What is known of `tensor`; one that inference has never seen has constant axes."""
        known = getattr(tensor, ATTRIBUTE, None)
        if known is None:
            reason = self.reason("", "a tensor that the analysis cannot follow")
            known = Value(self.label(), tuple(Constant(int(s), reason) for s in tensor.shape), from_inputs=True)
            known.numbers = numbers.literal(self.node, tensor) if tensor.is_meta else numbers.stated(tensor)
            self.attach(tensor, known)
        return known

    def numbers_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The values of an index that the program states."""
        return None if self.rewritten else self.value(tensor).numbers

    def attach(self, tensor: torch.Tensor, value: Value) -> None:
        """State the axes of `tensor`."""
        setattr(tensor, ATTRIBUTE, value)
        self.values.append(value)

    def reason(self, op: str, text: str) -> Reason:
        """`text` at the current node and operator."""
        return Reason(text, self.label(), op, self.source())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.call(func, args, on_meta(func, kwargs or {}))

    def emit(self, func: OpOverload, *args: object) -> Any:
        """Make one ATen call, with the mode switched off."""
        return self.call(func, args, {})

    def run(self, func, args, kwargs, operands):
        """The result of an ATen call on these tensors, without axes."""
        return run_on_meta(func, args, kwargs)

    def call(self, func, args, kwargs):
        """The result of an ATen call, with its axes."""
        if is_silent(func):
            return func(*args, **kwargs)
        if func in INDEXING:
            args = self.with_positions(args)
        operands = tensors_in(*args, *kwargs.values())
        before = [self.value(t) for t in operands]
        result = self.run(func, args, kwargs, operands)
        outputs = tensors_in(*result) if isinstance(result, (tuple, list)) else tensors_in(result)
        if not operands and not any(t.numel() for t in outputs):
            return result  # the workspace that a batch norm makes
        if outputs:
            self._record(func, args, kwargs, operands, before, outputs)
            return result
        self.settle_sought()
        self._freeze_all(func, before, "its values leave the graph")
        for axis in (axis for value in before for axis in value.watched):
            if func is not NUMBER or len(operands) != 1:
                self.space.freeze(axis, self.reason(ops.spelled(func), ASKED))
            else:
                self.sought = axis, int(result)
        return result

    def settle_sought(self) -> None:
        """The program has done something else with the number of a position than to look up what is there."""
        if self.sought is not None:
            self.space.freeze(self.sought[0], self.reason("", ASKED))
            self.sought = None

    def with_positions(self, args: tuple) -> tuple:
        """The arguments of an indexing call, flags whose values are known as positions."""
        args, positions = numbers.as_positions(args, self.numbers_of, not self.on_values)
        for index, places in positions:
            self.value(index).numbers = places
        return args

    def _record(self, func, args, kwargs, operands, before, outputs) -> None:
        label = self.label()
        record = Record(label, func, before, template=_template(args, kwargs), one_kernel=self.one_kernel)
        reasons: dict[str, Reason] = {}

        def because(text: str) -> Reason:
            if text not in reasons:
                reasons[text] = self.reason(ops.spelled(func), text)
            return reasons[text]

        record.dtypes = [tensor.dtype for tensor in outputs]
        call = Call(func, args, kwargs, operands, outputs, self.space, self.value, record, because)
        call.numbers_of = self.numbers_of
        places = ops.traits_of(func).places
        for value in before:
            if value.watched and (places is None or (places == "kept" and not set(record.dtypes) <= EXACT)):
                call.freeze(list(value.watched), COMPUTED)
        call.sought = self.sought
        axes = self._apply_rule(func, call, before, outputs)
        if call.sought is not None:  # no rule has taken it
            self.settle_sought()
        self.sought = None
        moved = tuple(dict.fromkeys(axis for v in before for axis in v.watched)) if places == "kept" else ()
        static = not record.macs and all([v.parameters for v in before])
        parameters = frozenset().union(*[v.parameters for v in before]) if static else _NONE
        from_inputs = any([v.from_inputs for v in before])
        for number, (tensor, made) in enumerate(zip(outputs, axes, strict=True)):
            in_place = any([tensor is operand for operand in operands])
            if in_place and torch.Tag.inplace_view not in func.tags:
                known = self.value(tensor)
                for old, new in zip(known.axes, made, strict=True):
                    call.tie(old, new)
                known.from_inputs |= from_inputs
                self.rewritten |= schema_of(func).is_mutable and not tensor.is_floating_point()
                record.outputs.append(known)
                continue
            watched = record.watched.get(number, moved)
            value = Value(f"{label}/{len(self.records)}", tuple(made), parameters, watched, from_inputs)
            if not tensor.is_floating_point():
                value.numbers = numbers.computed(func, args, kwargs, tensor, self.numbers_of, number)
            self.attach(tensor, value)
            record.outputs.append(value)
        self.records.append(record)

    def _apply_rule(self, func, call: Call, before: list[Value], outputs: list[torch.Tensor]) -> list[list[Axis]]:
        """The axes of the outputs; where no rule fits the call they are constants and those of the inputs freeze."""
        rule = ops.find(func)
        if rule is None:
            self._freeze_all(func, before, "no rule says what this operator does with its axes")
            return [call.fixed(n) for n in range(len(outputs))]
        try:
            axes = list(map(list, rule(call)))
            for number in range(len(axes), len(outputs)):
                axes.append(call.fixed(number))
            for made, tensor in zip(axes, outputs, strict=True):
                if tuple(map(_size, made)) != tensor.shape:
                    raise ValueError(f"it gives axes {made} for a result of shape {list(tensor.shape)}")
            return axes
        except Exception as error:  # a rule is somebody's code: its failure freezes, with the reason, and never crashes
            call.record.contracted.clear()
            self._freeze_all(func, before, f"its rule does not fit this call: {type(error).__name__}: {error}")
            return [call.fixed(n) for n in range(len(outputs))]

    def _freeze_all(self, func, values: list[Value], text: str) -> None:
        for value in values:
            for axis in value.axes:
                self.space.freeze(axis, self.reason(ops.spelled(func), text))


class GraphInference(fx.Interpreter):
    """Interprets a graph over modules on meta, one node at a time, and collects each node's result."""

    def __init__(self, gm: fx.GraphModule, copies: Copies, mode: Inference, example: ExampleValues) -> None:
        super().__init__(nn.Module(), garbage_collect_values=False, graph=gm.graph)
        self.mode, self._example = mode, example
        self.extra_traceback = False
        self.vals: dict[str, object] = {}
        self.values: dict[str, object] = {}
        self._originals, self._copies = {**modules_of(gm), "": shell(gm)}, copies

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
                    reason = self.mode.reason("", "an output of the model keeps its shape")
                    for axis in value.axes:
                        self.mode.space.freeze(axis, reason)
                    for axis in value.watched:
                        self.mode.space.freeze(axis, self.mode.reason("", COMPUTED))
        value_of = self.mode.value
        self.vals[n.name] = result
        self.values[n.name] = value_of(result) if single else pytree.tree_map_only(torch.Tensor, value_of, result)

    def _opaque(self, n: fx.Node, error: Exception) -> object:
        """A node that cannot run on meta: run it to learn its shapes, and freeze what it touches.

        Its sizes may hang on values (`x[mask]`), so it is run on those of the example, where that has some; else on
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

    def _on_made_values(self, n: fx.Node, args: Any, kwargs: Any, value: int) -> object:
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

    Values of the example are read only where a size hangs on them.

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
        run.run(*arguments, enable_io_processing=False)
    return Inferred(mode, run, axes, copies.names)
