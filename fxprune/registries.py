"""What users may add: criteria, strategies, resources, latency backends, workers, exporters; a registry for each.

A registry knows objects by name. A built-in is named by where it stands and imported when it is first asked for; a
user's is registered by `register_criterion` and the like. Wherever a name is accepted, the object itself is, too.

Packages may register on their own: an entry point of the group ``fxprune.plugins`` names a function without arguments
(or a module), which is called (imported) when a name is looked for that is not there, or names are listed.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

from fxprune.errors import ConfigError, FxpruneError, PluginWarning
from passes.arguments import flag, quoted
from passes.errors import PassError
from passes.process.source_lines import said

T = TypeVar("T")

PLUGINS = "fxprune.plugins"
_plugins_loaded = False


def load_plugins() -> None:
    """Load every entry point of `PLUGINS`, once. One that fails is a warning that names it."""
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    for entry in entry_points(group=PLUGINS):
        try:
            found = entry.load()
            if callable(found):
                found()
        except Exception as error:  # a plugin is anyone's code
            text = f"plugin {entry.name} ({entry.value}) cannot be used: {type(error).__name__}: {error}"
            warnings.warn(f"{text}; what it would register is missing", PluginWarning, stacklevel=3)


class Registry:
    """Objects of one kind by name.

    kind: what they are, in words. expected: what an object has to be, in words. fits: whether it is. built_in: names
    and where each stands, as "module:attribute".
    """

    def __init__(self, kind: str, expected: str, fits: Callable[[object], bool], built_in: Mapping[str, str]) -> None:
        self.kind, self.expected, self.fits = kind, expected, fits
        self._items: dict[str, object] = dict(built_in)
        self.built_in = tuple(sorted(built_in))

    def register(self, name: str, item: T, *, override: bool = False) -> T:
        """Add `item` under `name` and return it. `override`: in the place of one of that name.

        Raises ConfigError for a name that is taken, and for an object that is none of this kind.
        """
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(
                f"register: the name is a {type(name).__name__}; expected a text by which a {self.kind} is asked for."
            )
        flag(override, f"register: {quoted(name)}: override", ConfigError)
        if not self.fits(item):
            raise ConfigError(f"register: {quoted(name)}: got {_said(item)}; expected {self.expected}.")
        if name in self._items and not override:
            raise ConfigError(f"register: there is a {self.kind} {name!r} already; pass override=True to replace it.")
        self._items[name] = item
        return item

    def unregister(self, name: str) -> None:
        """Take out what was registered under `name`; a built-in stays."""
        if name not in self.built_in:
            self._items.pop(name, None)

    def list(self) -> list[str]:
        """All names, those of plugins included."""
        load_plugins()
        return sorted(self._items)

    def __contains__(self, name: object) -> bool:
        if name not in self._items:
            load_plugins()
        return name in self._items

    def find(self, given: object) -> Any:
        """The object of that name, or the object itself. Raises ConfigError where there is none."""
        if not isinstance(given, str):
            if isinstance(given, Unloaded) or not self.fits(given):
                raise ConfigError(f"{self.kind}: got {_said(given)}; expected {self.expected}, or a name.")
            return given
        if given not in self:
            near = get_close_matches(given, self._items, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"no {self.kind} is called {quoted(given)}; there are {', '.join(self.list())}.{hint}")
        item = self._items[given]
        if isinstance(item, str):
            module, _, attribute = item.partition(":")
            item = self._items[given] = getattr(import_module(module), attribute)
        return item

    def call(self, given: object, *arguments: object, **named: object) -> Any:
        """What the object of that name, or the object itself, gives. Raises ConfigError where it is not called so."""
        return call(self.find(given), self.said(given), self.expected, *arguments, **named)

    def said(self, given: object) -> str:
        """An object of this kind in words: its kind and its name."""
        own = given if isinstance(given, str) else getattr(given, "__qualname__", type(given).__name__)
        return f"{self.kind} {quoted(own)}"

    def read(self, value: object) -> Any:
        """A configuration's value: a name that is registered, or an object. Raises ConfigError for any other."""
        if isinstance(value, Mapping) and set(value) == {"object"}:
            return Unloaded(str(value["object"]))
        if isinstance(value, str):
            if value not in self:
                self.find(value)
        elif not isinstance(value, Unloaded):
            self.find(value)
        return value


def is_foreign(item: object) -> bool:
    """Whether a function or an object is not of this package: what it does with what it is given, nobody knows."""
    place = getattr(item, "__module__", None) or type(item).__module__
    return place.partition(".")[0] not in ("fxprune", "passes")


def call(function: Callable[..., Any], where: str, expected: str, *arguments: object, **named: object) -> Any:
    """What a function gives. Raises ConfigError where it does not take these arguments, and where one of the user's
    raises, with what was raised as its cause; errors of this package are raised as they are."""
    try:
        inspect.signature(function).bind(*arguments, **named)
    except TypeError as error:
        raise ConfigError(f"{where} does not take what it is called with ({error}); expected {expected}.") from None
    except ValueError:  # written in C, and it does not say what it takes
        pass
    try:
        return function(*arguments, **named)
    except (FxpruneError, PassError):
        raise
    except Exception as error:  # a user's function may raise anything
        if not is_foreign(function):
            raise
        raise ConfigError(f"{where} failed: {said(error)}.") from error


class Unloaded:
    """An object that a stored configuration names: it can be compared and shown, but must be handed in to be used."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unloaded) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"the object {self.name}, which a file names; pass the object itself"


def name_of(item: object) -> str | dict[str, str]:
    """What stands for an object in a file: a name is itself, an object ``{"object": "module.name"}``."""
    if isinstance(item, str):
        return item
    if isinstance(item, Unloaded):
        return {"object": item.name}
    named = item if hasattr(item, "__qualname__") else type(item)
    return {"object": f"{named.__module__}.{named.__qualname__}"}


def _said(item: object) -> str:
    return repr(item) if isinstance(item, Unloaded) else f"a {type(item).__name__}"


def _has(*methods: str) -> Callable[[object], bool]:
    return lambda item: all(callable(getattr(item, method, None)) for method in methods)


CRITERIA = Registry(
    "criterion", "a function (network, group, statistics=None) -> array (group.size,)", callable,
    {
        "obs": "fxprune.criteria.obs:obs",
        "fisher": "fxprune.criteria.gradients:fisher",
        "taylor": "fxprune.criteria.gradients:taylor",
        "activation": "fxprune.criteria.activation:activation",
        "l1_norm": "fxprune.criteria.weights:l1_norm",
        "l2_norm": "fxprune.criteria.weights:l2_norm",
        "fpgm": "fxprune.criteria.weights:fpgm",
        "bn_scale": "fxprune.criteria.weights:bn_scale",
        "random": "fxprune.criteria.weights:random",
    },
)  # fmt: skip
STRATEGIES = Registry(
    "strategy", "a function (situation) -> proposals, see fxprune.search.strategies.protocol", callable,
    {
        "netadapt": "fxprune.search.strategies.one_group:netadapt",
        "uniform": "fxprune.search.strategies.uniform:uniform",
        "allocate": "fxprune.search.strategies.allocate:allocate",
        "knapsack": "fxprune.search.strategies.knapsack:knapsack",
    },
)  # fmt: skip
BACKENDS = Registry(
    "latency backend", "a function (threads, device) -> backend, or a backend itself",
    lambda item: callable(item) or _has("time", "prepare")(item),
    {
        "eager": "fxprune.latency.backends.eager:Eager",
        "compile": "fxprune.latency.backends.compiled:Compiled",
        "onnxruntime": "fxprune.latency.backends.onnx_runtime:on_cpu",
        "onnxruntime-int8": "fxprune.latency.backends.onnx_int8:on_cpu",
        "openvino": "fxprune.latency.backends.openvino_cpu:OpenVino",
        "executorch": "fxprune.latency.backends.executorch_xnnpack:ExecuTorch",
    },
)  # fmt: skip
WORKERS = Registry(
    "kind of workers", "a function (job) -> workers, see fxprune.workers.protocol", callable,
    {
        "processes": "fxprune.workers.processes:of_job",
        "ray": "fxprune.workers.ray_cluster:of_job",
        "serial": "fxprune.workers.serial:of_job",
    },
)  # fmt: skip
EXPORTERS = Registry(
    "exporter", "a function (job) that writes job.path, see fxprune.exporters.protocol", callable,
    {
        ".onnx": "fxprune.exporters.onnx_file:write",
        ".pt2": "fxprune.exporters.pt2:write",
        ".py": "fxprune.exporters.source.writer:write",
        ".safetensors": "fxprune.exporters.safetensors_plan:write",
    },
)  # fmt: skip
REPORTS = Registry(
    "report", "a function (result, path, overwrite) that writes a page and returns its path", callable,
    {"html": "fxprune.report:write_result"},
)  # fmt: skip
FIGURES = Registry(
    "figure", "a function (result, resource) that draws a matplotlib figure", callable,
    {"tradeoff": "fxprune.report:figure_of"},
)  # fmt: skip
RESOURCES = Registry(
    "resource", "a Kind, see fxprune.resources.kinds", _has("make"),
    {name: f"fxprune.resources.kinds:{name}" for name in ("flops", "macs", "params", "memory")}
    | {"latency": "fxprune.latency.kind:latency"},
)  # fmt: skip

register_criterion, list_criteria = CRITERIA.register, CRITERIA.list
register_strategy, list_strategies = STRATEGIES.register, STRATEGIES.list
register_backend, list_backends = BACKENDS.register, BACKENDS.list
register_workers, list_workers = WORKERS.register, WORKERS.list
register_exporter, list_exporters = EXPORTERS.register, EXPORTERS.list
list_resources = RESOURCES.list
