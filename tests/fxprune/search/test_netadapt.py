"""`netadapt` from outside: what may be handed in, what is refused before any training, and real networks."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, symbolic_trace
from torch.fx.passes.shape_prop import ShapeProp

import fxprune
from fxprune import Accuracy, Budget, FineTune, InfeasibleBudget, NetAdaptConfig, netadapt
from fxprune.errors import BudgetError, BudgetTypeError, ConfigError, FxpruneError, InputError
from passes import EquivalenceError, PassError

EXAMPLE = torch.randn(1, 3, 10, 10)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 40, 3), nn.ReLU(), nn.Conv2d(40, 4, 3)
    )


def call(model: Any = None, budget: Any = 0.5, **changes: Any) -> fxprune.NetAdaptResult:
    given = {"example_inputs": EXAMPLE, "progress": False}
    return netadapt(model if model is not None else small(), budget, **{**given, **changes})  # type: ignore[arg-type]


def boom(*_: Any) -> float:
    raise AssertionError("nothing may be trained or evaluated before the budget is checked")


def test_ways_to_write_a_budget() -> None:
    half = call().start["flops"] // 2
    assert call(budget=half).achieved == call(budget=0.5).achieved == call(budget=Budget("flops", ratio=0.5)).achieved
    for resource in ("macs", "params", "weights", "memory"):
        result = call(budget=Budget(resource, ratio=0.8))
        assert (
            result.met and result.achieved[result.budgets[0].resource] <= 0.8 * result.start[result.budgets[0].resource]
        )
    assert call(budget=None, config={"budget_ratio": 0.5}).achieved == call().achieved


@pytest.mark.parametrize("wrong", [True, "0.5", {"a"}])
def test_wrong_budget_type(wrong: Any) -> None:
    with pytest.raises(BudgetTypeError, match="budget"):
        call(budget=wrong)


@pytest.mark.parametrize("wrong", [0.0, 1.5, -0.5, 0, [], float("nan")])
def test_wrong_budget_value(wrong: Any) -> None:
    with pytest.raises(BudgetError):
        call(budget=wrong)


def test_no_budget_and_two_budgets() -> None:
    with pytest.raises(BudgetError, match="no budget"):
        call(budget=None)
    with pytest.raises(BudgetError, match="differ"):
        call(budget=0.5, config=NetAdaptConfig(budget_ratio=0.6))
    assert call(budget=0.5, config=NetAdaptConfig(budget_ratio=0.5)).met
    with pytest.raises(
        BudgetError, match=r"\(flops at 0.5 of the start\) and the configuration's budget_type \(params\)"
    ):
        call(budget=0.5, config={"budget_type": "params"})
    assert call(budget=Budget("params", ratio=0.5), config={"budget_type": "params"}).met
    with pytest.raises(ConfigError, match="got both budgets and budget_type; keep one"):
        NetAdaptConfig(budget_type="params", budgets=({"resource": "macs", "ratio": 0.5},))


def test_infeasible_is_said_before_training_with_the_nearest_feasible() -> None:
    slow = {"budget_reduce_rate_init": 0.025, "budget_reduce_rate_decay": 0.96}
    with pytest.raises(InfeasibleBudget, match=r"nearest feasible budget: flops .*ratio=0\.53") as caught:
        call(budget=0.4, train=boom, evaluate=boom, config=slow)
    assert call(budget=int(caught.value.nearest["flops"]), config=slow).met
    with pytest.raises(InfeasibleBudget, match="least width") as caught:
        call(budget=10, train=boom, evaluate=boom, config={"budget_reduce_rate_decay": 1.0})
    nearest = int(caught.value.nearest["flops"])
    assert call(budget=nearest, config={"budget_reduce_rate_decay": 1.0}).achieved["flops"] == nearest


def test_within_the_budget_already() -> None:
    model = small().eval()
    for budget in (1.0, 10**12, Budget("latency", value=1e9) if False else Budget("memory", ratio=1)):
        result = call(model, budget)
        assert result.rounds == () and result.met and result.accepted == 0
        assert torch.equal(result.model(EXAMPLE), model(EXAMPLE))
        assert result.model.get_parameter("0.weight") is not model[0].weight
        assert result.plan.widths == {"0": 24, "3": 40} and "within its budget already" in result.summary()
    assert call(model, 1.0, evaluate=lambda m: 3.0).score == 3.0


def test_graph_modules_and_example_inputs() -> None:
    traced = symbolic_trace(small())
    assert call(traced).met
    assert call(traced, example_inputs=(EXAMPLE,)).achieved == call(traced, example_inputs={"input": EXAMPLE}).achieved
    with pytest.raises(InputError, match=r'placeholder .* carries no shape; .*meta\["val"\] or meta\["tensor_meta"\]'):
        call(traced, example_inputs=None)
    with pytest.raises(InputError, match="example_inputs is missing, and a Sequential does not say"):
        call(small(), example_inputs=None)
    ShapeProp(traced).propagate(EXAMPLE)
    assert call(traced, example_inputs=None).achieved == call(traced).achieved


class Several(nn.Module):
    """Named and nested inputs, several outputs, a norm whose statistics training writes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Conv2d(12, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor, *, scales: dict[str, list[torch.Tensor]]) -> dict[str, Any]:
        y = self.b(torch.relu(self.norm(self.a(x)))).mean((2, 3)) * scales["of"][1]
        return {"scores": self.head(y), "features": (y,)}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_module_of_torch_export_is_searched_as_a_graph(training: bool, dynamic: bool) -> None:
    torch.manual_seed(0)
    net, x = Several().train(training), torch.randn(4, 3, 8, 8)
    scales = {"of": [torch.ones(1), torch.full((1,), 2.0)]}
    shapes = {"x": {0: torch.export.Dim("n", min=2, max=64)}, "scales": {"of": [None, None]}} if dynamic else None
    exported = torch.export.export(net, (x,), {"scales": scales}, dynamic_shapes=shapes).module()
    result = netadapt(exported, 0.5, example_inputs={"x": x, "scales": scales}, progress=False)
    assert result.met and type(exported) is not type(result.model) and isinstance(result.model, GraphModule)
    assert result.certificate.max_error < 1e-9 and any(
        "torch.export fixed" in s for s in result.certificate.specialised
    )
    found = result.model(x=torch.randn(4 if not dynamic else 7, 3, 8, 8), scales=scales)
    assert found["scores"].shape == (7 if dynamic else 4, 5) and found["features"][0].shape[1] == 8
    assert exported(x, scales=scales)["scores"].shape == (4, 5), "it is left as it was"


def test_calibration_data_of_a_module_of_torch_export() -> None:
    torch.manual_seed(0)
    shapes = ({0: torch.export.Dim("n", min=2, max=64)},)
    exported = torch.export.export(small().eval(), (torch.cat([EXAMPLE] * 4),), dynamic_shapes=shapes).module()
    result = netadapt(exported, 0.5, example_inputs=EXAMPLE, calibration=[torch.randn(40, 3, 10, 10)], progress=False)
    assert result.met and result.repaired is not None and result.repaired.kept <= (result.repaired.sliced or 0.0)


@pytest.mark.parametrize(
    "wrong", [
        torch.randn(1, 4, 10, 10), torch.randn(1, 3, 2, 2), (EXAMPLE, EXAMPLE), {"image": EXAMPLE}, EXAMPLE.long(), "x",
    ],
)  # fmt: skip
def test_wrong_example_inputs(wrong: Any) -> None:
    with pytest.raises((FxpruneError, PassError)) as caught:
        call(example_inputs=wrong)
    assert "input" in str(caught.value)


class PartlyScripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        scripted = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.ReLU())
        self.a, self.scripted = nn.Linear(4, 16), torch.jit.script(scripted)
        self.b, self.c = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.scripted(self.a(x))).relu())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("by", ["weights", "data", "training"])
def test_a_scripted_part_stays_and_the_rest_is_pruned(by: str, training: bool) -> None:
    torch.manual_seed(0)
    net, x, y = PartlyScripted().train(training), torch.randn(60, 4), torch.randint(3, (60,))
    given: dict[str, Any] = {"calibration": [x], "config": {"refine": 1, "sweeps": 0}} if by == "data" else {}
    if by == "training":
        config = {"netadapt_max_iter": 2}
        given = {"train": FineTune([(x, y)]), "evaluate": Accuracy([(x, y)]), "config": config}
    for budget in (0.8, Budget("memory", ratio=0.97)):
        result = netadapt(net, budget, example_inputs=x[:2], progress=False, **given)
        assert result.met and result.certificate.max_error < 1e-9
        assert isinstance(result.model.scripted, torch.jit.ScriptModule) and result.model(x).shape == (60, 3)


class Threshold(nn.Module):
    """Takes another way where a layer has become narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.b(x.relu() if x.shape[1] > 4 else x.tanh())


def test_what_cannot_be_proven_says_how_to_go_on() -> None:
    with pytest.raises(EquivalenceError, match=r'test_netadapt.py:\d+.*\(exclude: .*form="graph"'):
        netadapt(Threshold().eval(), 0.2, example_inputs=torch.randn(2, 3, 6, 6), progress=False)


def test_a_network_without_what_is_budgeted_is_refused() -> None:
    with pytest.raises(BudgetError, match="uses 0 FLOPs of flops, of which nothing can be saved"):
        netadapt(nn.Embedding(9, 4), 0.5, example_inputs=torch.randint(9, (2, 3)), progress=False)


def test_weights_that_torchao_has_quantised_are_refused() -> None:
    quantization = pytest.importorskip("torchao.quantization", exc_type=ImportError)  # of a newer torch, say
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    with pytest.raises(InputError, match="0 \\(Linear\\) is quantised"):
        netadapt(model, 0.5, example_inputs=torch.randn(2, 64), progress=False)


@pytest.mark.parametrize("prepare", ["prepare", "prepare_qat"])
def test_networks_prepared_for_quantisation_are_refused(prepare: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).train(prepare == "prepare_qat")
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")  # type: ignore[assignment]
    prepared = getattr(torch.ao.quantization, prepare)(model)
    with pytest.raises(InputError, match="is quantised, or prepared for it: .* Prune the float model"):
        netadapt(prepared, 0.5, example_inputs=torch.randn(2, 3, 8, 8), progress=False)


def test_weights_that_are_offloaded_are_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).to("meta")
    model[0]._hf_hook = type("AlignDevicesHook", (), {"offload": True})()  # type: ignore[assignment]
    with pytest.raises(InputError, match="0 \\(Linear\\) is offloaded by accelerate, .* bring them back first"):
        netadapt(model, 0.5, example_inputs=torch.randn(2, 8), progress=False)


def test_a_pruned_network_can_be_pruned_again() -> None:
    first = call()
    second = call(first.model, 0.7, example_inputs=[EXAMPLE])
    assert second.start == first.achieved and second.met and second.certificate.max_error <= 1e-9
    assert second.original_widths == first.widths


def test_empty_graph_and_nothing_to_prune() -> None:
    graph = torch.fx.Graph()
    graph.output(graph.placeholder("x"))
    with pytest.raises(InputError, match="the graph is empty"):
        call(GraphModule(nn.Module(), graph))
    with pytest.raises(InputError, match="the (graph|network) is empty"):
        call(nn.Sequential())
    with pytest.raises(InputError, match="no prunable group"):
        call(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(InputError, match="up to 4 units.*lower netadapt_min_feature_size"):
        call(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), config={"netadapt_min_feature_size": 8})
    assert call(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))).met  # the default step suits tiny networks


def test_wrong_arguments() -> None:
    with pytest.raises(InputError, match=r"expected a torch.nn.Module or a torch.fx.GraphModule"):
        netadapt(lambda x: x, 0.5, example_inputs=EXAMPLE)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="evaluate is a float; expected a function called as"):
        call(evaluate=0.5)
    with pytest.raises(InputError, match="got train but no evaluate"):
        call(train=boom)
    with pytest.raises(InputError, match="config is a list"):
        call(config=[])
    with pytest.raises(ConfigError, match="did you mean 'netadapt_lr'"):
        call(config={"netadapt_lrr": 1})
    with pytest.raises(InputError, match="resume=True needs the workdir"):
        call(resume=True)


def test_configuration_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text("budget_ratio: 0.5\nmetrics: fpgm\n")
    assert call(budget=None, config=path).met and call(budget=None, config=str(path)).met


@pytest.mark.parametrize("metric", ["l1_norm", "fpgm", "random", "bn_scale"])
def test_every_metric(metric: str) -> None:
    assert call(config={"metrics": metric}).certificate.max_error <= 1e-9


def test_each_group_has_its_own_steps_and_the_last_round_uses_the_budget() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 64, 3), nn.ReLU(), nn.Conv2d(64, 4, 3))
    for ratio in (0.75, 0.5, 0.4, 0.25):
        result = call(model, ratio)
        steps = {"0": 2, "2": 8}
        assert all(width % steps[name] == 0 for name, width in result.rounds[0].winner.widths.items())
        used = result.achieved["flops"] / result.start["flops"] / ratio
        assert 0.97 < used <= 1 and ("of the budget is used" in result.summary()) is (used < 0.98)
    coarse = call(model, 0.4, config={"round_to": 16})
    assert all(width % 16 == 0 or width == coarse.original_widths[name] for name, width in coarse.widths.items())
    assert coarse.achieved["flops"] < 0.98 * 0.4 * coarse.start["flops"]
    assert "% of the budget is used: the next wider layer exceeds it." in coarse.summary()


def test_tied_weights_and_buffers_survive() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
            self.again.weight = self.first.weight
            self.register_buffer("scale", torch.rand(16), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.relu(self.again(torch.relu(self.first(x) * self.scale))))

    model = nn.Sequential(nn.Linear(5, 16), Tied())
    data = [(torch.randn(4, 5), torch.tensor([0, 1, 2, 0]))]
    result = netadapt(
        model, 0.5, example_inputs=torch.randn(2, 5), progress=False, train=fxprune.FineTune(data),
        evaluate=lambda m: 1.0, config={"netadapt_max_iter": 2},
    )  # fmt: skip
    tensors = dict(result.model.named_parameters(remove_duplicate=False))
    assert tensors["1.first.weight"] is tensors["1.again.weight"]
    assert tensors["1.first.weight"].shape == (result.widths["0"],) * 2


def test_cifar_resnet20_data_free_takes_seconds(data_dir: Path) -> None:
    from safetensors.torch import load_file

    model = _resnet20(data_dir)
    model.load_state_dict(load_file(data_dir / "resnet20_cifar10_jpeg.safetensors"))
    begun = time.perf_counter()
    result = netadapt(model.eval(), Budget("macs", ratio=0.5), example_inputs=torch.randn(1, 3, 32, 32), progress=False)
    assert time.perf_counter() - begun < 60
    assert result.met and result.data_free and not result.model.training
    assert result.model(torch.randn(3, 3, 32, 32)).shape == (3, 10)


def _resnet20(data_dir: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("resnet_cifar", data_dir / "resnet_cifar.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.resnet(20)


def test_importing_loads_none_of_the_extras() -> None:
    code = (
        "import sys, passes, fxprune; fxprune.netadapt; print({'torchvision', 'matplotlib', 'onnx', 'onnxruntime', "
        "'ray', 'sklearn', 'networkx', 'sympy'} & set(sys.modules))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    assert out.stdout.strip() == "set()"


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
def test_a_deep_network_of_batch_norms_at_a_quarter_is_proven(batch: int) -> None:
    """In train mode its last norms see a few values: rounding grows there, and must not be taken for a difference."""
    torch.manual_seed(0)
    net = torchvision.models.mobilenet_v2(weights=None).eval()
    example = torch.randn(batch, 3, 64, 64)
    result = netadapt(net, Budget("macs", ratio=0.25), example_inputs=example, progress=False)
    assert result.met and result.certificate.max_error < 1e-9


@pytest.mark.parametrize("calibration", [None, [torch.randn(20, 3, 10, 10)]], ids=["by weights", "by data"])
def test_a_default_device_without_values_is_set_aside(calibration: Any) -> None:
    model = small().eval()
    with torch.device("meta"):
        result = netadapt(model, 0.6, example_inputs=EXAMPLE, calibration=calibration, progress=False)
        assert torch.get_default_device().type == "meta"
    assert result.met and all(parameter.device.type == "cpu" for parameter in result.model.parameters())


def test_fake_tensors_are_refused_by_name() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = torch.empty(1, 3, 10, 10)
    with pytest.raises(InputError, match="example_inputs holds a fake tensor, which has no values"):
        netadapt(small(), 0.6, example_inputs=fake, progress=False)
