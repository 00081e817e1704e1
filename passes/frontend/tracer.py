"""A tracer that keeps the mode of every module live and can look up the sizes that control flow asks for."""

from __future__ import annotations

import functools
import math
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.proxy import Attribute, Scope, TraceError

from passes.frontend.callers import describe, stack_trace, unpacked_into, user_frame
from passes.frontend.leaf_modules import stays_whole
from passes.frontend.node_values import Unknown, Values, one_more
from passes.graph.module_copies import PLAIN, attributes_of, modules_of
from passes.graph.nodes import give_arguments
from passes.process.torch_patches import originals_back, replace_while_tracing, root_function
from passes.process.torch_private import (
    CONSTANT_TYPES,
    buffers_of,
    parameters_of,
    set_grad_enabled,
    torch_assert,
)

# Constructors whose sizes may be proxies: their parser refuses those before any dispatch, so that fx does not see them.
FACTORIES = (
    *(torch.zeros, torch.ones, torch.full, torch.empty, torch.eye, torch.arange, torch.linspace, torch.logspace),
    *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.tensor, torch.as_tensor),
    *(torch.tril_indices, torch.triu_indices, torch.Size),
)
_WRAPPED = frozenset(FACTORIES)


@dataclass(frozen=True)
class Note:
    """A decision that the traced code took from something that may differ at run time.

    `kind` is "mode" (train or eval), "shape" (sizes and types of the example inputs), "batch" (their leading
    dimension) or "value" (of a parameter or buffer); `module` the path of the module whose forward took it,
    `function` the plain function that did (None: the forward itself).
    """

    kind: str
    module: str
    source: str
    function: Callable[..., object] | None = None


class Unresolved(TraceError):
    """Control flow that depends on something which the tracer does not know."""


class ValueProxy(fx.Proxy):
    """A proxy that answers bool, int, float, len and iteration where its tracer knows the value."""

    tracer: Tracer
    _is_param = _is_buffer = False  # asked by the isinstance of nn.Parameter and nn.Buffer

    def __getattr__(self, name: str) -> Any:
        if type(self) is ValueProxy and self.node.op == "get_attr" and not self.tracer.has(self.node, name):
            raise AttributeError(f"{self.node.target} has no attribute {name!r}")  # what hasattr asks
        return _ValueAttribute(self, name)

    def __iter__(self) -> Iterator[Any]:
        caller = sys._getframe(1)
        count = unpacked_into(caller.f_code, caller.f_lasti)
        item: Any = self
        return self.tracer.iter(self) if count is None else iter([item[position] for position in range(count)])

    def __len__(self) -> int:
        return len(self.tracer.resolve(self, sized=True))

    def __int__(self) -> int:
        return int(self.tracer.resolve(self))

    def __float__(self) -> float:
        return float(self.tracer.resolve(self))

    def __index__(self) -> int:
        return operator.index(self.tracer.resolve(self))

    def __contains__(self, item: object) -> bool:
        return item in self.tracer.resolve(self)

    def __format__(self, how: str) -> str:
        """The text of a number, of a size say; what is written of a tensor is for people, and no part of the graph."""
        try:
            is_tensor = isinstance(self.tracer.value(self), torch.Tensor)
        except Unresolved:
            return repr(self)
        return repr(self) if is_tensor else format(self.tracer.resolve(self), how)

    def __str__(self) -> str:
        return format(self, "")

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> tuple[Any, Any]:
        return other // self, other % self

    def __setitem__(self, key: object, value: object) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


def _in_place(method: str) -> Callable[[ValueProxy, object], object]:
    """`buffer += x` writes into the buffer; on what is computed it may as well make a new value, as torch.fx does."""

    def write(proxy: ValueProxy, other: object) -> object:
        if proxy.node.op != "get_attr":
            return NotImplemented
        proxy.tracer.create_proxy("call_method", method, (proxy, other), {})
        return proxy

    return write


for _operation in ("add", "sub", "mul"):
    setattr(ValueProxy, f"__i{_operation}__", _in_place(f"{_operation}_"))


class _ValueAttribute(Attribute, ValueProxy):
    pass


class Mode(ValueProxy):
    """`module.training`: a truth value in control flow, a node that reads the live flag where it is passed on."""

    def __init__(self, tracer: Tracer, path: str, value: bool) -> None:
        self.tracer = tracer
        self.path = path
        self.value = value

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        return self.tracer.mode_node(self.path)

    def __deepcopy__(self, memo: dict[int, object]) -> Any:
        return self.value


class _Scope(Scope):
    """fx copies the scope at every call of a module."""

    def __copy__(self) -> Scope:
        return Scope(self.module_path, self.module_type)


class Tracer(fx.Tracer):
    """Traces a module into a graph in which train and eval mode stay switchable.

    Modules that read `training` and hold neither children nor tensors (DropPath, StochasticDepth) are leaves, as are
    those in `leaves` (paths) and the functions in `functions`; everywhere else `training` becomes a
    node that reads the flag of the module it belongs to. `inputs` (by placeholder name) gives the sizes that
    control flow asks for; `notes` lists what was decided from sizes or from the mode. `flipped` traces as if
    every module were in its other mode.
    """

    record_stack_traces = False  # ours are shorter and cheaper, see create_node
    proxy_buffer_attributes = True

    def __init__(
        self,
        inputs: dict[str, object] | None = None,
        leaves: frozenset[str] = frozenset(),
        functions: tuple[Callable[..., object], ...] = (),
        flipped: bool = False,
    ) -> None:
        super().__init__(autowrap_modules=(math,), autowrap_functions=(*FACTORIES, *functions))
        self._autowrap_search += [torch]
        self.scope = _Scope("", None)
        self.inputs = inputs
        self.leaves = leaves
        self.functions = functions
        self.flipped = flipped
        self.notes: dict[Note, None] = {}
        self._decisions: list[tuple[fx.Node, object, Note]] = []
        self._modes: dict[str, bool] = {}
        self._mode_nodes: dict[str, fx.Node] = {}
        self._model = nn.Module()
        self._paths: dict[nn.Module, str] = {}
        self._constants: dict[Any, str] = {}
        self._tensor_names: dict[int, str] = {}
        self._proxies: dict[str, fx.Proxy] = {}
        self._grad_enabled = torch.is_grad_enabled()
        self._grad_before: fx.Node | None = None
        self._thread = threading.get_ident()

    # -- what fx calls ------------------------------------------------------------------------------------------

    def trace(
        self, root: nn.Module | Callable[..., object], concrete_args: dict[str, object] | None = None
    ) -> fx.Graph:
        assert isinstance(root, nn.Module), "capture takes modules only"
        modules = modules_of(root)
        training = {path: bool(module.training) for path, module in modules.items()}
        self._modes = {path: mode != self.flipped for path, mode in training.items()}
        self._tensor_names = _registered(modules)
        self._model, self._paths = root, {}
        for path, module in modules.items():
            self._paths.setdefault(module, path)
        self._constants = {value: name for name, value in attributes_of(modules, CONSTANT_TYPES)}
        try:
            for path, module in reversed(modules.items()):  # a shared module goes by the first of its paths
                module.__dict__["training"] = Mode(self, path, self._modes[path])
            # The function alone: given the module, fx asks every attribute of every module whether it is a tensor.
            graph = super().trace(root_function(root, self.traced_func_name), concrete_args)
        finally:
            for path, module in modules.items():
                module.__dict__["training"] = training[path]
        for node in graph.nodes:
            if node.target in _WRAPPED:  # else the code has fx wrap "torch.zeros", a name no module has
                node.meta.pop("is_wrapped", None)
        if self._decisions:
            self._note_batch()
        return graph

    def create_args_for_root(
        self, root_fn: Callable[..., object], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., object], list[object]]:
        self.root, self.submodule_paths, self.tensor_attrs = self._model, self._paths, self._constants
        function, args = super().create_args_for_root(root_fn, True, concrete_args)
        self._values = Values(self.graph, self.inputs, self._attribute, self.root.get_submodule)

        @functools.wraps(function)
        def traced(*args: object) -> object:
            replace_while_tracing(self, ValueProxy)
            return function(*args)

        return traced, [self._present(arg) for arg in args]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return ValueProxy(node, self)

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict[str, fx.Proxy]) -> object:
        if not isinstance(attr_val, torch.Tensor) or threading.get_ident() != self._thread:
            return attr_val
        name = self._tensor_names.get(id(attr_val))
        if name is None:
            return attr_val
        if name not in self._proxies:
            self._proxies[name] = self.create_proxy("get_attr", name, (), {})
        return self._proxies[name]

    def call_module(self, m: nn.Module, forward: Callable[..., object], args: Any, kwargs: Any) -> object:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)  # another thread runs a module of its own meanwhile
        return super().call_module(m, forward, args, kwargs)

    def create_arg(self, a: object) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if type(a) in PLAIN:
            return a
        if isinstance(a, np.generic):
            return a.item()  # generated code does not know the names of NumPy
        if type(a) is tuple:
            return tuple(map(self.create_arg, a))
        if isinstance(a, torch.Tensor) and id(a) in self._tensor_names:
            return self.create_node("get_attr", self._tensor_names[id(a)], (), {})
        return super().create_arg(a)

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: Any = None, type_expr: Any = None
    ) -> Any:
        if isinstance(type_expr, str):
            type_expr = None  # a postponed annotation: generated code cannot name it, and pickling would fail
        self._follow_grad_mode()
        node = super().create_node(kind, target, (), {}, name, type_expr)
        give_arguments(node, args, kwargs)
        if not node.stack_trace:
            node.meta["stack_trace"] = stack_trace(self.trace.__code__)
        return node

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.leaves or isinstance(m, torch.jit.ScriptModule):
            return True
        if isinstance(m, nn.Sequential) or "forward" in m.__dict__:
            return False
        return stays_whole(m)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.resolve(obj))

    def iter(self, obj: Any) -> Iterator[Any]:
        value = self.resolve(obj, sized=True)
        if isinstance(value, dict):
            return iter(value)
        if isinstance(value, (type({}.items()), type({}.values()))) and obj.node.op == "call_method":
            mapping: Any = self.proxy(obj.node.args[0])
            pairs = [(key, mapping[key]) for key in self.resolve(mapping)]
            return iter(pairs if isinstance(value, type({}.items())) else [entry for _, entry in pairs])
        return iter([obj[position] for position in range(len(value))])

    def keys(self, obj: fx.Proxy) -> Any:
        try:
            return list(self.resolve(obj))
        except Unresolved:
            return super().keys(obj)

    # -- what the proxies and the lowerings call ------------------------------------------------------------------

    def resolve(self, obj: fx.Proxy, sized: bool = False) -> Any:
        """The concrete value of a proxy, noted as a decision; raises Unresolved.

        A tensor is answered for only if its value does not depend on the input, or if it is to be `sized` only.
        """
        if type(obj) is Mode:
            self._note("mode")
            return obj.value
        value, kind = self._value_and_source(obj, sized)
        self._decisions.append((obj.node, _as_decided(value), self._note(kind)))
        return value

    def value(self, obj: fx.Proxy) -> Any:
        """What the proxy holds, tensors on the meta device; raises Unresolved."""
        if self._values.known(obj.node):
            return _resolved(self._values.of, obj.node)
        return self._look_up(self._values.of, obj)

    def _value_and_source(self, obj: fx.Proxy, sized: bool) -> tuple[object, str]:
        try:
            value = self.value(obj)
            if sized or not isinstance(value, torch.Tensor):
                return value, "mode" if self._hangs_on_mode(obj.node) else "shape"
        except Unresolved:
            if not self._is_constant(obj.node):
                raise
        return self._look_up(self._values.constant, obj), "value"

    def _is_constant(self, node: fx.Node) -> bool:
        return node.op != "placeholder" and all(self._is_constant(used) for used in node.all_input_nodes)

    def _look_up(self, how: Callable[[fx.Node], object], obj: fx.Proxy) -> object:
        # Without fx's patches: what torch imports or caches meanwhile must not keep a wrapper for torch.zeros.
        with originals_back():
            return _resolved(how, obj.node)

    def class_of(self, obj: fx.Proxy) -> type:
        if self.inputs is None or type(obj) is Mode:
            return type(obj)
        try:
            return type(self.value(obj))
        except Unresolved:
            return type(obj)

    def has(self, node: fx.Node, name: str) -> bool:
        """Whether the parameter or buffer that `node` reads has an attribute of this name."""
        path, _, last = str(node.target).rpartition(".")
        module = self.root.get_submodule(path)
        held = parameters_of(module).get(last, buffers_of(module).get(last))
        return held is None or hasattr(held, name)

    def mode_node(self, path: str) -> fx.Node:
        """The node that reads the `training` flag of the module at `path`."""
        if path not in self._mode_nodes:
            target = f"{path}.training" if path else "training"
            self._mode_nodes[path] = self.create_node("get_attr", target, (), {})
        return self._mode_nodes[path]

    # -- details --------------------------------------------------------------------------------------------------

    def _follow_grad_mode(self) -> None:
        """`with torch.no_grad():` inside a forward holds in the graph as well, and ends where it ended."""
        if torch.is_grad_enabled() == self._grad_enabled:
            return
        self._grad_enabled = torch.is_grad_enabled()
        if self._grad_before is None:
            self._grad_before = super().create_node("call_function", torch.is_grad_enabled, (), {})
            super().create_node("call_function", set_grad_enabled, (self._grad_enabled,), {})
        else:
            super().create_node("call_function", set_grad_enabled, (self._grad_before,), {})
            self._grad_before = None

    def _present(self, arg: object) -> object:
        """The proxy; None, () or {} for an input that the example leaves out, which the graph then refuses."""
        if not isinstance(arg, fx.Proxy):
            return arg
        name = str(arg.node.target).lstrip("*")
        stars = len(str(arg.node.target)) - len(name)
        default = arg.node.args[0] if arg.node.args else ...
        example = (self.inputs or {}).get(name, ... if stars else default)
        if example is not None and not (stars and example is ...):
            return arg
        check, operands = (operator.not_, (arg,)) if stars else (operator.is_, (arg, None))
        text = f"{name} was not given when this graph was captured; capture it with an example of {name}"
        test = self.create_proxy("call_function", check, operands, {})
        self.create_proxy("call_function", torch_assert, (test, text), {})
        return (None, (), {})[stars]

    def _attribute(self, name: str) -> object:
        path, _, last = name.rpartition(".")
        return self._modes[path] if last == "training" else getattr(self.root.get_submodule(path), last)

    def _hangs_on_mode(self, node: fx.Node) -> bool:
        """Whether a number was computed from a mode; one that was read off a tensor was not."""
        if node in self._mode_nodes.values():
            return True
        if isinstance(self.value(self.proxy(node)), torch.Tensor):
            return False
        return any(self._hangs_on_mode(used) for used in node.all_input_nodes)

    def _note(self, kind: str) -> Note:
        frame = user_frame()
        module = next(reversed(self.module_stack.values()))[0] if self.module_stack else ""
        if frame is None:
            note = Note(kind, module, "unknown source")
        else:
            function = frame.f_globals.get(frame.f_code.co_name)
            own = getattr(function, "__code__", None) is frame.f_code
            note = Note(kind, module, describe(frame), function if own else None)
        self.notes[note] = None
        return note

    def _note_batch(self) -> None:
        """Note the decisions that fall otherwise when the inputs have one example more."""
        other = self._values.with_inputs(one_more(self.inputs))
        for node, value, note in self._decisions:
            try:
                found = self._look_up(other.of, self.proxy(node))
            except Unresolved:
                continue
            if note.kind != "value" and _as_decided(found) != value:
                self.notes[replace(note, kind="batch")] = None


def _registered(modules: dict[str, nn.Module]) -> dict[int, str]:
    """The first name of each parameter, and of each buffer that is none, by its identity."""
    names: dict[int, str] = {}
    for kind in ("_parameters", "_buffers"):
        for path, module in modules.items():
            for name, tensor in module.__dict__[kind].items():
                if tensor is not None:
                    names.setdefault(id(tensor), f"{path}.{name}" if path else name)
    return names


def _resolved(how: Callable[[fx.Node], object], node: fx.Node) -> object:
    try:
        return how(node)
    except Unknown as error:
        raise Unresolved(str(error)) from error


def _as_decided(value: object) -> object:
    """What of a value can have decided anything: of a collection, how many parts it has."""
    return len(value) if hasattr(value, "__len__") and not isinstance(value, str) else value
