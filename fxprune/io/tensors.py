"""The tensors of a network as plain named data: taken out, put back, and as safetensors bytes. Never pickle."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fxprune.errors import JournalError
from passes.graph.module_copies import Copies
from passes.process.torch_private import buffers_of, storage_id, version_of
from passes.stream.network_copies import held_tensors


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
    """Write tensors into the network, in place; names and shapes must be its own.

    Buffers that a run of the network makes, drops or gives another shape (what it keeps of its last call) are replaced.
    """
    own, buffers = dict(named_tensors(network)), buffer_places(network)
    wrong = [f"{name} is missing" for name in own if name not in tensors and name not in buffers]
    wrong += [f"{name} is not in the network" for name in tensors if name not in own and name not in buffers]
    wrong += [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in tensors and name not in buffers and tensors[name].shape != tensor.shape
    ]
    if wrong:
        raise JournalError(f"The stored weights are those of another network: {'; '.join(wrong[:5])}.")
    device = next((tensor.device for tensor in own.values()), torch.device("cpu"))
    with torch.no_grad():
        for name, tensor in own.items():
            if (name not in buffers or _alike(tensor, tensors.get(name))) and tensors[name] is not tensor:
                tensor.copy_(tensors[name])
        for name, (holder, attribute) in buffers.items():
            now, stored = buffers_of(holder)[attribute], tensors.get(name)
            if not _alike(now, stored):
                home = device if now is None else now.device
                buffers_of(holder)[attribute] = None if stored is None else stored.to(home, copy=True)


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and (one.shape, one.dtype) == (other.shape, other.dtype)


def buffer_places(network: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Where each buffer is kept, also one that is None now."""
    return {
        f"{path}.{name}" if path else name: (module, name)
        for path, module in network.named_modules(remove_duplicate=False)
        for name, _ in buffers_of(module).items()  # those of a scripted part cannot be iterated
    }


def to_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The tensors as a safetensors file, which holds those that share memory once each."""
    from safetensors.torch import save

    apart: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in sorted(tensors.items()):
        known = storage_id(tensor) in storages
        apart[name] = tensor.detach().clone() if known else tensor.detach().contiguous()
        storages.add(storage_id(tensor))
    return save(apart, metadata)


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
    return digest_of(named_tensors(network))


def digest_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """`fingerprint` of tensors with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()


def versions_of(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, tuple[int, int]]:
    """The storage of each tensor, and how often it was written to: another answer says that it has changed."""
    return {name: (storage_id(tensor), 0 if tensor.is_inference() else version_of(tensor)) for name, tensor in tensors}


def sharing(network: nn.Module) -> nn.Module:
    """A copy of the modules that shares every tensor with the network, and nothing else."""
    return sharing_copies(network).module(network)


def sharing_copies(network: nn.Module, instead: nn.Module | None = None) -> Copies:
    """Copies of the modules of a network that share its tensors; those that refer to the network refer to `instead`."""
    memo: dict[int, object] = {id(tensor): tensor for tensor in held_tensors(network)}
    return Copies(network, lambda _, tensor: tensor, memo if instead is None else {**memo, id(network): instead})


def modes_of(network: nn.Module) -> dict[str, bool]:
    """Which modules are in train mode, by name."""
    return {name: module.training for name, module in network.named_modules()}


def put_modes(network: nn.Module, modes: Mapping[str, bool]) -> None:
    """Put each module into its mode; modules that are not named take that of the whole network."""
    for name, module in network.named_modules():
        module.training = modes.get(name, modes.get("", True))
