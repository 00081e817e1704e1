"""Residual branches removed whole: what is left computes what the original does with the branch's output at zero."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from passes import EquivalenceError, Plan, PlanError, apply_plan, capture, cost, couple, plan_of, verify


class Basic(nn.Module):
    """As in ResNet: the sum and the activation are made in place."""

    def __init__(self, channels, inner):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu, self.shortcut = nn.ReLU(inplace=True), nn.Sequential()

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, block=Basic):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.layer = nn.Sequential(block(12, 8), block(12, 10), block(12, 7))
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        return self.fc(self.layer(self.stem(x).relu()).mean((2, 3)))


class Inverted(nn.Module):
    """As in MobileNetV2: a linear bottleneck."""

    def __init__(self, channels, inner):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, 2 * inner, 1), nn.BatchNorm2d(2 * inner), nn.ReLU6(),
            nn.Conv2d(2 * inner, 2 * inner, 3, padding=1, groups=2 * inner), nn.ReLU6(),
            nn.Conv2d(2 * inner, channels, 1), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x):
        return x + self.conv(x)


class Next(nn.Module):
    """As in ConvNeXt: a scale of its own on what the layers give, with channels last."""

    def __init__(self, channels, inner):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 3 * inner), nn.Linear(3 * inner, channels)
        self.gamma = nn.Parameter(torch.rand(channels))

    def forward(self, x):
        out = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        out = self.gamma * self.down(F.gelu(self.up(out)))
        return x + out.permute(0, 3, 1, 2)


class Attention(nn.Module):
    def __init__(self, width, heads, causal):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x, causal=None):
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(mixed.transpose(1, 2).reshape(n, tokens, -1)), None


class Layer(nn.Module):
    """Pre-norm: the two branches stand in one module."""

    def __init__(self, width, heads, causal=False):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads, causal)
        self.norm2, self.drop = nn.LayerNorm(width), nn.Dropout(0.1)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        mixed, _ = self.attn(x=self.norm1(x))
        x = x + self.drop(mixed)
        return (x + self.mlp(self.norm2(x)),)


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, 4)
        self.layers = nn.ModuleList([Layer(24, 3) for _ in range(3)])
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 7)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)[0]
        return self.head(self.norm(x).mean(1))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(11, 24)
        self.layers = nn.ModuleList([Layer(24, 3, causal=True) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 11, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        x = self.tokens(ids)
        for layer in self.layers:
            (x,) = layer(x)
        return self.head(self.norm(x))


class Encoder(nn.Module):
    """torch's own, whose layers hand all of their weights to one kernel in evaluation without gradients."""

    def __init__(self, **settings):
        super().__init__()
        layer = nn.TransformerEncoderLayer(24, 4, 40, batch_first=True, **settings)
        self.first, self.layers, self.head = nn.Linear(6, 24), nn.TransformerEncoder(layer, 2), nn.Linear(24, 5)

    def forward(self, x, padding=None):
        x = self.layers(self.first(x), src_key_padding_mask=padding)
        return self.head(x if padding is None else x * ~padding[..., None])


IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
NETWORKS = {
    "resnet": (ResNet, IMAGES, 3),
    "mobilenet": (lambda: ResNet(Inverted), IMAGES, 3),
    "convnext": (lambda: ResNet(Next), IMAGES, 3),
    "vit": (ViT, IMAGES, 6),
    "encoder": (Encoder, torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(3)), 4),
    "decoder": (Decoder, torch.arange(10).reshape(2, 5), 4),
}


def made(name, form):
    make, example, blocks = NETWORKS[name]
    torch.manual_seed(0)
    network = make().eval()
    network = capture(network, example) if form == "graph" else network
    return network, example, couple(network, example, depth=True), blocks


def half(coupling):
    """Half of the groups cut to about two thirds."""
    return {group.name: range(max(1, group.size * 2 // 3)) for group in coupling.groups[::2]}


@pytest.mark.parametrize("form", ["graph", "module"])
@pytest.mark.parametrize("name", NETWORKS)
def test_removed_is_masked_and_costs_what_is_left(name, form):
    network, example, coupling, blocks = made(name, form)
    assert len(coupling.blocks) == blocks, coupling.refused_blocks
    costs, names = cost(coupling), list(coupling.blocks)
    for removed in (names[1:2], names):
        plan = coupling.plan(half(coupling), removed_blocks=removed)
        small = apply_plan(network, plan)
        certificate = verify(network, small, plan, example)
        assert certificate.max_error < 1e-9 and certificate.removed_blocks == tuple(removed)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            small(example)
        assert counter.get_total_flops() == costs.flops(plan.widths) < costs.flops()
        assert sum(p.numel() for p in small.parameters()) == costs.params(plan.widths)
        left, again = coupling.after(plan), couple(small, example, depth=True)
        assert left.widths == again.widths and left.blocks.keys() == again.blocks.keys()
        assert cost(left).macs() == cost(again).macs() and cost(left).memory() == costs.memory(plan.widths)
        if form == "graph":
            assert cost(again).memory() == costs.memory(plan.widths)


@pytest.mark.parametrize("form", ["graph", "module"])
def test_the_proof_sees_a_branch_that_is_still_there(form):
    network, example, coupling, _ = made("vit", form)
    name = next(iter(coupling.blocks))
    with pytest.raises(EquivalenceError):
        verify(network, copy.deepcopy(network), coupling.plan({}, removed_blocks=[name]), example)
    with pytest.raises(EquivalenceError):
        verify(network, apply_plan(network, coupling.plan({}, removed_blocks=[name])), coupling.plan({}), example)


@pytest.mark.parametrize("form", ["graph", "module"])
@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_steps_make_the_plan_of_both(name, form):
    network, example, coupling, _ = made(name, form)
    first, second = list(coupling.blocks)[:2]
    one = coupling.plan(half(coupling), removed_blocks=[second])
    middle, left = apply_plan(network, one), coupling.after(one)
    two = left.plan({group.name: range(max(1, group.size - 1)) for group in left.groups}, removed_blocks=[first])
    assert Plan.from_json(two.to_json()) == two
    both = one.then(two)
    assert set(both.removed_blocks) == {first, second} and both.result_fingerprint == two.result_fingerprint
    end = apply_plan(middle, two)
    assert plan_of(end) == both
    verify(network, end, both, example)
    assert {n: p.shape for n, p in end.named_parameters()} == {
        n: p.shape for n, p in apply_plan(network, both).named_parameters()
    }


def test_a_cut_module_keeps_its_class_and_can_be_copied_and_pickled():
    network, example, coupling, _ = made("resnet", "module")
    small = apply_plan(network, coupling.plan({}, removed_blocks=list(coupling.blocks)[:1]))
    assert type(small.layer[0]) is Basic and small.layer[0].conv1 is None
    assert not [name for name in small.state_dict() if name.startswith("layer.0")]
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert other.layer[0].forward.module is other.layer[0]
        torch.testing.assert_close(other(example), small(example), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("settings", [{}, {"norm_first": True}, {"bias": False}, {"activation": F.silu}])
def test_a_layer_that_asks_its_parts_for_weights_runs_without_them_in_every_mode(settings):
    torch.manual_seed(0)
    network, padding = Encoder(dropout=0.0, **settings), torch.arange(7).expand(2, 7) > torch.tensor([[4], [6]])
    example = {"x": NETWORKS["encoder"][1], "padding": padding}
    coupling = couple(network, example, depth=True)
    assert len(coupling.blocks) == 4, coupling.refused_blocks
    nested = network.layers.use_nested_tensor
    for name in coupling.blocks:
        last = name.removeprefix("block:")
        small, masked = apply_plan(network, coupling.plan({}, removed_blocks=[name])), copy.deepcopy(network)
        for parameter in masked.get_submodule(last).parameters():
            nn.init.zeros_(parameter)
        assert not [key for key in small.state_dict() if key.startswith(last)]
        for training, gradients in ((False, False), (False, True), (True, True)):
            small.train(training), masked.train(training)
            with torch.set_grad_enabled(gradients):
                got, expected = small(**example), masked(**example)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert network.layers.use_nested_tensor == nested


def test_what_stands_for_a_removed_layer_answers_what_it_is_asked_for_and_holds_nothing():
    network, example, coupling, _ = made("encoder", "module")
    small = apply_plan(network, coupling.plan({}, removed_blocks=list(coupling.blocks)))
    gone = small.layers.layers[0]
    assert gone.self_attn.batch_first and gone.dropout.p == 0.1 and not hasattr(gone.linear1, "out_features")
    assert gone.linear2.weight is None and not list(gone.self_attn.parameters())
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        with torch.no_grad():
            torch.testing.assert_close(other(example), small(example), rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(capture(small, example)(example), small(example))


def test_a_trained_network_is_proven_with_its_own_weights():
    network, example, coupling, _ = made("vit", "module")
    plan = coupling.plan(half(coupling), removed_blocks=list(coupling.blocks)[2:4])
    small = apply_plan(network, plan)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    assert verify(network, small, plan, example, trained=True).max_error < 1e-9


def test_plans_round_trip_and_old_ones_load():
    _, _, coupling, _ = made("resnet", "graph")
    plan = coupling.plan({}, removed_blocks=list(coupling.blocks)[:2])
    assert Plan.from_json(plan.to_json()) == plan and '"format": 3' in plan.to_json()
    assert plan.widths[next(iter(coupling.blocks))] == 0
    plain = coupling.plan({}).to_json()
    assert '"format": 2' in plain and "removed_blocks" not in plain and Plan.from_json(plain).removed_blocks == ()
    with pytest.raises(PlanError, match="altered"):
        Plan.from_json(plan.to_json().replace(plan.removed_blocks[0], "block:other"))


def test_what_is_no_block_is_named():
    network, example, coupling, _ = made("resnet", "graph")
    with pytest.raises(PlanError, match="did you mean 'block:layer.0.conv2'"):
        coupling.plan({}, removed_blocks=["block:layer.0.conv1"])
    with pytest.raises(PlanError, match="depth=True"):
        couple(capture(ResNet().eval(), example), example).plan({}, removed_blocks=["block:layer.0.conv2"])
    plan = coupling.plan({}, removed_blocks=["block:layer.0.conv2"])
    assert apply_plan(capture(ResNet().eval(), example), plan).graph  # a coupling without blocks finds them
