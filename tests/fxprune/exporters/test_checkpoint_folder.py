"""A checkpoint folder cut tensor by tensor is the cut network, in little memory, and leaves all else as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import fxprune
from fxprune.cli.main import app
from fxprune.errors import ExportError, InputError
from passes import Plan, PlanError, apply_plan, couple

X = torch.ones(2, 6)


class Net(nn.Module):
    def __init__(self, hidden: int = 10) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, hidden), nn.LayerNorm(hidden), nn.Linear(hidden, 3)
        self.head = nn.Linear(6, hidden)
        self.head.weight = self.first.weight
        self.register_buffer("steps", torch.arange(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)) + self.head(x))


def stored(folder: Path, net: nn.Module, **types: torch.dtype) -> Path:
    """The weights of a network in two shards, each tied tensor once, with an index and other files."""
    folder.mkdir()
    tensors = {name: tensor.clone() for name, tensor in net.state_dict().items() if name != "head.weight"}
    tensors = {name: t.to(types.get(name.replace(".", "_"), t.dtype)) for name, t in tensors.items()}
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[:3], "model-2.safetensors": names[3:]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file, metadata={"format": "pt", "by": file})
    index = {
        "metadata": {"total_size": 1, "source": "a test"},
        "weight_map": {name: file for file, held in shards.items() for name in held},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "extra").mkdir()
    (folder / "extra" / "notes.txt").write_text("kept")
    (folder / "pytorch_model.bin").write_bytes(b"not copied")
    return folder


def without_weights() -> nn.Module:
    with fxprune.empty_weights():
        return Net()


def planned(net: nn.Module) -> Plan:
    coupling = couple(net, X)
    return coupling.plan({name: range(1, size, 2) for name, size in coupling.widths.items()})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.norm.weight.normal_()
    return stored(tmp_path / "dense", net, last_bias=torch.float16, first_weight=torch.bfloat16)


def everything(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def test_each_tensor_is_that_of_the_cut_network(folder: Path, tmp_path: Path) -> None:
    net, empty = Net(), without_weights()
    plan = planned(empty)
    assert plan == planned(net) and plan.narrows
    net.load_state_dict({**everything(folder), "head.weight": everything(folder)["first.weight"]})
    written = fxprune.prune_checkpoint(empty, plan, folder, tmp_path / "cut")
    expected, got = apply_plan(net, plan).state_dict(), everything(tmp_path / "cut")
    assert [file.name for file in written] == ["model-1.safetensors", "model-2.safetensors"]
    assert set(got) == set(expected) - {"head.weight"}
    for name, tensor in got.items():
        assert torch.equal(tensor.float(), expected[name].float()), name
        assert tensor.dtype == everything(folder)[name].dtype


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 10), nn.Linear(10, 3)
        self.branches = nn.ModuleList(nn.Sequential(nn.LayerNorm(10), nn.Linear(10, 10)) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for branch in self.branches:
            x = x + branch(x)
        return self.last(x)


@pytest.mark.parametrize("narrows", [False, True])
def test_removed_blocks_are_left_out_and_so_are_shards_that_held_nothing_else(tmp_path: Path, narrows: bool) -> None:
    torch.manual_seed(0)
    net = Residual()
    coupling = couple(net, X, depth=True)
    (gone,) = (name for name, block in coupling.blocks.items() if "branches.1.1.weight" in block.tensors)
    stream = next(group.name for group in coupling.groups if group.size == 10)
    plan = coupling.plan({stream: range(0, 10, 3)} if narrows else {}, removed_blocks=[gone])
    (tmp_path / "dense").mkdir()
    index = {"metadata": {"total_parameters": 1}, "weight_map": {}}
    for number, part in enumerate(["first", "branches.0", "branches.1", "branches.2", "last"]):
        held = {name: t for name, t in net.state_dict().items() if name.startswith(f"{part}.")}
        save_file(held, tmp_path / "dense" / f"model-{number}.safetensors")
        index["weight_map"].update(dict.fromkeys(held, f"model-{number}.safetensors"))
    (tmp_path / "dense" / "model.safetensors.index.json").write_text(json.dumps(index))
    with fxprune.empty_weights():
        empty = Residual()
    written = fxprune.prune_checkpoint(empty, plan, tmp_path / "dense", tmp_path / "cut")
    expected, got = apply_plan(net, plan).state_dict(), everything(tmp_path / "cut")
    assert set(got) == set(expected) and all(torch.equal(got[name], expected[name]) for name in got)
    assert [file.name for file in written] == [f"model-{number}.safetensors" for number in (0, 1, 3, 4)]
    after = json.loads((tmp_path / "cut" / "model.safetensors.index.json").read_text())
    assert set(after["weight_map"]) == set(got)
    assert after["metadata"]["total_parameters"] == sum(t.numel() for t in got.values())
    assert len(fxprune.check_files(tmp_path / "cut")) == 5


def test_index_metadata_and_other_files_stay(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    fxprune.prune_checkpoint(without_weights(), planned(without_weights()), folder, out)
    before, after = (json.loads((f / "model.safetensors.index.json").read_text()) for f in (folder, out))
    assert after["weight_map"] == before["weight_map"]
    size = sum(t.numel() * t.element_size() for t in everything(out).values())
    assert after["metadata"] == {"total_size": size, "source": "a test"}
    with safe_open(out / "model-2.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "by": "model-2.safetensors"}
    assert (out / "extra" / "notes.txt").read_text() == "kept"
    assert not (out / "pytorch_model.bin").exists()
    assert len(fxprune.check_files(out)) == 3


def test_a_damaged_shard_is_found(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    file = fxprune.prune_checkpoint(without_weights(), planned(without_weights()), folder, out)[0]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ExportError, match=r"model-1\.safetensors: damaged"):
        fxprune.check_files(out)


def test_nothing_is_overwritten_and_nothing_is_left_behind(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(ExportError, match="nothing is overwritten"):
        fxprune.prune_checkpoint(without_weights(), planned(without_weights()), folder, out)
    with pytest.raises(ExportError, match="outside of it"):
        fxprune.prune_checkpoint(without_weights(), planned(without_weights()), folder, folder / "cut")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cut", "dense"]


def test_codes_of_a_quantised_model_are_refused_in_both_places(folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("*.safetensors"):
        save_file({name: tensor.to(torch.int8) for name, tensor in load_file(file).items()}, file)
    said = r"not a checkpoint of Net:(.|\n)*first\.bias: I8 in the checkpoint, float\d+ in the model"
    with pytest.raises(ExportError, match=said):
        fxprune.prune_checkpoint(without_weights(), planned(without_weights()), folder, tmp_path / "cut")
    with pytest.raises(ExportError, match=said):
        fxprune.netadapt(without_weights(), 0.5, example_inputs=X, checkpoint=folder, progress=False)


def test_another_model_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError):
        fxprune.prune_checkpoint(Net(11), planned(without_weights()), folder, tmp_path / "cut")
    other = Net(11)
    with pytest.raises(ExportError, match=r"first\.bias: \(10,\) in the checkpoint, \(11,\) in the model"):
        fxprune.prune_checkpoint(other, planned(other), folder, tmp_path / "cut")
    shard = load_file(folder / "model-1.safetensors")
    name = sorted(shard)[0]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del shard[name], index["weight_map"][name]
    save_file(shard, folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ExportError, match=f"{name}: in the model, not in the checkpoint"):
        fxprune.prune_checkpoint(without_weights(), planned(without_weights()), folder, tmp_path / "cut")


def test_an_index_that_does_not_fit_its_shards_is_refused(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["first.bias"] = "model-2.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(ExportError, match=r"first\.bias is not where it says"):
        fxprune.prune_checkpoint(without_weights(), planned(without_weights()), folder, tmp_path / "cut")
    path.write_text(json.dumps({"weight_map": {"first.bias": "../model-2.safetensors"}}))
    with pytest.raises(ExportError, match="outside of the folder"):
        fxprune.prune_checkpoint(without_weights(), planned(without_weights()), folder, tmp_path / "cut")


def test_pickles_are_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ExportError, match=r"pickle.*save_pretrained"):
        fxprune.prune_checkpoint(without_weights(), planned(without_weights()), tmp_path, tmp_path.parent / "cut")


def test_a_single_file_by_the_command_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    single = tmp_path / "single"
    single.mkdir()
    save_file(everything(folder), single / "model.safetensors")
    (tmp_path / "cut_net.py").write_text(f"from {__name__} import Net\n")
    (tmp_path / "plan.json").write_text(planned(without_weights()).to_json())
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    asked = ["prune", "--checkpoint", str(single), "--plan", str(tmp_path / "plan.json"), "-o", str(tmp_path / "cut")]
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code == 2 and "--model" in refused.stderr
    done = CliRunner().invoke(app, [*asked, "--model", f"{tmp_path / 'cut_net.py'}:Net"])
    assert done.exit_code == 0, done.output
    fxprune.prune_checkpoint(without_weights(), planned(without_weights()), folder, tmp_path / "sharded")
    one, two = everything(tmp_path / "cut"), everything(tmp_path / "sharded")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    checked = CliRunner().invoke(app, ["check", str(tmp_path / "cut")])
    assert checked.exit_code == 0 and "model.safetensors" in checked.stdout


def test_a_search_reads_a_checkpoint_and_finds_what_it_finds_with_weights(folder: Path) -> None:
    net, empty = Net(), without_weights()
    net.load_state_dict({**everything(folder), "head.weight": everything(folder)["first.weight"]})
    with_weights = fxprune.netadapt(net, 0.5, example_inputs=X, progress=False)
    without = fxprune.netadapt(empty, 0.5, example_inputs=X, checkpoint=folder, progress=False)
    assert without.plan == with_weights.plan and without.plan.narrows
    assert all(parameter.is_meta for name, parameter in without.model.named_parameters() if "norm" not in name)
    assert "random" in without.certificate.specialised[-1]


def test_a_search_refuses_a_checkpoint_beside_other_weights(folder: Path) -> None:
    """Those of a network whose constructor drew them would be in the result, cut by an order that is the folder's."""
    net, loaded = Net(), {**everything(folder), "head.weight": everything(folder)["first.weight"]}
    with pytest.raises(InputError, match=r"first\.weight differs from the folder's.*empty_weights\(\), or load"):
        fxprune.netadapt(net, 0.5, example_inputs=X, checkpoint=folder, progress=False)
    net.load_state_dict(loaded)  # some of another type than the folder's
    result = fxprune.netadapt(net, 0.5, example_inputs=X, checkpoint=folder, progress=False)
    assert result.plan == fxprune.netadapt(net, 0.5, example_inputs=X, progress=False).plan


def test_a_search_refuses_a_checkpoint_that_lacks_a_tensor(folder: Path, tmp_path: Path) -> None:
    tensors = everything(folder)
    for name in ("first.weight", next(name for name in tensors if name.endswith("bias"))):
        lacking = tmp_path / name
        lacking.mkdir()
        save_file({n: t for n, t in tensors.items() if n != name}, lacking / "model.safetensors")
        with pytest.raises(fxprune.ExportError, match=f"{name}: in the model, not in the checkpoint"):
            fxprune.netadapt(without_weights(), 0.5, example_inputs=X, checkpoint=lacking, progress=False)


def test_without_a_checkpoint_all_units_count_alike(caplog: pytest.LogCaptureFixture) -> None:
    result = fxprune.netadapt(without_weights(), 0.5, example_inputs=X, progress=False)
    assert "all units count alike" in caplog.text
    kept = next(units for name, units in result.plan.keep.items() if len(units) < result.plan.sizes[name])
    assert kept == tuple(range(len(kept)))
    with pytest.raises(fxprune.FxpruneError, match="meta device"):
        fxprune.netadapt(without_weights(), 0.5, example_inputs=X, evaluate=lambda net: 1.0, progress=False)


def test_memory_is_that_of_a_tensor_and_not_of_the_folder(tmp_path: Path) -> None:
    size, layers, shards = 2048, 8, 4
    folder = tmp_path / "dense"
    folder.mkdir()
    placed: dict[str, str] = {}
    for shard in range(shards):
        names = [f"{number}.weight" for number in range(layers) if number * shards // layers == shard]
        save_file({name: torch.ones(size, size) for name in names}, folder / f"{shard}.safetensors")
        placed.update(dict.fromkeys(names, f"{shard}.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    program = """
import resource, sys, torch, fxprune
from passes import couple
with fxprune.empty_weights():
    net = torch.nn.Sequential(*[torch.nn.Linear(2048, 2048, bias=False) for _ in range(8)])
coupling = couple(net, torch.ones(1, 2048))
plan = coupling.plan({name: range(1024) for name in coupling.widths})
import fxprune.exporters.checkpoint_folder, safetensors.torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fxprune.prune_checkpoint(net, plan, sys.argv[1], sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    given = [sys.executable, "-c", program, str(folder), str(tmp_path / "cut")]
    ran = subprocess.run(given, capture_output=True, text=True, timeout=120, check=True)
    tensor = size * size * 4
    assert int(ran.stdout.split()[-1]) * 1024 < 3.5 * tensor  # the folder holds 8, and each shard 2
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) > layers * tensor


@pytest.mark.parametrize("form", ["module", "graph"])
def test_norms_that_have_running_statistics_but_no_weights_are_proven_in_either_form(form: str) -> None:
    with fxprune.empty_weights():
        empty = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)
        )
    found = fxprune.netadapt(empty.eval(), 0.5, example_inputs=torch.randn(2, 3, 9, 9), form=form, progress=False)
    assert found.met and found.certificate.max_error < 1e-9
    assert "on the meta device: proven with random ones" in str(found.certificate)
