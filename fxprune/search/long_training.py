"""After the search: long training of the chosen network, by the user's own epochs (`train`) or ready-made
(`finetune`)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.data.loops import autocast, placed, shown
from fxprune.errors import FxpruneError, InputError
from fxprune.io.seal import UNSEALED, check_unchanged, sealed
from fxprune.io.storage import write_bytes
from fxprune.io.tensors import modes_of, put_modes, put_tensors, tensors_of, to_bytes
from fxprune.journal.read_run import read_run
from fxprune.journal.restoring import restored
from fxprune.problem.inputs import described
from fxprune.problem.wrappers import unwrapped
from fxprune.search.result import NetAdaptResult
from fxprune.training.batches import begin_epoch, check_iterable
from fxprune.training.batches import labelled as with_labels
from fxprune.training.batches import unlabelled as without_labels
from fxprune.training.candidate import MOST_SEED, Evaluate, checked_seed, score_of, seeded
from fxprune.training.context import DLContext, TrainFunction, ValidateFunction, device_of
from fxprune.training.distillation import output_loss
from fxprune.training.in_place import Untrained
from fxprune.training.outputs import Loss, loss_of, main_output
from fxprune.training.process_group import average_buffers, average_gradients, begin_alike, in_step, mean_of, rank
from fxprune.training.steps import optimized, rate
from fxprune.training.unchanged import unchanged
from passes import Certificate, Plan, verify
from passes.arguments import file_name, got, integer, is_a, number
from passes.process.source_lines import said
from passes.statistics import Batch
from passes.statistics.divergence import tensors_out
from passes.statistics.observing import inputs_of
from passes.stream.network_copies import clone

log = logging.getLogger(__name__)

_BEST = "best_model.safetensors"


def train(
    model: nn.Module,
    context: DLContext,
    train_func: TrainFunction | None = None,
    validate_func: ValidateFunction | None = None,
    distributed: bool = False,
    main_process: bool = True,
    qat: bool = False,
    work_dir: str | Path | None = None,
) -> float:
    """Train for `context.max_epoch` epochs, and leave the model with the weights that validated best.

    Calls `train_func(model, context)`, then `validate_func(model, context)`, each epoch; they are the context's
    where they are left out. What `validate_func` does to the network is put back. The best weights lie in `work_dir`
    ("out") as `best_model.safetensors`; a file of that name which fxprune did not write, or that was changed since, is
    an error before the training. `distributed`: the model is a DistributedDataParallel, and `main_process` says whether
    this process validates and saves.
    Returns the best score, which `context.best_acc` and `context.best_epoch` hold too.
    """
    is_a(model, nn.Module, "train", "the network to train, a torch.nn.Module", InputError)
    is_a(context, DLContext, "train: context", "a DLContext", InputError)
    train_func, validate_func = train_func or context.train_func, validate_func or context.validate_func
    if train_func is None or validate_func is None:
        raise InputError("train: there is no train_func or no validate_func; pass both, or set them in the context.")
    if context.max_epoch is None:
        raise InputError("train: context.max_epoch is not set; it is the number of epochs to train.")
    if qat:
        raise InputError("train: qat=True is quantization-aware training, which fxprune leaves to torch.ao.")
    if isinstance(context.criterion, nn.Module):
        context.criterion.to(device_of(model, context))
    plain = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    best: dict[str, Tensor] | None = None
    kept = file_name(work_dir or "out", "train: work_dir", "the name of a folder", InputError) / _BEST
    if main_process:
        check_unchanged(kept, InputError, "Move it away, or name another folder: train(..., work_dir=FOLDER)")
    untrained = Untrained.of(plain)
    context.best_acc, context.best_epoch = -math.inf, -1
    for epoch in range(context.max_epoch):
        context.epoch = epoch
        begin_epoch(context.train_sampler or context.train_loader, epoch)
        train_func(model, context)
        untrained.check_tensors(plain, "train_func")
        if not main_process:
            continue
        with unchanged(unwrapped(plain)[0]):
            score = score_of(validate_func(plain, context))
        if score > context.best_acc:
            context.best_acc, context.best_epoch = score, epoch
            best = tensors_of(plain)
            write_bytes(kept, sealed(to_bytes(best, {"fxprune": UNSEALED})))
        log.info("epoch %d: score %.6g, best %.6g of epoch %d", epoch, score, context.best_acc, context.best_epoch)
    if best is not None:
        put_tensors(plain, best)
    if distributed and torch.distributed.is_initialized():
        for tensor in [*plain.parameters(), *plain.buffers()]:
            torch.distributed.broadcast(tensor.data, 0)
    return context.best_acc


@dataclass(frozen=True, eq=False)
class FineTuned:
    """What `finetune` returns: the network with its best weights, the epoch (from 1) and the score that they had.

    `scores` and `losses` are those of each epoch; `certificate` proves the trained network against the dense one,
    where that is known.
    """

    model: nn.Module
    epoch: int
    score: float | None
    scores: tuple[float, ...]
    losses: tuple[float, ...]
    certificate: Certificate | None


def finetune(
    source: nn.Module | NetAdaptResult | str | Path,
    batches: object,
    *,
    round: int | None = None,
    model: nn.Module | None = None,
    example_inputs: object = None,
    evaluate: Evaluate | None = None,
    epochs: int = 30,
    lr: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    warmup: float = 1.0,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    loss: Loss | None = None,
    distill: float = 0.0,
    temperature: float = 4.0,
    teacher: nn.Module | None = None,
    device: torch.device | str | None = None,
    amp: bool | torch.dtype | None = None,
    channels_last: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> FineTuned:
    """Train a pruned network for long: SGD with Nesterov momentum, a linear warm-up and a cosine to zero.

    `source`: a NetAdaptResult or the workdir of a search, of which `round` is taken (None: the accepted one, 0: the
    unpruned network); for a workdir `model` is the original module and `example_inputs` what it takes. Or a module,
    which is trained in place. `batches` of (inputs, targets) are passed `epochs` times; inputs are a tensor, a tuple of
    arguments or a dict of keywords. `warmup` is in epochs. `optimizer(parameters)` replaces the SGD; its learning rates
    are the peaks. `evaluate(model)`, higher is better, chooses the epoch whose weights are returned; without it they
    are the last. What it does to the network is put back.

    `distill` mixes in the soft targets of `teacher` (the dense network, where it is known):
    (1 - distill) * loss + distill * temperature**2 * KL(teacher || student), both softened by the temperature (Hinton
    et al., Distilling the Knowledge in a Neural Network, 2015). Outputs may have any structure; what looks like no
    scores of classes is compared by its squared error (`fxprune.training.distillation.output_loss`). With distill=1 no
    labels are needed: batches may hold inputs alone, as tensors, tuples or dicts.

    >>> tuned = finetune(nn.Linear(3, 2), [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))], epochs=2, progress=False)
    >>> len(tuned.losses)
    2
    """
    _checked(epochs, distill, temperature, lr, momentum, weight_decay, warmup)
    check_iterable(batches, "finetune")
    _checked_functions(optimizer=optimizer, loss=loss, evaluate=evaluate)
    if teacher is not None:
        is_a(teacher, nn.Module, "finetune: teacher", "a torch.nn.Module", InputError)
    if amp is not None:
        is_a(amp, bool | torch.dtype, "finetune: amp", "True, False or a floating dtype of torch", InputError)
    seed = checked_seed(seed, "finetune")
    start = _start(source, round, model, example_inputs)
    network = start.network
    modes = modes_of(network)
    if distill:
        teacher = clone(teacher) if teacher is not None else start.dense() if start.dense is not None else None
        if teacher is None:
            raise InputError("finetune: distill needs a teacher; a module alone does not say what it was pruned from.")
        teacher.eval().requires_grad_(False)
    home = next((p.device for p in network.parameters()), torch.device("cpu"))
    there = home if device is None else _usable(device)
    context = DLContext(device=there, amp=amp, channels_last=channels_last, progress=progress)
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("finetune: no parameter of the network requires a gradient.")
    with seeded((seed + rank()) % MOST_SEED):
        placed(network, context)
        begin_alike(network, "finetune")
        if distill and teacher is not None:
            placed(teacher, context)
        made = _made_by(optimizer, parameters) if optimizer else _sgd(parameters, lr, momentum, weight_decay)
        objective = _objective(loss, teacher, distill, temperature)
        read = with_labels if distill < 1 else partial(without_labels, inputs=start.inputs)
        epoch, scores, losses = _epochs(network, batches, context, made, objective, evaluate, epochs, warmup, read)
    network.to(home)
    certificate = start.prove() if start.prove else None
    put_modes(network, modes)
    score = scores[epoch - 1] if scores else None
    return FineTuned(network, epoch, score, tuple(scores), tuple(losses), certificate)


@dataclass(frozen=True)
class _Start:
    """What is trained. `dense` makes what it was pruned from; `prove` certifies it, as trained, against that.

    inputs: how many a batch has by position, where an example says so.
    """

    network: Any
    dense: Callable[[], nn.Module] | None = None
    prove: Callable[[], Certificate] | None = None
    inputs: int | None = None


def _start(source: object, round: int | None, model: nn.Module | None, example_inputs: object) -> _Start:
    if isinstance(source, NetAdaptResult):
        return _start_of(source, source.accepted if round is None else round)
    if isinstance(source, str | Path):
        if model is None:
            raise InputError("finetune: the workdir of a search holds no module; pass model=, the original one.")
        found = restored(read_run(source), model, example_inputs, round)
        bare = unwrapped(found.network)[0]
        proof = partial(verify, found.dense, bare, found.plan, found.example_inputs, trained=True)
        return _Start(found.network, lambda: clone(found.dense), proof)
    if not isinstance(source, nn.Module):
        raise InputError(
            f"finetune: got a {type(source).__name__}; expected a module, a NetAdaptResult, or the workdir of a search."
        )
    if round is not None:
        raise InputError("finetune: a module has no rounds; pass the NetAdaptResult or the workdir instead.")
    return _Start(source)


def _start_of(result: NetAdaptResult, number: int) -> _Start:
    network = result.restore(number)
    plan = Plan.from_json(result.rounds[number - 1].plan) if number else result.coupling.plan({})
    proof = partial(verify, result.dense, unwrapped(network)[0], plan, result.example_inputs, trained=True)
    return _Start(network, lambda: result.restore(0), proof, inputs_of(result.dense, result.coupling))


def _epochs(
    network: nn.Module,
    batches: object,
    context: DLContext,
    optimizer: torch.optim.Optimizer,
    objective: Callable[[object, Batch], Tensor],
    evaluate: Evaluate | None,
    epochs: int,
    warmup: float,
    read: Callable[[nn.Module, Iterable[object], str], Iterator[Batch]],
) -> tuple[int, list[float], list[float]]:
    """Train; the network ends with the weights of the epoch that is returned (from 1)."""
    device = device_of(network, context)
    length = len(batches) if hasattr(batches, "__len__") else None
    average = partial(average_gradients, [p for p in network.parameters() if p.requires_grad])
    tried: list[Batch] = []

    def loss(batch: Batch) -> Tensor:
        tried[:] = [batch]
        with autocast(context, device):
            value = objective(batch.call(network), batch)
        if not isinstance(value, Tensor):
            raise InputError(f"finetune: the loss is {got(value)}; expected a tensor of one number, to be minimised.")
        if value.device.type == "cpu":  # to ask a GPU at each step would have it wait: there each epoch is asked
            _finite(value)
        return value

    def share(epoch: int, step: int) -> float:
        return rate(epoch + (step / length if length else 0.0), epochs, warmup, 1 / length if length else 1.0)

    scores: list[float] = []
    losses: list[float] = []
    best: dict[str, Tensor] | None = None
    chosen = epochs
    for epoch in range(epochs):
        network.train()
        total, count = torch.zeros((), device=device), 0
        begin_epoch(batches, epoch)
        given = shown(batches, f"fine-tune, epoch {epoch + 1} of {epochs}", context)
        taken = in_step(read(network, given, "finetune"), device, "finetune")
        try:
            for found in optimized(optimizer, taken, loss, partial(share, epoch), between=average):
                total, count = total + found, count + 1
        except Exception as error:
            if epoch or count or not tried or isinstance(error, InputError):
                raise
            raise _first_batch_fails(error, tried[0]) from error
        if not count:
            raise InputError("finetune: the data holds no batch; expected batches of (inputs, targets), each epoch.")
        _finite(total)
        average_buffers(network)
        losses.append(mean_of(total.item() / count, device))
        if evaluate is not None:
            network.eval()
            with unchanged(unwrapped(network)[0]):
                score_now = score_of(_evaluated(evaluate, network))
            scores.append(mean_of(score_now, device))
            if best is None or scores[-1] > max(scores[:-1]):
                best, chosen = tensors_of(network), epoch + 1
        score = f", score {scores[-1]:.6g}" if scores else ""
        log.info("fine-tune, epoch %d: loss %.4f%s", epoch + 1, losses[-1], score)
    if best is not None:
        put_tensors(network, best)
    return chosen, scores, losses


def _evaluated(evaluate: Evaluate, network: nn.Module) -> object:
    try:
        return evaluate(network)
    except FxpruneError:
        raise
    except Exception as error:  # the user's own code
        raise InputError(f"finetune: evaluate failed: {said(error)}.") from error


def _first_batch_fails(error: Exception, batch: Batch) -> InputError:
    said = (str(error).strip().splitlines() or [""])[0][:500]
    return InputError(
        f"finetune: the network or the loss fails on the first batch (inputs: "
        f"{described(dict(batch.kwargs) or batch.args)}; targets: {described(batch.labels)}): "
        f"{type(error).__name__}: {said}. Pass batches that both take."
    )


def _objective(
    loss: Loss | None, teacher: nn.Module | None, distill: float, temperature: float
) -> Callable[[object, Batch], Tensor]:
    def objective(outputs: object, batch: Batch) -> Tensor:
        if teacher is None or not distill:
            return loss_of(outputs, batch.labels, loss, "finetune")
        with torch.no_grad():
            wanted = batch.call(teacher)
        if len(tensors_out(outputs)) != len(tensors_out(wanted)):  # auxiliary heads that run in train mode alone
            soft = output_loss(main_output(outputs), main_output(wanted), temperature)
        else:
            soft = output_loss(outputs, wanted, temperature)
        if distill == 1:
            return soft
        return (1 - distill) * loss_of(outputs, batch.labels, loss, "finetune") + distill * soft

    return objective


def _sgd(parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0)


def _made_by(
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer], parameters: list[nn.Parameter]
) -> torch.optim.Optimizer:
    """What the user's function makes. Raises InputError for no optimizer, and for one of other parameters."""
    made = optimizer(parameters)
    lacking = [name for name in ("param_groups", "zero_grad", "step") if not hasattr(made, name)]
    if lacking:
        raise InputError(
            f"finetune: optimizer(parameters) returned {got(made)}; expected an optimizer of torch.optim, made of them."
        )
    known = {id(parameter) for parameter in parameters}
    if not any(id(parameter) in known for group in made.param_groups for parameter in group["params"]):
        raise InputError(
            "finetune: the optimizer that optimizer(parameters) returned has none of these parameters, so it would "
            "train nothing; make it of what it is called with, as in lambda parameters: torch.optim.Adam(parameters)."
        )
    return made


def _finite(loss: Tensor) -> None:
    if not bool(torch.isfinite(loss.detach()).all()):
        raise InputError(
            "finetune: training diverged: the loss is NaN or infinity; lower lr, or look for such numbers in the data."
        )


def _usable(device: Any) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:  # an unknown, absent or wrongly named one
        said = (str(error).strip().splitlines() or [""])[0][:200]
        raise InputError(f"finetune: device: got {got(device)}, which cannot be used here: {said}.") from error


def _checked(
    epochs: int, distill: float, temperature: float, lr: float, momentum: float, weight_decay: float, warmup: float
) -> None:
    integer(epochs, "finetune: epochs", least=1, error=InputError)
    number(distill, "finetune: distill, a share of the loss", least=0, most=1, error=InputError)
    number(lr, "finetune: lr", least=0, error=InputError)
    number(momentum, "finetune: momentum", least=0, most=1, error=InputError)
    number(weight_decay, "finetune: weight_decay", least=0, error=InputError)
    number(warmup, "finetune: warmup, in epochs", least=0, error=InputError)
    if number(temperature, "finetune: temperature", error=InputError) <= 0:
        raise InputError(f"finetune: temperature is {temperature}; expected more than 0.")


def _checked_functions(**functions: object) -> None:
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise InputError(f"finetune: {name}: got {got(function)}; expected a function.")
