"""How a candidate travels to another process: its program alone; its weights are cut there from those of the round.

The weights of a round go to each process once. A candidate is a pickled module in which every tensor that is a
slice of one of them stands as its name and the kept positions. (Between processes of one search only: nothing that is
read from a file is unpickled.)
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.errors import WorkerError
from fxprune.io.tensors import named_tensors
from fxprune.training.candidate import Trained, said, train_candidate
from fxprune.workers.protocol import Task, weights_of
from fxprune.workers.repair import Repair
from passes import Coupling, Plan, apply_plan

Kept = dict[str, dict[int, np.ndarray]]


@dataclass(frozen=True)
class Cut:
    """A tensor of a candidate as a slice of one of the round's: kept positions of each narrowed dimension."""

    name: str
    kept: dict[int, np.ndarray]
    parameter: bool
    requires_grad: bool
    device: str
    channels_last: bool

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        tensor = _cut(weights[self.name], self.kept).to(self.device)
        if tensor is weights[self.name]:
            tensor = tensor.clone()  # the next candidate starts from the same weights
        if self.channels_last:
            tensor = tensor.to(memory_format=torch.channels_last)
        return nn.Parameter(tensor, self.requires_grad) if self.parameter else tensor


def pack(network: nn.Module, coupling: Coupling, plan: Plan) -> bytes:
    """A candidate as bytes without the weights of `network`, which `unpack` is given there."""
    candidate = apply_plan(network, plan)
    cuts = cuts_of(candidate, network, kept_positions(coupling, plan))
    try:
        return _packed(candidate, cuts, pickle.Pickler)
    except Exception as refused:  # pickling runs the code of whatever is in there
        try:
            import cloudpickle

            return _packed(candidate, cuts, cloudpickle.Pickler)
        except Exception as error:
            raise WorkerError(
                f"workers: a {type(network).__name__} cannot be sent to another process by pickle: {refused}. Define "
                "its class and its hooks at the top of a module, keep open files, locks and the like out of it, "
                "install cloudpickle, or set workers=1."
            ) from error


def unpack(data: bytes, weights: Mapping[str, Tensor]) -> nn.Module:
    return _Unpacker(io.BytesIO(data), weights).load()


def kept_positions(coupling: Coupling, plan: Plan) -> Kept:
    """For each tensor and narrowed dimension the positions that a plan keeps, ascending."""
    lost: dict[str, dict[int, list[np.ndarray]]] = {}
    for group in coupling.groups:
        removed = np.setdiff1d(np.arange(group.size), plan.keep[group.name])
        for item in group.slices if len(removed) else ():
            lost.setdefault(item.tensor, {}).setdefault(item.dim, []).append(item.index[removed].reshape(-1))
    sizes = {
        (item.tensor, item.dim): _length(coupling, item.tensor, item.dim) for g in coupling.groups for item in g.slices
    }
    return {
        tensor: {dim: np.setdiff1d(np.arange(sizes[tensor, dim]), np.concatenate(gone)) for dim, gone in dims.items()}
        for tensor, dims in lost.items()
    }


def cuts_of(candidate: nn.Module, network: nn.Module, kept: Kept) -> dict[int, Cut]:
    """For each tensor of the candidate (by identity) the cut that makes it; those that none makes travel whole."""
    whole = dict(named_tensors(network))
    cuts: dict[int, Cut] = {}
    for name, tensor in named_tensors(candidate):
        if id(tensor) in cuts or name not in whole:
            continue
        positions = kept.get(name, {})
        if torch.equal(_cut(whole[name].detach(), positions), tensor.detach()):
            last = (
                tensor.dim() == 4
                and tensor.is_contiguous(memory_format=torch.channels_last)
                and not tensor.is_contiguous()
            )
            parameter = isinstance(tensor, nn.Parameter)
            cuts[id(tensor)] = Cut(name, positions, parameter, tensor.requires_grad, tensor.device.type, last)
    return cuts


def pack_functions(train: object, evaluate: object) -> bytes:
    """The user's functions as bytes; what cannot be pickled is an error that says how to change it.

    Where cloudpickle is installed it takes what pickle refuses: lambdas and functions inside functions.
    """
    try:
        return pickle.dumps((train, evaluate))
    except Exception as refused:  # pickling runs the code of whatever is in there
        try:
            import cloudpickle
        except ImportError:
            raise WorkerError(_unpicklable(train, evaluate, refused)) from refused
        try:
            return cloudpickle.dumps((train, evaluate))
        except Exception as error:
            raise WorkerError(_unpicklable(train, evaluate, error)) from error


def pack_for_workers(given: object) -> bytes:
    """What is made of the network and its calibration data, as bytes; each process gets it once."""
    try:
        return pickle.dumps(given)
    except Exception as refused:  # pickling runs the code of whatever is in there
        try:
            import cloudpickle

            return cloudpickle.dumps(given)
        except Exception as error:
            raise WorkerError(
                f"workers: the network and its calibration data cannot be sent to another process by pickle: {refused}."
                " Keep open files, locks and the like out of them, install cloudpickle, or set workers=1."
            ) from error


def train_packed(
    functions: tuple[Any, Any], weights: Mapping[str, Tensor], packed: bytes, task: Task, repair: Repair | None
) -> tuple[Trained, bytes | None]:
    """Train a candidate in the process that it came to: what came of it, and its weights."""
    train, evaluate = functions
    try:
        candidate = unpack(packed, weights)
    except BaseException as error:  # what pickles but does not unpickle is one candidate's failure, not the worker's
        return Trained(error=said("unpack", error)), None
    state: dict[str, Tensor] | None = {} if task.gives_weights(train) else None
    trained = train_candidate(
        candidate, task.steps, task.seed, task.trainer(train), task.judge(evaluate, repair),
        prepare=task.prepare(repair), inputs=task.plan.inputs, keep=state,
    )  # fmt: skip
    keep = task.gives_weights(train) and trained.error is None
    return trained, weights_of(candidate, state) if keep else None


def _packed(candidate: nn.Module, cuts: Mapping[int, Cut], pickler: Any) -> bytes:
    """The candidate by this class of pickler (cloudpickle's takes classes and functions that pickle refuses)."""

    class Packer(pickler):
        def persistent_id(self, obj: object) -> Cut | None:
            return cuts.get(id(obj)) if isinstance(obj, Tensor) else None

    buffer = io.BytesIO()
    Packer(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(candidate)
    return buffer.getvalue()


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, weights: Mapping[str, Tensor]):
        super().__init__(file)
        self._weights = weights
        self._made: dict[str, Tensor] = {}

    def persistent_load(self, pid: Any) -> Tensor:
        if pid.name not in self._made:  # tied tensors stay one
            self._made[pid.name] = pid(self._weights)
        return self._made[pid.name]


def _cut(tensor: Tensor, kept: Mapping[int, np.ndarray]) -> Tensor:
    for dim, positions in kept.items():
        tensor = tensor.index_select(dim, torch.from_numpy(positions).to(tensor.device))
    return tensor


def _length(coupling: Coupling, tensor: str, dim: int) -> int:
    return coupling.structure.tensors[tensor][dim].size


def _unpicklable(train: object, evaluate: object, error: Exception) -> str:
    named = {"train": train, "evaluate": evaluate}
    culprits = []
    for name, function in named.items():
        try:
            pickle.dumps(function)
        except Exception as refused:
            culprits.append(f"{name} ({getattr(function, '__qualname__', type(function).__name__)}): {refused}")
    return (
        f"workers: {'; '.join(culprits) or error}. What workers train with is sent to them by pickle: define the "
        "function at the top of a module (not inside another function, no lambda), give it its data by "
        "functools.partial or an object with __call__ whose attributes can be pickled, or install cloudpickle, or set "
        "workers=1."
    )
