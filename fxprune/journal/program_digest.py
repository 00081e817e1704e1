"""What names the computation of a network beside its shapes and weights: its calls, with all numbers in them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fxprune.io.tensors import digest_of, named_tensors
from passes.analysis.coupling import Coupling
from passes.graph.module_copies import owned_tensors
from passes.ops import Record, Slot


def program_digest(network: nn.Module, coupling: Coupling) -> str:
    """A digest of the operators that the analysis recorded, with their numbers (a slope, an epsilon, a factor), and of
    the tensors in plain attributes that these read. Registered tensors are the network's weights, not its program.

    Where the program asks for values, its calls are those for the values of the example inputs.
    """
    digest = hashlib.sha256()
    for record in coupling.structure.all_records:
        digest.update("|".join(_lines(record)).encode() + b"\n")
    digest.update(digest_of(_plain_read(network, coupling)).encode())
    return digest.hexdigest()[:32]


def _plain_read(network: nn.Module, coupling: Coupling) -> list[tuple[str, Tensor]]:
    """The tensors in plain attributes that the computation reads; a journal keeps no values of them."""
    registered = {name for name, _ in named_tensors(network)}
    plain = [(name, tensor) for name, tensor in owned_tensors(network) if name not in registered]
    inputs = (value for record in coupling.structure.all_records for value in record.inputs) if plain else ()
    read = {name for value in inputs for name in value.parameters}
    return [(name, tensor) for name, tensor in plain if name in read]


def _lines(record: Record) -> Iterator[str]:
    yield record.node
    yield str(record.func)
    yield _written(record.template)
    for number, values in record.constants.items():
        if not record.inputs[number].from_inputs:
            yield f"{number}: {values}"


def _written(value: object) -> str:
    """An argument of a call in a text that is the same in every process and on every device."""
    if isinstance(value, Slot):
        return f"#{value.number} {value.dtype}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {_written(part)}' for name, part in value.items() if name != 'device')}}}"
    if value is None or isinstance(value, bool | int | float | complex | str | torch.dtype):
        return repr(value)
    return type(value).__name__
