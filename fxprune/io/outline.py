"""What stands beside the tensors of a network: ties, memory layouts, and how its graph was captured.

A journal keeps it, so that the weights of a round can be exported from the folder alone: no code is imported for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, fx, nn

from fxprune.io.tensors import named_tensors
from passes.graph.module_copies import attributes_of
from passes.process.torch_private import transient_of


@dataclass(frozen=True)
class Outline:
    """ties: further name -> first name of one tensor. order: name -> dimensions from outermost to innermost in memory.

    transient: buffers that a state_dict leaves out. plain: tensors that are neither parameters nor buffers, which a
    journal does not keep. frontend and inputs: see `captured_by`.
    """

    ties: dict[str, str]
    order: dict[str, list[int]]
    transient: tuple[str, ...]
    plain: tuple[str, ...]
    frontend: str
    inputs: tuple[str, ...]


def outline_of(network: nn.Module) -> Outline:
    tensors = _in_order(network)
    ties = ties_of(tensors)
    orders = ((name, memory_order(tensor)) for name, tensor in tensors if name not in ties)
    order = {name: dims for name, dims in orders if dims is not None}
    transient, plain = sorted(transient_in(network)), sorted(plain_in(network))
    return Outline(ties, order, tuple(transient), tuple(plain), *captured_by(network))


def ties_of(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Further name -> first name of one tensor."""
    first: dict[int, str] = {}
    return {name: known for name, tensor in tensors if (known := first.setdefault(id(tensor), name)) != name}


def transient_in(network: nn.Module) -> list[str]:
    """The names of the buffers that a state_dict leaves out."""
    modules = network.named_modules(remove_duplicate=False)
    return [_name(path, n) for path, module in modules for n in transient_of(module) if getattr(module, n) is not None]


def plain_in(network: nn.Module) -> list[str]:
    """The names of the tensors that are neither parameters nor buffers."""
    return [name for name, _ in attributes_of(dict(network.named_modules(remove_duplicate=False)), (Tensor,))]


def _in_order(network: nn.Module) -> list[tuple[str, Tensor]]:
    """The tensors under all their names, in the order of the modules, which decides the first name of each."""
    place = {name: number for number, (name, _) in enumerate(network.named_modules(remove_duplicate=False))}
    return sorted(named_tensors(network), key=lambda item: place[item[0].rpartition(".")[0]])


def _name(path: str, attribute: str) -> str:
    return f"{path}.{attribute}" if path else attribute


def captured_by(module: nn.Module) -> tuple[str, tuple[str, ...]]:
    """How a graph was captured ("fx" or "export", else "auto") and the names of its inputs; "module" for no graph."""
    if not isinstance(module, fx.GraphModule):
        return "module", ()
    which = module.meta.get("frontend", {}).get("which")
    names = tuple(str(node.target) for node in module.graph.find_nodes(op="placeholder"))
    return which if which in ("fx", "export") else "auto", names


def memory_order(tensor: Tensor) -> list[int] | None:
    """The dimensions from outermost to innermost, None for the usual order and for tensors with gaps or overlaps."""
    if tensor.is_contiguous():
        return None
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda dim: (-strides[dim], dim))
    return order if tensor.permute(order).is_contiguous() else None
