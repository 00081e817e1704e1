"""Training one candidate: fixed seeds, the user's `train` and `evaluate`, and ready-made ones for those who have
none."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.errors import InputError
from fxprune.io.tensors import tensors_of
from fxprune.training.batches import labelled
from fxprune.training.in_place import Untrained
from fxprune.training.interruption import Ending, OutOfTime, watched
from fxprune.training.outputs import Loss, loss_of, right_ones
from fxprune.training.repaired import Repaired
from fxprune.training.steps import optimized, repeated
from passes.arguments import got, integer, is_a, number, quoted
from passes.documents.described_values import Described
from passes.process.settings import settings_kept
from passes.process.source_lines import innermost_line
from passes.process.state import seed_all
from passes.process.torch_private import forget_workers
from passes.statistics import Batch

Train = Callable[[nn.Module, int], object]
Evaluate = Callable[[nn.Module], float]
Prepare = Callable[[nn.Module], Repaired]

MOST_SEED = 2**32 - 1  # NumPy takes no larger one


@dataclass(frozen=True)
class Trained:
    """What came of training and evaluating one network; `error` says why there is no score. `late`: because its time
    was over. `repaired`: what was done before it was trained."""

    score: float | None = None
    error: str | None = None
    seconds_train: float = 0.0
    seconds_evaluate: float = 0.0
    late: bool = False
    repaired: Repaired | None = None


def train_candidate(
    network: nn.Module,
    steps: int,
    seed: int,
    train: Train | None,
    evaluate: Evaluate | None,
    limit_s: float | None = None,
    prepare: Prepare | None = None,
    inputs: Sequence[Described] = (),
    keep: dict[str, Tensor] | None = None,
) -> Trained:
    """Fine-tune a network in place and score it; `prepare` repairs it before, in place. Without `evaluate` its score is
    minus the divergence that repair has left. Whatever the user's functions raise, `sys.exit` included, weights that
    are no numbers any more and a score that is none are reported, not raised; so is the end of `limit_s` seconds.

    inputs: of `Plan.inputs`, on which it is seen whether `train` changed anything but tensors. keep: gets the tensors
    of the network as they are before `evaluate`, which may do to it what it wants; left empty without `evaluate`.

    What a signal raises (Ctrl-C) is raised again. Settings of the process (threads, default dtype, autocast, ...) are
    put back as they were, and gradients can be computed whatever the caller, or the `evaluate` of another candidate,
    has switched off.
    """
    with settings_kept():
        try:
            with watched(limit_s) as ending:
                trained = _attempt(network, steps, seed, train, evaluate, ending, prepare, inputs, keep)
        except OutOfTime:  # between the end of its work and that of the watch
            trained = Trained(late=True)
    if trained.late:
        return replace(trained, score=None, error=f"it was stopped ({out_of_time(limit_s)})")
    return trained


def out_of_time(limit_s: float | None) -> str:
    """Why a candidate was stopped, in the words of the configuration."""
    return f"longer than candidate_time_limit={limit_s:g} seconds"


def _attempt(
    network: nn.Module, steps: int, seed: int, train: Train | None, evaluate: Evaluate | None, ending: Ending,
    prepare: Prepare | None, inputs: Sequence[Described], keep: dict[str, Tensor] | None,
) -> Trained:  # fmt: skip
    clock, doing = {"train": 0.0, "evaluate": 0.0}, "train"
    score = error = repaired = None
    try:
        with torch.inference_mode(False), seeded(seed), torch.enable_grad():
            if prepare is not None:
                doing = "repair"
                repaired = prepare(network)
                score, doing = -repaired.kept, "train"
            if train is not None:
                before = Untrained.of(network, inputs)
                network.train()
                with settings_kept(), _timed(clock, "train"):  # nor does evaluate see what train left
                    train(network, steps)
                before.check(network)
                del before
            doing = "evaluate"
            if evaluate is not None:
                if keep is not None:
                    keep.update(tensors_of(network))
                network.eval()
                with _timed(clock, "evaluate"):
                    found = evaluate(network)
                score = score_of(found)
    except BaseException as raised:  # a user's function may raise anything, and one candidate is not the search
        if ending.is_interruption(raised):
            raise ending.raised or raised from None
        error = said(doing, raised)
    if ending.raised is not None:  # a function that catches Ctrl-C does not keep it to itself
        raise ending.raised
    return Trained(None if error else score, error, clock["train"], clock["evaluate"], ending.late, repaired)


@contextmanager
def _timed(clock: dict[str, float], name: str) -> Iterator[None]:
    """The seconds inside, added to an entry of `clock`; only what the user's functions take is not overhead."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        clock[name] += time.perf_counter() - begun


def score_of(value: object) -> float:
    """What `evaluate` returned, as a finite float; anything else is an error that says what it should return."""
    expected = "it must return one number, higher is better"
    if isinstance(value, Tensor | np.ndarray | np.generic):
        if math.prod(value.shape) != 1:
            raise InputError(f"evaluate returned a tensor of shape {tuple(value.shape)}; {expected}.")
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"evaluate returned {got(value)}; {expected}.")
    if not math.isfinite(value):
        raise InputError(
            f"evaluate returned {float(value)}; {expected}, and networks cannot be compared by {float(value)}."
        )
    return float(value)


def checked_seed(seed: object, where: str) -> int:
    """A seed that Python, NumPy and torch all take, as an int; anything else is an error before any work."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) <= MOST_SEED:
        raise InputError(f"{where}: seed is {quoted(seed)}; expected an integer from 0 to {MOST_SEED}.")
    return int(seed)


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
        seed_all(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
            cudnn.deterministic, cudnn.benchmark = chosen


def begin_anew(loader: object) -> None:
    """Let a loader draw from the candidate's seed, whatever was drawn from it before.

    Its own generators are seeded, and workers that outlive an epoch are started again.
    """
    seed, batches = torch.initial_seed(), getattr(loader, "batch_sampler", None)
    for holder in (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)):
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
    if getattr(loader, "persistent_workers", False):
        forget_workers(loader)


@dataclass
class FineTune:
    """A `train` for `netadapt`: exactly `steps` steps of SGD over `batches`, begun anew as often as needed.

    `batches` is a DataLoader or any other iterable of (inputs, targets), or of dicts that hold both by name. `loss`:
    of torch.nn gets the network's scores and the targets, any other all its outputs and the targets; None: the
    network's own loss where it computes one (Hugging Face models given `labels`), else the cross entropy. A new
    optimizer each call, and a loader with generators of its own begins anew from torch's seed, so that no candidate
    sees the state of another. Data and loss are moved to the model's device.

    >>> train = FineTune([(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))], lr=0.1)
    >>> train(nn.Linear(3, 2), steps=5)
    """

    batches: Iterable[object]
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    loss: Loss | None = None

    def __call__(self, model: nn.Module, steps: int) -> None:
        is_a(model, nn.Module, "FineTune", "the network to train, a torch.nn.Module", InputError)
        steps = integer(steps, "FineTune: steps", least=0, error=InputError)
        lr = number(self.lr, "FineTune: lr", least=0, error=InputError)
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters or not steps:
            return
        optimizer = torch.optim.SGD(parameters, lr, momentum=self.momentum, weight_decay=self.weight_decay)
        model.train()
        begin_anew(self.batches)

        def loss(batch: Batch) -> Tensor:
            return loss_of(batch.call(model), batch.labels, self.loss, "FineTune")

        batches = islice(repeated(lambda: labelled(model, self.batches, "FineTune"), "FineTune"), steps)
        for _ in optimized(optimizer, batches, loss):
            pass


@dataclass
class Accuracy:
    """An `evaluate` for `netadapt`: the top-1 accuracy over `batches`, in percent.

    `batches` of (inputs, labels), or of dicts that hold both by name; labels of -100 count for nothing. Scores may have
    more dimensions (of tokens, of pixels); a causal language model's are those of the next token.
    """

    batches: Iterable[object]

    def __call__(self, model: nn.Module) -> float:
        is_a(model, nn.Module, "Accuracy", "the network to evaluate, a torch.nn.Module", InputError)
        model.eval()
        begin_anew(self.batches)
        right = total = 0
        with torch.no_grad():
            for batch in labelled(model, self.batches, "Accuracy"):
                hits, counted = right_ones(batch.call(model), batch.labels, "Accuracy")
                right, total = right + hits, total + counted
        if not total:
            raise InputError("Accuracy: the data holds no batch; expected batches of (inputs, labels).")
        return 100.0 * right / total


def said(doing: str, error: BaseException) -> str:
    """One line for the record: what was raised, and the innermost line of the user's code on the way. The exception may
    be a user's, and even its text may raise."""
    try:
        text = str(error)
    except BaseException as second:  # whatever `__str__` does
        text = f"(its text cannot be had: __str__ raised {type(second).__name__})"
    text = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
    place = innermost_line(error)
    return f"{doing}: {type(error).__name__}: {text}" + (f" ({place})" if place else "")
