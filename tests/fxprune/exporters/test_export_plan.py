"""Weights with a plan: fxprune.load builds the pruned network from its class, and says what differs from another."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from export_nets import Cnn, Lstm, Odd, Vit, inputs_of
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fxprune import netadapt
from fxprune.exporters import ExportError, export, load
from fxprune.io.module_state import read_state, restore_state, state_of, write_state
from passes import Plan, PruneChannels, capture, couple
from passes.graph.module_copies import owned_tensors


def pruned(model: nn.Module, example: Any, frontend: str = "auto") -> tuple[Any, Plan]:
    gm = capture(model, example, frontend)
    coupling = couple(gm, example)
    plan = coupling.plan({group.name: tuple(range(0, group.size, 2)) for group in coupling.groups})
    return PruneChannels(plan)(gm).graph_module, plan


@pytest.mark.parametrize("make", [Cnn, Vit, Lstm])
def test_networks_that_torch_export_captured(make: type[nn.Module], tmp_path: Path) -> None:
    example = inputs_of(make())
    gm, plan = pruned(make().eval(), example, "export")
    gm.eval()
    report = export(gm, example, tmp_path / "net.safetensors", plan=plan)
    again = load(make().eval(), report.path)
    more = torch.cat([example, example])
    torch.testing.assert_close(again(more), gm(more), atol=0, rtol=0)
    assert export(gm, example, tmp_path / "net.py").dynamic_batch
    assert "torch.ops" not in (tmp_path / "net.py").read_text()


def test_a_searchs_result_goes_out_and_comes_back(tmp_path: Path) -> None:
    example = inputs_of(Vit())
    options = {"config": {"budget_reduce_rate_init": 0.3, "netadapt_min_feature_size": 1}, "progress": False}
    result = netadapt(Vit().eval(), 0.6, example_inputs=example, **options)  # type: ignore[arg-type]
    for name in ("net.safetensors", "net.py", "net.pt2"):
        export(result.model, example, tmp_path / name, plan=result.plan)
    again = load(Vit().eval(), tmp_path / "net.safetensors")
    torch.testing.assert_close(again(example), result.model(example), atol=0, rtol=0)


@pytest.mark.parametrize("make", [Cnn, Vit, Lstm])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_round_trip(make: type[nn.Module], device: str, tmp_path: Path) -> None:
    example = inputs_of(make())
    gm, plan = pruned(make(), example)
    with torch.no_grad():
        for parameter in gm.parameters():
            parameter += torch.randn_like(parameter)  # fine-tuned
    report = export(gm, example, tmp_path / "net.safetensors", plan=plan)
    assert [file.name for file in report.files] == ["net.safetensors", "net.json"]
    assert Plan.from_json((tmp_path / "net.json").read_text()) == plan
    with torch.device(device):
        original = make()
    original.eval()
    before = {name: tensor for name, tensor in owned_tensors(original)}
    again = load(original, report.path)
    gm.eval()
    for given in (example, torch.cat([example, example, example])):
        torch.testing.assert_close(again(given), gm(given), atol=0, rtol=0)
    assert not any(module.training for module in again.modules())
    assert all(tensor is before[name] for name, tensor in owned_tensors(original))
    assert list(again.state_dict()) == list(gm.state_dict())


def test_the_plan_is_found_where_the_pass_made_the_network(tmp_path: Path) -> None:
    example = inputs_of(Cnn())
    gm, plan = pruned(Cnn(), example)
    export(gm, example, tmp_path / "net.safetensors")
    assert Plan.from_json((tmp_path / "net.json").read_text()) == plan
    with pytest.raises(ExportError, match=r"pass plan=result\.plan"):
        export(capture(Cnn()), example, tmp_path / "other.safetensors")


def test_a_plan_for_the_other_form_is_refused(tmp_path: Path) -> None:
    example = inputs_of(Cnn())
    options = {"config": {"budget_reduce_rate_init": 0.3, "netadapt_min_feature_size": 1}, "progress": False}
    result = netadapt(Cnn().eval(), 0.7, example_inputs=example, **options)  # type: ignore[arg-type]
    gm, plan = pruned(Cnn().eval(), example)
    for network, other, kind in ((result.graph_module, result.plan, "module"), (Cnn(), plan, "graph")):
        with pytest.raises(ExportError, match=f"plan is for a {kind}, .* Pass the {kind} that the plan made"):
            export(network, example, tmp_path / "net.safetensors", plan=other)
    assert not list(tmp_path.iterdir())


def test_the_identity_plan(tmp_path: Path) -> None:
    model = Cnn().eval()
    example = inputs_of(model)
    gm = capture(model, example)
    export(gm, example, tmp_path / "net.safetensors", plan=couple(gm, example).plan({}))
    fresh = Cnn().eval()
    untouched = copy.deepcopy(fresh.state_dict())
    again = load(fresh, tmp_path / "net.json")
    torch.testing.assert_close(again(example), model(example), atol=0, rtol=0)
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in fresh.state_dict().items())


def test_odd_tensors_come_back(tmp_path: Path) -> None:
    example = {"tokens": torch.randint(0, 11, (2, 4))}
    model = Odd().eval()
    gm, plan = pruned(model, example)
    report = export(gm, example, tmp_path / "net.safetensors", plan=plan)
    fresh = Odd().eval()
    fresh.table.zero_()
    fresh.step.zero_()
    again = load(fresh, report.path)
    expected = gm.eval()(**example)
    got = again(**example)
    assert torch.equal(got["logits"], expected["logits"]) and torch.equal(got["count"], expected["count"])
    tensors = dict(owned_tensors(again))
    assert tensors["decoder.weight"] is tensors["embedding.weight"]
    assert not tensors["scale"].requires_grad and tensors["inner.weight"].requires_grad
    assert torch.equal(tensors["table"], dict(owned_tensors(gm))["table"])
    stored = load_file(report.path)
    assert ("embedding.weight" in stored) != ("decoder.weight" in stored)
    assert "step" not in stored and "table" in stored


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_those_of_the_file(dtype: torch.dtype, tmp_path: Path) -> None:
    example = inputs_of(Cnn()).to(dtype)
    gm, plan = pruned(Cnn().to(dtype), example)
    report = export(gm, example, tmp_path / "net.safetensors", plan=plan)
    again = load(Cnn(), report.path)
    got = again.state_dict()
    assert {name: t.dtype for name, t in got.items()} == {name: t.dtype for name, t in gm.state_dict().items()}
    assert got["stem.1.num_batches_tracked"].dtype == torch.int64


def test_memory_layouts_come_back(tmp_path: Path) -> None:
    module = nn.Module()
    module.last = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    module.turned = nn.Parameter(torch.randn(5, 3).t())
    base = torch.arange(12.0)
    module.register_buffer("part", base[2:8])
    module.register_buffer("rest", base[6:])
    module.register_buffer("spread", torch.ones(1).expand(3))
    write_state(state_of(module), tmp_path / "net.safetensors")
    other = copy.deepcopy(module)
    for tensor in (*other.parameters(), other.part, other.rest):
        nn.init.zeros_(tensor)
    restore_state(other, read_state(tmp_path / "net.safetensors"), tmp_path / "net.safetensors")
    for name, tensor in owned_tensors(module):
        found: Tensor = dict(owned_tensors(other))[name]
        assert torch.equal(found, tensor)
        assert name == "spread" or found.stride() == tensor.stride()


def test_equal_networks_give_equal_files(tmp_path: Path) -> None:
    example = inputs_of(Cnn())
    gm, plan = pruned(Cnn(), example)
    for name in ("a", "b"):
        export(gm, example, tmp_path / f"{name}.safetensors", plan=plan)
    files = [(tmp_path / f"{name}.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


class Wider(Cnn):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 3)


@pytest.mark.parametrize(
    ("make", "expected"),
    [(Vit, "attentions.0.out.bias: in the network.*and [0-9]+ more"), (Wider, r"head.weight: \(5, 6\)")],
)
def test_another_network_is_refused_with_what_differs(make: type[nn.Module], expected: str, tmp_path: Path) -> None:
    example = inputs_of(Cnn())
    gm, plan = pruned(Cnn(), example)
    report = export(gm, example, tmp_path / "net.safetensors", plan=plan)
    with pytest.raises(ExportError, match=f"(?s)made for another network.*{expected}"):
        load(make(), report.path)


def test_weights_that_do_not_fit_the_plan_are_refused(tmp_path: Path) -> None:
    example = inputs_of(Cnn())
    gm, plan = pruned(Cnn(), example)
    report = export(gm, example, tmp_path / "net.safetensors", plan=plan)
    state = state_of(gm)
    tensors = {name: tensor.detach() for name, tensor in state.tensors.items() if name != "head.bias"}
    tensors["head.weight"], tensors["extra"] = torch.zeros(5, 7), torch.zeros(1)
    write_state(type(state)(tensors), report.path, plan.to_json())
    with pytest.raises(ExportError) as error:
        load(Cnn(), report.path)
    for line in ("head.bias: in the network", "extra: in the file", "head.weight: (5, 7) in the file"):
        assert line in str(error.value)


def test_untied_weights_do_not_load_into_a_tied_network(tmp_path: Path) -> None:
    state = state_of(Odd())
    tensors = {**state.tensors, "decoder.weight": torch.zeros(11, 6)}
    with pytest.raises(ExportError, match="the same tensor as embedding.weight in the network"):
        restore_state(Odd(), type(state)(tensors, {}, {}, state.transient), tmp_path)


def test_ties_of_the_file_are_restored(tmp_path: Path) -> None:
    module = Odd()
    module.decoder.weight = nn.Parameter(torch.zeros(11, 6))
    restore_state(module, state_of(Odd()), tmp_path)
    assert module.decoder.weight is module.embedding.weight


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    example = inputs_of(Cnn())
    gm, plan = pruned(Cnn(), example)
    weights = export(gm, example, tmp_path / "net.safetensors", plan=plan).path
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExportError, match="not a safetensors file, or a damaged one"):
        load(Cnn(), weights)
    save_file({"x": torch.zeros(1)}, weights)
    with pytest.raises(ExportError, match="written by another program"):
        load(Cnn(), weights)
    (tmp_path / "net.json").write_text(json.dumps({"format": 999}))
    with pytest.raises(ExportError, match="format 999"):
        load(Cnn(), weights)
    (tmp_path / "net.json").unlink()
    with pytest.raises(ExportError, match=r"net\.json does not exist"):
        load(Cnn(), weights)
    with pytest.raises(ExportError, match=r"torch\.export\.load"):
        load(Cnn(), tmp_path / "net.pt2")


def test_weights_on_meta_are_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Cnn()
    with pytest.raises(ExportError, match="device meta"):
        state_of(model)


class Drawn(nn.Module):
    """An order of channels that each instance draws for itself."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(8, generator=torch.Generator().manual_seed(seed)))
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(torch.relu(self.conv1(x))[:, self.order])


def test_an_order_of_channels_is_that_of_the_file(tmp_path: Path) -> None:
    example = torch.randn(2, 3, 8, 8)
    gm, plan = pruned(Drawn(0), example)
    report = export(gm.eval(), example, tmp_path / "net.safetensors", plan=plan)
    other = Drawn(1).eval()
    before = other.order.clone()
    assert torch.equal(load(other, report.path)(example), gm(example))
    assert torch.equal(other.order, before)
