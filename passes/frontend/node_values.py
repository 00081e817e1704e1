"""What a node of a graph under construction holds, computed on the meta device when it is asked for."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from passes.graph.emitted_layers import emit_node
from passes.graph.module_copies import copy_module
from passes.graph.nodes import call
from passes.nested_values import tree_leaves_only
from passes.ops.meta_shapes import OnMeta, run_on_meta
from passes.process.state import random_numbers_kept
from passes.process.torch_private import OpOverload, pytree


class Unknown(Exception):
    """A value that does not follow from shapes and types; its text says why."""


class Values:
    """Concrete sizes, types and flags of the nodes of a graph that is still growing.

    `inputs` maps placeholder names to example values (tensors: only their shape and type are used);
    None if there are none. `attribute(name)` is what a get_attr node reads, `module(name)` what a call_module runs.
    Nodes are run in the order of the graph, so that an in-place change is seen by what follows it, each
    once and not before a value at or behind it is wanted: a graph of which nobody asks anything costs nothing.
    """

    def __init__(
        self,
        graph: fx.Graph,
        inputs: dict[str, object] | None,
        attribute: Callable[[str], object],
        module: Callable[[str], nn.Module],
    ) -> None:
        self._graph = graph
        self._inputs = None if inputs is None else pytree.tree_map(_on_meta, inputs)
        self._placed = torch.empty(0, device=_device_of(inputs))  # answers for the device of every tensor
        self._attribute = attribute
        self._module = module
        self._known: dict[fx.Node, object] = {}
        self._unknown: dict[fx.Node, Exception] = {}
        self._last: fx.Node | None = None
        self._copies: dict[str, nn.Module] = {}

    def with_inputs(self, inputs: dict[str, object] | None) -> Values:
        """The values that the same nodes have for other inputs, as if on the same device."""
        other = Values(self._graph, inputs, self._attribute, self._module)
        other._placed = self._placed
        return other

    def of(self, node: fx.Node) -> Any:
        """The value of `node`, its tensors on the meta device; raises Unknown."""
        self._run_up_to(node)
        if node in self._known:
            return self._known[node]
        raise _as_unknown(self._unknown[node])

    def constant(self, node: fx.Node) -> Any:
        """The true value of a node that depends on parameters and buffers alone; raises Unknown."""
        if node.op == "get_attr":
            value = self._attribute(str(node.target))
            return value.detach().clone() if isinstance(value, torch.Tensor) else value
        if node.op not in ("call_function", "call_method"):
            raise Unknown(f"{node.name} depends on the input")
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.constant)
        with torch.no_grad():
            return call(node, args, kwargs)

    def _run_up_to(self, node: fx.Node) -> None:
        if self.known(node):
            return
        following = self._last.next if self._last is not None else next(iter(self._graph.nodes))
        with torch.no_grad():
            while not self.known(node) and following.op != "root":
                self._run(following)
                self._last = following
                following = following.next
            if not self.known(node):
                self._run(node)  # inserted behind the point that was reached

    def known(self, node: fx.Node) -> bool:
        """Whether `of` answers without running anything."""
        return node in self._known or node in self._unknown

    def _run(self, node: fx.Node) -> None:
        try:
            self._known[node] = self._compute(node)
        except Exception as error:  # whatever user code raises on a meta tensor: the reason for whoever asks
            self._unknown[node] = error

    def _compute(self, node: fx.Node) -> object:
        if node.op == "placeholder":
            return self._input(node)
        if node.op == "get_attr":
            return _on_meta(self._attribute(str(node.target)))
        if node.target is getattr and node.args[1] in _OF_GRADIENTS and not _is_held(node.args[0]):
            raise Unknown(f"{node.args[1]} of a computed tensor: no gradients are followed while tracing")
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._operand)
        found = emit_node(node, args, kwargs, _emit, self._module, _on_meta)
        if found is not NotImplemented:
            return found
        if _asks_for_sizes(node, args):
            return call(node, args, kwargs)
        with torch.device("meta"), OnMeta():
            return self._undrawn(node, args, kwargs) if self._is_users(node) else self._called(node, args, kwargs)

    def _undrawn(self, node: fx.Node, args: Any, kwargs: Any) -> object:
        """What code of the user gives, which the graph runs anew: for shapes it draws no random numbers, but for one
        that it gives itself."""
        put_back = random_numbers_kept()
        result = self._called(node, args, kwargs)
        if any(True for _ in tree_leaves_only(torch.Tensor, result)):
            put_back()
        return result

    def _is_users(self, node: fx.Node) -> bool:
        code = type(self._module(str(node.target))) if node.op == "call_module" else node.target
        place = getattr(code, "__module__", None) or ""
        return node.op in ("call_module", "call_function") and place.split(".")[0] not in _STOCK

    def _called(self, node: fx.Node, args: Any, kwargs: Any) -> object:
        if node.op == "call_module":
            return self._meta_module(str(node.target))(*args, **kwargs)
        if node.target is getattr and args[1:] in (("device",), ("is_meta",), ("is_cpu",), ("is_cuda",)):
            return getattr(self._placed, args[1])
        if node.target is not getattr and node.target not in (operator.eq, operator.ne):
            args, kwargs = fx.node.map_aggregate((args, kwargs), _nowhere)
        return call(node, args, kwargs)

    def _input(self, node: fx.Node) -> object:
        if self._inputs is None:
            raise Unknown("there are no example inputs")
        name = str(node.target).lstrip("*")
        if name in self._inputs:
            return self._inputs[name]
        if node.args:
            return node.args[0]
        raise Unknown(f"the example inputs hold nothing for {name}")

    def _operand(self, node: fx.Node) -> Any:
        if node in self._unknown:
            raise _as_unknown(self._unknown[node])
        if node not in self._known:
            self._run(node)
            return self._operand(node)
        return self._known[node]

    def _meta_module(self, name: str) -> nn.Module:
        """A copy without weights, in eval mode: shapes are the same, and batch norm does not object to few values."""
        if name not in self._copies:
            self._copies[name] = copy_module(self._module(name), lambda _, tensor: _on_meta(tensor)).eval()
        return self._copies[name]


_STOCK = frozenset({"torch", "_operator", "builtins", "math"})
_OF_GRADIENTS = frozenset({"requires_grad", "grad", "grad_fn", "is_leaf", "retains_grad"})


def _is_held(value: object) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _emit(func: OpOverload, *args: object, **kwargs: object) -> object:
    return run_on_meta(func, args, kwargs)


def _asks_for_sizes(node: fx.Node, args: tuple) -> bool:
    """Whether no tensor comes of a node: a question about a tensor's sizes, or arithmetic on the answers."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel") and isinstance(args[0], torch.Tensor)
    if node.target is getattr:
        return args[1] in ("shape", "ndim", "dtype") and isinstance(args[0], torch.Tensor)
    numbers = (int, float, torch.Size)
    return getattr(node.target, "__module__", "") == "_operator" and all(isinstance(a, numbers) for a in args)


def _nowhere(value: object) -> Any:
    """A device in a call on meta tensors can only be theirs."""
    return torch.device("meta") if isinstance(value, torch.device) else value


def _device_of(inputs: object) -> torch.device:
    tensors = tree_leaves_only(torch.Tensor, inputs)
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _on_meta(value: object) -> Any:
    if isinstance(value, nn.Parameter):
        return nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=value.requires_grad)
    return torch.empty_like(value, device="meta") if isinstance(value, torch.Tensor) else value


def _as_unknown(error: Exception) -> Unknown:
    return error if isinstance(error, Unknown) else Unknown(f"{type(error).__name__}: {error}")


def one_more(inputs: object) -> Any:
    """The example inputs with their leading dimension longer by one, where it is that of the first tensor."""
    tensors = [leaf for leaf in tree_leaves_only(torch.Tensor, inputs) if leaf.dim()]

    def longer(leaf: object) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.dim() or leaf.shape[0] != tensors[0].shape[0]:
            return leaf
        return leaf.new_empty((leaf.shape[0] + 1, *leaf.shape[1:]), device="meta")

    return pytree.tree_map(longer, inputs)
