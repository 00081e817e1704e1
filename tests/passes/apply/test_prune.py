"""The rewriting pass: functional, and faithful to dtype, device, memory format, ties, buffers, modes and attributes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_same, difference, random_plan, run, snapshot, zeroed
from tiny import TABLE
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_manager import PassManager

from passes import Coupling, PassError, Plan, PruneChannels, capture, couple, verify


class Net(nn.Module):
    """Convolution, norm, a buffer, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3)
        self.register_buffer("kept", torch.randn(8, 1, 1))
        self.register_buffer("passing", torch.randn(8, 1, 1), persistent=False)
        self.fc1, self.fc2 = nn.Linear(6, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv1(x)) + self.kept - self.passing)
        return self.fc2(F.dropout(F.relu(self.fc1(self.conv2(x).mean((2, 3)))), 0.5, self.training))


INPUTS = torch.randn(4, 3, 8, 8)
HALF = {"conv1": (0, 2, 3, 7), "conv2": (1, 4, 5), "fc1": (0, 1, 6)}


def analysed(model: nn.Module, inputs: Any = INPUTS) -> tuple[fx.GraphModule, Coupling]:
    gm = capture(model, inputs)
    return gm, couple(gm, inputs)


def pruned_by(gm: fx.GraphModule, plan: Plan) -> fx.GraphModule:
    return PruneChannels(plan)(gm).graph_module


def halved(model: nn.Module | None = None, inputs: Any = INPUTS) -> tuple[fx.GraphModule, fx.GraphModule, Plan]:
    gm, coupling = analysed(Net().eval() if model is None else model, inputs)
    plan = coupling.plan(HALF) if model is None else random_plan(coupling, 1 / 2, 0)
    return gm, pruned_by(gm, plan), plan


def test_the_original_is_untouched_bit_for_bit() -> None:
    gm, coupling = analysed(Net().train())
    for parameter in gm.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, grads = snapshot(gm), {n: p.grad for n, p in gm.named_parameters()}
    pruned = pruned_by(gm, coupling.plan(HALF))
    pruned(INPUTS).sum().backward()
    torch.optim.SGD(pruned.parameters(), lr=1.0).step()
    assert_same(snapshot(gm), before)
    assert all(p.grad is grads[n] and (p.grad == 1).all() for n, p in gm.named_parameters())
    assert gm.training and gm.norm.training


def test_nothing_is_shared_with_the_original() -> None:
    """Fresh weights, even of layers that keep their size, so that candidates can train beside one another."""
    gm, pruned, _ = halved()
    mine = {t.untyped_storage().data_ptr() for t in (*gm.parameters(), *gm.buffers())}
    assert not mine & {t.untyped_storage().data_ptr() for t in (*pruned.parameters(), *pruned.buffers())}
    modules = set(map(id, gm.modules()))
    assert not modules & set(map(id, pruned.modules()))


def test_weights_are_the_kept_slices() -> None:
    gm, pruned, _ = halved()
    keep = {name: list(units) for name, units in HALF.items()}
    assert torch.equal(pruned.conv1.weight, gm.conv1.weight[keep["conv1"]])
    assert torch.equal(pruned.conv2.weight, gm.conv2.weight[keep["conv2"]][:, keep["conv1"]])
    assert torch.equal(pruned.norm.running_var, gm.norm.running_var[keep["conv1"]])
    assert torch.equal(pruned.passing, gm.passing[keep["conv1"]])
    assert torch.equal(pruned.fc1.weight, gm.fc1.weight[keep["fc1"]][:, keep["conv2"]])
    assert torch.equal(pruned.fc2.bias, gm.fc2.bias)


def test_module_attributes_follow() -> None:
    _, pruned, _ = halved()
    assert (pruned.conv1.out_channels, pruned.conv2.in_channels, pruned.conv2.out_channels) == (4, 4, 3)
    assert pruned.norm.num_features == 4
    assert (pruned.fc1.in_features, pruned.fc1.out_features, pruned.fc2.in_features) == (3, 3, 3)
    assert "Linear(in_features=3, out_features=3, bias=True)" in repr(pruned)


Attributes = dict[str, dict[str, Any]]
ATTRIBUTES: list[tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any], Attributes]] = [
    (
        lambda: nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1, groups=3), nn.Conv2d(12, 5, 1)), (2, 3, 4, 4),
        {"0": (1, 2)}, {"1": {"groups": 2, "in_channels": 8, "out_channels": 8}},
    ),
    (
        lambda: nn.Sequential(nn.Conv1d(3, 8, 1), nn.ConvTranspose1d(8, 8, 3, groups=8), nn.Conv1d(8, 5, 1)), (2, 3, 4),
        {"0": (1, 2, 5)}, {"1": {"groups": 3, "in_channels": 3, "out_channels": 3}},
    ),
    (
        lambda: nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(3, 12), nn.PReLU(12), nn.Conv2d(12, 5, 1)),
        (2, 3, 4, 4), {"0": (0, 2), "0#2": (1, 3)},
        {"1": {"num_groups": 2, "num_channels": 4}, "2": {"num_parameters": 4}},
    ),
    (
        lambda: nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.RMSNorm(8), nn.Linear(8, 5)), (2, 3),
        {"0": (0, 5)}, {"1": {"normalized_shape": (2,)}, "2": {"normalized_shape": (2,)}},
    ),
    (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.ChannelShuffle(4), nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 5, 1)
        ),
        (2, 3, 4, 4), {"0": (0, 1, 3)}, {"1": {"groups": 3}, "2": {"num_features": 6}},
    ),
    (
        lambda: nn.Sequential(
            nn.Conv3d(3, 8, 1), nn.InstanceNorm3d(8), nn.Flatten(2), nn.Unflatten(1, (2, 4)), nn.Flatten(1),
            nn.Linear(64, 5),
        ),
        (2, 3, 2, 2, 2), {"0": (1,), "0#2": (0, 2)},
        {"1": {"num_features": 2}, "3": {"unflattened_size": (1, 2)}, "5": {"in_features": 16}},
    ),
    (lambda: nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 5)), (), {"0": (3, 4)}, {"0": {"embedding_dim": 2}}),
    (
        lambda: nn.Sequential(nn.Flatten(), nn.Identity(), nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 5))),
        (2, 3), {"2.0": (0, 7)}, {"2.0": {"out_features": 2}, "2.2": {"in_features": 2}},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "shape", "keep", "expected"), ATTRIBUTES)
def test_size_attributes_of_every_module(
    make: Callable[[], nn.Module], shape: tuple[int, ...], keep: dict[str, Any], expected: Attributes
) -> None:
    inputs = torch.randn(shape) if shape else torch.randint(0, 11, (2, 4))
    gm, coupling = analysed(make().eval(), inputs)
    pruned = pruned_by(gm, coupling.plan(keep))
    for path, attributes in expected.items():
        for name, value in attributes.items():
            assert tuple(torch.tensor(getattr(pruned.get_submodule(path), name)).view(-1).tolist()) == tuple(
                torch.tensor(value).view(-1).tolist()
            ), f"{path}.{name}"
    assert pruned(inputs).shape == gm(inputs).shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    gm, coupling = analysed(Net().eval().to(dtype), INPUTS.to(dtype))
    plan = coupling.plan(HALF)
    pruned = pruned_by(gm, plan)
    assert {t.dtype for t in (*pruned.parameters(), *pruned.buffers())} == {dtype, torch.int64}
    assert pruned(INPUTS.to(dtype)).dtype == dtype
    assert verify(gm, pruned, plan, INPUTS.to(dtype)).max_error < 1e-12


def test_meta_networks_are_pruned_on_meta() -> None:
    """A network that was never given memory: shapes follow, and the plan is that of the real one."""
    with torch.device("meta"):
        model = Net().eval()
    gm, coupling = analysed(model, INPUTS.to("meta"))
    real = couple(capture(Net().eval(), INPUTS), INPUTS)
    assert coupling.fingerprint == real.fingerprint and coupling.widths == real.widths
    pruned = pruned_by(gm, coupling.plan(HALF))
    assert {t.device.type for t in (*pruned.parameters(), *pruned.buffers())} == {"meta"}
    assert pruned.conv2.weight.shape == (3, 4, 3, 3)


def test_memory_format_is_kept() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 5, 1)).to(
        memory_format=torch.channels_last
    )
    inputs = torch.randn(2, 4, 8, 8)
    gm, coupling = analysed(model.eval(), inputs)
    pruned = pruned_by(gm, random_plan(coupling, 1 / 2, 0))
    for name in ("0", "2"):
        weight = pruned.get_submodule(name).weight
        assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_three_dimensional_memory_format_is_kept() -> None:
    model = nn.Sequential(nn.Conv3d(4, 8, 3), nn.Conv3d(8, 5, 3)).to(memory_format=torch.channels_last_3d)
    inputs = torch.randn(2, 4, 6, 6, 6)
    gm, coupling = analysed(model.eval(), inputs)
    weight = pruned_by(gm, random_plan(coupling, 1 / 2, 0)).get_submodule("0").weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d) and not weight.is_contiguous()


def test_requires_grad_is_kept() -> None:
    model = Net().eval()
    model.conv1.requires_grad_(False)
    model.fc2.bias.requires_grad_(False)
    gm, pruned, _ = halved(model)
    assert {n: p.requires_grad for n, p in pruned.named_parameters()} == {
        n: p.requires_grad for n, p in gm.named_parameters()
    }


def test_parameters_are_leaves_without_history() -> None:
    _, pruned, _ = halved()
    assert all(isinstance(p, nn.Parameter) and p.is_leaf and p.grad is None for p in pruned.parameters())


def test_tied_weights_stay_tied() -> None:
    gm, pruned, _ = halved(TABLE["TiedDecoder"].make().eval(), TABLE["TiedDecoder"].inputs())
    assert gm.decode.weight is gm.embed.weight
    assert pruned.decode.weight is pruned.embed.weight
    assert len(list(pruned.parameters())) == len(list(gm.parameters()))


def test_a_layer_that_is_run_anew_may_have_another_ones_weight() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1), nn.GroupNorm(4, 8)).eval()
    model[3].weight = model[1].weight
    gm, pruned, plan = halved(model.append(nn.Conv2d(8, 5, 1)))
    assert plan.narrows and pruned.get_parameter("1.weight") is pruned.get_parameter("3.weight")
    verify(gm, pruned, plan, INPUTS)


def test_shared_modules_stay_shared() -> None:
    shared = nn.Conv2d(8, 8, 3, padding=1)
    gm, pruned, _ = halved(nn.Sequential(nn.Conv2d(3, 8, 3), shared, nn.ReLU(), shared, nn.Conv2d(8, 5, 1)).eval())
    again = [m for m in pruned.modules() if isinstance(m, nn.Conv2d) and m.weight.shape == (4, 4, 3, 3)]
    assert again and len({id(m.weight) for m in again}) == 1
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in gm.parameters())


def test_buffers_stay_buffers_and_persistence_is_kept() -> None:
    gm, pruned, _ = halved()
    assert set(dict(pruned.named_buffers())) == set(dict(gm.named_buffers()))
    assert list(pruned.state_dict()) == list(gm.state_dict())
    assert "passing" not in pruned.state_dict() and pruned.passing.shape == (4, 1, 1)


def test_modes_and_training() -> None:
    """Train mode is live: dropout drops, statistics move, every parameter gets a gradient; eval mode is still."""
    _, pruned, _ = halved()
    pruned.train()
    before = pruned.norm.running_mean.clone()
    pruned(INPUTS).square().sum().backward()
    assert not torch.equal(pruned.norm.running_mean, before)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in pruned.parameters())
    assert not torch.equal(pruned(INPUTS), pruned(INPUTS))
    pruned.eval()
    assert torch.equal(pruned(INPUTS), pruned(INPUTS))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_each_module_is_kept(training: bool) -> None:
    model = Net().train(training)
    model.norm.eval()
    _, pruned, _ = halved(model)
    assert pruned.norm.training is False and pruned.conv1.training is training


def test_in_torchs_pass_manager() -> None:
    gm, coupling = analysed(Net().eval())
    first = coupling.plan({"conv1": HALF["conv1"]})
    second = coupling.after(first).plan({"conv2": HALF["conv2"]})
    result = PassManager(passes=[PruneChannels(first), PruneChannels(second)])(gm)
    assert result.modified
    assert result.graph_module.conv2.weight.shape == (3, 4, 3, 3)
    idle = PassManager(passes=[PruneChannels(coupling.plan({}))])(gm)
    assert not idle.modified


def test_node_level_evidence() -> None:
    gm, pruned, _ = halved()
    for network in (gm, pruned):
        node = next(n for n in network.graph.nodes if n.name == "conv2")
        assert tuple(node.meta["val"].shape) == tuple(a.size for a in node.meta["axes"])
        assert node.meta["val"].device.type == "meta"
    assert [n.name for n in pruned.graph.nodes] == [n.name for n in gm.graph.nodes]


def test_the_result_is_a_graph_module_like_any_other() -> None:
    """It can be copied, traced again and printed as code."""
    _, pruned, _ = halved()
    assert difference(run(copy.deepcopy(pruned), INPUTS), run(pruned, INPUTS)) == 0
    assert difference(run(fx.symbolic_trace(pruned), INPUTS), run(pruned, INPUTS)) == 0
    pruned.graph.lint()
    assert "def forward(self, x)" in pruned.code
    assert type(pruned).__name__ == "Net"


def test_deterministic() -> None:
    gm, coupling = analysed(Net().eval())
    first, second = (pruned_by(gm, coupling.plan(HALF)) for _ in range(2))
    assert first.code == second.code
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_a_module_that_was_traced_by_the_user() -> None:
    model = Net().eval()
    gm = fx.symbolic_trace(model)
    coupling = couple(gm, INPUTS)
    plan = coupling.plan(HALF)
    pruned = pruned_by(gm, plan)
    assert difference(run(zeroed(gm, coupling, plan), INPUTS), run(pruned, INPUTS)) < 1e-5


def test_wrong_inputs_are_named() -> None:
    gm = capture(Net().eval(), INPUTS)
    with pytest.raises(PassError, match=r"2 example inputs given, but the graph takes 1: \['x'\]"):
        couple(gm, (INPUTS, INPUTS))
    with pytest.raises(PassError, match="example inputs lack 'x'"):
        couple(gm, {})
    with pytest.raises(PassError, match=r"name \['y'\], which the graph does not take"):
        couple(gm, {"x": INPUTS, "y": INPUTS})
    with pytest.raises(PassError, match="node conv1 .* cannot be run on the example inputs"):
        couple(gm, torch.randn(4, 5, 8, 8))


def test_weights_are_neither_read_nor_copied_by_the_analysis() -> None:
    """NaN everywhere, and the same groups; peak memory is that of shapes alone."""
    model = Net().eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), model.kept, model.passing):
            tensor.fill_(float("nan"))
    _, coupling = analysed(model)
    assert coupling.widths == {"conv1": 8, "conv2": 6, "fc1": 7}
