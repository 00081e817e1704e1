"""Peak memory: the polynomial against the storages that an eager run really holds."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from passes import PruneChannels, capture, cost, couple
from passes.analysis import peak_memory


class LiveBytes(TorchDispatchMode):
    """The truth: every storage that passes the dispatcher, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.hold(tensor)
        return result


def measured_peak(gm: nn.Module, *inputs: Tensor) -> int:
    """Bytes at the fullest moment of an eager run: parameters, buffers, inputs and live activations."""
    gm.eval()
    mode = LiveBytes()
    resident = [*gm.parameters(), *gm.buffers(), *inputs]
    storages = [tensor.untyped_storage() for tensor in resident]  # finalizers watch these objects: keep them
    for tensor in resident:
        mode.hold(tensor)
    with torch.no_grad(), mode:
        gm(*inputs)
    assert len(storages) == len(resident)
    return mode.peak


def both(model: nn.Module, *inputs: Tensor, share: float = 0.6) -> tuple[tuple[int, int], tuple[int, int]]:
    """Predicted and measured peak, dense and pruned."""
    gm = capture(model.eval(), inputs)
    coupling = couple(gm, inputs)
    widths = {name: max(1, int(size * share)) for name, size in coupling.widths.items()}
    plan = coupling.plan({name: tuple(range(width)) for name, width in widths.items()})
    pruned = PruneChannels(plan)(gm).graph_module
    costs = cost(coupling)
    dense = costs.memory(), measured_peak(gm, *inputs)
    return dense, (costs.memory(widths), measured_peak(pruned, *inputs))


class Residual(nn.Module):
    """In-place activations, a shortcut that outlives a block, and a concatenation."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(12), nn.ReLU(inplace)
        self.side, self.last = nn.Conv2d(12, 20, 1), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.relu(self.first(x))
        x = self.relu(self.norm(self.second(kept)))
        x += kept
        x = torch.cat([F.max_pool2d(x, 2), F.avg_pool2d(self.side(x), 2)], 1)
        return self.last(x.mean((2, 3)))


class Views(nn.Module):
    """Splits, transposes and flattens share memory; chunks of one tensor keep the whole of it."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.last = nn.Linear(7, 24), nn.Linear(12, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.wide(x).chunk(2, -1)
        x = self.narrow(first * second.sigmoid())
        return self.last(x.transpose(0, 1).flatten(0, 1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(24, 4, 40, batch_first=True, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


SMALL = {
    "residual, in place": (Residual, (torch.randn(2, 3, 16, 16),)),
    "residual": (lambda: Residual(False), (torch.randn(2, 3, 16, 16),)),
    "views": (Views, (torch.randn(6, 11, 7),)),
    "attention": (Attention, (torch.randn(2, 19, 24),)),
}


@pytest.mark.parametrize("name", SMALL)
def test_peak_of_small_networks(name: str) -> None:
    build, inputs = SMALL[name]
    for predicted, measured in both(build(), *inputs):
        assert predicted == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "swin_t"])
def test_peak_of_torchvision_networks(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None)
    for predicted, measured in both(model, torch.randn(2, 3, 96, 96)):
        assert predicted == pytest.approx(measured, rel=0.01)


def test_sharing_storages_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle is seen to fail: a liveness that takes every view and in-place result for fresh memory is caught."""
    monkeypatch.setattr(peak_memory, "shared_operands", lambda record: [None] * len(record.outputs))
    predicted, measured = both(Views(), torch.randn(6, 11, 7))[0]
    assert predicted > 1.05 * measured


def test_dtypes_count() -> None:
    model = Residual()
    single = cost(couple(capture(model, torch.randn(2, 3, 16, 16)), torch.randn(2, 3, 16, 16))).memory()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    double = cost(couple(capture(model.double(), x), x)).memory()
    assert double == pytest.approx(2 * single, rel=0.001)


def test_memory_is_vectorised_and_survives_pruning() -> None:
    x = torch.randn(2, 3, 16, 16)
    coupling = couple(capture(Residual(), x), x)
    costs = cost(coupling)
    widths = {name: np.array([1, size // 2, size]) for name, size in coupling.widths.items()}
    together = costs.memory(widths)
    alone = [costs.memory({name: int(w[i]) for name, w in widths.items()}) for i in range(3)]
    assert together.tolist() == alone
    assert all(isinstance(value, int) for value in alone) and alone == sorted(alone)
    half = coupling.plan({name: tuple(range(size // 2)) for name, size in coupling.widths.items()})
    assert cost(coupling.after(half)).memory() == alone[1]


def test_two_inputs_of_which_one_is_not_read() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 6)

        def forward(self, x: Tensor, unused: Tensor) -> Tensor:
            return self.linear(x)

    for predicted, measured in both(Two(), torch.randn(3, 4), torch.randn(50, 50)):
        assert predicted == pytest.approx(measured, rel=0.01)
