"""`NetAdaptPruner`: NetAdapt as the users of TinyNeuralNetwork know it, on the engine of `fxprune.netadapt`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.fx import GraphModule

from fxprune.api import netadapt
from fxprune.config.keys import NetAdaptConfig
from fxprune.config.rules import plain
from fxprune.errors import InputError, JournalError
from fxprune.io.strict_yaml import read_yaml
from fxprune.io.tensors import modes_of, sharing, sharing_copies
from fxprune.journal.read_run import read_run
from fxprune.journal.rebuilding import rebuild
from fxprune.problem.inputs import analysed
from fxprune.problem.wrappers import unwrapped
from fxprune.search.call_arguments import read_budgets
from fxprune.search.result import NetAdaptResult
from fxprune.tinynn.flow import search_functions
from fxprune.tinynn.layer_rates import binding_rates, layer_rates, layer_shares
from fxprune.training.context import DLContext
from fxprune.training.optimizer_recipe import names_of, recipe_of
from passes import Plan, cost
from passes.arguments import is_a, user_path

log = logging.getLogger(__name__)

# Keys with which TinyNN's configurations may carry objects of the context.
_CONTEXT_KEYS = {
    "netadapt_optimizer": "optimizer",
    "optimizer": "optimizer",
    "netadapt_criterion": "criterion",
    "criterion": "criterion",
}


class NetAdaptPruner:
    """Searches for a smaller network in rounds, keeps each round, and makes `model` the one that was chosen.

    `model`: any module (what DataParallel, DistributedDataParallel or torch.compile wraps is unwrapped; make a new
    DistributedDataParallel afterwards, because one holds the parameters that it was made with). `dummy_input`: a
    tensor, a tuple or list of positional arguments, or a dict of keywords. `config`: a NetAdaptConfig, a dict of its
    keys (as `load_config` returns it), or the path of a YAML file. `context`: a DLContext with train_func and
    validate_func.

    `prune()` and `restore()` work in place: `model` itself becomes the pruned network, of its own class and with the
    parameter names of before, so that the script goes on with the object that it has; `context.optimizer` becomes
    one of the same groups on its parameters. Everything that a search
    finds lies in `netadapt_dir`; a search that was killed goes on where it was when the same script is started again.

    Attributes: `iteration`, the round that comes next; `budget`, in units of the resource; `init_flops`; `result`, what
    `prune()` found; `plan`, the kept units of the current network.
    """

    def __init__(self, model: nn.Module, dummy_input: object, config: object, context: DLContext):
        is_a(model, nn.Module, "NetAdaptPruner: model", "a torch.nn.Module", InputError)
        is_a(context, DLContext, "NetAdaptPruner: context", "a DLContext with train_func and validate_func", InputError)
        model = unwrapped(model)[0]
        self.model, self.dummy_input, self.context = model, _arguments(dummy_input), context
        self.config = _read(config, context)
        self._modes = modes_of(model)
        self._parameters = dict(model.named_parameters())  # held, so that no other object takes their ids
        self._names = names_of(model)
        # Of the model's own object the search changes the content, so what it starts from is another one.
        given = analysed(model if isinstance(model, GraphModule) else sharing(model), self.dummy_input)
        self.dense, self.coupling, self.dummy_input = given.network, given.coupling, given.example_inputs
        self.form = given.form
        self.config = self.config.replace(sparsity=binding_rates(self.dense, self.coupling, self.config))
        if self.config.strategy == "auto":  # there are rounds to restore, whether there are calibration data or not
            self.config = self.config.replace(strategy="netadapt")
        self.plan: Plan = self.coupling.plan({})
        self.result: NetAdaptResult | None = None
        self.iteration = 1
        self.init_flops: int = cost(self.coupling).flops()
        self.budget = self._budget()
        # Said now rather than in prune(): what the context lacks, an optimizer that is not the model's.
        search_functions(self._names, context, self.config.netadapt_lr)

    @classmethod
    def load_config(cls, path: str | Path) -> dict[str, object]:
        """The keys of a YAML file, checked, as a dict that a script may read and change."""
        config = NetAdaptConfig.from_yaml(path)
        given, _ = read_yaml(user_path(path))
        return {key: plain(getattr(config, key)) for key in given}

    def generate_config(self, path: str | Path) -> None:
        """Write the whole configuration, with the largest share of its units that each layer may lose.

        A share may be lowered, 0 holds the layer back; the next run with this file keeps to it.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank():
            return
        rates = layer_rates(self.dense, self.coupling, self.config)
        self.config.replace(sparsity=rates).to_yaml(path)

    def prune(self, resume: bool | None = None) -> NetAdaptResult:
        """Search until the budget is met, and make `model` the network that was found.

        Where `netadapt_dir` holds this search already, it goes on there; `resume` is that of `fxprune.netadapt`.
        """
        train, evaluate = search_functions(self._names, self.context, self.config.netadapt_lr)
        calibration = self.context.calibration
        if calibration is None and self.config.bn_compensation:
            calibration = self.context.train_loader
            if calibration is None:
                raise InputError(
                    "NetAdaptPruner: bn_compensation needs data; set context.train_loader, or context.calibration."
                )
        log.info("the network has %s FLOPs; budget: %s", f"{self.init_flops:,}", self._budget_text())
        result = netadapt(
            self.dense,
            example_inputs=self.dummy_input,
            form=self.form,
            train=train,
            evaluate=evaluate,
            calibration=calibration,
            config=self.config,
            workdir=self.config.netadapt_dir,
            resume=resume,
        )
        self.result, self.iteration = result, len(result.rounds) + 1
        self.budget = self._budget(result.start)
        self._take(result.model, result.plan)
        log.info("%s", result.summary())
        return result

    def restore(self, iteration: int) -> nn.Module:
        """Make `model` the network that a round chose, as it was then; 0 is the unpruned one. Returns the model.

        The rounds are those in `netadapt_dir`, whether this process found them or another. `prune()` afterwards goes
        on with that search.
        """
        run = read_run(self.config.netadapt_dir)
        if run.model["graph"] != self.coupling.fingerprint:
            raise JournalError(
                f"{run.folder}: the search that is kept here was of another network; restore() needs the model "
                "as it was before pruning, and the dummy_input of that search."
            )
        if isinstance(iteration, bool) or not isinstance(iteration, int) or not 0 <= iteration <= len(run.rounds):
            raise InputError(
                f"restore: {run.folder} has no round {iteration!r}; expected 0 (unpruned) to {len(run.rounds)}."
            )
        network = rebuild(self.dense, run.rounds, iteration, run.journal, self._modes)
        plan = Plan.from_json(run.rounds[iteration - 1].plan) if iteration else self.coupling.plan({})
        self._take(network, plan)
        self.iteration = iteration + 1
        log.info("restored the network of round %d of %d", iteration, len(run.rounds))
        return self.model

    def calc_flops(self) -> int:
        """The FLOPs of the current network for the dummy input, as `torch.utils.flop_counter` counts them."""
        return cost(self.coupling).flops(self.plan.widths)

    def get_sparsity_state(self) -> dict[str, float]:
        """The share of its units that each layer has lost."""
        return layer_shares(self.dense, self.coupling, self.plan)

    def summary(self) -> str:
        """The configuration, the context and, after `prune()`, the rounds, as text; also logged."""
        keys = {key: value for key, value in self.config.to_dict().items() if value not in (None, [], {})}
        lines = [
            f"NetAdaptPruner: {len(self.coupling.groups)} groups, {self.calc_flops():,} of {self.init_flops:,} FLOPs; "
            f"budget: {self._budget_text()}",
            *(f"  {key}: {value}" for key, value in keys.items()),
            f"  context: {self.context!r}",
        ]
        if self.result is not None:
            lines += ["", self.result.summary()]
        text = "\n".join(lines)
        log.info("%s", text)
        return text

    def _take(self, network: nn.Module, plan: Plan) -> None:
        """Make the model the network, and an optimizer that the context has one of its parameters."""
        recipe = recipe_of(self.context.optimizer, self._names) if self.context.optimizer is not None else None
        become(self.model, network)
        self.plan = plan
        self._names = {**names_of(self.model), **{id(p): name for name, p in self._parameters.items()}}
        if recipe is not None:
            self.context.optimizer = recipe.build(self.model)

    def _budget(self, start: Mapping[str, float] | None = None) -> float | None:
        """The first budget in units of its resource; None for a share of a latency that is not measured yet."""
        first = read_budgets(None, self.config)[0]
        if first.value is not None:
            return first.value
        if start is None and first.resource == "latency":
            return None
        used = start[first.resource] if start else cost(self.coupling).resource(first.resource)(None)
        limit = first.limit(used)
        return limit if first.resource == "latency" else math.floor(limit)

    def _budget_text(self) -> str:
        return " and ".join(str(budget) for budget in read_budgets(None, self.config))


def become(model: nn.Module, network: nn.Module) -> None:
    """Make `model`, the object that a script holds, the network; `network` itself is not to be used afterwards.

    Hooks and attributes that refer to the network refer to the model then. Plain attributes that the model had (a
    name, a number of classes) stay where a graph takes the place of a module.
    """
    if model is network:
        return
    if isinstance(network, GraphModule):
        kept = {k: v for k, v in vars(model).items() if not k.startswith("_") and k not in vars(network)}
        content = {**kept, **vars(network)}
    else:
        content = sharing_copies(network, model).attributes(network)
    try:
        model.__class__ = type(network)
    except TypeError as error:
        raise InputError(
            f"{type(model).__name__} cannot be pruned in place ({error}); use fxprune.netadapt, which returns "
            "the network."
        ) from error
    vars(model).clear()
    vars(model).update(content)
    if isinstance(network, GraphModule):
        model.graph = network.graph  # type: ignore[assignment]  # it now belongs to the model


def _arguments(dummy_input: object) -> object:
    return tuple(dummy_input) if isinstance(dummy_input, list) else dummy_input


def _read(config: object, context: DLContext) -> NetAdaptConfig:
    """The configuration; what TinyNN lets it carry for the context goes there, as long as the context has none."""
    if isinstance(config, NetAdaptConfig):
        return config
    if isinstance(config, str | Path):
        return NetAdaptConfig.from_yaml(config)
    if not isinstance(config, Mapping):
        raise InputError(
            f"NetAdaptPruner: config is a {type(config).__name__}; expected a dict, a NetAdaptConfig, or the path of a "
            "YAML file."
        )
    values = dict(config)
    for key, name in _CONTEXT_KEYS.items():
        if key in values and not isinstance(values[key], str):  # a string names how units are ranked
            setattr(context, name, values.pop(key))
    if isinstance(values.get("sparsity"), float | int):
        values["sparsity"] = {"default": values["sparsity"]}
    return NetAdaptConfig.from_dict(values, "config")
