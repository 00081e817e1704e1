"""The tensors of a network as plain named data: taken out, put back, and as safetensors bytes. Never pickle."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxprune.errors import JournalError


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """A copy, on the CPU, of every parameter and buffer, also of buffers that a state_dict leaves out.

    Names of one tied tensor hold equal copies, so that putting them back keeps the tie.
    """
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in named_tensors(network)}


def named_tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        *network.named_parameters(remove_duplicate=False),
        *network.named_buffers(remove_duplicate=False),
    ]


def put_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into the network, in place; names and shapes must be its own."""
    own = dict(named_tensors(network))
    wrong = [f"{name} is missing" for name in own if name not in tensors]
    wrong += [f"{name} is not in the network" for name in tensors if name not in own]
    wrong += [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if wrong:
        raise JournalError(f"The stored weights are those of another network: {'; '.join(wrong[:5])}.")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in sorted(tensors.items())})


def from_bytes(data: bytes) -> dict[str, Tensor]:
    """Raises JournalError where the bytes are no safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except SafetensorError as error:
        raise JournalError(f"The stored weights are no safetensors file: {error}.") from error


def fingerprint(network: nn.Module) -> str:
    """A SHA-256 over names, shapes, types and values of all tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(named_tensors(network)):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()


def clone(network: GraphModule) -> GraphModule:
    """A copy that shares no tensor with the network."""
    return copy.deepcopy(network)


def modes_of(network: nn.Module) -> dict[str, bool]:
    """Which modules are in train mode, by name."""
    return {name: module.training for name, module in network.named_modules()}


def put_modes(network: nn.Module, modes: Mapping[str, bool]) -> None:
    """Put each module into its mode; modules that are not named take that of the whole network."""
    for name, module in network.named_modules():
        module.training = modes.get(name, modes.get("", True))
