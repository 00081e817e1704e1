"""What goes in comes out: a module of a class is searched, trained, stored and returned as that class, a graph as a
graph."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune
from fxprune import Budget, FineTune, NetAdaptResult, export, finetune, load, netadapt
from fxprune.errors import InputError
from fxprune.exporters import ExportError
from fxprune.io.tensors import sharing
from fxprune.problem import inputs
from fxprune.search import proof
from passes import CaptureError, EquivalenceError, PassError, apply_plan, capture, couple, plan_of, verify
from passes.errors import PrecisionError
from passes.stream.network_copies import clone

IMAGE = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
STEPS = {"netadapt_max_iter": 2, "netadapt_max_rounds": 2}


class Digits(nn.Module):
    """A class of its own: plain attributes, a method, a property, a hook that refers to the object, a counter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.second, self.last = nn.Conv2d(16, 24, 3), nn.Conv2d(24, 4, 3)
        self.labels, self.calls = ["a", "b", "c", "d"], 0
        self.last.register_forward_hook(self.count)

    @property
    def classes(self) -> int:
        return len(self.labels)

    def count(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        self.calls += 1
        return output * 2

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        return self.last(x).mean((2, 3))

    def predict(self, x: Tensor) -> list[str]:
        return [self.labels[i] for i in self(x).argmax(1).tolist()]


def search(model: nn.Module | None = None, **changes: Any) -> NetAdaptResult:
    given = {"example_inputs": IMAGE, "progress": False, **changes}
    return netadapt(model or Digits().eval(), Budget("macs", ratio=0.6), **given)


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(4, 3, 9, 9, generator=generator), torch.randint(4, (4,), generator=generator)) for _ in range(2)
    ]


def loss_of(model: nn.Module) -> float:
    with torch.no_grad():
        return -sum(float(F.cross_entropy(model(x), y)) for x, y in batches())


def test_a_class_stays_with_all_that_it_has() -> None:
    model = Digits().eval()
    before, calls = copy.deepcopy(model.state_dict()), model.calls
    result = search(model)
    assert type(result.model) is Digits and result.form == "module" and result.module is result.model
    assert result.model.predict(IMAGE)[0] in "abcd" and result.model.classes == 4
    assert sum(p.numel() for p in result.model.parameters()) < sum(p.numel() for p in model.parameters())
    assert list(result.model.state_dict()) == list(before)
    assert model.calls == calls and not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    counted = result.model.calls
    result.model(IMAGE)
    assert result.model.calls == counted + 1 and model.calls == calls  # the hook is the copy's own


def test_a_graph_stays_a_graph_and_may_be_asked_for() -> None:
    graph = capture(Digits().eval(), IMAGE)
    assert isinstance(search(graph).model, fx.GraphModule)
    seen: list[type] = []

    def evaluate(model: nn.Module) -> float:
        seen.append(type(model))
        return loss_of(model)

    asked = search(form="graph", evaluate=evaluate, config=STEPS)
    assert isinstance(asked.model, fx.GraphModule) and asked.graph_module is asked.model and asked.form == "graph"
    assert all(issubclass(kind, fx.GraphModule) for kind in seen)
    with pytest.raises(InputError, match="form: got the text 'onnx'; expected one of 'auto', 'module', 'graph'"):
        search(form="onnx")


def test_both_forms_choose_the_same_network() -> None:
    module, graph = (
        search(form=form, train=FineTune(batches()), evaluate=loss_of, config=STEPS) for form in ("module", "graph")
    )
    assert module.widths == graph.widths and [r.chosen_group for r in module.rounds] == [
        r.chosen_group for r in graph.rounds
    ]
    for name, tensor in module.model.state_dict().items():
        torch.testing.assert_close(tensor, graph.model.state_dict()[name])
    torch.testing.assert_close(module.graph_module(IMAGE), module.model(IMAGE))


def test_train_and_evaluate_get_the_class_and_modes_come_back() -> None:
    model = Digits().train()
    model.norm.eval()
    seen: list[tuple[type, bool]] = []

    def train(network: nn.Module, steps: int) -> None:
        seen.append((type(network), network.training))
        FineTune(batches())(network, steps)

    def evaluate(network: Any) -> float:
        seen.append((type(network), network.training))
        return float(network.predict(IMAGE).count("a"))

    result = search(model, train=train, evaluate=evaluate, config=STEPS)
    assert {kind for kind, _ in seen} == {Digits} and {training for _, training in seen} == {True, False}
    for network in (result.model, result.restore(1), result.restore(0), model):
        assert network.training and network.second.training and not network.norm.training
        assert type(network) is Digits
    tuned = finetune(result, batches(), epochs=1, progress=False)
    assert type(tuned.model) is Digits and tuned.certificate is not None and tuned.certificate.trained
    assert tuned.model.training and not tuned.model.norm.training


def test_a_killed_search_of_a_class_goes_on_and_its_rounds_come_back(tmp_path: Path) -> None:
    options: dict[str, Any] = {"train": FineTune(batches()), "evaluate": loss_of, "config": STEPS}
    whole = search(**options)
    first = search(workdir=tmp_path, **options)
    (tmp_path / "round-0002" / "round.json").unlink()
    again = search(workdir=tmp_path, **options)
    for result in (first, again):
        assert type(result.model) is Digits
        for name, tensor in result.model.state_dict().items():
            assert torch.equal(tensor, whole.model.state_dict()[name])
    tuned = finetune(tmp_path, batches(), round=1, model=Digits().eval(), epochs=1, progress=False)
    assert type(tuned.model) is Digits and not tuned.model.training
    with pytest.raises(fxprune.FxpruneError, match="form: module there, graph here"):
        search(workdir=tmp_path, form="graph", **options)


def test_a_module_that_cannot_be_analysed_is_searched_as_a_graph_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(network: nn.Module, example_inputs: Any) -> Any:
        if not isinstance(network, fx.GraphModule):
            raise PassError("attribute 'dim' stands in the way")
        return couple(network, example_inputs)

    couple = inputs.couple
    monkeypatch.setattr(inputs, "couple", refuse)
    result = search()
    assert isinstance(result.model, fx.GraphModule) and result.form == "graph"
    for said in (result.note, caplog.text, result.summary()):
        assert "attribute 'dim' stands in the way" in said
    with pytest.raises(PassError, match="attribute 'dim'"):
        search(form="module")
    monkeypatch.setattr(inputs, "capture", lambda *_: (_ for _ in ()).throw(CaptureError("no tracer takes it")))
    with pytest.raises(InputError, match="attribute 'dim' stands in the way. It cannot be captured either"):
        search()


@pytest.mark.parametrize("form", ["module", "graph"])
def test_what_is_wrong_is_found_before_anything_is_trained(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(network: nn.Module, plan: Any) -> nn.Module:
        pruned = apply_plan(network, plan)
        with torch.no_grad():
            pruned.get_parameter("second.weight")[0] += 1
        return pruned

    def never(*_: Any) -> float:
        raise AssertionError("nothing is trained or evaluated before the proof")

    apply_plan = proof.apply_plan
    monkeypatch.setattr(proof, "apply_plan", wrong)
    with pytest.raises(EquivalenceError):
        search(form=form, train=never, evaluate=never)


def test_the_graph_of_a_result_that_none_can_capture_is_refused() -> None:
    class Branching(Digits):
        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            return x if float(x.detach().abs().sum()) > 1e9 else -x

    result = search(Branching().eval())
    assert type(result.model) is Branching
    with pytest.raises(CaptureError):
        _ = result.graph_module


def test_within_the_budget_the_result_is_a_copy() -> None:
    model = Digits().eval()
    result = netadapt(model, 1.0, example_inputs=IMAGE, progress=False)
    assert type(result.model) is Digits and result.model is not model
    assert result.model.get_parameter("first.weight") is not model.first.weight


class Normed(nn.Module):
    """Weights that hooks make anew from others before each call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a = torch.nn.utils.weight_norm(nn.Conv1d(4, 16, 3))
        self.b = torch.nn.utils.weight_norm(nn.Conv1d(16, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_that_hooks_make_are_trained_stored_and_loaded(tmp_path: Path) -> None:
    x = torch.randn(2, 4, 20)
    model = Normed().eval()
    model(x)  # leaves weights behind that torch refuses to copy
    trained = []

    def train(network: nn.Module, steps: int) -> None:
        before = network.b.weight_v.detach().clone()
        optimizer = torch.optim.SGD(network.parameters(), 0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()
        trained.append(not torch.equal(before, network.b.weight_v))

    result = netadapt(
        model, Budget("macs", ratio=0.5), example_inputs=x, train=train, progress=False,
        evaluate=lambda network: -float(network(x).square().mean()), config={**STEPS, "netadapt_min_feature_size": 2},
    )  # fmt: skip
    assert trained and all(trained) and type(result.model) is Normed
    export(result.model, x, tmp_path / "net.safetensors", plan=result.plan)
    again = load(Normed().eval(), tmp_path / "net.safetensors")
    assert type(again) is Normed
    torch.testing.assert_close(again(x), result.model(x))
    copied, shared = clone(model), sharing(model)
    assert copied.a.weight_v is not model.a.weight_v and shared.a.weight_v is model.a.weight_v
    torch.testing.assert_close(copied(x), model(x))


class Cached(nn.Module):
    """Keeps a grid of the last image size, in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.size: Any = None
        self.grid = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(torch.relu(self.a(x)))
        if self.size != y.shape[2:]:
            self.size = y.shape[2:]
            self.grid = torch.arange(self.size.numel(), dtype=y.dtype).view(1, 1, *self.size)
        return y + self.grid


def test_what_a_module_keeps_of_its_last_call_is_no_weight(tmp_path: Path) -> None:
    other = torch.randn(1, 3, 12, 10)
    model = Cached().eval()
    model(IMAGE)
    result = search(model)
    expected = result.model(other)
    assert model.size == IMAGE.shape[2:]  # another object's
    export(result.model, IMAGE, tmp_path / "net.safetensors", plan=result.plan)
    for fresh in (Cached().eval(), model):
        torch.testing.assert_close(load(fresh, tmp_path / "net.safetensors")(other), expected)
    assert result.model.size == other.shape[2:]  # exporting ran a copy


@pytest.mark.parametrize("suffix", ["safetensors", "pt2", "py"])
def test_a_class_is_written_in_every_form(suffix: str, tmp_path: Path) -> None:
    result = search()
    calls = result.model.calls
    if suffix == "py":
        with pytest.raises(ExportError, match="has forward hooks"):
            export(result.model, IMAGE, tmp_path / "net.py")
        result.model.last._forward_hooks.clear()
    report = export(result.model, IMAGE, tmp_path / f"net.{suffix}")
    assert report.path.exists() and result.model.calls == calls and not result.model.training
    if suffix == "safetensors":
        torch.testing.assert_close(load(Digits().eval(), report.path)(IMAGE), result.model(IMAGE))
        with pytest.raises(ExportError, match="another network"):
            load(Cached(), report.path)


def test_a_latency_table_is_built_from_the_graph_and_the_module_itself_is_measured(tmp_path: Path) -> None:
    seen = []

    def measure(network: nn.Module, example_inputs: Any) -> float:
        seen.append(type(network))
        return 1 + 1e-3 * sum(p.numel() for p in network.parameters())

    latency = {"measure": measure, "table": tmp_path / "table.json"}
    options: dict[str, Any] = {"example_inputs": IMAGE, "progress": False, "config": {"latency": latency}}
    result = netadapt(Digits().eval(), Budget("latency", ratio=0.8), **options)
    assert type(result.model) is Digits and result.met and seen[-1] is Digits
    assert result.achieved["latency"] == pytest.approx(measure(result.model, IMAGE), rel=0.2)

    class Branching(Digits):
        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            return x if float(x.detach().abs().sum()) > 1e9 else -x

    with pytest.raises(InputError, match=r"(?s)made of the operators of a graph.*resources=.*Branching cannot"):
        netadapt(Branching().eval(), Budget("latency", ratio=0.8), **options)


class Remembering(Digits):
    """Buffers that each call replaces: one that was none, one of another batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", None)
        self.register_buffer("means", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        self.seen, self.means = x.detach().sum(), x.detach().mean(1)
        return x


def test_buffers_that_a_call_replaces_are_trained_and_restored() -> None:
    model = Remembering().eval()
    result = search(model, train=FineTune(batches()), evaluate=loss_of, config=STEPS)
    assert len(result.rounds) == 2 and model.seen is None and model.means.shape == (1,)
    for network in (result.model, result.restore(1)):
        assert network.means.shape == (4,) and network.seen is not None  # of the last batch


class Holding(Digits):
    """What cannot be copied, and references to the object itself."""

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.numbers = threading.Lock(), iter(range(3))
        self.__dict__["me"], self.steps = self, [self.count]


def test_what_refuses_to_be_copied_is_shared_and_references_to_the_object_follow_it() -> None:
    model = Holding().eval()
    for network in (search(model, evaluate=loss_of, config=STEPS).model, clone(model), sharing(model)):
        assert network.lock is model.lock and network is not model
        assert network.me is network and network.steps[0].__self__ is network


def test_a_module_compiled_in_place_comes_out_bare_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = Digits().eval()
    model.first.compile(backend="eager")
    model(IMAGE)
    result = search(model)
    assert "first was compiled in place, and a pruned copy is not" in caplog.text
    with torch.no_grad():
        result.model.first.weight.zero_()
        result.model.first.bias.zero_()
    assert result.model.first(IMAGE).abs().sum() == 0  # its own weights, not those of the compiled one


def test_what_no_analysis_can_take_is_refused_by_name() -> None:
    scripted = torch.jit.trace(Digits().eval(), IMAGE)
    with pytest.raises(InputError, match="pass the nn.Module that it was made from"):
        search(scripted)
    lazy = nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.LazyConv2d(4, 3))
    with pytest.raises(InputError, match=r"0 \(LazyConv2d\) has no weights yet; call the model once"):
        search(lazy)


class Attending(nn.Module):
    """What enters the attention, its heads and what leaves it are groups of their own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 2)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.up(x)
        return self.down(self.attention(x, x, value=x, key_padding_mask=mask)[0])


def test_attention_of_torch_whose_inputs_alone_shrink(tmp_path: Path) -> None:
    given = (torch.randn(2, 6, 16), torch.zeros(2, 6, dtype=torch.bool))
    model = Attending().eval()
    result = netadapt(model, 0.9, scope=["up", "attention"], example_inputs=given, progress=False)
    coupling = couple(model, given)
    pruned = apply_plan(model, coupling.plan({"up": tuple(range(0, 16, 2))}))
    for network in (result.model, pruned):
        assert isinstance(network.attention, nn.MultiheadAttention) and network(*given).shape == (2, 6, 2)
        torch.save(network, tmp_path / "net.pt")
        torch.testing.assert_close(torch.load(tmp_path / "net.pt", weights_only=False)(*given), network(*given))
    assert pruned.attention.in_proj_weight.shape == (48, 8)
    verify(model, pruned, plan_of(pruned), given)


class Elsewhere(nn.Module):
    """A program with a size written out where torch takes its fast path of attention, which no analysed run does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        return self.last(hidden.view(-1, 12) if torch.backends.mha.get_fastpath_enabled() else hidden)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_are_the_reason_only_where_it_runs_in_double(dtype: torch.dtype) -> None:
    with pytest.raises(EquivalenceError, match=r"without gradients: RuntimeError.*exclude.*form=\"graph\"") as caught:
        netadapt(Elsewhere().to(dtype), 0.5, example_inputs=torch.randn(2, 6, dtype=dtype), progress=False)
    assert not isinstance(caught.value, PrecisionError) and "in float32" not in str(caught.value)


@pytest.mark.parametrize(("dtype", "advice"), [(torch.float32, "exclude: "), (torch.bfloat16, "Search it in float32")])
def test_another_type_is_advised_only_where_there_is_one(
    dtype: torch.dtype, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: object, **how: object) -> None:
        raise PrecisionError("it fails")

    monkeypatch.setattr(proof, "verify", fails)
    with pytest.raises(PrecisionError, match=f"^it fails.*{advice}"):
        netadapt(
            nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 3)).to(dtype),
            0.5,
            example_inputs=torch.randn(2, 6, dtype=dtype),
            progress=False,
        )
