"""`transformers.Trainer` as the training code of a search: its data, its loss and its metrics, on each candidate."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxprune.errors import InputError
from fxprune.training.optimizer_recipe import names_of, recipe_of
from passes.arguments import got
from passes.graph.module_copies import copied_or_shared

if TYPE_CHECKING:
    from transformers import Trainer

log = logging.getLogger(__name__)

# What a search does itself, or what is no business of a candidate.
_ARGUMENTS: dict[str, object] = {
    "num_train_epochs": 1, "save_strategy": "no", "eval_strategy": "no", "logging_strategy": "no", "report_to": [],
    "disable_tqdm": True, "load_best_model_at_end": False, "push_to_hub": False, "resume_from_checkpoint": None,
}  # fmt: skip


@dataclass(frozen=True)
class Functions:
    """What `netadapt` takes from a trainer: ``netadapt(model, ..., train=f.train, evaluate=f.evaluate,
    calibration=f.calibration)``.

    metric: the name of the metric that scores, as `evaluate` of the trainer returns it; higher: whether a higher one is
    better.
    """

    trainer: Trainer
    metric: str
    higher: bool

    def train(self, model: nn.Module, steps: int) -> None:
        """`steps` steps of the trainer's own training, by a new trainer around `model`, which is trained in place."""
        if steps:
            with _AsItWas(model):
                _around(self.trainer, model, steps).train()

    def evaluate(self, model: nn.Module) -> float:
        """The metric over the trainer's `eval_dataset`; higher is better."""
        with _AsItWas(model):
            metrics = _around(self.trainer, model, 1).evaluate()
        if self.metric not in metrics:
            raise InputError(
                f"transformers: the trainer's evaluation gives {sorted(metrics)}, and no {self.metric!r}; pass "
                "functions(trainer, metric=...) or compute_metrics to the Trainer."
            )
        value = float(metrics[self.metric])
        return value if self.higher else -value

    @property
    def calibration(self) -> Batches:
        """Batches of the training data, as its collator makes them."""
        return Batches(self.trainer)


@dataclass(frozen=True)
class Batches:
    """The batches of a trainer's training data: a new pass each time."""

    trainer: Trainer

    def __iter__(self) -> Iterator[object]:
        return iter(self.trainer.get_train_dataloader())


def functions(trainer: Trainer, metric: str | None = None, higher: bool | None = None) -> Functions:
    """`train`, `evaluate` and `calibration` for `netadapt`, from a `transformers.Trainer`.

    Each candidate is trained and evaluated by a new trainer of the same class with the same data, collator, loss,
    metrics, own callbacks and arguments, apart from the number of steps, and from checkpoints and reports, of which a
    search has none. Callbacks are copied for each candidate; one that refuses to be copied is shared, and its counts go
    on from candidate to candidate. The optimizer is made anew by the trainer; one that was handed to it is rebuilt
    for the candidate, and the schedule of its rates is that of the arguments.

    metric: what scores ("accuracy" stands for "eval_accuracy"); None: the arguments' `metric_for_best_model`, else the
    loss. higher: whether a higher one is better; None: as the arguments' `greater_is_better` says where it is that
    metric, else yes unless its name ends with "loss".

    Raises InputError for what is no Trainer, has no training data, or shards the model over processes.
    """
    import transformers

    if not isinstance(trainer, transformers.Trainer):
        raise InputError(f"transformers.functions: got {got(trainer)}; expected a transformers.Trainer.")
    for name in ("train_dataset", "eval_dataset"):
        if getattr(trainer, name) is None:
            raise InputError(f"transformers.functions: the trainer has no {name}; pass {name}=... to it.")
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise InputError(
            "transformers.functions: the trainer shards the model (FSDP or DeepSpeed), and a candidate is trained "
            "whole; search without, and hand the pruned network to the sharded trainer."
        )
    if trainer.lr_scheduler is not None and not vars(trainer).get("_created_lr_scheduler"):
        log.warning(
            "the trainer's own scheduler belongs to the model that it was made for; candidates have a %s one, as the "
            "arguments say", getattr(trainer.args.lr_scheduler_type, "value", trainer.args.lr_scheduler_type),
        )  # fmt: skip
    best = trainer.args.metric_for_best_model
    name = _full(metric or best or "loss")
    if higher is None:
        said = trainer.args.greater_is_better if best is not None and _full(best) == name else None
        higher = said if said is not None else not name.endswith("loss")
    return Functions(trainer, name, higher)


def _full(metric: str) -> str:
    return metric if metric.startswith("eval_") else f"eval_{metric}"


def _around(trainer: Any, model: nn.Module, steps: int) -> Any:
    """A trainer of the same class around another model.

    Attributes of a class of the user's own are taken over; those of the `Trainer` are made by its constructor.
    """
    import transformers

    seed = torch.initial_seed() % 2**31
    args = dataclasses.replace(trainer.args, max_steps=steps, seed=seed, data_seed=seed, **_ARGUMENTS)
    made = object.__new__(type(trainer))
    made.__dict__.update(trainer.__dict__)
    optimizer = None
    if trainer.optimizer is not None:
        given = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate wraps it when it is used
        optimizer = recipe_of(given, names_of(trainer.accelerator.unwrap_model(trainer.model))).build(model)
    # Those of transformers report, show progress, or stop early by evaluations that a candidate has none of.
    own = [c for c in trainer.callback_handler.callbacks if not type(c).__module__.startswith("transformers.")]
    # What the trainer has (model, data, the trainer itself) stays one where a callback refers to it.
    shared: dict[int, object] = {id(held): held for held in (trainer, *vars(trainer).values())}
    callbacks = [copied_or_shared(callback, shared) for callback in own]
    transformers.Trainer.__init__(
        made, model, args, trainer.data_collator, trainer.train_dataset, trainer.eval_dataset,
        trainer.processing_class, compute_loss_func=trainer.compute_loss_func,
        compute_metrics=trainer.compute_metrics, callbacks=callbacks, optimizers=(optimizer, None),
        optimizer_cls_and_kwargs=trainer.optimizer_cls_and_kwargs,
        preprocess_logits_for_metrics=trainer.preprocess_logits_for_metrics,
    )  # fmt: skip
    made.remove_callback(transformers.PrinterCallback)
    return made


class _AsItWas:
    """A trainer moves a model, and puts another forward into it for mixed precision; afterwards it is as before."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.forward = model.__dict__.get("forward")

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        kept = self.model.__dict__
        kept.pop("forward", None)
        kept.pop("_original_forward", None)
        if self.forward is not None:
            kept["forward"] = self.forward
        self.model.to(self.device)
