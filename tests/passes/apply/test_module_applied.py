"""A cut module is the user's own: class, hooks, buffers, ties, flags; copies keep it; the original is not touched."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import pytest
import torch
from module_law import halves, proven
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from passes import PassError, apply_plan, couple, plan_of, verify
from passes.errors import SpecialisedWarning


class Own(nn.Module):
    """A class of one's own: sizes in attributes, a property, a counter, a cache, a hook, ties, a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.calls, self.cache = 12, 0, {}
        self.embed, self.inner, self.out = nn.Embedding(20, 12), nn.Linear(12, 12), nn.Linear(12, 20, bias=False)
        self.out.weight = self.embed.weight
        self.inner.bias.requires_grad_(False)
        self.inner.weight.learning_rate = 0.5
        self.register_buffer("shift", torch.randn(12))
        self.register_buffer("mask", torch.ones(3), persistent=False)
        self.seen = []
        self.inner.register_forward_hook(doubled)

    @property
    def half(self) -> int:
        return self.dim // 2

    def forward(self, ids: Tensor) -> Tensor:
        self.calls += 1
        length = ids.shape[1]
        if length not in self.cache:
            self.cache[length] = torch.arange(length) / length
        x = self.embed(ids) + self.shift + self.cache[length][:, None]
        return self.out(torch.tanh(self.inner(x)).view(*ids.shape, self.dim))


def doubled(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return output * 2


def test_a_class_of_ones_own_comes_out() -> None:
    net, ids = Own(), torch.randint(0, 20, (2, 5))
    cut, _, _ = proven(net, ids)
    assert (cut.dim, cut.half, net.dim) == (6, 3, 12)
    assert cut.out.weight is cut.embed.weight and cut.embed.weight.shape == (20, 6)
    assert not cut.inner.bias.requires_grad and cut.inner.weight.requires_grad
    assert cut.inner.weight.learning_rate == 0.5
    assert cut.shift.shape == (6,) and "mask" not in cut.state_dict() and torch.equal(cut.mask, net.mask)
    assert net.calls == 0 and net.cache == {}, "an analysis left traces"
    assert list(cut.state_dict()) == list(net.state_dict())
    cut.train()(ids).sum().backward()


def test_copies_and_pickles_keep_class_and_plan() -> None:
    net, ids = Own().eval(), torch.randint(0, 20, (2, 5))
    cut = apply_plan(net, (coupling := couple(net, ids)).plan(halves(coupling)))
    file = io.BytesIO()
    torch.save(cut, file)
    file.seek(0)
    expected = cut(ids)
    for again in (copy.deepcopy(cut), pickle.loads(pickle.dumps(cut)), torch.load(file, weights_only=False)):
        assert type(again) is Own and again is not cut
        assert plan_of(again) == plan_of(cut) is not None
        assert torch.equal(again(ids), expected)
        assert again.out.weight is again.embed.weight


def test_inplace_cuts_the_module_itself() -> None:
    net, ids = Own().eval(), torch.randint(0, 20, (2, 5))
    plan = (coupling := couple(net, ids)).plan(halves(coupling))
    expected = apply_plan(net, plan)(ids)
    weight = net.embed.weight
    assert apply_plan(net, plan, inplace=True) is net
    assert torch.equal(net(ids), expected) and net.out.weight is net.embed.weight is not weight


def test_a_scripted_part_stays_whole() -> None:
    net = nn.Sequential(nn.Linear(6, 8), torch.jit.script(nn.Linear(8, 8)), nn.Linear(8, 10), nn.Linear(10, 3))
    cut, coupling, _ = proven(net, torch.randn(2, 6), "2 10")
    assert isinstance(cut[1], torch.jit.ScriptModule)
    with pytest.raises(PassError, match="scripted"):
        couple(torch.jit.script(nn.Linear(3, 3)), torch.randn(1, 3))
    assert any("scripted" in frozen.reason for frozen in coupling.frozen)


class Auxiliary(nn.Module):
    """A head that evaluation skips, as GoogLeNet has it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out, self.aux = (
            nn.Linear(6, 8),
            nn.Linear(8, 3),
            nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 3)),
        )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = torch.relu(self.stem(x))
        return (self.out(x), self.aux(x)) if self.training else self.out(x)


def test_what_evaluation_skips_is_reached_through_train_mode() -> None:
    cut, _, _ = proven(Auxiliary(), torch.randn(2, 6), "stem 8, aux.0 5")
    assert [tuple(t.shape) for t in cut.train()(torch.randn(2, 6))] == [(2, 3), (2, 3)]


OPTIONS = {
    "plain": {}, "no bias": {"bias": False}, "learned row": {"add_bias_kv": True}, "zero row": {"add_zero_attn": True},
    "other sizes": {"kdim": 10, "vdim": 14}, "length first": {"batch_first": False},
}  # fmt: skip


class Crossed(nn.Module):
    def __init__(self, options: dict, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, **{"batch_first": True, **options})
        self.q, self.out, self.need_weights = nn.Linear(5, 12), nn.Linear(12, 4), need_weights
        self.k, self.v = nn.Linear(5, options.get("kdim", 12)), nn.Linear(5, options.get("vdim", 12))

    def forward(self, x: Tensor, mask: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
        attended, weights = self.attention(
            self.q(x), self.k(x), self.v(x), key_padding_mask=padding, attn_mask=mask, need_weights=self.need_weights
        )
        return self.out(attended) + (0 if weights is None else weights.sum())


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_of_torch_loses_heads(option: str, need_weights: bool) -> None:
    cut, coupling, _ = proven(Crossed(OPTIONS[option], need_weights), torch.randn(4, 7, 5))
    assert 3 in {g.size for g in coupling.groups}, "no heads are offered"
    assert isinstance(cut.attention, nn.MultiheadAttention) and cut.attention.num_heads == 2


def test_attention_of_torch_under_masks() -> None:
    net = Crossed({}, False)
    x, padding = torch.randn(4, 7, 5), torch.zeros(4, 7, dtype=torch.bool)
    padding[1, -2:] = True
    proven(net, {"x": x, "mask": torch.ones(7, 7).triu(1).bool(), "padding": padding})
    proven(Crossed({}, False), {"x": x[0], "mask": torch.zeros(7, 7)})


@pytest.mark.parametrize("layer", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_layers_of_transformers_lose_heads(layer: type[nn.Module]) -> None:
    class Layered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Linear(5, 12), nn.Linear(12, 3)
            self.layer = layer(12, 3, 20, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.out(self.layer(x) if layer is nn.TransformerEncoderLayer else self.layer(x, x))

    cut, coupling, _ = proven(Layered(), torch.randn(2, 7, 5))
    assert {3, 20, 12} <= {g.size for g in coupling.groups}
    x = torch.randn(3, 4, 5)
    fast = cut.eval()(x)
    with torch.no_grad():
        assert torch.allclose(cut(x), fast, atol=1e-5)


class Special(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.c, self.how = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3), how

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.how == "checkpoint":
            x = checkpoint(self.b, x, use_reentrant=False)
        elif self.how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                x = self.b(x).float()
        else:
            x = self.b(x) + torch.func.grad(lambda t: torch.tanh(t).square().sum())(x)
        return self.c(torch.relu(x))


@pytest.mark.parametrize("how", ["checkpoint", "autocast", "grad"])
def test_what_graphs_cannot_hold(how: str) -> None:
    cut, coupling, _ = proven(Special(how), torch.randn(2, 6))
    assert coupling.groups
    cut.train()(torch.randn(2, 6)).sum().backward()
    assert all(p.grad is not None for p in cut.parameters())


def _attributes() -> dict[str, dict]:
    owners = {"Module": nn.Module, "Tensor": torch.Tensor, "functional": nn.functional, "torch": torch}
    lazy = {"__warningregistry__"}
    return {name: {k: v for k, v in vars(owner).items() if k not in lazy} for name, owner in owners.items()}


def test_many_threads_analyse_at_once_and_leave_torch_alone() -> None:
    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()

    networks = [network(seed) for seed in range(100)]
    broken = nn.Sequential(nn.Linear(5, 4), nn.Linear(3, 2))
    before, results, errors, queue = _attributes(), {}, [], iter(range(100))
    settings = torch.is_grad_enabled(), torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled()
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(queue, None)
            if number is None:
                return
            try:
                coupling = couple(networks[number], torch.randn(2, 3, 8, 8))
                cut = apply_plan(networks[number], coupling.plan({"0": (1, 4, 6)}))
                results[number] = coupling.widths, cut[4].in_features
                if number % 10 == 0:
                    with pytest.raises(PassError):
                        couple(broken, torch.randn(2, 5))
            except BaseException as error:  # noqa: BLE001 a thread's failure is the test's
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert results == dict.fromkeys(range(100), ({"0": 8}, 108))
    after = _attributes()
    for owner in before:
        assert before[owner].keys() == after[owner].keys()
        assert all(before[owner][name] is after[owner][name] for name in before[owner])
    assert settings == (
        torch.is_grad_enabled(), torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled()
    )  # fmt: skip
    net = networks[0]
    plan = couple(net, torch.randn(2, 3, 8, 8)).plan({"0": (1, 4, 6)})
    assert verify(net, apply_plan(net, plan), plan, torch.randn(2, 3, 8, 8)).max_error <= 1e-9


def test_what_an_analysis_was_fixed_to_is_a_warning_and_stands_in_the_certificate() -> None:
    class Flagged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            hidden = self.inner(x)
            return self.outer(hidden.relu() if bool(lengths.min() > 0) else hidden)

    model, inputs = Flagged().eval(), (torch.randn(3, 4), torch.tensor([1, 2, 3]))
    with pytest.warns(SpecialisedWarning, match="asks for values"):
        coupling = couple(model, inputs)
    plan = coupling.plan({group.name: (0, 1) for group in coupling.groups})
    certificate = verify(model, apply_plan(model, plan), plan, inputs)
    assert any("asks for values" in sentence for sentence in certificate.specialised)


class Anchored(nn.Module):
    """Makes tensors in its first call and keeps them, as heads of detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out, self.shape = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1), (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        if self.shape != x.shape[2:]:
            self.shape, self.grid = x.shape[2:], torch.arange(x.shape[3]) / x.shape[3]
            self.register_buffer("centre", self.grid.mean(0, keepdim=True).expand(2).clone(), persistent=False)
        return self.out(x) + self.grid + self.centre[0]


def test_what_a_module_keeps_of_a_call_since_it_was_coupled_is_no_obstacle() -> None:
    net, x = Anchored().eval(), torch.randn(2, 3, 6, 6)
    coupling = couple(net, x)
    plan = coupling.plan(halves(coupling))
    net(x)
    cut = apply_plan(net, plan)
    assert verify(net, cut, plan, x).max_error < 1e-9
    assert torch.equal(cut.grid, net.grid) and cut.conv.out_channels == 4


class Collecting(nn.Module):
    """Hooks registered in the first call collect what a layer gives, as transformers does for hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out, self.ready = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(24, 3), False

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.ready = True
            self.first.register_forward_hook(lambda module, args, output: self.found.append(output))
            self.second.register_forward_hook(lambda module, args, output: self.found.append(output))
        self.found = []
        self.second(torch.relu(self.first(x)).view(-1, 12))
        return self.out(torch.cat(self.found, 1))


def test_hooks_that_a_call_registers_are_registered_once_a_run() -> None:
    net = Collecting().eval()
    coupling = couple(net, torch.randn(2, 5))
    assert [(g.name, g.size) for g in coupling.groups] == [("first", 12), ("second", 12)]
    assert not net.first._forward_hooks


class Counted(nn.Module):
    """A parametrization that counts its calls, as a spectral norm makes a step with each, in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.seen = 0

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.seen += 1
        return weight * 2


def test_cutting_runs_no_parametrization_that_would_change_the_cut_module() -> None:
    x = torch.randn(8, 6)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4)).train()
    torch.nn.utils.parametrize.register_parametrization(net[0], "weight", Counted())
    torch.nn.utils.parametrizations.spectral_norm(net[2])
    counted, spectral = net[0].parametrizations.weight[0], net[2].parametrizations.weight[0]
    before, vector = (float(counted.calls), counted.seen), spectral._u.clone()
    coupling = couple(net, x)
    plan = coupling.plan({"0": range(6), "2": (0, 2, 4, 6)})
    cut = apply_plan(net, plan)
    cut_counted = cut[0].parametrizations.weight[0]
    assert (float(cut_counted.calls), cut_counted.seen) == (float(counted.calls), counted.seen) == before
    assert torch.equal(cut[2].parametrizations.weight[0]._u, vector[[0, 2, 4, 6]])
    assert (cut[0].out_features, cut[2].in_features, cut[2].out_features) == (6, 6, 4)
    verify(net, cut, plan, x)
