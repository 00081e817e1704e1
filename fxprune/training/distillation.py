"""Training towards the dense network's outputs: no labels are needed, and outputs may have any structure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

import torch
from torch import Tensor, nn

from fxprune.errors import InputError
from fxprune.training.candidate import checked_seed, seeded
from fxprune.training.outputs import Loss, loss_of
from fxprune.training.steps import optimized, rate, repeated
from passes.arguments import integer, number
from passes.statistics import Batch, batches_of
from passes.statistics.divergence import apart_by, tensors_out


def output_loss(student: object, teacher: object, temperature: float = 4.0) -> Tensor:
    """How far a student's outputs are from the teacher's, whatever they are made of: 0 for equal ones.

    Every floating-point tensor of the outputs counts the same: scores of classes (the last dimension; of maps and other
    outputs with four or more dimensions the second) by temperature**2 * KL(teacher || student) of the softened softmax,
    anything with a single value there by the squared error relative to the teacher's variance.
    """
    given, wanted = tensors_out(student), tensors_out(teacher)
    if not wanted or len(given) != len(wanted):
        raise InputError(
            f"distillation: the teacher gives {len(wanted)} floating-point tensors and the student {len(given)}; "
            "it needs as many of both, and at least one"
        )
    if [mine.shape for mine in given] != [theirs.shape for theirs in wanted]:
        shapes = [[list(tensor.shape) for tensor in tensors] for tensors in (wanted, given)]
        raise InputError(
            f"distillation: the teacher gives tensors of shapes {shapes[0]} and the student {shapes[1]}; outputs whose "
            "number depends on the values cannot be imitated: distil from a part of the network that gives all, or "
            "fine-tune with a loss of your own"
        )
    parts = [
        apart_by(theirs.detach().float(), mine.float(), temperature) for mine, theirs in zip(given, wanted, strict=True)
    ]
    return torch.stack(parts).mean()


def distil(
    student: nn.Module, teacher: nn.Module, batches: Iterable[object], steps: int, *, lr: float = 0.02,
    temperature: float = 4.0, momentum: float = 0.9, weight_decay: float = 1e-4, warmup: float = 0.1,
    loss: Loss | None = None, labels: float = 0.1, seed: int = 0, progress: Callable[[int, float], None] | None = None,
) -> nn.Module:  # fmt: skip
    """Train `student`, in place, for `steps` steps towards what `teacher` computes; returns it in its former mode.

    batches: passed again and again until the steps are done; inputs alone, or with labels behind them. With `loss` of
    (output, labels) the labels count by the share `labels`. SGD with Nesterov momentum; the rate rises to `lr` over the
    first `warmup` of the steps and falls to zero along a cosine. progress: called with each step and its loss.

    >>> from torch import nn
    >>> teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    >>> before = float(output_loss(student(torch.eye(4)), teacher(torch.eye(4))))
    >>> after = distil(student, teacher, [torch.eye(4)], 20)(torch.eye(4))
    >>> float(output_loss(after, teacher(torch.eye(4)))) < before
    True
    """
    integer(steps, "distil: steps", least=0, error=InputError)
    number(lr, "distil: lr", least=0, error=InputError)
    number(temperature, "distil: temperature", least=1e-3, error=InputError)
    number(labels, "distil: labels, a share of the loss", least=0, most=1, error=InputError)
    seed = checked_seed(seed, "distil")
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0)
    modes = [(module, module.training) for network in (student, teacher) for module in network.modules()]

    def total(batch: Batch) -> Tensor:
        with torch.no_grad():
            wanted = batch.run(teacher)
        given = batch.run(student, "the student")
        soft = output_loss(given, wanted, temperature)
        if loss is None or batch.labels is None:
            return soft
        return (1 - labels) * soft + labels * loss_of(given, batch.labels, loss, "distil")

    with seeded(seed):
        try:
            student.train()
            teacher.eval()
            again = repeated(lambda: batches_of(student, batches), "distil")
            found = optimized(optimizer, islice(again, steps), total, lambda step: rate(step, steps, warmup * steps, 1))
            for step, value in enumerate(found):
                if progress is not None:
                    progress(step, float(value))
        finally:
            for module, training in modes:
                module.training = training
    optimizer.zero_grad(set_to_none=True)
    return student
