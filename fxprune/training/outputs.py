"""What a network returns, read for training: the scores among its outputs, its own loss, the loss for labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.errors import InputError
from passes.statistics.divergence import tensors_out
from passes.statistics.gradients import Loss
from passes.stream.call_arguments import attributes_of

IGNORED = -100  # the label that counts for nothing, as in torch's cross entropy


def named_outputs(outputs: object) -> Mapping[str, Any] | None:
    """The outputs by name, of a mapping or a dataclass; None for all else."""
    if isinstance(outputs, Mapping):
        return outputs
    return attributes_of(outputs) if dataclasses.is_dataclass(outputs) else None


def main_output(outputs: object) -> Any:
    """The scores: of a mapping or dataclass its `logits`, else the first tensor; of a tuple or list its first part.

    A classifier with auxiliary ones, as GoogLeNet and Inception in train mode, has its own first.
    """
    named = named_outputs(outputs)
    if named is None:
        return outputs[0] if isinstance(outputs, tuple | list) else outputs
    if isinstance(named.get("logits"), Tensor):
        return named["logits"]
    found = tensors_out(named)
    return found[0] if found else outputs


def own_loss(outputs: object) -> Tensor | None:
    """The loss that the network has computed itself: its output `loss`, or the sum of outputs that are losses alone.

    The latter is what torchvision's detectors return in train mode.
    """
    named = named_outputs(outputs)
    if not named:
        return None
    loss = named.get("loss")
    if isinstance(loss, Tensor):
        return loss if loss.dim() == 0 else loss.mean()
    if all("loss" in name and isinstance(value, Tensor) and value.dim() == 0 for name, value in named.items()):
        return torch.stack(list(named.values())).sum()
    return None


def loss_of(outputs: object, labels: Any, loss: Loss | None, where: str) -> Tensor:
    """The loss to train by.

    `loss`: a module or function of `torch.nn` gets the scores and the labels, any other all outputs and the labels.
    None: the network's own, where it computed one, else the cross entropy of its scores.

    Raises InputError where there are no labels, or scores and labels have shapes that do not fit.
    """
    if loss is None and (own := own_loss(outputs)) is not None:
        return own
    if labels is None:
        raise InputError(
            f"{where}: a batch has no labels, and the network computes no loss of its own; pass (inputs, labels), "
            "a dict with labels, or train without them: finetune(..., distill=1.0)."
        )
    if loss is not None:
        return loss(main_output(outputs) if _of_torch(loss) else outputs, labels)
    return cross_entropy(_scores(outputs, where), labels, where)


def cross_entropy(scores: Tensor, labels: Tensor, where: str) -> Tensor:
    """The mean cross entropy, whichever dimension of the scores is that of the classes."""
    if labels.is_floating_point():
        return F.cross_entropy(scores, _shares(scores, labels, where))
    found = classes_second(scores, labels, where)
    if found.shape[1] == 1:
        raise InputError(
            f"{where}: scores of shape {tuple(scores.shape)} are of a single class, which cross entropy learns nothing "
            "from; pass a loss, such as torch.nn.functional.binary_cross_entropy_with_logits."
        )
    return F.cross_entropy(found, labels, ignore_index=IGNORED)


def _shares(scores: Tensor, labels: Tensor, where: str) -> Tensor:
    """Labels that are a share of each class. Raises InputError for other numbers: those are values to be met."""
    sums = labels.sum(1) if labels.dim() > 1 and labels.shape == scores.shape and labels.shape[1] > 1 else None
    if sums is None or float(labels.min()) < 0 or not torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
        raise InputError(
            f"{where}: labels of {labels.dtype} and shape {tuple(labels.shape)} are no classes, nor shares of the "
            f"classes of scores of shape {tuple(scores.shape)}; pass a loss, such as torch.nn.functional.mse_loss."
        )
    return labels


def classes_second(scores: Tensor, labels: Tensor, where: str) -> Tensor:
    """The scores as (n, classes, ...) for labels (n, ...). Raises InputError where that is not one way to read them."""
    last = scores.dim() > 1 and scores.shape[:-1] == labels.shape
    second = scores.dim() > 1 and (scores.shape[0], *scores.shape[2:]) == tuple(labels.shape)
    if last == second and scores.dim() != 2 or not (last or second):
        what = "either dimension could be that of the classes" if last else "these do not fit"
        raise InputError(
            f"{where}: scores of shape {tuple(scores.shape)} and labels of shape {tuple(labels.shape)}: {what}; pass a "
            "loss, or a function, of your own."
        )
    return scores.movedim(-1, 1) if last else scores


def right_ones(outputs: object, labels: object, where: str) -> tuple[int, int]:
    """How many labels the best scores hit, and of how many; labels of -100 count for nothing.

    Scores of the next token (a causal language model's) are compared with the next label. That a network means this is
    read from the loss that it computes itself, so such a network must compute one.

    Raises InputError for labels that are no classes, or do not fit the scores.
    """
    scores = _scores(outputs, where)
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        what = "no labels" if labels is None else f"labels that are no class numbers ({type(labels).__name__})"
        raise InputError(f"{where}: a batch has {what}; pass an evaluate of your own.")
    scores, labels = _aligned(outputs, scores, labels, where)
    counted = labels != IGNORED
    return int(((scores.argmax(1) == labels) & counted).sum()), int(counted.sum())


def _aligned(outputs: object, scores: Tensor, labels: Tensor, where: str) -> tuple[Tensor, Tensor]:
    own = own_loss(outputs)
    if own is None or scores.dim() == 2:
        return classes_second(scores, labels, where), labels
    ways: list[tuple[Tensor, Tensor]] = []
    if scores.shape[:-1] == labels.shape:
        ways += [(scores.movedim(-1, 1), labels), (scores[:, :-1].movedim(-1, 1), labels[:, 1:])]
    if (scores.shape[0], *scores.shape[2:]) == tuple(labels.shape):
        ways.append((scores, labels))
    for aligned, meant in ways:
        mine = F.cross_entropy(aligned.float(), meant, ignore_index=IGNORED)
        if torch.allclose(mine, own.float(), rtol=1e-3, atol=1e-4):
            return aligned, meant
    raise InputError(
        f"{where}: the network's own loss is no cross entropy of its scores {tuple(scores.shape)} and the labels "
        f"{tuple(labels.shape)}, so it cannot be told which score belongs to which; pass an evaluate of your own."
    )


def _scores(outputs: object, where: str) -> Tensor:
    scores = main_output(outputs)
    if isinstance(scores, Tensor):
        return scores
    kind = ", ".join(map(str, outputs)) if isinstance(outputs, Mapping) else type(scores).__name__
    raise InputError(f"{where}: the network returns no scores ({kind}); pass a loss, or a function, of your own.")


def _of_torch(loss: Loss) -> bool:
    if isinstance(loss, nn.Module):
        return any(kind.__module__ == "torch.nn.modules.loss" for kind in type(loss).__mro__)
    return getattr(loss, "__module__", None) == "torch.nn.functional"
