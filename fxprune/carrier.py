"""Parts of a model as one graph that carries the tensors of all of it, so that a search over the graph sees the whole.

The graph holds the captured parts, once for each call that the model makes of them, under their names in the model,
and hands the tensors of the rest through as outputs. Outputs are frozen, so the rest stays as it is while the graph
is pruned; it is trained, stored, restored and sent to other processes with the parts, as any weights are.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxprune.errors import InputError
from passes import capture

if TYPE_CHECKING:
    from passes import Plan


@dataclass(frozen=True)
class Call:
    """The inputs of one call of a part, as the model made it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A captured submodule and the calls that the model makes of it."""

    name: str
    graph: fx.GraphModule
    calls: tuple[Call, ...]

    def values(self, call: Call) -> list[Any]:
        """What the placeholders of the graph hold in a call."""
        if getattr(self.graph.graph._codegen, "pytree_info", None) is not None:
            return list(self.graph.graph._codegen.process_inputs(call.args, call.kwargs))
        bound = inspect.signature(self.graph.forward).bind(*call.args, **call.kwargs)
        bound.apply_defaults()
        return list(bound.arguments.values())


@dataclass(frozen=True)
class Carrier:
    """A model, its parts, and where the tensors of the rest go in the graph that `build` makes.

    rest: name in the model -> name in the graph, in the order of the graph's outputs.
    """

    model: nn.Module
    parts: tuple[Part, ...]
    rest: dict[str, str]

    @staticmethod
    def of(model: nn.Module, parts: Sequence[Part]) -> Carrier:
        """Sort the tensors of the model into those of the parts and the rest; a tied one goes where it is first."""
        owners: dict[int, str] = {}
        for part in parts:
            for name, tensor in tensors_by_name(part.graph):
                owners.setdefault(id(tensor), f"{part.name}.{name}")
        rest: dict[str, str] = {}
        for name, tensor in tensors_by_name(model):
            if not any(name.startswith(f"{part.name}.") for part in parts):
                rest[name] = owners.setdefault(id(tensor), name)
        return Carrier(model, tuple(parts), rest)

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The inputs of the graph: those of every call of every part, in order."""
        return tuple(value for part in self.parts for call in part.calls for value in part.values(call))

    def build(self) -> fx.GraphModule:
        """The graph; it shares its tensors with the model."""
        root, graph = nn.Module(), fx.Graph()
        for part in self.parts:
            _place(root, part.name, part.graph)
        tensors = dict(tensors_by_name(self.model))
        for name, target in self.rest.items():
            if name == target:
                _place_tensor(root, name, tensors[name])
        inputs = [
            [
                [
                    graph.placeholder(f"{part.name.replace('.', '_')}_{number}_{node.name}")
                    for node in _placeholders(part)
                ]
                for number in range(len(part.calls))
            ]
            for part in self.parts
        ]
        results = tuple(
            tuple(_inlined(part, graph, given) for given in calls)
            for part, calls in zip(self.parts, inputs, strict=True)
        )
        graph.output((results, tuple(graph.get_attr(target) for target in dict.fromkeys(self.rest.values()))))
        return fx.GraphModule(root, graph, "Parts")

    def assemble(self, network: fx.GraphModule) -> nn.Module:
        """The whole model around `network`, the graph or what became of it: a copy that shares the tensors of both."""
        own = dict(tensors_by_name(network))
        memo: dict[int, Any] = {
            id(tensor): own[self.rest[name]] for name, tensor in tensors_by_name(self.model) if name in self.rest
        }
        for index, part in enumerate(self.parts):
            memo[id(self.model.get_submodule(part.name))] = self.part_of(network, index)
        return copy.deepcopy(self.model, memo)

    def settle(self, whole: nn.Module, network: fx.GraphModule) -> None:
        """Copy into `network` what training replaced rather than changed in place (a buffer that was assigned anew)."""
        own, trained = dict(tensors_by_name(network)), dict(tensors_by_name(whole))
        with torch.no_grad():
            for name, target in self.rest.items():
                if trained[name] is not own[target]:
                    own[target].copy_(trained[name])

    def part_of(self, network: fx.GraphModule, index: int) -> fx.GraphModule:
        """One part of `network` by itself, with the tensors of `network`: the graph of its first call."""
        part = self.parts[index]
        skipped = sum(len(_placeholders(earlier)) * len(earlier.calls) for earlier in self.parts[:index])
        inputs = network.graph.find_nodes(op="placeholder")[skipped : skipped + len(_placeholders(part))]
        (output,) = network.graph.find_nodes(op="output")
        result = output.args[0][0][index][0]  # type: ignore[index]
        mine = _connected(network.graph, [*inputs, *_nodes_in(result)])
        graph, known = fx.Graph(), {}
        for original, node in zip(_placeholders(part), inputs, strict=True):
            known[node] = graph.node_copy(original)
        for node in network.graph.nodes:
            if node in mine and node.op not in ("placeholder", "output"):
                known[node] = graph.node_copy(node, lambda source: known[source])
                if node.op in ("call_module", "get_attr"):
                    known[node].target = str(node.target).removeprefix(f"{part.name}.")
        graph.output(fx.node.map_arg(result, lambda source: known[source]))
        graph._codegen = copy.deepcopy(part.graph.graph._codegen)
        try:
            modules = network.get_submodule(part.name)
        except AttributeError:  # a part without any modules
            modules = nn.Module()
        found = fx.GraphModule(modules, graph, type(part.graph).__name__)
        found.meta.update(part.graph.meta)
        return found


_assembled: weakref.WeakKeyDictionary[nn.Module, tuple[Carrier, Plan]] = weakref.WeakKeyDictionary()


def note_assembled(whole: nn.Module, carrier: Carrier, plan: Plan) -> None:
    """Remember how a whole model came about, for whoever is to store it."""
    _assembled[whole] = carrier, plan


def assembled_from(whole: nn.Module) -> tuple[Carrier, Plan] | None:
    """The carrier and the plan (relative to its graph) that a whole model was made with; None for any other model."""
    return _assembled.get(whole)


def describe(carrier: Carrier) -> dict[str, Any]:
    """The parts of a carrier as plain data, from which `described` makes it again in another process."""
    return {
        part.name: {
            "calls": len(part.calls),
            "inputs": [str(node.target) for node in _placeholders(part)],
            "frontend": part.graph.meta.get("frontend", {}).get("which", "auto"),
        }
        for part in carrier.parts
    }


def described(model: nn.Module, parts: Mapping[str, Any], values: Sequence[Any]) -> Carrier:
    """The carrier that `describe` told of; values: the inputs of all calls, of which only shapes and types matter."""
    rest, found = list(values), []
    for name, part in parts.items():
        calls = []
        for _ in range(part["calls"]):
            given, rest = rest[: len(part["inputs"])], rest[len(part["inputs"]) :]
            calls.append(Call((), dict(zip(part["inputs"], given, strict=True))))
        frontend = part["frontend"] if part["frontend"] in ("fx", "export") else "auto"
        known = {key: value for key, value in calls[0].kwargs.items() if value is not None}
        found.append(Part(name, capture(model.get_submodule(name), known, frontend), tuple(calls)))
    return Carrier.of(model, found)


def record(
    model: nn.Module, names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, list[Call]]:
    """Run the model once, in eval mode and without gradients, and note with what it calls each of its submodules."""
    calls: dict[str, list[Call]] = {name: [] for name in names}

    def note(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            calls[name].append(Call(*_copied((given, named))))

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(note(name), with_kwargs=True) for name in names]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    for name, found in calls.items():
        if not found:
            raise InputError(f"netadapt: the model does not call {name!r} on these example inputs; name what it calls.")
    return calls


def tensors_by_name(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer under each of its names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _placeholders(part: Part) -> list[fx.Node]:
    return part.graph.graph.find_nodes(op="placeholder")


def _inlined(part: Part, graph: fx.Graph, inputs: Sequence[fx.Node]) -> Any:
    """Copy the graph of a part to the end of `graph`; returns its result in terms of the new nodes."""
    known = dict(zip(_placeholders(part), inputs, strict=True))
    for node in part.graph.graph.nodes:
        if node.op == "output":
            return fx.node.map_arg(node.args[0], lambda source: known[source])
        if node.op != "placeholder":
            known[node] = graph.node_copy(node, lambda source: known[source])
            if node.op in ("call_module", "get_attr"):
                known[node].target = f"{part.name}.{node.target}"
    raise InputError(f"netadapt: the graph of {part.name!r} returns nothing.")


def _connected(graph: fx.Graph, seeds: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes that hang together with the seeds, in either direction: one call and nothing of another."""
    found: set[fx.Node] = set()
    open_ = list(seeds)
    while open_:
        node = open_.pop()
        if node not in found and node.op != "output":
            found.add(node)
            open_ += [*node.all_input_nodes, *node.users]
    return found


def _nodes_in(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []

    def note(node: fx.Node) -> fx.Node:
        found.append(node)
        return node

    fx.node.map_arg(value, note)
    return found


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = path.split(".")
    _holder(root, parents).add_module(name, module)


def _place_tensor(root: nn.Module, path: str, tensor: Tensor) -> None:
    *parents, name = path.split(".")
    holder = _holder(root, parents)
    if isinstance(tensor, nn.Parameter):
        holder.register_parameter(name, tensor)
    else:
        holder.register_buffer(name, tensor)


def _holder(root: nn.Module, parents: Sequence[str]) -> nn.Module:
    for parent in parents:
        child = root._modules.get(parent)
        if child is None:
            child = nn.Module()
            root.add_module(parent, child)
        root = child
    return root


def _copied(value: Any) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), value)
