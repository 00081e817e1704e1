"""Pruning a part of a model: its real inputs are recorded, and training, evaluation and budgets see the whole."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from fxprune.api import netadapt, read_budgets, read_config
from fxprune.budget import UNITS
from fxprune.carrier import Call, Carrier, Part, note_assembled, record
from fxprune.errors import BudgetError, InputError
from fxprune.resources import Counted, Widths
from fxprune.result import NetAdaptResult
from passes import CaptureError, Cost, EquivalenceError, Plan, capture, cost, couple
from passes.arguments import got

_COUNTED = ("flops", "macs", "params")


@dataclass(frozen=True, eq=False)
class ScopedResult(NetAdaptResult):
    """The outcome of a search inside a model. `model` is the whole model with the pruned parts in their places.

    `plan`, `dense`, `certificate` and the widths are those of `carrier`'s graph, which holds the parts under their
    names in the model. `parts` are the pruned parts, as they sit in `model`. `fxprune.export(result.model, inputs,
    "net.safetensors")` stores the whole, and `fxprune.load(original, "net.safetensors")` builds it again.
    """

    model: nn.Module  # type: ignore[assignment]
    carrier: Carrier = field(kw_only=True, repr=False)
    parts: dict[str, fx.GraphModule] = field(kw_only=True, repr=False)

    def restore(self, round: int) -> nn.Module:  # type: ignore[override]
        """The whole model as a round left it; round 0 is the unpruned one."""
        whole = self.carrier.assemble(super().restore(round))
        plan = Plan.from_json(self.rounds[round - 1].plan) if round else self.coupling.plan({})
        note_assembled(whole, self.carrier, plan)
        return whole


@dataclass(frozen=True)
class Inside:
    """A `train` or `evaluate` of the whole model as one of the graph that carries its parts."""

    carrier: Carrier
    function: Callable[..., Any]
    trains: bool

    def __call__(self, network: Any, *steps: int) -> Any:
        whole = self.carrier.assemble(network).train(self.trains)
        value = self.function(whole, *steps)
        if self.trains:
            self.carrier.settle(whole, network)
        return value


def netadapt_inside(
    model: nn.Module,
    budget: Any,
    scope: str | Sequence[str],
    *,
    example_inputs: Any,
    train: Callable[..., Any] | None = None,
    evaluate: Callable[..., Any] | None = None,
    config: Any = None,
    resources: Sequence[Any] = (),
    **options: Any,
) -> ScopedResult:
    """`netadapt` for one or several submodules of a model that cannot, or should not, be captured as a whole.

    scope: the names of the submodules, as in `model.named_modules()`. example_inputs: of the whole model, which is run
    once to record the real inputs of its parts; a part that is called several times is counted and proven for each
    call. `train` and `evaluate` get the whole model (what train changes outside the parts is kept with each
    candidate), and a budget of FLOPs, MACs or parameters counts it: the parts exactly, the rest by one run.

    The model that is passed is left as it is. Raises InputError for a scope that is not in the model, or is not called.
    """
    names = scope_names(model, scope)
    args, kwargs = _arguments(example_inputs)
    carrier = Carrier.of(model, captured_parts(model, names, args, kwargs))
    graph = carrier.build()
    settings = read_config(config)
    wanted = [budget.resource for budget in read_budgets(budget, settings)]
    outside = rest_of(model, graph, carrier, args, kwargs, [name for name in wanted if not _given(name, resources)])
    result = netadapt(
        graph,
        budget,
        example_inputs=carrier.inputs,
        train=None if train is None else Inside(carrier, train, True),
        evaluate=None if evaluate is None else Inside(carrier, evaluate, False),
        config=settings,
        resources=[*resources, *outside],
        **options,
    )
    whole = carrier.assemble(result.model)
    for name, module in model.named_modules():
        if name in dict(whole.named_modules()):
            whole.get_submodule(name).training = module.training
    note_assembled(whole, carrier, result.plan)
    parts = {part.name: cast("fx.GraphModule", whole.get_submodule(part.name)) for part in carrier.parts}
    prove_calls(carrier, result.model, parts)
    known = {f.name: getattr(result, f.name) for f in fields(NetAdaptResult) if f.name != "model"}
    return ScopedResult(model=whole, carrier=carrier, parts=parts, **known)  # type: ignore[arg-type]


def scope_names(model: nn.Module, scope: str | Sequence[str]) -> list[str]:
    """The names, checked: in the model, none inside another, none twice."""
    if not isinstance(scope, str | tuple | list):
        raise InputError(f"netadapt: scope: got {got(scope)}; expected the name of a submodule, or a list of names.")
    names = [scope] if isinstance(scope, str) else list(scope)
    known = [name for name, _ in model.named_modules() if name]
    if not names:
        raise InputError("netadapt: scope names no submodule; leave it out to prune the whole model.")
    for name in names:
        if name not in known:
            near = ", ".join(map(repr, get_close_matches(str(name), known, 3, 0.5) or known[:5]))
            raise InputError(f"netadapt: scope {name!r} is no submodule of the model; among those that are: {near}.")
        inside = [other for other in names if other != name and name.startswith(f"{other}.")]
        if inside or names.count(name) > 1:
            raise InputError(
                f"netadapt: scope {name!r} is named twice, or lies inside {inside or name!r}; name it once."
            )
    return names


def captured_parts(model: nn.Module, names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Part]:
    """Each submodule as a graph, with the calls that one run of the model makes of it."""
    parts = []
    for name, calls in record(model, names, args, kwargs).items():
        first, submodule = calls[0], model.get_submodule(name)
        try:
            graph = capture(submodule, _by_name(submodule, first))
        except CaptureError as error:
            raise InputError(f"netadapt: scope {name!r} cannot be captured: {error}") from error
        parts.append(Part(name, graph, tuple(calls)))
    return parts


def _by_name(submodule: nn.Module, call: Call) -> Any:
    """The inputs of a call as capture takes them: positional alone as they are, else all by name."""
    if not call.kwargs:
        return call.args
    return dict(inspect.signature(submodule.forward).bind(*call.args, **call.kwargs).arguments)


def rest_of(
    model: nn.Module, graph: fx.GraphModule, carrier: Carrier, args: Any, kwargs: Any, wanted: Sequence[str]
) -> list[Counted]:
    """The wanted resources of the whole: those of the graph as polynomials, and what the rest adds as a constant."""
    refused = [name for name in wanted if name not in _COUNTED]
    if refused:
        raise BudgetError(
            f"netadapt: with scope a budget of {refused[0]} cannot be counted for the whole model; take flops, macs or "
            "params, or pass resources=[...] that measures it."
        )
    costs = cost(couple(graph, carrier.inputs))
    flops = counted_flops(model, args, kwargs) if {"flops", "macs"} & set(wanted) else 0
    whole = {"flops": flops, "macs": flops // 2, "params": sum(p.numel() for p in model.parameters())}
    # An operator that the polynomials count and torch's counter does not must not make the rest negative.
    extra = {name: max(0, whole[name] - int(costs.resource(name)(None))) for name in wanted}
    return [
        Counted(
            name, UNITS[name], partial(_more, costs, name, extra[name]), along=partial(_along, costs, name, extra[name])
        )
        for name in wanted
    ]


def counted_flops(model: nn.Module, args: Any, kwargs: Any) -> int:
    """What torch counts for one run of the model in eval mode, attention as its parts."""
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    counter = FlopCounterMode(display=False)
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad(), counter:
            model(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes:
            module.training = training
    return int(counter.get_total_flops())


def prove_calls(carrier: Carrier, network: fx.GraphModule, parts: Mapping[str, fx.GraphModule]) -> None:
    """The certificate is for the graph with every call in it; each part alone must do the same for all its calls."""
    modes = [(module, module.training) for part in (network, *parts.values()) for module in part.modules()]
    try:
        with torch.no_grad():
            results, _ = network.eval()(*_fresh(carrier.inputs))
            for part, expected in zip(carrier.parts, results, strict=True):
                for number, (call, left) in enumerate(zip(part.calls, expected, strict=True)):
                    got = parts[part.name].eval()(*_fresh(call.args), **_fresh(call.kwargs))
                    _compare(part.name, number, left, got)
    finally:
        for module, training in modes:
            module.training = training


def _compare(name: str, number: int, expected: Any, got: Any) -> None:
    leaves = torch.utils._pytree.tree_leaves
    pairs = zip(leaves(expected), leaves(got), strict=True)
    for left, right in pairs:
        if isinstance(left, torch.Tensor) and not torch.allclose(left, right, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise EquivalenceError(f"{name}: call {number} needs another graph than the first; its outputs differ.")


def _more(costs: Cost, name: str, extra: int, widths: Widths | None = None) -> Any:
    return costs.resource(name)(widths) + extra


def _along(costs: Cost, name: str, extra: int, widths: Widths | None = None) -> dict[str, np.ndarray]:
    found = {group: np.array(polynomial) for group, polynomial in costs.along(name, widths).items()}
    for polynomial in found.values():
        polynomial[0] += extra
    return found


def _given(name: str, resources: Sequence[Any]) -> bool:
    return any(resource.name == name for resource in resources)


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if example_inputs is None:
        raise InputError("netadapt: scope needs example_inputs of the whole model, to record what its parts are given.")
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return (tuple(example_inputs) if isinstance(example_inputs, tuple) else (example_inputs,)), {}


def _fresh(value: Any) -> Any:
    return torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, value)
