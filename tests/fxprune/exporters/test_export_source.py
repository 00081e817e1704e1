"""Networks as Python source: readable, deterministic, clean under ruff, and run where fxprune cannot be imported."""

from __future__ import annotations

import importlib.util
import math
import operator
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from export_nets import Cnn, Lstm, Odd, Vit, inputs_of
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from fxprune.exporters import ExportError, ExportReport, export
from fxprune.exporters.source.constructors import plain_class
from fxprune.exporters.source.literals import Imports, literal
from passes import PruneChannels, capture, couple

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


def pruned(model: nn.Module, example: Any) -> fx.GraphModule:
    gm = capture(model, example)
    coupling = couple(gm, example)
    plan = coupling.plan({group.name: tuple(range(0, group.size, 2)) for group in coupling.groups})
    return PruneChannels(plan)(gm).graph_module


def imported(path: Path) -> Any:
    """The written file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(model: nn.Module, example: Any, folder: Path, **options: Any) -> tuple[str, Any, ExportReport]:
    """Export `model` (traced as it is, if it is no graph): the text, the module, the report."""
    gm = model if isinstance(model, fx.GraphModule) else fx.symbolic_trace(model)
    report = export(gm, example, folder / "net.py", **options)
    return (folder / "net.py").read_text(), imported(folder / "net.py"), report


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


class Live(nn.Module):
    """Reads `training` itself, at two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Cnn()

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.inner(x), 0.5, self.training)


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


class Constants(nn.Module):
    """Arguments of every kind that a graph may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor, scale: float = 2.0, mask: Tensor | None = None) -> dict[str, Any]:
        y = F.linear(x, self.weight).to(torch.float64, memory_format=torch.contiguous_format)
        y = torch.clamp(y, min=-float("inf"), max=1e9)[..., None, 1:3:1]
        z = y.new_full((2, 1), float("nan"), device=torch.device("cpu"))
        y = -y * scale + y**2 - (y - 1) * (y + -2)
        parts = torch.split(y, [1, 1], dim=-1)
        y = y.reshape(torch.Size((-1, 2)))
        y[:, 0] = 3
        return {"y": (y, [parts[0], parts[1]]), "z": z[0], "s": x.shape[1] + 1, "strided": x[::2].contiguous()}


def test_constants_of_every_kind(tmp_path: Path) -> None:
    gm = capture(Constants(), torch.randn(3, 6))
    text, module, _ = written(gm, torch.randn(3, 6), tmp_path, dynamic_batch=False)
    for part in ("-math.inf", "[..., None, 1:3:1]", "x[::2]", "scale=2.0", "mask=None"):
        assert part in text
    for part in ("torch.float64", "torch.contiguous_format", "math.nan", 'torch.device("cpu")', " = -y"):
        assert part in text
    assert module.load()(torch.randn(4, 6))["z"].isnan().all()


def test_values_as_text() -> None:
    imports = Imports()
    for value, text in [
        (torch.Size((1, 2)), "torch.Size((1, 2))"),
        ((1,), "(1,)"),
        ({"a": [None, Ellipsis]}, '{"a": [None, ...]}'),
        (complex(1, -2), "complex(1.0, -2.0)"),
        (torch.channels_last, "torch.channels_last"),
        (torch.strided, "torch.strided"),
        (torch.device("cuda:1"), 'torch.device("cuda:1")'),
        (slice(None, 3), "slice(None, 3, None)"),
        (range(2, 5), "range(2, 5, 1)"),
        (np.int64(3), "3"),
        ("it's", '"it\'s"'),
        ('"', "'\"'"),
        (F.gelu, "F.gelu"),
        (torch.linalg.norm, "torch.linalg.norm"),
        (torch.Tensor.add, "torch.Tensor.add"),
        (operator.iadd, "operator.iadd"),
        (math.sqrt, "math.sqrt"),
        (nn.ReLU, "nn.ReLU"),
        (torch.ops.aten.topk.default, "torch.ops.aten.topk.default"),
    ]:
        assert literal(value, imports, "here") == text
    assert imports.standard() == ["import math", "import operator"]
    for refused in (torch.zeros(1), object(), lambda x: x, torch.Generator()):
        with pytest.raises(ExportError, match="here"):
            literal(refused, imports, "here")


class Names(nn.Module):
    """Names that a text could trip over."""

    def __init__(self) -> None:
        super().__init__()
        self.Container = nn.Linear(3, 4)
        self.holder = nn.ModuleDict({"torch": nn.Linear(4, 5), "self": nn.ReLU()})
        self.operator = nn.Linear(5, 6)
        self.sparse = nn.ModuleDict({"3": nn.Linear(6, 6), "40": nn.Linear(6, 2)})

    def forward(self, l: Tensor, y: Tensor) -> Tensor:  # noqa: E741
        x = self.operator(self.holder["self"](self.holder["torch"](self.Container(l))))
        return self.sparse["40"](self.sparse["3"](x)) + y


def test_awkward_names(tmp_path: Path) -> None:
    gm = fx.symbolic_trace(Names())
    text, module, _ = written(gm, (torch.randn(2, 3), torch.randn(2, 2)), tmp_path)
    assert "def forward(self, l, y):  # noqa: E741" in text
    assert set(module.load().state_dict()) == set(gm.state_dict())
    with pytest.raises(ExportError, match="no Python module can be called"):
        export(gm, (torch.randn(2, 3), torch.randn(2, 2)), tmp_path / "my-net.py")


HIDING = ["l", "O", "nn", "F", "math", "operator", "Path", "sha256", "load", "Container", "Network", "print", "x1", "é"]


@pytest.mark.parametrize("name", HIDING)
def test_inputs_may_hide_what_the_file_needs(name: str, tmp_path: Path) -> None:
    namespace: dict[str, Any] = {"torch": torch}
    exec(f"def forward(self, y, {name}, *, z=None): return torch.relu(self.a({name})) % y.shape[0] + y", namespace)
    model = type("Model", (nn.Module,), {"forward": namespace["forward"]})()
    model.a = nn.Linear(4, 4)
    inputs = {"y": torch.randn(3, 4), name: torch.randn(3, 4)}
    _, module, _ = written(capture(model.eval(), inputs), inputs, tmp_path)
    more = {key: torch.cat([value, value]) for key, value in inputs.items()}
    torch.testing.assert_close(module.load()(**more), model(**more))
    torch.testing.assert_close(module.load()(*more.values()), model(*more.values()))


LEAVES = """
import torch
from torch import fx, nn

@fx.wrap
def doubled(x, by=2):
    return x * by

class Halved(nn.Module):
    def __init__(self, size, name="h"):
        super().__init__()
        self.size, self.name = size, name
        self.weight = nn.Parameter(torch.rand(size))
    def forward(self, x):
        return x * self.weight / (2 if self.training else 1)

class Secret(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size))
    def forward(self, x):
        return x * self.weight
"""


class LeafTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, (Cnn, nn.Sequential, Live)) or super().is_leaf_module(m, module_qualified_name)


def traced(model: nn.Module) -> fx.GraphModule:
    return fx.GraphModule(model, LeafTracer().trace(model))


@pytest.fixture
def leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "export_leaves.py").write_text(LEAVES)
    monkeypatch.syspath_prepend(str(folder))
    module = importlib.import_module("export_leaves")
    yield module
    del sys.modules["export_leaves"]


def test_leaves_and_functions_of_other_packages_are_imported(leaves: Any, tmp_path: Path) -> None:
    class Wrapper(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return leaves.doubled(super().forward(x))

    text, module, _ = written(
        traced(nn.Sequential(leaves.Halved(3, name="other"), nn.ReLU())), torch.randn(2, 3), tmp_path
    )
    assert "from export_leaves import Halved\n" in text and 'Halved(3, name="other")' in text
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(leaves.doubled, (x,), {"by": 3}))
    text, _, _ = written(fx.GraphModule(nn.Module(), graph), torch.randn(2, 3), tmp_path)
    assert "from export_leaves import doubled\n" in text and "doubled(x, by=3)" in text


def test_a_model_that_is_no_graph_is_captured_or_refused(tmp_path: Path) -> None:
    class Wild(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum().item() > 0 else -x

    assert export(Cnn(), inputs_of(Cnn()), tmp_path / "net.py").dynamic_batch
    with pytest.raises(ExportError, match="this model cannot be captured"):
        export(Wild(), torch.randn(2, 3), tmp_path / "wild.py")


def test_what_cannot_be_imported_or_built_is_refused(leaves: Any, tmp_path: Path) -> None:
    class Local(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    path, given = tmp_path / "net.py", torch.randn(2, 3)
    with pytest.raises(ExportError, match=r"0 \(export_leaves\.Secret\): its constructor needs 'size'"):
        export(traced(nn.Sequential(leaves.Secret(3))), given, path)
    with pytest.raises(ExportError, match="cannot be imported"):
        export(traced(nn.Sequential(Local())), given, path)
    Local.__module__ = "passes.made_up"
    with pytest.raises(ExportError, match="let capture trace through it"):
        export(traced(nn.Sequential(Local())), given, path)
    hooked = nn.Sequential(nn.Linear(3, 4))
    hooked[0].register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(ExportError, match="has forward pre hooks"):
        export(fx.symbolic_trace(hooked), given, path)
    normed = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)))
    with pytest.raises(ExportError, match="remove_parametrizations"):
        export(fx.symbolic_trace(normed), given, path)
    assert not path.exists()


LAYERS = [
    (nn.Conv1d(3, 4, 3, padding="same", dilation=2), (2, 3, 9)),
    (nn.Conv2d(3, 4, (3, 1), stride=(2, 1), padding=(1, 0), padding_mode="reflect"), (2, 3, 9, 8)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2, bias=False), (2, 4, 5, 6)),
    (nn.BatchNorm1d(5, eps=1e-3, momentum=None, affine=False), (3, 5)),
    (nn.BatchNorm2d(5, track_running_stats=False), (3, 5, 4, 4)),
    (nn.LayerNorm((4, 5), elementwise_affine=False), (2, 4, 5)),
    (nn.LayerNorm(5, bias=False), (2, 5)),
    (nn.GroupNorm(2, 6, affine=False), (2, 6, 3)),
    (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (2, 4, 3, 3)),
    (nn.RMSNorm(5), (2, 5)),
    (nn.PReLU(4), (2, 4, 3)),
    (nn.GELU(approximate="tanh"), (2, 4)),
    (nn.LeakyReLU(0.2, inplace=True), (2, 4)),
    (nn.Hardtanh(-2.0, 3.0), (2, 4)),
    (nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), (2, 4, 7, 7)),
    (nn.AvgPool2d((2, 3), count_include_pad=False), (2, 4, 7, 7)),
    (nn.AdaptiveAvgPool2d((None, 3)), (2, 4, 7, 7)),
    (nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True), (2, 4, 3, 3)),
    (nn.PixelShuffle(2), (2, 8, 3, 3)),
    (nn.Flatten(1, 2), (2, 3, 4, 5)),
    (nn.Unflatten(1, (2, 3)), (2, 6)),
    (nn.ZeroPad2d((1, 2, 0, 1)), (2, 3, 4, 5)),
    (nn.Softmax(dim=-1), (2, 3)),
    (nn.GRU(4, 5, bias=False, batch_first=True), (2, 3, 4)),
    (nn.RNN(4, 5, nonlinearity="relu", batch_first=True), (2, 3, 4)),
    (nn.LSTM(4, 5, proj_size=3, batch_first=True), (2, 3, 4)),
    (nn.LSTMCell(4, 5), (2, 4)),
    (nn.TransformerEncoderLayer(4, 2, 7, dropout=0.2, activation="gelu", batch_first=True, norm_first=True), (2, 3, 4)),
    (nn.Identity(), (2, 3)),
    (nn.LocalResponseNorm(3, k=2.0), (2, 6, 4, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[type(layer).__name__ for layer, _ in LAYERS])
def test_constructors_of_torch(layer: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    graph = fx.Graph()
    graph.output(graph.call_module("layer", (graph.placeholder("x"),)))
    gm = fx.GraphModule(nn.ModuleDict({"layer": layer}), graph)
    _, module, _ = written(gm, torch.randn(shape), tmp_path)
    assert repr(module.load().layer) == repr(layer.eval())


class Smoothing(nn.Conv2d):
    """Makes a convolution in its own way, and is one."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1, groups=width, bias=False)


class Doubling(nn.Conv2d):
    """Is not what it derives from."""

    def _conv_forward(self, *args: Any) -> Tensor:
        return super()._conv_forward(*args) * 2


def test_subclasses_of_torchs_layers(tmp_path: Path) -> None:
    graph = traced(nn.Sequential(Smoothing(3)))
    text, _, _ = written(graph, torch.randn(2, 3, 5, 5), tmp_path)
    assert "nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)" in text and "Smoothing" not in text
    assert plain_class(Doubling(3, 4, 1)) is Doubling
    assert plain_class(nn.modules.linear.NonDynamicallyQuantizableLinear(2, 3)) is nn.Linear


def test_multihead_attention_leaf(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, kdim=5, vdim=4, batch_first=True, dropout=0.1)

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.attention(q, k, v, need_weights=False)[0]

    given = (torch.randn(2, 3, 6), torch.randn(2, 7, 5), torch.randn(2, 7, 4))
    text, _, _ = written(Net(), given, tmp_path)
    assert "nn.MultiheadAttention(6, 2, dropout=0.1, kdim=5, vdim=4, batch_first=True)" in text


def test_attributes_set_after_construction_are_kept(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Dropout(0.1))
    model[1].p = 0.4
    text, module, _ = written(model, torch.randn(2, 3, 5, 5), tmp_path)
    assert module.load().get_submodule("1").p == 0.4


def test_torchvision_leaves_come_with_the_file(tmp_path: Path) -> None:
    from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

    norm = FrozenBatchNorm2d(3, eps=1e-4)
    norm.running_mean.uniform_()
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm, StochasticDepth(0.5, "row"))
    text, module, _ = written(traced(model), torch.randn(2, 3, 5, 5), tmp_path)
    assert "torchvision" not in text
    network = module.load().train()
    given = torch.ones(400, 3, 1, 1)
    whole = network.eval()(given)
    share = network.train()(given) / whole
    assert set(share.flatten().round(decimals=4).tolist()) == {0.0, 2.0}
    assert share.flatten(1).std(1).max() < 1e-6  # a row stays or goes as one


def test_exported_graphs(tmp_path: Path) -> None:
    example = inputs_of(Vit())
    model = Vit().eval()
    batch = torch.export.Dim("batch")
    gm = torch.export.export(model, (example,), dynamic_shapes={"x": {0: batch}}).module()
    text, module, _ = written(gm, example, tmp_path)
    assert "torch.ops" not in text and "_guards" not in text and "size = x.shape[0]" in text
    more = torch.cat([example] * 2)
    torch.testing.assert_close(module.load()(more), model(more), atol=1e-5, rtol=1e-5)


class Regions(nn.Module):
    """Parts without gradients and without autocast, as torch.export keeps them: graphs inside the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = self.first(x).cos()
            shift = scale + 1
        with torch.autocast("cpu", enabled=False):
            y = self.first(x) * scale
        return self.second(y) + shift.sum()


def test_graphs_inside_a_graph_are_written_in_place(tmp_path: Path) -> None:
    model, given = Regions(), torch.randn(3, 3)
    gm = torch.export.export(model, (given,)).module()
    _, module, _ = written(gm, given, tmp_path, dynamic_batch=False)
    network = module.load()
    torch.testing.assert_close(network(given), model(given))
    network(given).sum().backward()
    model(given).sum().backward()
    torch.testing.assert_close(network.first.weight.grad, model.first.weight.grad)
    outer = nn.Sequential(fx.symbolic_trace(Cnn()), nn.ReLU())
    nested = fx.GraphModule(outer, LeafTracer().trace(outer))
    assert any(
        isinstance(nested.get_submodule(str(n.target)), fx.GraphModule)
        for n in nested.graph.nodes
        if n.op == "call_module"
    )
    written(nested, inputs_of(Cnn()), tmp_path)


def test_exported_graphs_with_structured_inputs(tmp_path: Path) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, pair: tuple[Tensor, dict[str, Tensor]], *, k: Tensor) -> dict[str, Any]:
            return {"a": x + pair[0], "b": [pair[1]["m"] * k, (x,)]}

    args = (torch.randn(2, 3), (torch.randn(2, 3), {"m": torch.randn(2, 3)}))
    gm = torch.export.export(Net(), args, {"k": torch.randn(3)}).module()
    given = {"k": torch.randn(3), "x": args[0], "pair": args[1]}
    _, module, _ = written(gm, given, tmp_path, dynamic_batch=False)
    expected, got = Net()(**given), module.load()(**given)
    assert torch.equal(got["a"], expected["a"]) and torch.equal(got["b"][0], expected["b"][0])
    assert isinstance(got["b"][1], tuple)
