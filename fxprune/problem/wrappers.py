"""Wrappers around a network (data parallel, averaged, compiled): taken off for a search, put on again afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from passes.process.torch_private import buffers_of, children_of, compiled_module

Around = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Wrapping:
    """What was around a network: functions that put a wrapper of the same kind around another, innermost first."""

    around: tuple[Around, ...] = ()

    def __call__(self, network: nn.Module) -> nn.Module:
        """The network in new wrappers, which share its tensors and are in its mode."""
        for put in self.around:
            training = network.training
            network = put(network)
            network.training = training
        return network

    def inside(self, function: Callable[..., object] | None) -> Callable[..., Any] | None:
        """A `train` or `evaluate` of the wrapped network as one of the bare network."""
        return function if function is None or not self.around else Inside(function, self)


@dataclass(frozen=True)
class Inside:
    """A function of a wrapped network, called with a bare one."""

    function: Callable[..., Any]
    wrapping: Wrapping

    def __call__(self, network: nn.Module, *more: object) -> object:
        return self.function(self.wrapping(network), *more)


BARE = Wrapping()


def unwrapped(model: nn.Module) -> tuple[nn.Module, Wrapping]:
    """The network inside all wrappers, and what puts them on again. Its names are those without the wrappers' prefix.

    Seen through: DataParallel, DistributedDataParallel, AveragedModel and what torch.compile returns. Any other class
    that passes everything on is a module like all others, and stays what it is.
    """
    around: list[Around] = []
    while (found := _taken_off(model)) is not None:
        model, put = found
        around.insert(0, put)
    return model, Wrapping(tuple(around))


def _taken_off(model: nn.Module) -> tuple[nn.Module, Around] | None:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.module, _Distributed(model)
    if isinstance(model, nn.DataParallel | AveragedModel):
        return model.module, _Shell.of(model)
    if type(model).__module__ == "torch._dynamo.eval_frame":  # its OptimizedModule, without importing the compiler
        compiled: Any = model
        return compiled_module(compiled), _Compiled(compiled.dynamo_ctx)
    return None


@dataclass(frozen=True)
class _Shell:
    """A wrapper that is no more than its attributes and the network under the name `module`."""

    empty: nn.Module

    @staticmethod
    def of(wrapper: nn.Module) -> _Shell:
        return _Shell(_with(wrapper, None))

    def __call__(self, network: nn.Module) -> nn.Module:
        return _with(self.empty, network)


def _with(wrapper: nn.Module, network: nn.Module | None) -> nn.Module:
    """A wrapper of the same class and attributes, and with buffers of its own, around another network."""
    made: nn.Module = type(wrapper).__new__(type(wrapper))
    vars(made).update({k: copy.copy(v) if isinstance(v, dict | set | list) else v for k, v in vars(wrapper).items()})
    for name, buffer in buffers_of(wrapper).items():
        buffers_of(made)[name] = None if buffer is None else buffer.detach().clone()
    children_of(made)["module"] = network
    return made


@dataclass(frozen=True)
class _Compiled:
    """torch.compile with the settings of an earlier call, which its context holds."""

    context: Callable[[nn.Module], nn.Module]

    def __call__(self, network: nn.Module) -> nn.Module:
        return self.context(network)


class _Distributed:
    """A DistributedDataParallel is made anew: what it holds of its network's parameters cannot change."""

    def __init__(self, wrapper: nn.parallel.DistributedDataParallel) -> None:
        self.kind, self.wrapper = type(wrapper), wrapper

    def __call__(self, network: nn.Module) -> nn.Module:
        old: Any = self.wrapper
        buffers = "forward_sync_buffers" if hasattr(old, "forward_sync_buffers") else "broadcast_buffers"
        same = ("device_ids", "output_device", "dim", "process_group", "mixed_precision", "static_graph", buffers)
        more = ("find_unused_parameters", "gradient_as_bucket_view")
        settings = {name: getattr(old, name) for name in (*same, *more)}
        return self.kind(network, bucket_cap_mb=old.bucket_bytes_cap / 2**20, **settings)
