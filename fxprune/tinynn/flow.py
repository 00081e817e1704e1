"""A `DLContext` as the `train` and `evaluate` of a search: each candidate in a context of its own, as if it were
alone."""

from __future__ import annotations

import copy
import logging
import multiprocessing
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fxprune.errors import InputError
from fxprune.training.candidate import begin_anew
from fxprune.training.context import DLContext, get_device
from fxprune.training.optimizer_recipe import Recipe, recipe_of, with_inert_optimizer

log = logging.getLogger(__name__)


@dataclass
class ContextTrain:
    """`train(model, steps)`: the context's `train_func`, called until it has made `steps` iterations.

    Each call gets a copy of the context with a new optimizer (the groups of the user's, on the candidate's
    parameters), a copied criterion and gradient scaler, `iteration` 0 and `max_iteration` the iterations that are left.
    Schedulers may be stepped, but change nothing: inside the search the learning rate is `netadapt_lr`.
    """

    context: DLContext
    recipe: Recipe | None

    def __call__(self, model: nn.Module, steps: int) -> None:
        context = own_context(self.context, model)
        counter = StepCounter()
        if self.recipe is not None:
            context.optimizer = self.recipe.build(model)
            context.optimizer.register_step_post_hook(counter.step)
        train = context.train_func
        assert train is not None, "the pruner refuses a context without"
        done, epoch = 0, 0
        while done < steps:
            epoch += 1
            context.epoch, context.iteration, context.max_iteration = epoch, 0, steps - done
            counter.steps = 0
            train(model, context)
            done += iterations(context, counter.steps)
        if done > steps:
            log.warning(
                "train_func made %d iterations where context.max_iteration allowed %d; it should stop at max_iteration",
                done, steps,
            )  # fmt: skip


@dataclass
class ContextEvaluate:
    """`evaluate(model)`: the context's `validate_func`, in a copy of the context."""

    context: DLContext

    def __call__(self, model: nn.Module) -> float:
        validate = self.context.validate_func
        assert validate is not None, "the pruner refuses a context without"
        return validate(model, own_context(self.context, model))


class StepCounter:
    """Counts the steps of an optimizer."""

    def __init__(self) -> None:
        self.steps = 0

    def step(self, *_: object) -> None:
        self.steps += 1


def search_functions(names: Mapping[int, str], context: DLContext, rate: float) -> tuple[ContextTrain, ContextEvaluate]:
    """The `train` and `evaluate` of a search, as the context describes them.

    `names` are those of the parameters that the context's optimizer holds, by their id.
    """
    if context.train_func is None or context.validate_func is None:
        missing = [name for name in ("train_func", "validate_func") if getattr(context, name) is None]
        raise InputError(
            f"NetAdaptPruner: the context has no {' and no '.join(missing)}; set train_func(model, context), which "
            "trains until context.max_iteration, and validate_func(model, context) -> float, higher is better."
        )
    recipe = recipe_of(context.optimizer, names).at(rate) if context.optimizer is not None else None
    shared = copy.copy(context)
    shared.optimizer = shared.calibration = None
    for name in ("scheduler", "iter_scheduler", "warmup_scheduler"):
        setattr(shared, name, with_inert_optimizer(getattr(context, name)))
    return ContextTrain(shared, recipe), ContextEvaluate(shared)


def own_context(context: DLContext, model: nn.Module) -> DLContext:
    """A copy of the context for one candidate, with nothing in it that another candidate changes; moves the model."""
    own = copy.copy(context)
    own.device = device_here(context)
    model.to(own.device)
    own.progress = False  # the search shows its own
    own.best_acc, own.best_epoch = 0.0, -1
    for name in ("criterion", "grad_scaler", "scheduler", "iter_scheduler", "warmup_scheduler"):
        setattr(own, name, copy.deepcopy(getattr(context, name)))
    if isinstance(own.criterion, nn.Module):
        own.criterion.to(own.device)
    own.custom_args = copy.copy(context.custom_args)
    for loader in (context.train_loader, context.val_loader):
        begin_anew(loader)
    return own


def device_here(context: DLContext) -> torch.device:
    """The context's device, else the GPU, else the CPU; in a worker process the GPU that the worker was given."""
    if context.device is None:
        return get_device()
    device = torch.device(context.device)
    if device.type == "cuda" and multiprocessing.parent_process() is not None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def iterations(context: DLContext, steps: int) -> int:
    """How many iterations a call of train_func made: as it counted itself, else the optimizer's steps.

    Where neither is known (it made an optimizer of its own), as many as the loader holds and the context allowed.
    """
    if counted := context.iteration or steps:
        return counted
    allowed = context.max_iteration
    assert allowed is not None, "set before the call"
    if context.train_loader is None or not hasattr(context.train_loader, "__len__"):
        return allowed
    if not len(context.train_loader):
        raise InputError("context.train_loader holds no batch, so train_func cannot make an iteration.")
    return min(allowed, len(context.train_loader))
