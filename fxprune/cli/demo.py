"""The demonstration: real digits, a small residual network, NetAdapt to 40 % of its MACs, everything measured.

scikit-learn bundles 1,797 real images of handwritten digits (8 x 8 pixels; Alpaydin and Kaynak, 1998). They are split
into a training, a validation and a test part: the first trains, the second chooses between candidates, the third
is looked at once, when all is decided. Fine-tuning alone raises accuracy, so the network to compare with is the dense
one after the same fine-tuning.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn
from torch.nn import functional as F

import passes
from fxprune import Budget, NetAdaptConfig, NetAdaptResult, netadapt
from fxprune.errors import InputError
from fxprune.exporters.files import written_by_fxprune
from fxprune.io.seal import UNSEALED, is_sealed, seal
from fxprune.latency.backends.protocol import Backend
from fxprune.latency.backends.registry import find
from fxprune.training.candidate import seeded
from fxprune.training.steps import optimized

if TYPE_CHECKING:
    from rich.console import Console

BUDGET_RATIO = 0.4
BATCH_SIZE = 64
LATENCY_BATCH = 64
WRITTEN = ("dense.safetensors", "pruned.safetensors", "plan.json", "summary.json", "report.html")


@dataclass(frozen=True)
class Steps:
    """How many training steps: the dense network, each candidate of the search, the long fine-tune at the end."""

    train: int = 400
    candidate: int = 8
    finetune: int = 400


@dataclass(frozen=True)
class Split:
    """Images (n, 1, 8, 8), float32, zero mean and unit variance over the training part; labels (n,), int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Digits:
    train: Split
    validation: Split
    test: Split


def load_digits(seed: int = 0) -> Digits:
    """60 % of the digits for training, 20 % each for validation and test, the classes in equal shares."""
    try:
        from sklearn.datasets import load_digits as bundled
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ModuleNotFoundError("the demo's digits come with scikit-learn: pip install 'fxprune[demo]'") from error

    pixels, targets = bundled(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(targets, dtype=torch.int64)
    fitted, rest = train_test_split(range(len(labels)), test_size=0.4, stratify=targets, random_state=seed)
    chosen, last = train_test_split(rest, test_size=0.5, stratify=targets[rest], random_state=seed)
    images = (images - images[fitted].mean()) / images[fitted].std()
    return Digits(*(Split(images[part], labels[part]) for part in (fitted, chosen, last)))


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is projected where the shape changes (He et al., 2015)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class DigitNet(nn.Module):
    """A residual network for (n, 1, 8, 8): a stem, three blocks at 8x8, 4x4 and 2x2 pixels, a linear classifier."""

    def __init__(self, widths: tuple[int, int, int] = (24, 48, 72)) -> None:
        super().__init__()
        first, second, third = widths
        self.stem = nn.Sequential(nn.Conv2d(1, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        self.block1 = Block(first, first, stride=1)
        self.block2 = Block(first, second, stride=2)
        self.block3 = Block(second, third, stride=2)
        self.classifier = nn.Linear(third, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self.stem(x))))
        return self.classifier(out.mean((2, 3)))


def fit(model: nn.Module, data: Split, steps: int, peak_lr: float) -> None:
    """`steps` of SGD with Nesterov momentum on random batches, one-cycle learning rate; draws from torch's own seed."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=peak_lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak_lr, total_steps=steps)

    def loss(batch: Tensor) -> Tensor:
        return F.cross_entropy(model(data.images[batch]), data.labels[batch])

    batches = (torch.randint(len(data.labels), (BATCH_SIZE,)) for _ in range(steps))
    for _ in optimized(optimizer, batches, loss):
        schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Split) -> float:
    """Share of `data` that `model`, in evaluation mode, puts into its class: 0 to 1."""
    was_training = model.training
    right = (model.eval()(data.images).argmax(1) == data.labels).float().mean().item()
    model.train(was_training)
    return right


def latency_backend() -> Backend:
    """ONNX Runtime where it is installed, else PyTorch as it is; one thread."""
    installed = all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime"))
    return find("onnxruntime" if installed else "eager", threads=1)


def latencies_ms(backend: Backend, models: list[nn.Module], images: Tensor, repeats: int = 60) -> list[float]:
    """Median milliseconds of a forward pass of each model, timed in turn so that noise affects all alike."""
    runs, times = [backend.prepare(model, images) for model in models], [list[float]() for _ in models]
    for turn in range(repeats + 10):
        for run, spent in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if turn >= 10:  # the first ones warm up
                spent.append(1e3 * (time.perf_counter() - start))
    return [sorted(spent)[len(spent) // 2] for spent in times]


@dataclass(frozen=True)
class Measured:
    """One network of the table. Accuracies are shares; macs are for one image, latency for a batch."""

    name: str
    macs: int
    params: int
    widths: dict[str, int]
    validation: float
    test: float
    latency_ms: float


@dataclass(frozen=True)
class Demo:
    """What a run of the demonstration found: the dense network, the same fine-tuned, and the pruned one.

    backend: what measured the latencies. report: the page about the search; None where matplotlib is missing.
    """

    networks: tuple[Measured, ...]
    rounds: int
    max_error: float
    steps: Steps
    seed: int
    seconds: float
    backend: str
    report: str | None


def run_demo(out: Path, *, seed: int = 0, steps: Steps | None = None, say: Callable[[str], None] | None = None) -> Demo:
    """Train, prune to `BUDGET_RATIO` of the MACs, fine-tune, verify, save into `out`; the same for the same seed.

    `say` gets a line at the start of each stage, and the search then shows its progress; without it all is silent.
    Leaves `dense.safetensors`, `pruned.safetensors`, `plan.json`, `summary.json` and, with matplotlib, `report.html` in
    `out`; `load_pruned` reads them.
    Raises EquivalenceError where the pruned network is not the one that the plan describes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second thread only waits in a network this small
    try:
        return _run(out, seed, steps or Steps(), say or (lambda line: None), progress=say is not None)
    finally:
        torch.set_num_threads(threads)


def _run(out: Path, seed: int, steps: Steps, say: Callable[[str], None], progress: bool) -> Demo:
    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    there = [name for name in WRITTEN if os.path.lexists(out / name)]
    if there and not written_by_fxprune(out / "plan.json"):
        raise InputError(f"{out / there[0]} exists, and is of no demo; nothing was written. Choose another folder.")
    digits = load_digits(seed)
    example = digits.train.images[:1]

    say(f"training the dense network: {steps.train} steps on {len(digits.train.labels):,} images")
    with seeded(seed):
        dense = DigitNet()
        fit(dense, digits.train, steps.train, peak_lr=0.1)
    gm = passes.capture(dense)

    say(f"NetAdapt to {BUDGET_RATIO:.0%} of its MACs, {steps.candidate} steps a candidate")
    result = _search(gm, digits, example, steps.candidate, seed, progress)
    pruned, tuned = result.model, copy.deepcopy(gm)

    say(f"fine-tuning the pruned network, and the dense one for comparison: {steps.finetune} steps each")
    for model in (pruned, tuned):
        with seeded(seed):
            fit(model, digits.train, steps.finetune, peak_lr=0.1)
    certificate = passes.verify(gm, pruned, result.plan, example, trained=True)

    backend = latency_backend()
    networks = _measured({"dense": gm, "dense, fine-tuned": tuned, "pruned": pruned}, result, digits, example, backend)
    seconds = time.perf_counter() - start
    drawn = importlib.util.find_spec("matplotlib") is not None
    report = str(result.report(out / "report.html", overwrite=True)) if drawn else None
    demo = Demo(networks, len(result.rounds), certificate.max_error, steps, seed, seconds, str(backend.setting), report)
    for name, network in (("dense", gm), ("pruned", pruned)):
        save_file(network.state_dict(), out / f"{name}.safetensors", metadata={"fxprune": UNSEALED})
        seal(out / f"{name}.safetensors")
    (out / "plan.json").write_text(result.plan.to_json())
    (out / "summary.json").write_text(json.dumps(asdict(demo), indent=2) + "\n")
    return demo


def _search(
    gm: fx.GraphModule, digits: Digits, example: Tensor, steps: int, seed: int, progress: bool
) -> NetAdaptResult:
    return netadapt(
        gm,
        Budget("macs", ratio=BUDGET_RATIO),
        example_inputs=example,
        train=lambda model, count: fit(model, digits.train, count, peak_lr=0.02),
        evaluate=lambda model: accuracy(model, digits.validation),
        config=NetAdaptConfig(
            budget_reduce_rate_init=0.12,
            budget_reduce_rate_decay=0.97,
            netadapt_max_iter=steps,
            netadapt_min_feature_size=4,
        ),
        progress=progress,
        seed=seed,
    )


def _measured(
    models: dict[str, nn.Module], result: NetAdaptResult, digits: Digits, example: Tensor, backend: Backend
) -> tuple[Measured, ...]:
    coupling = passes.couple(result.dense, example)
    costs = passes.cost(coupling)
    times = latencies_ms(backend, [model.eval() for model in models.values()], digits.test.images[:LATENCY_BATCH])
    found = []
    for (name, model), milliseconds in zip(models.items(), times, strict=True):
        widths = result.plan.widths if model is result.model else coupling.widths
        validation, test = accuracy(model, digits.validation), accuracy(model, digits.test)
        found.append(Measured(name, costs.macs(widths), costs.params(widths), widths, validation, test, milliseconds))
    return tuple(found)


def load_pruned(out: Path) -> nn.Module:
    """The network that `run_demo` saved, from its class, its plan and its weights: nothing is unpickled."""
    if not is_sealed(out / "pruned.safetensors"):
        raise InputError(f"{out / 'pruned.safetensors'} is damaged, or is missing; run the demo again.")
    plan = passes.Plan.from_json((out / "plan.json").read_text())
    gm = passes.capture(DigitNet())
    passes.couple(gm, torch.zeros(1, 1, 8, 8))
    pruned = passes.PruneChannels(plan)(gm).graph_module
    pruned.load_state_dict(load_file(out / "pruned.safetensors"))
    return pruned.eval()


def print_demo(demo: Demo, console: Console) -> None:
    """The table before/after, and what the figures stand for."""
    from rich.table import Table

    dense = demo.networks[0]
    table = Table(title=f"Digits, NetAdapt to {BUDGET_RATIO:.0%} of the MACs in {demo.rounds} rounds")
    table.add_column("", no_wrap=True)
    for network in demo.networks:
        table.add_column(network.name, justify="right", no_wrap=True)
    rows: tuple[tuple[str, Callable[[Measured], str]], ...] = (
        ("MACs of an image", lambda m: f"{m.macs:,}"),
        ("  of the dense ones", lambda m: f"{m.macs / dense.macs:.1%}"),
        ("parameters", lambda m: f"{m.params:,}"),
        ("  of the dense ones", lambda m: f"{m.params / dense.params:.1%}"),
        ("validation accuracy", lambda m: f"{m.validation:.2%}"),
        ("test accuracy", lambda m: f"{m.test:.2%}"),
        (f"ms for {LATENCY_BATCH} images", lambda m: f"{m.latency_ms:.2f}"),
    )
    for title, show in rows:
        table.add_row(title, *(show(network) for network in demo.networks))
    table.add_section()
    table.add_row("widths")
    for group in dense.widths:
        table.add_row(f"  {group}", *(str(network.widths[group]) for network in demo.networks))
    console.print(table)
    console.print(
        "Verified in float64: the dense network with these weights in place and its removed units at zero gives equal "
        f"outputs, to {demo.max_error:.1e}. "
        f"Both right-hand networks had the same {demo.steps.finetune} steps of fine-tuning after training and search. "
        f"Latency: median, {demo.backend}. Seed {demo.seed}, {demo.seconds:.0f} s.",
        markup=False,
    )
