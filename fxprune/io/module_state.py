"""The tensors of a module in a safetensors file and back: ties, memory layouts and non-persistent buffers included.

safetensors stores contiguous tensors that share no memory, and nothing else. What it cannot say stands in its header,
as one JSON text under the key "fxprune" (one key: the order of several is not fixed, and files would differ). Small
non-persistent buffers stand there too, so that the tensors are those of the state_dict and anyone can load them.

Both forms that have weights beside them write this file, byte for byte the same for the same network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from fxprune.errors import ExportError
from fxprune.io.outline import captured_by, memory_order, plain_in, ties_of, transient_in
from fxprune.io.sample import Sample
from fxprune.io.seal import UNSEALED, is_sealed, seal
from fxprune.io.typed_records import made
from passes.documents.strict_json import parse
from passes.graph.module_copies import owned_tensors

_HEADER = "fxprune"
_MOST_WRITTEN_OUT = 64
_MOST_NAMED = 5


@dataclass(frozen=True)
class State:
    """The tensors of a module.

    tensors: stored name -> tensor. ties: further name -> the stored name of the same tensor. order: stored name -> its
    dimensions from outermost to innermost in memory, where that is not 0, 1, 2, ... transient: names of non-persistent
    buffers and plain attributes, which a state_dict leaves out. frontend and inputs: how the graph was captured;
    "module" where the tensors are those of a module itself. plan: the SHA-256 of the text of the plan that belongs to
    the tensors, None where none does. sample: of what the module computes, where it was taken.
    """

    tensors: dict[str, Tensor]
    ties: dict[str, str] = field(default_factory=dict)
    order: dict[str, list[int]] = field(default_factory=dict)
    transient: tuple[str, ...] = ()
    frontend: str = "auto"
    inputs: tuple[str, ...] = ()
    plan: str | None = None
    sample: Sample | None = None

    @property
    def small(self) -> dict[str, Tensor]:
        """The transient tensors of few elements, which are written as text."""
        found = {name: self.tensors[name] for name in self.transient if name in self.tensors}
        return {name: t for name, t in found.items() if t.numel() <= _MOST_WRITTEN_OUT and not t.is_complex()}


def transient_names(module: nn.Module) -> tuple[str, ...]:
    """The names of the tensors that a state_dict leaves out (non-persistent buffers, plain attributes), sorted."""
    return tuple(sorted([*transient_in(module), *plain_in(module)]))


def state_of(module: nn.Module) -> State:
    """The tensors of `module`, each once; the first name, in the order of the modules, is the stored one."""
    owned = owned_tensors(module)
    for name, tensor in owned:
        if tensor.is_meta:
            raise ExportError(f"{name} has no values (device meta); load the weights before exporting")
        if tensor.layout is not torch.strided or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else tensor.layout
            raise ExportError(f"{name}: a {kind} tensor has no dense values to store")
    ties = ties_of(owned)
    tensors = {name: tensor for name, tensor in owned if name not in ties}
    order = {name: permutation for name, tensor in tensors.items() if (permutation := memory_order(tensor))}
    return State(tensors, ties, order, transient_names(module), *captured_by(module))


def write_state(state: State, path: Path, plan: str | None = None) -> None:
    """Write the tensors, sealed; equal states give equal files. `plan`: the text of the plan that goes with them."""
    from safetensors.torch import save_file

    small: dict[str, list[object]] = {
        name: [str(t.dtype), t.detach().cpu().tolist()] for name, t in state.small.items()
    }
    # Parts of one storage (a view kept as a buffer) are copied apart: only whole tensors are tied.
    apart = {name: t.detach().cpu().contiguous().clone() for name, t in state.tensors.items() if name not in small}
    header = Header(
        state.ties, state.order, state.transient, small, state.frontend, state.inputs,
        {name: _digest(tensor) for name, tensor in apart.items()}, None if plan is None else text_digest(plan),
        UNSEALED, state.sample,
    )  # fmt: skip
    save_file(apart, path, metadata={_HEADER: json.dumps(asdict(header), sort_keys=True)})
    seal(path)


def read_state(path: Path) -> State:
    """Read what `write_state` wrote: the tensors, contiguous and on the CPU.

    Raises ExportError where the file is of another program, or not as it was written; the damaged tensors are named.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{path}: not a safetensors file, or a damaged one: {error}") from error
    if _HEADER not in metadata:
        raise ExportError(f"{path}: written by another program; fxprune.load reads what fxprune.export wrote")
    header = _header(path, metadata[_HEADER])
    if not is_sealed(path):
        damaged = [name for name, tensor in tensors.items() if header.digests.get(name) != _digest(tensor)]
        where = f"the values of {', '.join(damaged[:_MOST_NAMED])}" if damaged else "its header"
        more = f" and of {len(damaged) - _MOST_NAMED} more tensors" if len(damaged) > _MOST_NAMED else ""
        raise ExportError(
            f"{path}: damaged: {where}{more} are not those that were written; its checksum does not fit. "
            "Take the file from where it was exported, or export it again."
        )
    try:
        for name, (dtype, values) in header.small.items():
            tensors[name] = torch.tensor(values, dtype=getattr(torch, str(dtype).removeprefix("torch.")))
    except (ValueError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise _forged(path, f"a small tensor cannot be made: {error}") from None
    lost = sorted({*header.ties.values(), *header.memory_order} - tensors.keys())
    if lost:
        raise _forged(path, f"it speaks of {lost[0]!r}, which the file does not hold")
    order = {name: list(dims) for name, dims in header.memory_order.items()}
    for name, dims in order.items():
        if sorted(dims) != list(range(tensors[name].dim())):
            raise _forged(path, f"{dims} is no order of the dimensions of {name!r}")
    return State(
        tensors, header.ties, order, header.non_persistent, header.frontend, header.inputs, header.plan, header.sample
    )


def check_same_form(path: Path, planned: bool, overwrite: bool) -> None:
    """ExportError where the file holds the weights of another form: those of a `.py`, or those that go with a plan."""
    if overwrite or not path.is_file() or (read_state(path).plan is not None) == planned:
        return
    other = "a .py export" if planned else "an export of weights and plan"
    raise ExportError(f"{path} holds the weights of {other}, which would be lost; choose another name")


@dataclass(frozen=True)
class Header:
    """What stands beside the tensors: the fields of State, then their digests, that of the plan, the seal, and the
    sample (none in files of earlier versions)."""

    ties: dict[str, str]
    memory_order: dict[str, list[int]]
    non_persistent: tuple[str, ...]
    small: dict[str, list[object]]
    frontend: str
    inputs: tuple[str, ...]
    digests: dict[str, str]
    plan: str | None
    seal: str
    sample: Sample | None = None


def _forged(path: Path, what: str) -> ExportError:
    return ExportError(f"{path}: its header is not one that fxprune writes: {what}; export it again")


def _header(path: Path, text: str) -> Header:
    try:
        return made(Header, parse(text, finite=False))  # a buffer may hold infinity
    except ValueError as error:
        raise ExportError(
            f"{path}: its header is damaged, or of another version of fxprune ({error}); export it again"
        ) from None


def text_digest(text: str) -> str:
    """The SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(tensor: Tensor) -> str:
    """Names the values of a tensor where a file is damaged; what finds the damage is the seal."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    kind = f"{tensor.dtype} {list(tensor.shape)}".encode()
    return hashlib.sha256(kind + flat.numpy().tobytes()).hexdigest()[:16]


def restore_state(module: nn.Module, state: State, source: Path) -> None:
    """Put the tensors into `module` under their names, with their dtypes and layouts, on the module's own devices.

    Names and shapes must agree exactly; a parameter keeps its requires_grad; names that are tied share one tensor
    afterwards, also where the module did not tie them. Tensors in plain attributes of a module that is no graph (what
    it keeps of its last call) stay as they are in this one where shapes differ. Raises ExportError that lists all that
    differs.
    """
    owned = dict(owned_tensors(module))
    given = {name: state.tensors[state.ties.get(name, name)] for name in [*state.tensors, *state.ties]}
    if state.frontend == "module":
        kept = _kept_of_calls(module, owned, given, state)
        owned, given = ({n: t for n, t in some.items() if n not in kept} for some in (owned, given))
    faults = [*_name_faults(set(owned), set(given)), *_tensor_faults(owned, given), *_tie_faults(owned, state)]
    if faults:
        raise ExportError(f"{source} does not fit the network:\n  " + "\n  ".join(faults))
    placed: dict[str, Tensor] = {}
    for name, old in owned.items():
        key = state.ties.get(name, name)
        if key not in placed:
            placed[key] = _like(old, state.tensors[key], state.order.get(key))
        path, _, attribute = name.rpartition(".")
        # setattr, for RNNs follow it to keep their flat list of weights.
        setattr(module.get_submodule(path), attribute, placed[key])


def _kept_of_calls(
    module: nn.Module, owned: Mapping[str, Tensor], given: Mapping[str, Tensor], state: State
) -> set[str]:
    """The names of transient tensors that only one of the two has, or that differ in shape."""
    transient = {*transient_names(module), *state.transient}
    return {
        name for name in transient if name not in owned or name not in given or owned[name].shape != given[name].shape
    }


def take_dtypes(module: nn.Module, state: State) -> None:
    """Give the tensors of `module` the dtypes that the stored ones have; tensors are replaced, not changed.

    Integers of an unchanged shape are taken whole: an order of channels that another instance drew decides its groups.
    """
    placed: dict[int, Tensor] = {}
    for name, old in owned_tensors(module):
        stored = state.tensors.get(state.ties.get(name, name))
        if stored is None:
            continue
        values = stored if _is_index(stored, old) else old.detach().to(stored.dtype)
        if values is stored or stored.dtype != old.dtype:
            path, _, attribute = name.rpartition(".")
            new = placed.setdefault(id(old), _like(old, values, None))
            setattr(module.get_submodule(path), attribute, new)


def _is_index(stored: Tensor, old: Tensor) -> bool:
    integers = not (stored.is_floating_point() or stored.is_complex() or isinstance(old, nn.Parameter))
    return integers and stored.dtype == old.dtype and stored.shape == old.shape and stored.dim() > 0 and not old.is_meta


def _like(old: Tensor, stored: Tensor, order: list[int] | None) -> Tensor:
    device = torch.device("cpu") if old.is_meta and not stored.is_meta else old.device
    values = stored.to(device)
    if order is not None:
        inverse = sorted(range(len(order)), key=order.__getitem__)
        values = values.permute(order).contiguous().permute(inverse)
    return nn.Parameter(values, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else values


def _name_faults(owned: set[str], given: set[str]) -> list[str]:
    missing, foreign = sorted(owned - given), sorted(given - owned)
    return [
        *(f"{name}: in the network, not in the file" for name in missing),
        *(f"{name}: in the file, not in the network" for name in foreign),
    ]


def _tensor_faults(owned: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    common = [name for name in owned if name in given and owned[name].shape != given[name].shape]
    return [
        f"{name}: {tuple(given[name].shape)} in the file, {tuple(owned[name].shape)} in the network" for name in common
    ]


def _tie_faults(owned: Mapping[str, Tensor], state: State) -> list[str]:
    faults: list[str] = []
    first: dict[int, str] = {}
    for name, tensor in owned.items():
        other = first.setdefault(id(tensor), name)
        if state.ties.get(name, name) != state.ties.get(other, other):
            faults.append(f"{name}: the same tensor as {other} in the network, another one in the file")
    return faults
