"""An optimizer as a recipe: rebuilt, with its parameter groups, on the parameters of another network."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fxprune.errors import InputError
from passes.process.torch_private import mark_as_scheduled

log = logging.getLogger(__name__)

# What schedulers leave in a parameter group; it belongs to them, not to the recipe.
_OF_SCHEDULERS = ("initial_lr", "max_lr", "min_lr", "swa_lr", "max_momentum", "base_momentum")


@dataclass(frozen=True)
class Recipe:
    """The class of an optimizer, its defaults, and for each group its options and the names of its parameters."""

    kind: type[Optimizer]
    defaults: dict[str, Any]
    groups: tuple[tuple[dict[str, Any], tuple[str, ...]], ...]

    def build(self, network: nn.Module) -> Optimizer:
        """A new optimizer, with no state, on the network's parameters of these names; those it does not have are left
        out."""
        own = dict(network.named_parameters(remove_duplicate=False))
        groups = [{**options, "params": [own[name] for name in names if name in own]} for options, names in self.groups]
        groups = [group for group in groups if group["params"]]
        if not groups:
            raise InputError(f"{self.kind.__name__}: the network has none of the optimizer's parameters.")
        accepted = inspect.signature(self.kind.__init__).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        keywords = {name: value for name, value in self.defaults.items() if takes_all or name in accepted}
        try:
            return self.kind(groups, **keywords)
        except TypeError as error:
            raise InputError(
                f"{self.kind.__name__} cannot be built anew for a pruned network from its groups and defaults: {error}."
                " Leave context.optimizer out, and make the optimizer in train_func from model.parameters()."
            ) from error

    def at(self, rate: float) -> Recipe:
        """The same at another learning rate: groups at the optimizer's own rate get `rate`, the others in proportion.

        Where no group is at the optimizer's own rate, the largest of the groups' rates counts as that.
        """
        rates = [options["lr"] for options, _ in self.groups if "lr" in options]
        if not rates:
            return self
        own = self.defaults.get("lr")
        base = float(max(rates) if own is None or own not in rates else own)
        if base <= 0:
            return self
        groups = tuple(
            ({**options, "lr": rate * float(options["lr"]) / base} if "lr" in options else options, names)
            for options, names in self.groups
        )
        return Recipe(self.kind, {**self.defaults, "lr": rate} if "lr" in self.defaults else self.defaults, groups)


def names_of(*models: nn.Module) -> dict[int, str]:
    """The name of each parameter, by its id."""
    return {id(parameter): name for model in models for name, parameter in model.named_parameters()}


def recipe_of(optimizer: Optimizer, names: Mapping[int, str]) -> Recipe:
    """How to build this optimizer of parameters with these names on a network with parameters of the same names.

    Parameters that are not the model's (of a criterion, say) are left out, and named in the log. A rate that a
    scheduler has changed counts as it was at first.
    """
    groups, foreign = [], 0
    for group in optimizer.param_groups:
        options = {k: v for k, v in group.items() if k not in ("params", *_OF_SCHEDULERS)}
        if "initial_lr" in group:
            options["lr"] = group["initial_lr"]
        known = tuple(names[id(parameter)] for parameter in group["params"] if id(parameter) in names)
        foreign += len(group["params"]) - len(known)
        groups.append((options, known))
    if not any(known for _, known in groups):
        raise InputError(
            "context.optimizer holds none of the model's parameters; make it from the parameters of the model that is "
            "handed to the pruner, after the model was moved or changed."
        )
    if foreign:
        log.warning(
            "context.optimizer holds %d parameters that are not the model's; they are not trained inside the search",
            foreign,
        )
    return Recipe(type(optimizer), dict(optimizer.defaults), tuple(groups))


class InertOptimizer(Optimizer):
    """An optimizer of nothing, with the groups of another: schedulers may step on it without any effect."""

    def __init__(self, optimizer: Optimizer):
        options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        super().__init__([{**group, "params": [torch.zeros(())]} for group in options], dict(optimizer.defaults))

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        pass

    # What a scheduler looks at to warn of a step before the optimizer's first.
    mark_as_scheduled(step)
    _opt_called = True


def with_inert_optimizer(scheduler: object) -> Any:
    """A copy of a scheduler whose steps change no learning rate that anything is trained with."""
    owner = getattr(scheduler, "optimizer", None)
    memo = {id(owner): InertOptimizer(owner)} if isinstance(owner, Optimizer) else {}
    try:
        return copy.deepcopy(scheduler, memo)
    except Exception as error:  # a user's scheduler may refuse in any way
        raise InputError(
            f"context: {type(scheduler).__name__} cannot be copied ({type(error).__name__}: {error}), so candidates "
            "would share its state; leave it out of the search's context."
        ) from error
