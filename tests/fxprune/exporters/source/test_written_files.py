"""Networks as Python source: readable, deterministic, clean under ruff, and run where fxprune cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from export_nets import Cnn, Lstm, Odd, Vit, inputs_of
from safetensors.torch import load_file, save_file
from torch import fx, nn
from written_source import Live, imported, pruned, written

from fxprune.exporters import export
from passes import capture

# Runs a written file alone: no path of this project, and an import of it is an error.
ALONE = """
import importlib.util, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("fxprune", "passes", "torchvision", "networkx"):
            raise AssertionError(f"the source imports {name}")
sys.meta_path.insert(0, Blocked())
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("net", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
network = module.load()
with torch.no_grad():
    save_file({name: network(given) for name, given in load_file(sys.argv[2]).items()}, sys.argv[3])
"""


@pytest.mark.parametrize("make", [Cnn, Vit, Lstm])
def test_the_source_runs_alone(make: type[nn.Module], tmp_path: Path) -> None:
    example = inputs_of(make())
    gm = pruned(make(), example)
    report = export(gm, example, tmp_path / "net.py")
    assert report.dynamic_batch and report.max_abs_error is not None and report.max_abs_error <= 1e-5
    given = {"two": example, "more": torch.cat([example] * 3)}
    save_file(given, tmp_path / "inputs.safetensors")
    files = [str(tmp_path / name) for name in ("net.py", "inputs.safetensors", "outputs.safetensors")]
    subprocess.run([sys.executable, "-I", "-c", ALONE, *files], check=True, cwd=tmp_path, timeout=120)
    outputs = load_file(tmp_path / "outputs.safetensors")
    gm.eval()
    for name, tensor in given.items():
        torch.testing.assert_close(outputs[name], gm(tensor), atol=1e-5, rtol=1e-5)
    network = imported(tmp_path / "net.py").load()
    assert set(network.state_dict()) == set(gm.state_dict()) == set(load_file(tmp_path / "net.py.safetensors"))


def test_run_as_a_program(tmp_path: Path) -> None:
    export(fx.symbolic_trace(Cnn()), inputs_of(Cnn()), tmp_path / "net.py")
    done = subprocess.run([sys.executable, "-I", str(tmp_path / "net.py")], capture_output=True, text=True, check=True)
    assert done.stdout == "(2, 5)\n"


GOLDEN = """\
class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.ModuleList([
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
        ])
        self.block = nn.ModuleList([
            nn.Conv2d(6, 2, 1),
            nn.SiLU(),
            nn.Conv2d(2, 2, 3, padding=1, groups=2),
            nn.Conv2d(2, 6, 1),
        ])
        self.drop = nn.Dropout(p=0.3)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        # stem
        x = self.stem[0](x)
        x = self.stem[1](x)
        x = self.stem[2](x)
        # block
        y = self.block[0](x)
        y = self.block[1](y)
        y = self.block[2](y)
        y = self.block[3](y)
        x = x + y
        x = F.relu(x)
        x = x.mean((2, 3))
        x = self.drop(x)
        x = self.head(x)
        return x
"""


def test_the_text_reads_like_a_persons(tmp_path: Path) -> None:
    example = inputs_of(Cnn())
    text, _, _ = written(pruned(Cnn(), example), example, tmp_path)
    assert GOLDEN in text


@pytest.mark.parametrize("make", [Cnn, Vit, Lstm, Odd])
def test_ruff_finds_nothing_and_twice_is_the_same(make: type[nn.Module], tmp_path: Path) -> None:
    example = {"tokens": torch.randint(0, 11, (2, 4))} if make is Odd else inputs_of(make())
    gm = capture(make(), example)
    export(gm, example, tmp_path / "net.py")
    first = (tmp_path / "net.py").read_text()
    export(gm, example, tmp_path / "net.py")
    assert (tmp_path / "net.py").read_text() == first
    checked = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout


def test_it_trains_as_the_original_does(tmp_path: Path) -> None:
    model = Cnn()
    example = inputs_of(model)
    gm = pruned(model, example)
    _, module, _ = written(gm, example, tmp_path)
    network = module.load().train()
    gm.train()
    assert network.drop.training
    torch.manual_seed(3)
    expected = gm(example)
    torch.manual_seed(3)
    got = network(example)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
    got.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    torch.testing.assert_close(network.stem[1].running_mean, gm.get_submodule("stem.1").running_mean)
    assert int(network.stem[1].num_batches_tracked) == 1


def test_literal_modes_stay_live(tmp_path: Path) -> None:
    example = inputs_of(Cnn())
    text, module, _ = written(capture(Live(), example), example, tmp_path)
    assert "self.training" in text
    network = module.load()
    assert torch.equal(network(example), network(example))
    network.train()
    assert not torch.equal(network(example), network(example))


def test_odd_tensors(tmp_path: Path) -> None:
    model = Odd().eval()
    example = {"tokens": torch.randint(0, 11, (2, 4)), "shift": torch.randn(2, 4, 6)}
    gm = pruned(model, example)
    text, module, report = written(gm, example, tmp_path)
    network = module.load()
    expected, got = gm(**example), network(**example)
    assert torch.equal(got["logits"], expected["logits"]) and torch.equal(got["count"], expected["count"])
    assert network.decoder.weight is network.embedding.weight
    assert not network.scale.requires_grad and network.inner.weight.requires_grad
    # A large one is stored; a small one stands in the text, infinity included.
    assert "table" in network.state_dict() and "step" not in network.state_dict()
    assert "math.inf" in text and "table" in str(report)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    example = inputs_of(Cnn()).to(dtype)
    _, module, _ = written(Cnn().to(dtype), example, tmp_path)
    network = module.load()
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}
    assert network.stem[1].num_batches_tracked.dtype == torch.int64


def test_mixed_dtypes_and_layout(tmp_path: Path) -> None:
    model = Cnn().to(memory_format=torch.channels_last)
    model.head.double()
    gm = fx.symbolic_trace(model)
    for node in gm.graph.nodes:
        if node.target == "drop":
            with gm.graph.inserting_after(node):
                cast = gm.graph.call_method("to", (node, torch.float64))
            node.replace_all_uses_with(cast, delete_user_cb=lambda user, cast=cast: user is not cast)
    gm.recompile()
    text, module, _ = written(gm, inputs_of(model), tmp_path)
    network = module.load()
    assert network.head.weight.dtype == torch.float64 and network.stem[0].weight.dtype == torch.float32
    assert network.stem[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert "x.to(torch.float64)" in text


def test_frozen_parameters(tmp_path: Path) -> None:
    model = Cnn()
    model.stem.requires_grad_(False)
    _, module, _ = written(model, inputs_of(model), tmp_path)
    assert [name for name, p in module.load().named_parameters() if not p.requires_grad] == [
        "stem.0.weight", "stem.1.weight", "stem.1.bias",
    ]  # fmt: skip
    model.requires_grad_(False)
    text, module, _ = written(model, inputs_of(model), tmp_path)
    assert "self.requires_grad_(False)" in text
