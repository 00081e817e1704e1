"""What `netadapt` is called with, read and checked before any work: configuration, budgets, functions, resources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fxprune.config.keys import NetAdaptConfig
from fxprune.errors import BudgetError, InputError
from fxprune.problem.mistaken import check_call
from fxprune.problem.stock_widths import PRESET
from fxprune.resources.budgets import Budget, parse_budget
from fxprune.resources.models import Resource
from passes.arguments import got, is_a


def read_config(config: object) -> NetAdaptConfig:
    if config is None:
        return NetAdaptConfig()
    if isinstance(config, NetAdaptConfig):
        return config
    if isinstance(config, dict):
        return NetAdaptConfig.from_dict(config, "config")
    if isinstance(config, str | Path):
        return NetAdaptConfig.from_yaml(config)
    raise InputError(
        f"netadapt: config is a {type(config).__name__}; expected a NetAdaptConfig, a dict, or the path of a YAML file."
    )


def read_budgets(budget: object, config: NetAdaptConfig) -> tuple[Budget, ...]:
    """The budgets of the call, else of the configuration; two that differ are an error."""
    configured = config.target()
    if budget is None:
        if configured is None:
            raise BudgetError(
                "netadapt: no budget; pass one (0.5 is half of the FLOPs), or set budget_ratio in the config."
            )
        return configured
    budgets = parse_budget(budget)
    kind = config.budget_type
    if configured is None and kind != NetAdaptConfig.budget_type and {one.resource for one in budgets} != {kind}:
        asked = ", ".join(map(str, budgets))
        raise BudgetError(
            f"netadapt: the call's budget ({asked}) and the configuration's budget_type ({kind}) differ; "
            f"pass Budget({kind!r}, ...), or leave budget_type out."
        )
    if configured is not None and set(configured) != set(budgets):
        asked, said = (", ".join(map(str, some)) for some in (budgets, configured))
        raise BudgetError(
            f"netadapt: the call's budget ({asked}) and the configuration's ({said}) differ; keep one of them."
        )
    return budgets


def check_settings(settings: NetAdaptConfig, calibrated: bool) -> None:
    """Settings that contradict each other, or ask for calibration data where there are none, are an error."""
    if settings.depth and settings.same_width == PRESET:
        raise InputError(
            f"netadapt: depth removes residual blocks, which no Hugging Face configuration states; leave out depth or "
            f"same_width={PRESET!r}."
        )
    if not calibrated and settings.screen not in (None, "all"):
        raise InputError(
            f"netadapt: screen={settings.screen} compares candidates by calibration data, and there are none; pass "
            "calibration=batches, or leave screen out."
        )


def check_functions(train: object, evaluate: object) -> None:
    for name, function, call, arguments in (
        ("train", train, "train(model, steps)", 2), ("evaluate", evaluate, "evaluate(model)", 1),
    ):  # fmt: skip
        if function is None:
            continue
        if not callable(function):
            raise InputError(f"netadapt: {name} is a {type(function).__name__}; expected a function called as {call}.")
        check_call(name, function, call, arguments)
    if train is not None and evaluate is None:
        raise InputError(
            "netadapt: got train but no evaluate, so the trained candidates could not be compared; pass "
            "evaluate(model) -> float (higher is better), or leave both out for a data-free search."
        )


def check_resources(resources: Sequence[Resource]) -> None:
    what = "a list of resources, each with name, unit and value(widths), such as fxprune.latency.latency_model(...)"
    is_a(resources, list | tuple, "netadapt: resources", what, InputError)
    for resource in resources:
        if not isinstance(resource, Resource) or not isinstance(resource.name, str):
            raise InputError(f"netadapt: resources: one is {got(resource)}; expected {what}.")
