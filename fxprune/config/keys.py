"""The configuration of a search: every key with its default, its range and its meaning; read from YAML and written to
it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fxprune.config import rules as rule
from fxprune.config import tables
from fxprune.config.schedule import Schedule
from fxprune.errors import BudgetError, ConfigError
from fxprune.io.strict_yaml import Place, read_yaml, write_yaml
from fxprune.registries import CRITERIA, STRATEGIES, WORKERS
from fxprune.resources.budgets import Budget, parse_budget, resource_name
from passes.arguments import file_name, is_a, quoted


def _key(default: object, check: rule.Rule, doc: str) -> Any:
    metadata = {"check": check, "doc": doc}
    return (
        field(default_factory=dict, metadata=metadata) if default == {} else field(default=default, metadata=metadata)
    )


@dataclass(frozen=True)
class NetAdaptConfig:
    """All settings of a search. Keys are those of TinyNeuralNetwork's NetAdapt, then fxprune's own.

    Each field's metadata holds its rule and its meaning; `NetAdaptConfig().to_yaml()` prints them all.

    >>> NetAdaptConfig(budget_ratio=0.5, netadapt_max_iter=20).schedule.rate
    0.05
    """

    budget: float | None = _key(None, rule.optional(rule.number(above=0)), "absolute target; excludes budget_ratio")
    budget_ratio: float | None = _key(
        None, rule.optional(rule.number(above=0, most=1)), "target as a share of the start; excludes budget"
    )
    budget_type: str = _key(
        "flops", rule.checked_by(resource_name, "flops, macs, params (or weights), memory, latency, or one registered"),
        "the resource: flops, macs, params (or weights), memory, latency, or one that is registered",
    )  # fmt: skip
    budgets: tuple[dict, ...] | None = _key(
        None, rule.optional(rule.tables()), "several targets at once: a list of {resource, ratio or value}"
    )
    budget_reduce_rate_init: float = _key(
        0.05, rule.number(above=0, below=1), "share by which the first round lowers the resource"
    )
    budget_reduce_rate_decay: float = _key(0.98, rule.number(above=0, most=1), "decay of that share a round")
    netadapt_lr: float = _key(0.001, rule.number(above=0), "learning rate of the fine-tuning inside the search")
    netadapt_max_iter: int = _key(100, rule.integer(least=0), "fine-tuning iterations for a candidate")
    netadapt_max_rounds: int = _key(-1, rule.integer(least=1, also=-1), "most rounds; -1: no limit")
    netadapt_min_feature_size: int | None = _key(
        None,
        rule.optional(rule.integer(least=1)),
        "step and least number of channels; null: for each layer 8, or less where it has fewer than 64, and steps of 1 "
        "in the rounds that come down to the budget",
    )
    metrics: Any = _key("l2_norm", rule.registered(CRITERIA), "importance of a unit, by the name of a criterion")
    criterion: Any = _key(
        "obs", rule.registered(CRITERIA), "the same where calibration data are given: a criterion that may use them"
    )
    netadapt_dir: str = _key("netadapt_train/", rule.text(), "where the search keeps its files")
    keep_rounds: int | None = _key(
        None, rule.optional(rule.integer(least=1)),
        "the folder keeps the weights of so many last rounds, and of the round that is returned; null: of all",
    )  # fmt: skip
    exclude_ops: tuple[str, ...] = _key((), rule.texts(), "operator types or layers that are not pruned")
    skip_last_fc: bool = _key(True, rule.flag(), "the last linear layer keeps its outputs (they always do)")
    bn_compensation: bool = _key(
        False,
        rule.flag(),
        "calibrate with the training batches: what stays makes good for what goes",
    )
    multiple: int | None = _key(None, rule.optional(rule.integer(least=1)), "TinyNN's name of round_to")
    sparsity: dict[str, float] = _key(
        {},
        rule.table(rule.number(least=0, below=1)),
        "largest share of its units that each layer may lose; 0 holds it back",
    )

    select: str = _key(
        "accuracy",
        rule.choice("accuracy", "ratio"),
        "the choice of a round: best score, or best score change per resource saved",
    )
    budget_reduce_base: str = _key("current", rule.choice("current", "initial"), "what the reduction is a share of")
    step: int | str | None = _key(
        None, rule.optional(rule.either(rule.integer(least=1), rule.choice("auto"))),
        "widths are its multiples; null: netadapt_min_feature_size; auto: as the device or each layer suggests",
    )  # fmt: skip
    round_to: int | None = _key(
        None, rule.optional(rule.integer(least=1)),
        "widths that layers are narrowed to are also multiples of this; a layer that is left whole keeps its width",
    )  # fmt: skip
    exclude: tuple[str, ...] = _key((), rule.texts(), "layers or groups that are not pruned; * and ? as in file names")
    same_width: Any = _key(
        (), rule.either(rule.choice("blocks", "huggingface"), rule.name_sets()),
        "groups that get one width: a list of patterns of their names, or of lists of patterns, one a set; blocks: "
        "the same layer of all repeated blocks; huggingface: what the model's own configuration can state",
    )  # fmt: skip
    depth: bool = _key(
        False, rule.flag(),
        "also propose to remove residual blocks whole, where the skip connection makes that exact",
    )  # fmt: skip
    max_prune: float = _key(1.0, rule.number(above=0, most=1), "largest share of its units that any layer may lose")
    candidates_per_round: int | None = _key(
        None,
        rule.optional(rule.integer(least=1)),
        "train only so many candidates a round: those that lose least importance",
    )
    strategy: Any = _key(
        "auto", rule.either(rule.choice("auto"), rule.registered(STRATEGIES)),
        "what a round proposes: a group each (netadapt), or joint plans; allocate goes to the budget in one round, by "
        "the curves of calibration data; auto: allocate with calibration data, else netadapt",
    )  # fmt: skip
    screen: int | str | None = _key(
        None, rule.optional(rule.either(rule.integer(least=0), rule.choice("all"))),
        "with calibration data: candidates are compared without training, and the best so many fine-tuned; all: every "
        "one, as in the paper; null: 1 where there is a train function, else 0",
    )  # fmt: skip
    compensate: bool = _key(
        True, rule.flag(), "with calibration data: the weights that stay make good for those that go"
    )
    sweeps: int = _key(
        4, rule.integer(least=0),
        "allocate with calibration data: how often, at most, widths are measured around the best joint ones and "
        "allocated anew: networks that are refined in one round (one sweep), else compensated in closed form; large "
        "networks have fewer or none",
    )  # fmt: skip
    refine: int = _key(
        4, rule.integer(least=0),
        "rounds of refinement of the network that is kept, on its own inputs; 0, or more than about 100 million "
        "parameters: compensated in closed form only",
    )  # fmt: skip
    refined: int = _key(
        3, rule.integer(least=1),
        "with calibration data: how many of the best candidates of the last round are refined; the best is kept",
    )  # fmt: skip
    calibration: str | None = _key(
        None, rule.optional(rule.text()),
        "the command line's calibration data: package.module:function, or train for the training batches of `data`",
    )  # fmt: skip
    calibration_samples: int = _key(4096, rule.integer(least=2), "so many samples of calibration data are used at most")
    statistics_shards: int = _key(
        1, rule.integer(least=1),
        "the calibration data are observed in so many parts, which are added up; workers: ray observes them beside "
        "each other. The same samples are summed in any number of parts, and the sums differ in their last digits; "
        "where an operator reads more places than are used of a batch, other places are drawn",
    )  # fmt: skip
    joint: bool = _key(True, rule.flag(), "where no single group meets a target, propose to shrink several")
    min_accuracy: float | None = _key(
        None, rule.optional(rule.number()), "stop when a round's score is lower, and return the last that was not"
    )
    patience: int = _key(0, rule.integer(least=0), "how many rounds in a row may be below min_accuracy before that")
    seed: int = _key(0, rule.integer(least=0, most=2**32 - 1), "all randomness of the search")
    workers: Any = _key(
        1, rule.either(rule.integer(least=1), rule.registered(WORKERS)),
        "processes that train candidates, or the name of a kind of workers, such as ray",
    )  # fmt: skip
    worker_retries: int = _key(1, rule.integer(least=0), "how often the candidate of a lost worker is tried again")
    candidate_time_limit: float | None = _key(
        86400, rule.optional(rule.number(above=0)),
        "seconds for training and evaluating one candidate: then it is stopped, tried again (worker_retries) and "
        "reported; null: no limit; with workers: 1 code in C that never returns to Python is not stopped",
    )  # fmt: skip
    ray: dict[str, Any] = _key(
        {}, rule.entries(tables.RAY, tables.RAY_INIT), "workers: ray: the cluster, and what one candidate needs"
    )
    latency: dict[str, Any] = _key({}, rule.entries(tables.LATENCY), "how latency is measured")
    model: str | None = _key(
        None, rule.optional(rule.text()),
        "the command line's model: package.module:function, path/to/file.py:function, each also with (arguments), "
        "torchvision:NAME, timm:NAME, hf:CONFIG_OR_FOLDER",
    )  # fmt: skip
    input: tuple[str, ...] = _key(
        (), rule.either(rule.texts(), rule.listed(rule.text())),
        "the command line's input: its shape, as 1,3,32,32 or 1,16:int64, or a list of them; null: that of the first "
        "batch of the data",
    )  # fmt: skip
    data: str | None = _key(None, rule.optional(rule.text()), "the command line's data: package.module:function")

    def __post_init__(self) -> None:
        for name, value in _checked(
            {f.name: getattr(self, f.name) for f in fields(self)}, "NetAdaptConfig", {}
        ).items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_dict(cls, values: Mapping[str, object], source: str = "NetAdaptConfig") -> NetAdaptConfig:
        """Read a mapping; an unknown key is an error with the nearest known name."""
        is_a(values, Mapping, source, "a mapping of keys to values, such as {'budget_ratio': 0.5}", ConfigError)
        return cls(**_checked(values, source, {}))

    @classmethod
    def from_yaml(cls, path: str | Path) -> NetAdaptConfig:
        """Read a YAML file; errors name the file and the line."""
        file = file_name(path, "NetAdaptConfig.from_yaml", "the name of a YAML file", ConfigError)
        values, lines = read_yaml(file)
        return cls(**_checked(values, str(path), lines))

    def to_dict(self) -> dict[str, Any]:
        return {f.name: rule.plain(getattr(self, f.name)) for f in fields(self)}

    def to_yaml(self, path: str | Path | None = None) -> str:
        """Every key with its meaning as YAML; written to `path` if there is one."""
        text = write_yaml({f.name: (rule.plain(getattr(self, f.name)), f.metadata["doc"]) for f in fields(self)})
        if path is not None:
            file = file_name(path, "NetAdaptConfig.to_yaml", "the name of the file to write", ConfigError)
            try:
                file.write_text(text, encoding="utf-8")
            except OSError as error:
                raise ConfigError(f"{path}: the configuration cannot be written: {error}.") from error
        return text

    def replace(self, **changes: object) -> NetAdaptConfig:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return NetAdaptConfig.from_dict({**values, **changes}, "NetAdaptConfig.replace")

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.budget_reduce_rate_init, self.budget_reduce_rate_decay, self.budget_reduce_base)

    def target(self) -> tuple[Budget, ...] | None:
        """The budgets that the configuration names; None if it names none."""
        if self.budgets is not None:
            return parse_budget(list(self.budgets))
        if self.budget_ratio is not None:
            return (Budget(self.budget_type, ratio=self.budget_ratio),)
        if self.budget is not None:
            return (Budget(self.budget_type, value=self.budget),)
        return None


def _checked(values: Mapping[str, object], source: str, lines: Mapping[Place, int]) -> dict[str, Any]:
    """The values, each put through its rule; the first fault is an error that says where it stands."""
    known = {f.name: f for f in fields(NetAdaptConfig)}

    def at(*place: str) -> str:
        found = lines.get(tuple(map(str, place)), lines.get((str(place[0]),)))
        return f"{source}, line {found}" if found else source

    checked = {}
    for key, value in values.items():
        if key not in known:
            where = at(key) if isinstance(key, str | int | float) else source  # of YAML; else any object
            is_a(key, str, f"{where}: a key", "a text, one of those that fxprune init writes", ConfigError)
            near = get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}."
            raise ConfigError(f"{at(key)}: unknown key {quoted(key)}; {hint}")
        check: rule.Rule = known[key].metadata["check"]
        try:
            checked[key] = check.read(value)
        except rule.WrongEntry as error:
            raise ConfigError(f"{at(key, error.entry)}: {key}: {error}.") from None
        except (ValueError, TypeError, OverflowError) as error:
            reason = f" ({str(error)[:200]})" if str(error) else ""
            raise ConfigError(f"{at(key)}: {key}: got {quoted(value)}, expected {check.expected}{reason}.") from None
    given = [key for key in ("budget", "budget_ratio", "budgets") if checked.get(key) is not None]
    if len(given) > 1:
        raise ConfigError(f"{at(given[1])}: got both {given[0]} and {given[1]}; keep one of them.")
    kind = checked.get("budget_type", NetAdaptConfig.budget_type)
    if checked.get("budgets") is not None and kind != NetAdaptConfig.budget_type:
        raise ConfigError(f"{at('budget_type')}: got both budgets and budget_type; keep one of them.")
    if checked.get("budgets") is not None:
        try:
            parse_budget(list(checked["budgets"]))
        except BudgetError as error:
            raise ConfigError(f"{at('budgets')}: budgets: {error}") from None
    if checked.get("budget") is not None:
        try:
            Budget(kind, value=checked["budget"])
        except BudgetError as error:
            raise ConfigError(f"{at('budget')}: budget: {error}") from None
    return checked
