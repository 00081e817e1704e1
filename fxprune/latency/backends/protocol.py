"""Backends: what runs a network on a device so that it can be timed, whole or node by node.

A backend prepares a graph once and returns what runs it. Those that can tell how long each fx node took inside the
running network (`in_situ`) do so: caches, allocators and layouts are then as they are in use. The others time units as
small networks of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.latency.device import Setting, describe, present
from fxprune.latency.errors import BackendError
from fxprune.latency.timing import Pace, Reference, Timing, pace
from passes.process.torch_private import pytree
from passes.stream.graph_stream import as_arguments

Run = Callable[[], object]


@dataclass(frozen=True)
class Profile:
    """How long each fx node took in each run: ms (runs, nodes), with the pace of these runs.

    whole: the network without a profile being taken, in units of the reference.
    """

    nodes: tuple[str, ...]
    ms: np.ndarray
    pace: Pace
    whole: Timing


class Backend(Protocol):
    """Runs and times graphs under one setting."""

    setting: Setting
    in_situ: bool

    def prepare(self, gm: nn.Module, example_inputs: object) -> Run:
        """What runs `gm`, a graph or the module itself, once, in evaluation mode, on these inputs."""

    def time(
        self, gm: nn.Module, example_inputs: object, reference: Reference | None = None, repeats: int = 15
    ) -> Timing:
        """How long `gm` takes."""


@runtime_checkable
class InSitu(Protocol):
    """A backend that can tell the nodes of a running network apart."""

    def profile(self, gm: fx.GraphModule, example_inputs: object, reference: Reference | None, repeats: int) -> Profile:
        """How long each node takes while the whole of `gm` runs."""


class Timed:
    """What backends share that run graphs in this process."""

    setting: Setting
    in_situ = False

    def prepare(self, gm: nn.Module, example_inputs: object) -> Run:
        raise NotImplementedError

    def time(
        self, gm: nn.Module, example_inputs: object, reference: Reference | None = None, repeats: int = 15
    ) -> Timing:
        return self.pace(self.prepare(gm, example_inputs), reference, repeats).timing()

    def pace(self, run: Run, reference: Reference | None = None, repeats: int = 15) -> Pace:
        """`timing.pace` with this backend's number of threads."""
        return pace(run, reference, repeats=repeats, one_thread=self.setting.threads == 1)


class OnDevice(Timed):
    """What backends share that run networks in torch, on the device that they are named: a network has to be there."""

    def __init__(self, name: str, threads: int, device: str) -> None:
        self.device = present(device)
        self.setting = Setting(name, torch.__version__, threads, describe(self.device))

    def check_held(self, network: nn.Module) -> None:
        """Raise BackendError where a parameter is on another device than the one that is measured."""
        for name, parameter in network.named_parameters():
            if parameter.device != self.device:
                raise BackendError(
                    f"latency: device: {self.device} is to be measured, and {name} of the network is on "
                    f"{parameter.device}; move the network to {self.device}, or name the device that it is on"
                )

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run the block with that many threads inside torch's operators."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def held_on(network: nn.Module) -> torch.device:
    """The device of a network's parameters; the processor where it has none."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def placed(gm: fx.GraphModule, example_inputs: object, device: torch.device) -> tuple[Any, ...]:
    return pytree.tree_map_only(Tensor, lambda t: t.to(device), as_arguments(example_inputs, gm))


def called(network: nn.Module, example_inputs: object, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call of a graph, or of a module as its own forward takes them, on a device."""
    if isinstance(network, fx.GraphModule):
        return placed(network, example_inputs, device), {}
    given = pytree.tree_map_only(Tensor, lambda t: t.to(device), example_inputs)
    if isinstance(given, Mapping):
        return (), dict(given)
    return tuple(given) if isinstance(given, tuple | list) else (given,), {}
