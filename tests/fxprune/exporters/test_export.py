"""Exports to .pt2 and .onnx: what comes out computes what went in, and every refusal says what to do."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from export_nets import Cnn, Lstm, Odd, Vit, inputs_of
from torch import Tensor, fx, nn

import fxprune.exporters.onnx_file as onnx_form
import fxprune.exporters.pt2 as torch_export
from fxprune.exporters import ExportError, check_files, export
from fxprune.exporters.outcome import Difference, difference
from passes import PruneChannels, capture, couple

NETS = [Cnn, Vit, Lstm]
not_in_2_9 = pytest.mark.skipif(torch.__version__.startswith("2.9."), reason="torch 2.9 exports other things")


def pruned(model: nn.Module, example: Any) -> fx.GraphModule:
    """The model with the odd units of every group removed."""
    gm = capture(model, example)
    coupling = couple(gm, example)
    plan = coupling.plan({group.name: tuple(range(0, group.size, 2)) for group in coupling.groups})
    return PruneChannels(plan)(gm).graph_module


def run_onnx(path: Path, *inputs: Tensor) -> list[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {entry.name: tensor.numpy() for entry, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(output) for output in session.run(None, feed)]


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("whole", [pytest.param(True, marks=pytest.mark.slow), False], ids=["dense", "pruned"])
def test_pt2_round_trip(make: type[nn.Module], whole: bool, tmp_path: Path) -> None:
    model = make()
    example = inputs_of(model)
    gm = capture(model, example) if whole else pruned(model, example)
    report = export(gm, example, tmp_path / "net.pt2")
    assert report.dynamic_batch and report.format == "pt2" and len(report.batch_sizes) == 2
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    gm.eval()
    for given in (example, torch.cat([example, example, example])):
        torch.testing.assert_close(loaded(given), gm(given), atol=1e-5, rtol=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt2"]


@pytest.mark.parametrize("make", NETS)
def test_onnx_round_trip(make: type[nn.Module], tmp_path: Path) -> None:
    model = make()
    example = inputs_of(model)
    gm = pruned(model, example)
    report = export(gm, example, tmp_path / "net.onnx")
    assert report.dynamic_batch and report.opset is not None and report.opset >= 18
    assert report.max_abs_error is not None and report.max_abs_error <= 1e-5
    gm.eval()
    for given in (example, torch.cat([example, example, example])):
        torch.testing.assert_close(run_onnx(report.path, given)[0], gm(given), atol=1e-5, rtol=1e-5)
    assert "opset" in str(report) and report.to_dict()["dynamic_batch"] is True


def test_any_module_goes_to_pt2(tmp_path: Path) -> None:
    assert export(nn.Linear(3, 4), torch.randn(1, 3), tmp_path / "net.pt2").batch_sizes == (1, 3)


def test_modes_are_restored_and_eval_is_exported(tmp_path: Path) -> None:
    model = Cnn().train()
    model.head.eval()
    gm = capture(model)
    before = {name: module.training for name, module in gm.named_modules()}
    statistics = {name: buffer.clone() for name, buffer in gm.named_buffers()}
    export(gm, inputs_of(model), tmp_path / "net.pt2")
    assert {name: module.training for name, module in gm.named_modules()} == before
    assert any(before.values()) and not all(before.values())
    for name, buffer in gm.named_buffers():
        assert torch.equal(buffer, statistics[name])


def test_keyword_inputs_and_dict_outputs(tmp_path: Path) -> None:
    model = Odd().eval()
    given = {"tokens": torch.randint(0, 11, (2, 4)), "shift": torch.randn(2, 4, 6)}
    report = export(model, given, tmp_path / "net.pt2")
    loaded = torch.export.load(report.path).module()
    other = {"tokens": torch.randint(0, 11, (5, 4)), "shift": torch.randn(5, 4, 6)}
    torch.testing.assert_close(loaded(**other), model(**other))
    report = export(model, given, tmp_path / "net.onnx")
    torch.testing.assert_close(
        run_onnx(report.path, *other.values())[0], model(**other)["logits"], atol=1e-5, rtol=1e-5
    )


class Fixed(nn.Module):
    """Runs at a batch size of 2 alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 12).softmax(1)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".py"])
def test_fixed_batch_is_exported_with_its_reason(suffix: str, tmp_path: Path) -> None:
    report = export(fx.symbolic_trace(Fixed()), torch.randn(2, 3, 4), tmp_path / f"net{suffix}")
    assert not report.dynamic_batch and report.batch_sizes == (2,)
    assert "batch size 3" in str(report.static_reason)


class Branching(nn.Module):
    """Runs at any batch size, but torch.export cannot show it: the batch decides a branch."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] < 3 else x * 2.0


def test_batch_that_torch_cannot_free_has_torchs_reason(tmp_path: Path) -> None:
    report = export(Branching(), torch.randn(2, 3), tmp_path / "net.pt2")
    assert not report.dynamic_batch and str(report.static_reason).startswith("torch.export: ")


def test_fixed_batch_on_request(tmp_path: Path) -> None:
    report = export(nn.Linear(3, 4), torch.randn(2, 3), tmp_path / "net.pt2", dynamic_batch=False)
    assert report.batch_sizes == (2,) and "dynamic_batch=False" in str(report)


@not_in_2_9
def test_batch_dimension_of_choice(tmp_path: Path) -> None:
    model = nn.LSTM(6, 5).eval()
    example = (torch.randn(7, 2, 6), (torch.randn(1, 2, 5), torch.randn(1, 2, 5)))
    report = export(model, example, tmp_path / "net.pt2", batch_dim=1)
    assert report.dynamic_batch and report.batch_sizes == (2, 3)
    loaded = torch.export.load(report.path).module()
    other = (torch.randn(7, 4, 6), (torch.randn(1, 4, 5), torch.randn(1, 4, 5)))
    torch.testing.assert_close(loaded(*other), model(*other))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_coarse_dtypes_have_a_coarser_tolerance(dtype: torch.dtype, tmp_path: Path) -> None:
    report = export(nn.Linear(3, 4).to(dtype), torch.randn(2, 3).to(dtype), tmp_path / "net.pt2")
    assert report.tolerance is not None and report.tolerance > 1e-5


def test_float16_runs_in_onnxruntime(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).half()
    assert export(model, torch.randn(2, 3, 6, 6).half(), tmp_path / "net.onnx").opset


def test_bfloat16_to_onnx_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="bfloat16"):
        export(nn.Linear(3, 4).bfloat16(), torch.randn(2, 3).bfloat16(), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["net", "net.pth", "net.pt"])
def test_unknown_suffix_names_the_known_ones(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"\.onnx, \.pt2, \.py, \.safetensors"):
        export(nn.Linear(3, 4), torch.randn(2, 3), tmp_path / name)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="folder .*absent does not exist"):
        export(nn.Linear(3, 4), torch.randn(2, 3), tmp_path / "absent" / "net.pt2")
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(ExportError, match="is a folder"):
        export(nn.Linear(3, 4), torch.randn(2, 3), tmp_path / "folder.pt2")


def test_missing_onnx_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else find(name, *rest)
    )
    with pytest.raises(ExportError, match=r"onnxruntime, not installed.*fxprune\[onnx\]"):
        export(nn.Linear(3, 4), torch.randn(2, 3), tmp_path / "net.onnx")


@pytest.mark.parametrize("example", [3, "x", None])
def test_inputs_that_are_none(example: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="example inputs"):
        export(nn.Linear(3, 4), example, tmp_path / "net.pt2")


def test_inputs_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"do not fit Linear\.forward"):
        export(nn.Linear(3, 4), (torch.randn(2, 3), 1), tmp_path / "net.pt2")
    with pytest.raises(ExportError, match="fails on its example inputs: mat1 and mat2"):
        export(nn.Linear(3, 4), torch.randn(2, 5), tmp_path / "net.pt2")


def test_a_wrong_copy_is_caught_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"the old one")
    right = onnx_form._session

    def wrong(file: Path) -> Any:
        run = right(file)
        return lambda inputs: [output + 1e-3 for output in run(inputs)]

    monkeypatch.setattr(onnx_form, "_session", wrong)
    with pytest.raises(ExportError, match=r"differs from the original by 0\.001"):
        export(nn.Linear(3, 4), torch.randn(2, 3), path, overwrite=True)
    assert path.read_bytes() == b"the old one" and list(tmp_path.iterdir()) == [path]


def test_a_network_that_is_random_in_eval_mode_is_named(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.5, training=True)

    with pytest.raises(ExportError, match="another output each time"):
        export(Noisy(), torch.randn(4, 30), tmp_path / "net.pt2")


def test_differences() -> None:
    nan, inf = float("nan"), float("inf")
    same = torch.tensor([1.0, nan, inf])
    assert difference(same, same.clone()) == Difference()
    found = difference(torch.tensor([0.0, 4.0]), torch.tensor([0.0, 4.4]))
    assert found.absolute == pytest.approx(0.4) and found.relative == found.scaled == pytest.approx(0.1)
    small = difference(torch.tensor([1e-4]), torch.tensor([2e-4]))
    assert small.relative == pytest.approx(1.0) and small.scaled == pytest.approx(1e-4)
    assert not difference(torch.tensor([1.0]), torch.tensor([nan])).scaled <= 1e9
    assert not Difference().worse(Difference(nan, nan, nan)).scaled <= 1e9
    with pytest.raises(ExportError, match="2 tensor outputs"):
        difference([same, same], same)
    with pytest.raises(ExportError, match="shape"):
        difference(same, same[:2])


class Skipping(nn.Module):
    """Optional arguments, of which a call may skip some in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)

    def forward(self, x: Tensor, scale: float | None = None, shift: Tensor | None = None, flag: bool = True) -> Any:
        y = self.inner(x).relu()
        if shift is not None:
            y = y + shift
        return {"y": y} if flag else (y, y * (2 if scale is None else scale))


@pytest.mark.parametrize(
    ("suffix", "graph", "names"),
    [
        ("pt2", True, ("x", "flag")), ("pt2", True, ("flag", "x")), ("pt2", True, ("x", "shift")),
        ("pt2", False, ("shift", "x", "flag")), ("py", True, ("x", "flag")), ("py", False, ("flag", "x")),
        ("onnx", True, ("x", "flag")),
    ],
)  # fmt: skip
def test_arguments_in_the_middle_may_be_skipped(
    suffix: str, graph: bool, names: tuple[str, ...], tmp_path: Path
) -> None:
    values = {"x": torch.randn(2, 4), "flag": False, "shift": torch.randn(2, 6)}
    inputs = {name: values[name] for name in names}
    model = Skipping().eval()
    report = export(capture(model, inputs) if graph else model, inputs, tmp_path / f"net.{suffix}")
    assert report.dynamic_batch and report.max_abs_error is not None


class Modulated(nn.Module):
    """StyleGAN2's convolution (Karras et al., 2020, section 2.2): one kernel a sample, as groups of one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.style = nn.Parameter(torch.randn(6, 3, 3, 3)), nn.Linear(5, 3)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        n, i, h, w = x.shape
        kernel = self.kernel * self.style(style).view(n, 1, i, 1, 1)
        kernel = kernel * torch.rsqrt(kernel.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        y = nn.functional.conv2d(x.reshape(1, n * i, h, w), kernel.view(n * 6, i, 3, 3), padding=1, groups=n)
        return y.view(n, 6, h, w)


class Correlated(nn.Module):
    """Depthwise cross-correlation of two branches, as Siamese trackers have it."""

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = nn.functional.conv2d(x.reshape(1, n * c, h, w), z.reshape(n * c, 1, *z.shape[2:]), groups=n * c)
        return y.view(n, c, *y.shape[2:])


class Routed(nn.Module):
    """CondConv (Yang et al., 2019): each sample's kernel is a mixture of four."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.route = nn.Parameter(torch.randn(4, 5, 3, 3, 3)), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        kernel = (self.route(x.mean((2, 3))).sigmoid() @ self.kernels.view(4, -1)).view(n * 5, c, 3, 3)
        return nn.functional.conv2d(x.reshape(1, n * c, h, w), kernel, padding=1, groups=n).view(n, 5, h, w)


@not_in_2_9
@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (Modulated, (torch.randn(2, 3, 8, 8), torch.randn(2, 5))),
        pytest.param(Correlated, (torch.randn(2, 3, 3, 3), torch.randn(2, 3, 8, 8)), marks=pytest.mark.slow),
        pytest.param(Routed, torch.randn(2, 3, 8, 8), marks=pytest.mark.slow),
    ],
)
def test_a_batch_that_cannot_be_free_is_fixed_and_said(make: type[nn.Module], inputs: Any, tmp_path: Path) -> None:
    model = make().eval()
    report = export(model, inputs, tmp_path / "net.onnx")
    assert not report.dynamic_batch and report.batch_sizes == (2,)
    assert "one batch size (with a free batch torch.onnx cannot translate the network" in str(report)
    assert export(model, inputs, tmp_path / "net.pt2").dynamic_batch
    assert check_files(report.path)


def test_a_form_that_fails_at_another_size_is_written_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch_export._run

    def failing(loaded: nn.Module, inputs: Any) -> Any:
        if inputs.batch_size == 3:
            raise ExportError("the written network fails at batch size 3")
        return right(loaded, inputs)

    monkeypatch.setattr(torch_export, "_run", failing)
    report = export(nn.Linear(3, 4), torch.randn(2, 3), tmp_path / "net.pt2")
    assert report.static_reason == "with a free batch the written network fails at batch size 3"
    assert torch.export.load(report.path).module()(torch.randn(2, 3)).shape == (2, 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda y: y + 1e-3, r"output 0, 8 of 8 elements; tolerance=1e-05 may be set higher"),
        (
            lambda y: y.index_put((torch.tensor([0]), torch.tensor([1])), torch.tensor(9.0)),
            "1 of 8 elements. So few may",
        ),
        (lambda y: y * float("nan"), "output 0, 8 of 8 elements; tolerance"),
    ],
)
def test_a_difference_says_where_and_what_decides(
    change: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = onnx_form._session
    monkeypatch.setattr(onnx_form, "_session", lambda file: lambda inputs: [change(y) for y in right(file)(inputs)])
    with pytest.raises(ExportError, match=said):
        export(nn.Linear(3, 4), torch.randn(2, 3), tmp_path / "net.onnx", dynamic_batch=False)
    assert not list(tmp_path.iterdir())


def test_a_class_that_differs_may_be_a_near_tie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Argmax(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(1)

    right = onnx_form._session
    monkeypatch.setattr(onnx_form, "_session", lambda file: lambda inputs: [y + 1 for y in right(file)(inputs)])
    with pytest.raises(ExportError, match="near-tie: where a network orders, rounds or compares .argmax"):
        export(Argmax(), torch.randn(2, 3), tmp_path / "net.onnx")


class OfTwo(nn.Module):
    """Runs at one batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).view(2, 4)


@pytest.mark.parametrize("suffix", ["pt2", "py"])
def test_nothing_is_printed_of_a_graph_that_takes_no_other_batch(
    suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = export(capture(OfTwo()), torch.randn(2, 4), tmp_path / f"net.{suffix}")
    assert "fails at batch size 3" in str(report)
    assert "Traceback" not in capfd.readouterr().err
