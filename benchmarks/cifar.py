"""CIFAR-10 as JPEG and the trained ResNets of the shared data folder: splits, random batches, fine-tuning, accuracy.

Search and selection see the first 45,000 training images and the 5,000 after them (validation) only; whoever takes the
test split takes it once, at the end.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune import Accuracy

TRAINING = 45_000  # of the 50,000 images of the training split; the rest is validation


def folder() -> Path:
    """The folder of the data: $FXPRUNE_DATA, else ../shared/data beside the project."""
    place = Path(os.environ.get("FXPRUNE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not (place / "cifar10.npz").is_file():
        raise SystemExit("needs the shared data (cifar10.npz and trained weights); set FXPRUNE_DATA to its folder")
    return place


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, folder() / f"{name}.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"the data folder lacks {name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Images:
    """Images (n, 3, 32, 32), normalised, with labels (n,). Any prefix holds as many of each class."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Images:
        return Images(self.images[:count], self.labels[:count])

    def accuracy(self) -> Accuracy:
        """Top-1 accuracy on these images in percent, as `evaluate` of a search."""
        return Accuracy([(self.images[i : i + 500], self.labels[i : i + 500]) for i in range(0, len(self), 500)])


def _split(name: str, device: torch.device, part: slice) -> Images:
    loader = _module("cifar10")
    images, labels = loader.load(folder() / "cifar10.npz", name, cache=Path(tempfile.gettempdir()) / "fxprune-cifar10")
    images, labels = torch.from_numpy(loader.normalise(images[part])), torch.from_numpy(labels[part])
    return Images(images.to(device), labels.to(device))


def training(device: torch.device, count: int = TRAINING) -> Images:
    """The first `count` training images."""
    return _split("train", device, slice(0, min(count, TRAINING)))


def validation(device: torch.device) -> Images:
    """The 5,000 training images that no fine-tuning here ever sees."""
    return _split("train", device, slice(TRAINING, None))


def test(device: torch.device) -> Images:
    """The 10,000 test images."""
    return _split("test", device, slice(None))


def trained(depth: int, device: torch.device) -> nn.Module:
    """ResNet-20 or -56 with the weights adapted to these images."""
    from safetensors.torch import load_file

    model = _module("resnet_cifar").resnet(depth)
    model.load_state_dict(load_file(folder() / f"resnet{depth}_cifar10_jpeg.safetensors"))
    return model.to(device).eval()


@dataclass(frozen=True)
class Batches:
    """Random batches without end: flipped image by image, shifted by up to four pixels batch by batch.

    Drawn from torch's global generator, which a search seeds for each candidate.
    """

    data: Images
    size: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for chosen in torch.randperm(len(self.data)).split(self.size):
                if len(chosen) == self.size:
                    yield self._augmented(chosen.to(self.data.labels.device))

    def _augmented(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        images = self.data.images[chosen]
        flip = (torch.rand(len(chosen)) < 0.5).to(images.device).reshape(-1, 1, 1, 1)
        top, left = torch.randint(0, 9, (2,)).tolist()
        images = F.pad(torch.where(flip, images.flip(3), images), (4, 4, 4, 4))
        return images[:, :, top : top + 32, left : left + 32], self.data.labels[chosen]


class Averaged(nn.Module):
    """A trained network as a teacher: the mean of what it gives of an image, of its mirror image, and of both again,
    moved by one pixel along the diagonal, to opposite sides. ONNX Runtime runs it, in half of torch's time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            file, batch = Path(folder) / "teacher.onnx", ({0: torch.export.Dim("batch")},)
            torch.onnx.export(
                network, (torch.randn(2, 3, 32, 32),), file, verbose=False, dynamo=True, dynamic_shapes=batch
            )
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def forward(self, images: Tensor) -> Tensor:
        wide = F.pad(images, (1, 1, 1, 1))
        views = (images, images.flip(3), wide[:, :, 2:, 2:], wide[:, :, :-2, :-2].flip(3))
        name = self.session.get_inputs()[0].name
        given = [torch.from_numpy(self.session.run(None, {name: view.numpy()})[0]) for view in views]
        return torch.stack(given).mean(0)


def fine_tune(model: nn.Module, data: Images, steps: int, *, batch: int, peak: float, seed: int) -> None:
    """`steps` steps of SGD with Nesterov momentum, the rate in one cycle up to `peak`; in place, ends in eval mode."""
    torch.manual_seed(seed)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), peak, momentum=0.9, weight_decay=1e-4, nesterov=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=max(steps, 2))
    for _, (images, labels) in zip(range(steps), Batches(data, batch), strict=False):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        cycle.step()
    model.eval()
