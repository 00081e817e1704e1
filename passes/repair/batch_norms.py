"""Running statistics of batch norms, estimated anew from data, in a copy, and kept only where they help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from passes.graph.module_copies import owned_tensors
from passes.ops import signature, traits_of
from passes.ops.meta_shapes import LightMode
from passes.process.outside_state import outside_kept
from passes.statistics.batches import Batch
from passes.statistics.observing import evaluating
from passes.stream.network_copies import copied_network
from passes.stream.stream_copies import scripted_modules


@dataclass
class _Sum:
    """Sums over what one norm read. tensors: its running mean and variance, both (channels,)."""

    tensors: tuple[Tensor, Tensor]
    count: float = 0.0
    mean: Tensor | None = None
    square: Tensor | None = None

    def add(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dims = [d for d in range(x.dim()) if d != 1]
        wide = x.double() if x.device.type != "mps" else x.cpu().double()
        mean, square = wide.mean(dims), wide.square().mean(dims)
        n = x.numel() / x.shape[1]
        self.mean = mean * n if self.mean is None else self.mean + mean * n
        self.square = square * n if self.square is None else self.square + square * n
        self.count += n
        return mean, square - mean**2

    def moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The norm's own running mean and variance, and those of all that was added, in double precision."""
        assert self.mean is not None and self.square is not None, "it was added to"
        mean = self.mean / self.count
        return *self.tensors, mean, (self.square / self.count - mean**2).clamp_min(0)


def _own_tensors(network: nn.Module) -> set[int]:
    """The ids of its tensors, without those of scripted modules: such a part stays as it is."""
    scripted = {id(part): part for part in scripted_modules(network).values()}
    return {id(tensor) for _, tensor in owned_tensors(network, scripted)}


class _BatchNorms(LightMode):
    """Normalises by the batch's own statistics where running ones would be used, and sums them up."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.own = _own_tensors(network)
        self.sums: dict[int, _Sum] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not traits_of(func).running_statistics:
            return func(*args, **kwargs)
        names = signature(func)[0]
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        mean, var, x = call.get("running_mean"), call.get("running_var"), call["input"]
        if mean is None or var is None or id(mean) not in self.own or x.numel() <= x.shape[1]:
            return func(*args, **kwargs)
        known = self.sums.setdefault(id(mean), _Sum(tensors=(mean, var)))
        found_mean, found_var = known.add(x)
        call["running_mean"] = found_mean.to(mean)
        call["running_var"] = found_var.to(var)
        return func(*[call[name] for name in names if name in call])


def has_batch_norms(network: nn.Module) -> bool:
    """Whether some buffer looks like the running statistics of a batch norm."""
    return any(name.rpartition(".")[2] == "running_mean" for name, _ in network.named_buffers())


M = TypeVar("M", bound=LightMode)


def _watched(mode: M, network: nn.Module, batches: Sequence[Batch]) -> M:
    """`mode`, after `network` has run in eval mode under it on all `batches`."""
    with evaluating(network), outside_kept([network]):
        for batch in batches:
            with mode:
                batch.run(network, "the pruned network")
    return mode


@torch.inference_mode(False)
@torch.no_grad()
def reestimated(network: nn.Module, batches: Sequence[Batch]) -> nn.Module:
    """A copy of `network` whose batch norms hold the statistics of what they read on `batches`.

    Of every kind, functional ones included; the network itself where it has none.
    """
    if not has_batch_norms(network):
        return network
    made = copied_network(network)
    mode = _watched(_BatchNorms(made), made, batches)
    for known in mode.sums.values():
        mean, var, new_mean, new_var = known.moments()
        mean.copy_(new_mean)
        var.copy_(new_var * (known.count / max(known.count - 1, 1)))
    return made


class _Reads(LightMode):
    """Sums up what each batch norm reads in eval mode, and notes its tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.own = _own_tensors(network)
        self.sums: dict[int, _Sum] = {}
        self.affine: dict[int, tuple[Tensor, Tensor, float]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if traits_of(func).running_statistics:
            names = signature(func)[0]
            call = {**dict(zip(names, args, strict=False)), **kwargs}
            mean, var, weight, bias = (call.get(n) for n in ("running_mean", "running_var", "weight", "bias"))
            if mean is None or var is None or weight is None or bias is None:
                return func(*args, **kwargs)
            known = all(id(t) in self.own for t in (mean, var, weight, bias))
            if known and call["input"].shape[1] == len(mean):
                self.sums.setdefault(id(mean), _Sum(tensors=(mean, var))).add(call["input"])
                self.affine[id(mean)] = weight, bias, float(call.get("eps", call.get("epsilon", 1e-5)))
        return func(*args, **kwargs)


@torch.inference_mode(False)
@torch.no_grad()
def settled(network: nn.Module, batches: Sequence[Batch]) -> nn.Module:
    """A copy that computes the same in eval mode, with running statistics that are those of what its norms read.

    Scales and shifts take up the difference, so that later training starts from the same network in both modes.
    """
    if not has_batch_norms(network):
        return network
    made = copied_network(network)
    mode = _watched(_Reads(made), made, batches)
    for key, (weight, bias, eps) in mode.affine.items():
        mean, var, new_mean, new_var = mode.sums[key].moments()
        new_mean, new_var = new_mean.to(mean), new_var.to(var)
        used = new_var > 1e-10  # a channel that never varies keeps what it has
        scale = weight * torch.rsqrt(var + eps)
        bias.copy_(torch.where(used, bias + scale * (new_mean - mean), bias))
        weight.copy_(torch.where(used, scale * torch.sqrt(new_var + eps), weight))
        mean.copy_(torch.where(used, new_mean, mean))
        var.copy_(torch.where(used, new_var, var))
    return made
