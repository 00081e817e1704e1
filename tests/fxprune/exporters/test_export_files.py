"""Exported files prove themselves, take nobody's place, and hold nothing but the network."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import fx, nn

import fxprune
from fxprune import ExportError, check_files, export, load, netadapt
from fxprune.io.seal import UNSEALED, seal
from passes import Plan, PruneChannels, capture, couple

X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
FORMS = ["net.safetensors", "net.json", "net.pt2", "net.onnx", "net.py", "net.py.safetensors"]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 3)).eval()


def pruned(seed: int = 0) -> tuple[fx.GraphModule, Plan]:
    gm = capture(network(seed), X)
    plan = couple(gm, X).plan({"0": tuple(range(0, 32, 2))})
    return PruneChannels(plan)(gm).graph_module, plan


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network in every form."""
    folder = tmp_path_factory.mktemp("written")
    gm, plan = pruned()
    for name in ("net.safetensors", "net.pt2", "net.onnx", "net.py"):
        export(gm, X, folder / name, plan=plan)
    return folder


@pytest.mark.parametrize("name", FORMS)
def test_every_flipped_bit_is_found(written: Path, name: str) -> None:
    """Anywhere: in weights, headers, checksums and padding, also where the content would be the same."""
    path = written / name
    whole, random = path.read_bytes(), np.random.default_rng(0)
    assert path in check_files(path)
    bits = len(whole) * 8
    places = {*random.integers(bits, size=120).tolist(), *range(0, 512, 13), *range(bits - 64, bits, 3)}
    try:
        for place in sorted(places):
            damaged = bytearray(whole)
            damaged[place // 8] ^= 1 << place % 8
            path.write_bytes(bytes(damaged))
            with pytest.raises(ExportError, match=re.escape(str(written / "net"))):
                check_files(path)
            if name in ("net.safetensors", "net.json"):
                with pytest.raises(ExportError, match=re.escape(str(path))):
                    load(network(), written / "net.safetensors")
    finally:
        path.write_bytes(whole)


def test_the_damaged_tensor_is_named(written: Path) -> None:
    path = written / "net.safetensors"
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    bias = load(network(), path).state_dict()["0.bias"].numpy().tobytes()
    place = whole.index(bias, start)
    try:
        path.write_bytes(whole[: place + 3] + bytes([whole[place + 3] ^ 4]) + whole[place + 4 :])
        with pytest.raises(ExportError, match=r"net\.safetensors: damaged: the values of 0\.bias are not those"):
            load(network(), path)
        path.write_bytes(whole[:-20])
        with pytest.raises(ExportError, match=r"net\.safetensors: not a safetensors file, or a damaged one"):
            load(network(), path)
    finally:
        path.write_bytes(whole)


def test_a_plan_of_another_export_is_refused(tmp_path: Path) -> None:
    gm, plan = pruned()
    export(gm, X, tmp_path / "a.safetensors", plan=plan)
    other = couple(capture(network(), X), X).plan({"0": tuple(range(16))})
    (tmp_path / "a.json").write_text(other.to_json())  # the same shapes, other units
    with pytest.raises(ExportError, match=r"a\.json is not the plan that was written with"):
        load(network(), tmp_path / "a.safetensors")


def executed(path: Path) -> nn.Module:
    namespace: dict[str, Any] = {"__name__": "net", "__file__": str(path)}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    return namespace["load"]()


def test_source_refuses_damaged_weights_and_text_by_itself(tmp_path: Path) -> None:
    """Its `load` needs nothing of fxprune."""
    gm, _ = pruned()
    path = export(gm, X, tmp_path / "net.py").path
    text, weights = path.read_text(), (tmp_path / "net.py.safetensors").read_bytes()
    torch.testing.assert_close(executed(path)(X), gm(X))

    (tmp_path / "net.py.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"net\.py\.safetensors is damaged, or not what was written with"):
        executed(path)
    (tmp_path / "net.py.safetensors").write_bytes(weights)

    changed = text.replace("nn.ReLU(", "nn.SiLU(")
    assert changed != text
    path.write_text(changed)
    with pytest.raises(ValueError, match="delete its last line"):
        executed(path)
    path.write_text("\n".join(changed.splitlines()[:-1]) + "\n")
    assert executed(path)(X).shape == (2, 4, 5, 5), "whoever changes the file deletes its last line"


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        *((form, "file") for form in ("net.safetensors", "net.pt2", "net.onnx", "net.py")),
        *(("net.safetensors", kind) for kind in ("empty", "link", "dangling")),
    ],
)
def test_nothing_of_the_users_is_overwritten(tmp_path: Path, form: str, kind: str) -> None:
    gm, plan = pruned()
    path, own = tmp_path / form, tmp_path / "my own"
    if kind in ("file", "empty"):
        path.write_text("# my own model\n" if kind == "file" else "")
    else:
        if kind == "link":
            own.write_text("# my own model\n")
        path.symlink_to(own)
    before = sorted((file.name, file.is_file() and file.read_bytes()) for file in tmp_path.iterdir())
    words = f"{re.escape(str(path))} exists, and fxprune did not write it.*overwrite=True"
    with pytest.raises(ExportError, match=words):
        export(gm, X, path, plan=plan)
    assert before == sorted((file.name, file.is_file() and file.read_bytes()) for file in tmp_path.iterdir())
    export(gm, X, path, plan=plan, overwrite=True)
    assert path in check_files(path)
    export(gm, X, path, plan=plan)  # our own may be written again
    if kind == "link":
        assert own.read_text() == "# my own model\n"


@pytest.mark.parametrize(("form", "companion"), [("net.safetensors", "net.json"), ("net.py", "net.py.safetensors")])
def test_nor_the_files_beside_it(tmp_path: Path, form: str, companion: str) -> None:
    gm, plan = pruned()
    (tmp_path / companion).write_text('{"my": "settings"}')
    with pytest.raises(ExportError, match=re.escape(str(tmp_path / companion))):
        export(gm, X, tmp_path / form, plan=plan)
    assert [file.name for file in tmp_path.iterdir()] == [companion]
    assert (tmp_path / companion).read_text() == '{"my": "settings"}'


def test_an_export_that_was_changed_is_the_users(tmp_path: Path) -> None:
    gm, _ = pruned()
    export(gm, X, tmp_path / "net.py")
    with open(tmp_path / "net.py", "a") as file:
        file.write("# my own line\n")
    with pytest.raises(ExportError, match="or it was changed since"):
        export(gm, X, tmp_path / "net.py")


def test_two_exports_share_no_file(tmp_path: Path) -> None:
    (a, _), (b, plan) = pruned(0), pruned(1)
    export(a, X, tmp_path / "net.py")
    export(b, X, tmp_path / "net.safetensors", plan=plan)
    torch.testing.assert_close(executed(tmp_path / "net.py")(X), a(X))
    torch.testing.assert_close(load(network(), tmp_path / "net.safetensors")(X), b(X), atol=0, rtol=0)
    with pytest.raises(ExportError, match=r"holds the weights of a \.py export"):
        export(b, X, tmp_path / "net.py.safetensors", plan=plan)


def test_modes_are_the_usual_ones(tmp_path: Path) -> None:
    gm, plan = pruned()
    before = os.umask(0o027)
    try:
        reports = [export(gm, X, tmp_path / f"a.{form}", plan=plan) for form in ("safetensors", "pt2", "onnx", "py")]
    finally:
        os.umask(before)
    files = [file for report in reports for file in report.files]
    assert len(files) == 6
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o640}


def secret(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.full(shape, 1234.5678)


class Views(nn.Module):
    """Parameters and buffers that are parts of larger memory."""

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("first", images[0, 0, 0, :4] * 0 + images[0, 0, 0, :4])
        self.mean = nn.Parameter(torch.cat([torch.zeros(4), images.flatten()])[:4])
        self.register_buffer("shift", torch.cat([torch.zeros(4), images.flatten()])[:4])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + (self.mean + self.shift)[:, None, None]


@pytest.mark.parametrize("form", ["net.pt2", "net.onnx", "net.py"])
def test_a_file_holds_nothing_of_the_inputs(tmp_path: Path, form: str) -> None:
    images = secret((400, 3, 9, 9))
    model = Views(images).eval()
    del model._buffers["first"]
    report = export(model, images[:2], tmp_path / form)
    assert report.size_bytes < 60_000
    texts = [file.read_bytes() for file in report.files]
    pattern = images[0, 0, 0, :2].numpy().tobytes()
    assert not any(pattern in text for text in texts)
    if form == "net.pt2":
        with zipfile.ZipFile(report.path) as archive:
            assert not any(pattern in archive.read(name) for name in archive.namelist())
        torch.testing.assert_close(torch.export.load(report.path).module()(X), model(X))
    assert not any(str(Path(__file__).parents[2]).encode() in text for text in texts), "nor of the user's folders"


def test_a_search_result_survives_all_of_it(tmp_path: Path) -> None:
    result = netadapt(network(), 0.5, example_inputs=X, progress=False)
    export(result.model, X, tmp_path / "net.safetensors", plan=result.plan)
    again = load(network(), tmp_path / "net.json")
    torch.testing.assert_close(again(X), result.model(X), atol=0, rtol=0)
    assert fxprune.check_files is check_files and pickle.dumps(ExportError("x"))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("ties", {"0.bias": "nothing"}, "speaks of 'nothing'"),
        ("memory_order", {"0.weight": [0, 0, 1, 2]}, "no order of the dimensions of '0.weight'"),
        ("memory_order", {"nothing": [0]}, "speaks of 'nothing'"),
        ("small", {"x": ["torch.nothing", [1]]}, "a small tensor cannot be made"),
        ("small", {"x": ["torch.float32", "many"]}, "a small tensor cannot be made"),
        ("ties", [1], "Header.ties is"),
        ("frontend", 3, "Header.frontend is"),
        ("inputs", [3], "Header.inputs is"),
        ("seal", None, "Header.seal is"),
        ("more", 1, "Header has no field 'more'"),
    ],
)
def test_a_header_that_somebody_else_sealed_is_refused(
    written: Path, tmp_path: Path, key: str, value: Any, words: str
) -> None:
    """Its checksum fits: it was not lost on the way, it was made."""
    with safe_open(written / "net.safetensors", framework="pt") as file:
        header, tensors = json.loads(file.metadata()["fxprune"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = {**header, "seal": UNSEALED, key: value}
    save_file(tensors, tmp_path / "net.safetensors", metadata={"fxprune": json.dumps(header)})
    if key != "seal":
        seal(tmp_path / "net.safetensors")
    shutil.copy(written / "net.json", tmp_path / "net.json")
    with pytest.raises(ExportError, match=words):
        load(network(), tmp_path / "net.safetensors")


def test_large_weights_of_onnx_are_part_of_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lie in a file beside it; torch does so above 2 GB."""
    save = torch.onnx.ONNXProgram.save
    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", lambda self, path: save(self, path, external_data=True))
    gm, _ = pruned()
    path, data = export(gm, X, tmp_path / "net.onnx").files
    assert data.name == "net.onnx.data" and check_files(path) == check_files(data) == (path, data)
    whole = data.read_bytes()
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ExportError, match=r"net\.onnx\.data is damaged, or is not what was written with"):
        check_files(path)
    with pytest.raises(ExportError, match=r"net\.onnx\.data exists, and fxprune did not write it"):
        export(gm, X, tmp_path / "net.onnx")
    data.unlink()
    with pytest.raises(ExportError, match="they stay together"):
        check_files(path)
