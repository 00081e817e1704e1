"""A tracer that keeps the mode of every module live and can look up the sizes that control flow asks for."""

from __future__ import annotations

import dis
import linecache
import math
import operator
import os
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import Attribute, TraceError

from passes.values import Unknown, Values

# Constructors whose sizes may be proxies: their parser refuses those before any dispatch, so that fx does not see them.
FACTORIES = (
    *(torch.zeros, torch.ones, torch.full, torch.empty, torch.eye, torch.arange, torch.linspace, torch.logspace),
    *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.tensor, torch.as_tensor),
    *(torch.tril_indices, torch.triu_indices, torch.Size),
)
_OURS = (torch.__path__[0] + os.sep, os.path.dirname(__file__) + os.sep)


@dataclass(frozen=True)
class Note:
    """A decision that the traced code took from something that may differ at run time.

    `kind` is "mode" (train or eval) or "batch" (the number of examples); `module` the path of the module whose
    forward took it, `function` the plain function that did (None: the forward itself).
    """

    kind: str
    module: str
    source: str
    function: Callable[..., Any] | None = None


class Unresolved(TraceError):
    """Control flow that hangs on something which the tracer does not know."""


class ValueProxy(fx.Proxy):
    """A proxy that answers bool, int, float, len and iteration where its tracer knows the value."""

    tracer: Tracer

    def __getattr__(self, name: str) -> Any:
        return _ValueAttribute(self, name)

    def __len__(self) -> int:
        return len(self.tracer.resolve(self))

    def __int__(self) -> int:
        return int(self.tracer.resolve(self))

    def __float__(self) -> float:
        return float(self.tracer.resolve(self))

    def __index__(self) -> int:
        return operator.index(self.tracer.resolve(self))

    def __contains__(self, item: Any) -> bool:
        return item in self.tracer.resolve(self)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


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

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self.value


class Tracer(fx.Tracer):
    """Traces a module into a graph in which train and eval mode stay switchable.

    Modules that read `training` and hold neither children nor tensors (DropPath, StochasticDepth) are leaves, as are
    those in `leaves` (paths) and the functions in `functions`; everywhere else `training` becomes a
    node that reads the flag of the module it belongs to. `inputs` (by placeholder name) gives the sizes that
    control flow asks for; what was decided from the mode or from the batch size is in `notes`.
    """

    record_stack_traces = False  # ours are shorter and cheaper, see create_node
    proxy_buffer_attributes = True

    def __init__(
        self,
        inputs: dict[str, Any] | None = None,
        leaves: frozenset[str] = frozenset(),
        functions: tuple[Callable[..., Any], ...] = (),
    ) -> None:
        super().__init__(autowrap_modules=(math,), autowrap_functions=(*FACTORIES, *functions))
        self._autowrap_search.append(torch)
        self.inputs = inputs
        self.leaves = leaves
        self.notes: list[Note] = []
        self.resolved = False
        self._modes: dict[str, bool] = {}
        self._mode_nodes: dict[str, fx.Node] = {}
        self._tensor_names: dict[int, str] = {}
        self._proxies: dict[str, fx.Proxy] = {}
        self._values: tuple[Values, ...] = ()
        self._looking_up = False

    # -- what fx calls ------------------------------------------------------------------------------------------

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        assert isinstance(root, nn.Module), "capture takes modules only"
        modules = dict(root.named_modules())
        self._modes = {path: bool(module.training) for path, module in modules.items()}
        named = [*root.named_parameters(), *root.named_buffers()]
        self._tensor_names = {id(tensor): name for name, tensor in reversed(named)}
        try:
            for path, module in modules.items():
                module.__dict__["training"] = Mode(self, path, self._modes[path])
            return super().trace(root, concrete_args)
        finally:
            for path, module in modules.items():
                module.__dict__["training"] = self._modes[path]

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        self._values = (Values(self.graph, self.inputs, self._attribute, self.root.get_submodule),)
        return function, [self._present(arg) for arg in args]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return ValueProxy(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        if not isinstance(attr_val, torch.Tensor) or self._looking_up:
            return attr_val
        name = self._tensor_names.get(id(attr_val))
        if name is None:
            return attr_val
        if name not in self._proxies:
            self._proxies[name] = self.create_proxy("get_attr", name, (), {})
        return self._proxies[name]

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, torch.Tensor) and id(a) in self._tensor_names:
            return self.create_node("get_attr", self._tensor_names[id(a)], (), {})
        return super().create_arg(a)

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: Any = None, type_expr: Any = None
    ) -> Any:
        if isinstance(type_expr, str):
            type_expr = None  # a postponed annotation: generated code cannot name it, and pickling would fail
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        if not node.stack_trace:
            node.stack_trace = _stack_trace()
        return node

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.leaves or isinstance(m, torch.jit.ScriptModule):
            return True
        if isinstance(m, nn.Sequential):
            return False
        return _defined_in_torch(type(m)) or _only_reads_mode(m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._looking_up:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def to_bool(self, obj: fx.Proxy) -> bool:
        try:
            return bool(self.resolve(obj))
        except Unresolved:
            if _in_assert():
                return True
            raise

    def iter(self, obj: Any) -> Iterator[Any]:
        value = self.resolve(obj)
        if isinstance(value, dict):
            return iter(value)
        if isinstance(value, (type({}.items()), type({}.values()))) and obj.node.op == "call_method":
            mapping: Any = self.proxy(obj.node.args[0])  # type: ignore[arg-type]
            pairs = [(key, mapping[key]) for key in self.resolve(mapping)]
            return iter(pairs if isinstance(value, type({}.items())) else [entry for _, entry in pairs])
        return iter([obj[position] for position in range(len(value))])

    def keys(self, obj: fx.Proxy) -> Any:
        try:
            return list(self.resolve(obj))
        except Unresolved:
            return super().keys(obj)

    # -- what the proxies and the lowerings call ------------------------------------------------------------------

    def resolve(self, obj: fx.Proxy) -> Any:
        """The concrete value of a proxy: Python number, size or tuple; raises Unresolved."""
        if isinstance(obj, Mode):
            self._note("mode")
            return obj.value
        self.resolved = True
        value = self.value(obj)
        if isinstance(value, torch.Tensor):
            value = self._look_up(self._values[0].constant, obj)
        if self._hangs_on_mode(obj.node):
            self._note("mode")
        return value

    def value(self, obj: fx.Proxy) -> Any:
        """What the proxy holds, tensors on the meta device; raises Unresolved."""
        return self._look_up(self._values[0].of, obj)

    def _look_up(self, how: Callable[[fx.Node], Any], obj: fx.Proxy) -> Any:
        self._looking_up = True
        try:
            return how(obj.node)
        except Unknown as error:
            raise Unresolved(str(error)) from error
        finally:
            self._looking_up = False

    def mode_node(self, path: str) -> fx.Node:
        """The node that reads the `training` flag of the module at `path`."""
        if path not in self._mode_nodes:
            target = f"{path}.training" if path else "training"
            self._mode_nodes[path] = self.create_node("get_attr", target, (), {})
        return self._mode_nodes[path]

    # -- details --------------------------------------------------------------------------------------------------

    def _present(self, arg: Any) -> Any:
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
        self.create_proxy("call_function", torch._assert, (test, text), {})
        return (None, (), {})[stars]

    def _attribute(self, name: str) -> Any:
        path, _, last = name.rpartition(".")
        return self._modes[path] if last == "training" else getattr(self.root.get_submodule(path), last)

    def _hangs_on_mode(self, node: fx.Node) -> bool:
        """Whether a number was computed from a mode; one that was read off a tensor was not."""
        if node in self._mode_nodes.values():
            return True
        if isinstance(self._look_up(self._values[0].of, self.proxy(node)), torch.Tensor):
            return False
        return any(self._hangs_on_mode(used) for used in node.all_input_nodes)

    def _note(self, kind: str) -> None:
        frame = _user_frame()
        module = next(reversed(self.module_stack.values()))[0] if self.module_stack else ""
        if frame is None:
            self.notes.append(Note(kind, module, "unknown source"))
            return
        function = frame.f_globals.get(frame.f_code.co_name)
        own = getattr(function, "__code__", None) is frame.f_code
        self.notes.append(Note(kind, module, describe(frame), function if own else None))


def describe(frame: types.FrameType, line: int | None = None) -> str:
    """`file.py:41 in forward: if x.shape[1] > 3:`"""
    return describe_line(frame.f_code.co_filename, line or frame.f_lineno, frame.f_code.co_name)


def describe_line(filename: str, line: int, function: str) -> str:
    source = linecache.getline(filename, line).strip()
    name = filename.replace("\\", "/").rsplit("/", 1)[-1]
    return f"{name}:{line} in {function}" + (f": {source}" if source else "")


def is_user_file(filename: str) -> bool:
    """Neither torch's, nor ours, nor the interpreter's."""
    return not filename.startswith((*_OURS, "<"))


def _user_frame() -> types.FrameType | None:
    frame = sys._getframe(1)
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        frame = frame.f_back  # type: ignore[assignment]
    return frame


def _stack_trace() -> str:
    """The user's frames from the outermost forward inwards, written as a traceback writes them."""
    frames: list[str] = []
    frame: types.FrameType | None = sys._getframe(2)
    inside = 0
    while frame is not None:
        code = frame.f_code
        if is_user_file(code.co_filename):
            source = linecache.getline(code.co_filename, frame.f_lineno).strip()
            frames.append(f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}\n    {source}')
            if code.co_name == "forward":
                inside = len(frames)
        frame = frame.f_back
    return "\n".join(reversed(frames[:inside]))


def _in_assert() -> bool:
    """Whether the truth value is wanted by an `assert` statement: then it may be taken to hold."""
    frame = _user_frame()
    if frame is None:
        return False
    following = [step for step in dis.get_instructions(frame.f_code) if step.offset > frame.f_lasti]
    names = [step.opname for step in following if step.opname not in ("CACHE", "TO_BOOL")][:2]
    return len(names) == 2 and "IF_TRUE" in names[0] and names[1] in ("LOAD_ASSERTION_ERROR", "LOAD_COMMON_CONSTANT")


def _defined_in_torch(kind: type) -> bool:
    """Whether the forward of this class is one of torch.nn's: a subclass that keeps it is the same operator."""
    owner = next(base for base in kind.__mro__ if "forward" in vars(base))
    module = getattr(vars(owner)["forward"], "__module__", None) or owner.__module__
    return owner is not nn.Module and module.startswith(("torch.nn", "torch.ao.nn"))


def _only_reads_mode(module: nn.Module) -> bool:
    if module._modules or module._parameters or module._buffers:
        return False
    return "training" in getattr(type(module).forward, "__code__", _only_reads_mode.__code__).co_names
