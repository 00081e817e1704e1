"""Tensors that no constructor makes, ties, frozen parameters and dtypes, as statements of an `__init__`."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from fxprune.exporters.source.containers import Container, is_plain, reference
from fxprune.exporters.source.forward import used_targets
from fxprune.exporters.source.literals import Imports, literal, quoted
from fxprune.io.module_state import State
from fxprune.io.outline import ties_of
from passes.graph.module_copies import owned_tensors


def tensor_lines(gm: fx.GraphModule, root: Container, state: State, imports: Imports) -> list[str]:
    """The statements, without indentation, in the order in which they must run."""
    leaves = tuple(used_targets(gm, "call_module"))
    tensors = dict(owned_tensors(gm))
    own = {name: tensor for name, tensor in tensors.items() if not any(name.startswith(f"{leaf}.") for leaf in leaves)}
    tied = ties_of(tensors.items())
    untied = {name: tensor for name, tensor in own.items() if name not in tied}
    return [
        *(_registration(name, tensor, root, state, imports) for name, tensor in untied.items()),
        *_dtype_lines(tensors, own, root),
        *_layout_lines(gm),
        *(f"{reference(root, name)} = {reference(root, source)}" for name, source in tied.items()),
        *_frozen_lines(tensors, own, root),
    ]


def _registration(name: str, tensor: Tensor, root: Container, state: State, imports: Imports) -> str:
    owner, _, attribute = name.rpartition(".")
    holder = reference(root, owner) if owner else "self"
    kind = "" if tensor.dtype == torch.float32 else f", dtype={tensor.dtype}"
    blank = f"torch.zeros({', '.join(map(str, tensor.shape)) if tensor.dim() else '()'}{kind})"
    if isinstance(tensor, nn.Parameter):
        frozen = "" if tensor.requires_grad else ", requires_grad=False"
        value = f"nn.Parameter({blank}{frozen})"
        plain = is_plain(attribute)
        return f"{holder}.{attribute} = {value}" if plain else f"setattr({holder}, {quoted(attribute)}, {value})"
    if name in state.small:
        values = literal(tensor.detach().cpu().tolist(), imports, f"the buffer {name}")
        blank = f"torch.tensor({values}, dtype={tensor.dtype})"
        return f"{holder}.register_buffer({quoted(attribute)}, {blank}, persistent=False)"
    return f"{holder}.register_buffer({quoted(attribute)}, {blank})"


def _dtype_lines(tensors: dict[str, Tensor], own: dict[str, Tensor], root: Container) -> list[str]:
    """Constructors make float32: one cast of the whole where all agree, else a cast for each tensor that differs."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    dtypes = {tensor.dtype for tensor in floating.values()}
    if dtypes <= {torch.float32}:
        return []
    if len(dtypes) == 1:
        return [f"self.to({dtypes.pop()})"]
    return [
        f"{reference(root, name)}.data = {reference(root, name)}.data.to({tensor.dtype})"
        for name, tensor in floating.items()
        if name not in own and tensor.dtype != torch.float32
    ]


def _layout_lines(gm: fx.GraphModule) -> list[str]:
    """channels_last, where the weights of all convolutions are."""
    weights = [tensor for _, tensor in owned_tensors(gm) if tensor.dim() == 4 and isinstance(tensor, nn.Parameter)]
    other_layout = [weight for weight in weights if not weight.is_contiguous()]
    if other_layout and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights):
        return ["self.to(memory_format=torch.channels_last)"]
    return []


def _frozen_lines(tensors: dict[str, Tensor], own: dict[str, Tensor], root: Container) -> list[str]:
    parameters = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}
    if parameters and not any(tensor.requires_grad for tensor in parameters.values()):
        return ["self.requires_grad_(False)"]
    frozen = [name for name, tensor in parameters.items() if not tensor.requires_grad and name not in own]
    return [f"{reference(root, name)}.requires_grad_(False)" for name in frozen]
