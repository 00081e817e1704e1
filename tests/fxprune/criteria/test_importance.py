"""Importance: each metric against its definition, ties, faults, dtypes; on groups made by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace

from fxprune import Budget, netadapt
from fxprune.criteria.registry import rank, ranked
from fxprune.criteria.weight_norms import METRICS, importance, importance_lost, keep_units, producer_count
from fxprune.errors import ConfigError, WeightError
from passes import PruneChannels, capture, couple, verify


@dataclass
class Cut:
    tensor: str
    dim: int
    index: np.ndarray
    role: str


@dataclass
class Tied:
    name: str
    size: int
    slices: tuple[Cut, ...]


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1), nn.Conv2d(2, 6, 5))


def _group() -> Tied:
    each = np.arange(6)[:, None]
    return Tied(
        "0", 6, (
            Cut("0.weight", 0, each, "output"), Cut("0.bias", 0, each, "other"), Cut("1.weight", 0, each, "scale"),
            Cut("1.bias", 0, each, "other"), Cut("2.weight", 1, each, "input"), Cut("3.weight", 0, each, "output"),
        ),
    )  # fmt: skip


def _expected(net: nn.Module, metric: str) -> np.ndarray:
    total = np.zeros(6)
    for index in (0, 3):
        rows = net[index].weight.detach().double().flatten(1)  # type: ignore[index, union-attr, operator]
        if metric == "l1_norm":
            total += rows.abs().sum(1).numpy()
        elif metric == "l2_norm":
            total += rows.square().sum(1).sqrt().numpy()
        else:
            total += np.array([[float((a - b).norm()) for b in rows] for a in rows]).sum(1)
    return total


@pytest.mark.parametrize("metric", ["l1_norm", "l2_norm", "fpgm"])
def test_sums_over_all_producers(metric: str) -> None:
    net = _net()
    found = importance(symbolic_trace(net), _group(), metric)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, _expected(net, metric), rtol=1e-12)
    assert found.dtype == np.float64


def test_bn_scale_and_its_fallback() -> None:
    net = _net()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([3.0, -1, 2, 0, -5, 4]))  # type: ignore[index, operator, union-attr]
    gm, group = symbolic_trace(net), _group()
    np.testing.assert_allclose(importance(gm, group, "bn_scale"), [3, 1, 2, 0, 5, 4])  # type: ignore[arg-type]
    bare = Tied("0", 6, tuple(item for item in group.slices if item.role != "scale"))
    np.testing.assert_allclose(importance(gm, bare, "bn_scale"), importance(gm, bare, "l2_norm"))  # type: ignore[arg-type]


def test_random_depends_on_seed_and_group_alone() -> None:
    gm = symbolic_trace(_net())
    first, again, other = (rank("random", gm, _group(), seed=seed).scores for seed in (1, 1, 2))  # type: ignore[arg-type]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_units_with_several_positions() -> None:
    net = symbolic_trace(nn.Sequential(nn.Linear(3, 6)))
    group = Tied("0", 2, (Cut("0.weight", 0, np.array([[0, 2, 4], [1, 3, 5]]), "output"),))
    weight = net.get_parameter("0.weight").detach().double()
    expected = [weight[0::2].norm().item(), weight[1::2].norm().item()]
    np.testing.assert_allclose(importance(net, group), expected)  # type: ignore[arg-type]


def test_a_group_that_nothing_produces_is_ranked_by_its_other_tensors() -> None:
    group = Tied(
        "x", 6, (Cut("1.bias", 0, np.arange(6)[:, None], "other"), Cut("2.weight", 1, np.arange(6)[:, None], "input"))
    )
    net = _net()
    nn.init.normal_(net[1].bias)  # type: ignore[index, arg-type]
    np.testing.assert_allclose(importance(symbolic_trace(net), group), net[1].bias.detach().abs().numpy(), rtol=1e-6)  # type: ignore[arg-type, index, union-attr, operator]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("metric", METRICS)
def test_every_dtype(dtype: torch.dtype, metric: str) -> None:
    net = _net().to(dtype)
    assert np.isfinite(importance(symbolic_trace(net), _group(), metric)).all()  # type: ignore[arg-type]


def test_nan_names_the_tensor() -> None:
    net = _net()
    net[3].weight.data[4, 0, 1, 1] = float("nan")  # type: ignore[index, union-attr, operator]
    with pytest.raises(WeightError, match=r"3\.weight: unit 4 of group 0 holds NaN"):
        importance(symbolic_trace(net), _group())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected one of l1_norm"):
        importance(symbolic_trace(net), _group(), "l7")  # type: ignore[arg-type]


def test_a_depthwise_convolution_is_no_producer() -> None:
    """The paper ranks a channel by the pointwise convolution that makes it, not by the depthwise filter after it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1))
    example = torch.randn(1, 3, 5, 5)
    gm = capture(net, example)
    (group,) = couple(gm, example).groups
    expected = net[0].weight.detach().double().flatten(1).norm(dim=1).numpy()  # type: ignore[union-attr, operator]
    np.testing.assert_allclose(importance(gm, group), expected)


def test_kept_units_are_sorted_and_ties_keep_the_lowest() -> None:
    assert keep_units(np.array([1.0, 5, 3, 5, 1, 1]), 3) == (1, 2, 3)
    assert keep_units(np.zeros(6), 4) == (0, 1, 2, 3)
    assert keep_units(np.array([1.0, 5, 3, 5, 1, 1]), 4) == (0, 1, 2, 3)
    assert all(type(unit) is int for unit in keep_units(np.ones(3), 2))


def test_loss_is_additive_and_relative() -> None:
    scores = np.array([1.0, 4, 2, 3])
    lost = importance_lost(scores)
    assert lost[4] == 0 and lost[0] == np.inf and (np.diff(lost) < 0).all()
    assert lost[2] == pytest.approx(-np.log(0.7))
    again = importance_lost(np.array([4.0, 3.0]))
    assert lost[2] + again[1] == pytest.approx(lost[1])
    np.testing.assert_allclose(importance_lost(scores * 1e-9)[1:], lost[1:])
    assert list(importance_lost(np.zeros(3))) == [np.inf, 0, 0, 0]
    np.testing.assert_allclose(importance_lost(scores, producers=3), 3 * lost)


class Stream(nn.Module):
    """A residual stream that five convolutions write to, and four groups inside of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 4)
        self.first = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))
        self.second = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(first(x).relu())
        return self.head(x.mean((2, 3)))


def test_what_many_layers_write_to_is_spared_without_data() -> None:
    torch.manual_seed(0)
    example = torch.randn(1, 3, 8, 8)
    (stream, *inner) = couple(capture(Stream(), example), example).groups
    assert producer_count(stream) == 5 and [producer_count(group) for group in inner] == [1, 1, 1, 1]
    config = {"strategy": "knapsack", "netadapt_min_feature_size": 2}
    result = netadapt(Stream(), Budget("macs", ratio=0.5), example_inputs=example, progress=False, config=config)
    assert result.widths[stream.name] > max(result.widths[group.name] for group in inner)


def test_blocks_keep_their_own_best() -> None:
    """Every convolution group ranks its outputs by itself: a plan keeps different ones in each."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 24, 3, groups=4), nn.ReLU(), nn.Conv2d(24, 3, 1))
    gm = capture(net)
    inputs = torch.randn(2, 4, 8, 8)
    coupling = ranked(gm, couple(gm, inputs))
    (group,) = (g for g in coupling.groups if g.blocks > 1)
    plan = coupling.plan({group.name: range(2)})
    pruned = PruneChannels(plan)(gm).graph_module
    norms = net[2].weight.detach().flatten(1).norm(dim=1).reshape(group.blocks, group.size)
    best = norms.topk(2, dim=1).indices.sort(dim=1).values
    assert len({tuple(row) for row in best.tolist()}) > 1, "the blocks differ, or the test shows nothing"
    expected = torch.cat([net[2].weight[block * group.size + best[block]] for block in range(group.blocks)])
    torch.testing.assert_close(pruned.get_parameter("2.weight"), expected)
    assert verify(gm, pruned, plan, inputs).max_error < 1e-9


class Gated(nn.Module):
    """Blocks of a decoder: a gated MLP on a residual stream, with a norm before it."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.norm = nn.ModuleList(nn.LayerNorm(24) for _ in range(blocks))
        self.gate, self.up = (nn.ModuleList(nn.Linear(24, 64) for _ in range(blocks)) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(64, 24) for _ in range(blocks))
        self.embed, self.head = nn.Linear(10, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, gate, up, down in zip(self.norm, self.gate, self.up, self.down, strict=True):
            y = norm(x)
            x = x + down(gate(y).sigmoid() * up(y))
        return self.head(x)


def test_units_that_two_weights_make_together_are_lost_once() -> None:
    groups = {group.size: group for group in couple(Gated(), torch.randn(2, 10)).groups}
    assert producer_count(groups[64]) == 1 and producer_count(groups[24]) == 5


def test_without_data_the_layers_of_a_decoder_give_before_their_residual_stream_does() -> None:
    torch.manual_seed(0)
    net, example = Gated(), torch.randn(2, 10)
    stream = next(group.name for group in couple(net, example).groups if group.size == 24)
    result = netadapt(net, Budget("macs", ratio=0.7), example_inputs=example, progress=False)
    assert result.widths[stream] == 24
    assert sum(width < 64 for name, width in result.widths.items() if name != stream) == 4
