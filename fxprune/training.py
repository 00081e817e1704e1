"""Training one candidate: fixed seeds, the user's `train` and `evaluate`, and ready-made ones for those who have
none."""

from __future__ import annotations

import hashlib
import math
import random
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.errors import InputError

Train = Callable[[nn.Module, int], Any]
Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Trained:
    """What came of training and evaluating one network; `error` says why there is no score."""

    score: float | None = None
    error: str | None = None
    seconds_train: float = 0.0
    seconds_evaluate: float = 0.0


def train_candidate(
    network: nn.Module, steps: int, seed: int, train: Train | None, evaluate: Evaluate | None
) -> Trained:
    """Fine-tune a network in place and score it. An exception, weights that are no numbers any more and a score that is
    none are reported, not raised.

    Gradients can be computed whatever the caller, or the `evaluate` of another candidate, has switched off.
    """
    clock, doing = {"train": 0.0, "evaluate": 0.0}, "train"
    score = None
    try:
        with seeded(seed), torch.enable_grad():
            if train is not None:
                network.train()
                before = _trained_shapes(network)
                with _timed(clock, "train"):
                    train(network, steps)
                check_trained(network, before)
            doing = "evaluate"
            if evaluate is not None:
                network.eval()
                with _timed(clock, "evaluate"):
                    found = evaluate(network)
                score = score_of(found)
    except Exception as error:  # a user's function may raise anything, and one candidate is not the search
        return Trained(None, _said(doing, error), clock["train"], clock["evaluate"])
    return Trained(score, None, clock["train"], clock["evaluate"])


@contextmanager
def _timed(clock: dict[str, float], name: str) -> Iterator[None]:
    """The seconds inside, added to an entry of `clock`; only what the user's functions take is not overhead."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        clock[name] += time.perf_counter() - begun


def check_trained(network: nn.Module, before: dict[str, torch.Size]) -> None:
    """Refuse a network that training made another, or whose weights it drove to NaN: no later round could use it.

    `before`: the shapes of the parameters that were to be trained.
    """
    after = dict(network.named_parameters(remove_duplicate=False))
    for name, shape in before.items():
        if name not in after or after[name].shape != shape:
            what = "is gone" if name not in after else f"has shape {tuple(after[name].shape)}, had {tuple(shape)}"
            raise InputError(f"train changed the network itself: {name} {what}; it must train its weights in place.")
        if not torch.isfinite(after[name]).all():
            raise InputError(f"training diverged: {name} holds NaN or infinity; lower the learning rate (netadapt_lr).")


def _trained_shapes(network: nn.Module) -> dict[str, torch.Size]:
    named = network.named_parameters(remove_duplicate=False)
    return {name: parameter.shape for name, parameter in named if parameter.requires_grad}


def score_of(value: Any) -> float:
    """What `evaluate` returned, as a finite float; anything else is an error that says what it should return."""
    expected = "it must return one number, higher is better"
    if isinstance(value, Tensor | np.ndarray | np.generic):
        if math.prod(value.shape) != 1:
            raise InputError(f"evaluate returned a tensor of shape {tuple(value.shape)}; {expected}.")
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"evaluate returned {value!r}, a {type(value).__name__}; {expected}.")
    if not math.isfinite(value):
        raise InputError(
            f"evaluate returned {float(value)}; {expected}, and networks cannot be compared by {float(value)}."
        )
    return float(value)


def seed_of(run_seed: int, round: int, name: str) -> int:
    """The seed of one candidate: the same in whatever order, process or attempt it is trained."""
    digest = hashlib.sha256(f"{run_seed}/{round}/{name}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python, NumPy and torch (every device) drawn from `seed` inside, and left as they were outside.

    cuDNN takes deterministic algorithms inside. What else a GPU does in any order (scatter, some backward kernels) is
    for the caller to exclude by `torch.use_deterministic_algorithms`.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    cudnn = torch.backends.cudnn
    chosen, cudnn.deterministic, cudnn.benchmark = (cudnn.deterministic, cudnn.benchmark), True, False
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
            cudnn.deterministic, cudnn.benchmark = chosen


def begin_anew(loader: Any) -> None:
    """Let a loader draw from the candidate's seed, whatever was drawn from it before.

    Its own generators are seeded, and workers that outlive an epoch are started again.
    """
    seed, batches = torch.initial_seed(), getattr(loader, "batch_sampler", None)
    for holder in (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)):
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
    if getattr(loader, "persistent_workers", False):
        loader._iterator = None


@dataclass
class FineTune:
    """A `train` for `netadapt`: exactly `steps` steps of SGD over `batches`, begun anew as often as needed.

    `batches` is a DataLoader or any other iterable of (inputs, targets). A new optimizer each call, and a loader with
    generators of its own begins anew from torch's seed, so that no candidate sees the state of another. Data, model and
    loss meet on the model's device.

    >>> train = FineTune([(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))], lr=0.1)
    >>> train(nn.Linear(3, 2), steps=5)
    """

    batches: Iterable[Any]
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    loss: Callable[[Any, Any], Tensor] = field(default_factory=nn.CrossEntropyLoss)

    def __call__(self, model: nn.Module, steps: int) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters or steps <= 0:
            return
        optimizer = torch.optim.SGD(parameters, self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        device = parameters[0].device
        model.train()
        begin_anew(self.batches)
        for inputs, targets in endless(self.batches, steps):
            optimizer.zero_grad(set_to_none=True)
            self.loss(model(inputs.to(device)), targets.to(device)).backward()
            optimizer.step()


@dataclass
class Accuracy:
    """An `evaluate` for `netadapt`: the top-1 accuracy over `batches` of (inputs, labels), in percent."""

    batches: Iterable[Any]

    def __call__(self, model: nn.Module) -> float:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        model.eval()
        begin_anew(self.batches)
        right = total = 0
        with torch.no_grad():
            for inputs, labels in self.batches:
                right += int((model(inputs.to(device)).argmax(1) == labels.to(device)).sum())
                total += len(labels)
        if not total:
            raise InputError("Accuracy: the data holds no batch; expected batches of (inputs, labels).")
        return 100.0 * right / total


def endless(batches: Iterable[Any], steps: int) -> Iterator[Any]:
    """Exactly `steps` batches, starting over where the data ends."""
    given = 0
    while given < steps:
        before = given
        for batch in batches:
            yield batch
            given += 1
            if given == steps:
                return
        if given == before:
            raise InputError("FineTune: the data holds no batch; expected batches of (inputs, targets).")


def _said(doing: str, error: Exception) -> str:
    """One line for the record: what was raised, and the last line of code on the way."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno})" if frames else ""
    return f"{doing}: {type(error).__name__}: {error}{where}"
