"""One epoch of training and one validation of an image classifier, on one device or on each of a process group."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.data.errors import DataError
from fxprune.io.printed_text import terminal
from fxprune.training.context import DLContext, device_of
from fxprune.training.outputs import main_output
from fxprune.training.steps import optimized

log = logging.getLogger(__name__)

# The share of each auxiliary classifier in the loss (Szegedy et al., Going Deeper with Convolutions, 2014, section 5).
AUXILIARY = 0.3
EVERY_S = 30.0  # between two lines of the log about one epoch


@dataclass(frozen=True)
class Measures:
    """Means over the images of a pass, over all processes: the loss, top-1 and top-5 accuracy in percent."""

    images: int
    loss: float
    top1: float
    top5: float
    seconds: float

    def __str__(self) -> str:
        rate = self.images / self.seconds if self.seconds else 0.0
        return f"loss {self.loss:.4f}, top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} %, {rate:.0f} images/s"


def train_one_epoch(model: nn.Module, context: DLContext) -> Measures:
    """Train over `context.train_loader` once, or until `context.iteration` reaches `context.max_iteration`.

    Uses criterion, optimizer, device, amp or grad_scaler, channels_last and the schedulers of the context (see
    DLContext) and counts `context.iteration` on. A criterion of class BCEWithLogitsLoss gets the labels one-hot.
    """
    criterion = _needed(context.criterion, "criterion", "train_one_epoch")
    optimizer = _needed(context.optimizer, "optimizer", "train_one_epoch")
    batches = _needed(context.train_loader, "train_loader", "train_one_epoch")
    device = placed(model, context)
    model.train()
    sums = Sums(device)
    if _finished(context):
        return sums.measures()

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = _moved(batch[0], context, device), batch[1].to(device, non_blocking=True)
        with autocast(context, device):
            outputs = model(images)
            found = classification_loss(outputs, labels, criterion)
        sums.add(outputs, labels, found)
        return found

    given = shown(batches, f"epoch {context.epoch}", context)
    for _ in optimized(optimizer, given, loss, scaler=context.grad_scaler):
        if context.warmup_scheduler is not None and context.iteration < context.warmup_iteration:
            context.warmup_scheduler.step()
        context.iteration += 1
        if context.iter_scheduler is not None and context.iteration >= context.warmup_iteration:
            context.iter_scheduler.step()
        if context.print_freq and sums.batches % context.print_freq == 0:
            rate, here = optimizer.param_groups[0]["lr"], sums.measures(local=True)
            _tell(context, "epoch %s, batch %d: lr %.4g, %s", context.epoch, sums.batches, rate, here)
        if _finished(context):
            break
    if not sums.batches:
        raise DataError("train_one_epoch: context.train_loader holds no batch; expected batches of (images, labels).")
    if context.scheduler is not None and context.iteration >= context.warmup_iteration:
        context.scheduler.step()
    measures = sums.measures()
    _tell(context, "epoch %s: %s", context.epoch, measures)
    return measures


def validate(model: nn.Module, context: DLContext) -> float:
    """Top-1 accuracy over `context.val_loader`, in percent; `validation(model, context)` has top-5 and loss too.

    In a process group each process validates its part of the data, and all return the accuracy over the whole.
    """
    return validation(model, context).top1


@torch.no_grad()
def validation(model: nn.Module, context: DLContext) -> Measures:
    """Cross-entropy, top-1 and top-5 accuracy over `context.val_loader`; the model is left in eval mode."""
    batches = _needed(context.val_loader, "val_loader", "validate")
    device = placed(model, context)
    model.eval()
    sums = Sums(device)
    for images, labels in shown(batches, "validation", context):
        images, labels = _moved(images, context, device), labels.to(device, non_blocking=True)
        with autocast(context, device):
            outputs = model(images)
            loss = F.cross_entropy(main_output(outputs), labels)
        sums.add(outputs, labels, loss)
    measures = sums.measures()
    if not measures.images:
        raise DataError("validate: context.val_loader holds no batch; expected batches of (images, labels).")
    _tell(context, "validation: %s", measures)
    return measures


class Sums:
    """Counts over the batches of a pass, kept on the device so that no batch waits for it."""

    def __init__(self, device: torch.device):
        wide = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.zeros(4, dtype=wide, device=device)  # images, loss, right, right among five
        self._begun = time.perf_counter()
        self.batches = 0

    def add(self, outputs: object, labels: Tensor, loss: Tensor) -> None:
        logits = main_output(outputs).detach()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        count = len(labels)
        new = torch.stack([best.new_tensor(count, dtype=self._sums.dtype), count * loss.detach().to(self._sums.dtype)])
        self._sums += torch.cat([new, best[:, :1].sum().view(1), best.sum().view(1)])
        self.batches += 1

    def measures(self, local: bool = False) -> Measures:
        sums = self._sums.clone()
        if not local and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        images, loss, first, five = sums.tolist()
        share = 1 / max(images, 1)
        seconds = time.perf_counter() - self._begun
        return Measures(int(images), loss * share, 100 * first * share, 100 * five * share, seconds)


def classification_loss(outputs: object, labels: Tensor, criterion: Callable[..., Tensor]) -> Tensor:
    """The criterion on the logits (n, classes), and a share of it on the logits of auxiliary classifiers."""
    logits, others = main_output(outputs), auxiliary_outputs(outputs)
    targets = labels
    if isinstance(criterion, nn.BCEWithLogitsLoss):
        targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return criterion(logits, targets) + AUXILIARY * sum(criterion(other, targets) for other in others)


def auxiliary_outputs(outputs: object) -> list[Tensor]:
    return [other for other in outputs[1:] if other is not None] if isinstance(outputs, tuple | list) else []


def autocast(context: DLContext, device: torch.device) -> AbstractContextManager[object]:
    """Mixed precision where the context asks for it: float16 with a grad_scaler, else the type that `amp` names."""
    if isinstance(context.amp, torch.dtype):
        return torch.autocast(device.type, context.amp)
    if context.grad_scaler is not None and context.amp is not False:
        return torch.autocast(device.type, torch.float16)
    return torch.autocast(device.type, torch.bfloat16) if context.amp else nullcontext()


def shown(batches: Any, description: str, context: DLContext) -> Iterator[Any]:
    """The batches, with a bar on the terminal of the first process while they pass; elsewhere a line of the log every
    `EVERY_S`."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not context.progress or (distributed and torch.distributed.get_rank() != 0):
        yield from batches
        return
    total = len(batches) if hasattr(batches, "__len__") else None
    if not sys.stderr.isatty():
        begun = last = time.perf_counter()
        for number, batch in enumerate(batches, 1):
            yield batch
            if (now := time.perf_counter()) - last >= EVERY_S:
                last = now
                log.info(
                    "%s: %s batches, %.0f s", description, f"{number} of {total}" if total else number, now - begun
                )
        return
    from rich.progress import track

    yield from track(batches, description, total, console=terminal(stderr=True), transient=True)


def placed(model: nn.Module, context: DLContext) -> torch.device:
    """Move the model to where the context works, in the memory layout that it asks for."""
    device = device_of(model, context)
    model.to(device)
    if context.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return device


def _tell(context: DLContext, message: str, *values: object) -> None:
    """To the log; inside a search, which shows its own progress, only where all is asked for."""
    log.log(logging.INFO if context.progress else logging.DEBUG, message, *values)


def _moved(images: Tensor, context: DLContext, device: torch.device) -> Tensor:
    layout = torch.channels_last if context.channels_last and images.dim() == 4 else torch.preserve_format
    return images.to(device, non_blocking=True, memory_format=layout)


def _finished(context: DLContext) -> bool:
    return context.max_iteration is not None and context.iteration >= context.max_iteration


def _needed(value: object, name: str, function: str) -> Any:
    if value is None:
        raise DataError(f"{function}: context.{name} is not set; pass {name}=... to DLContext.")
    return value
