"""Kinds of resources: how each is made for a network, its unit, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from fxprune.errors import ConfigError
from fxprune.io.lent import lent
from fxprune.registries import RESOURCES, call
from fxprune.resources.models import Counted, Resource
from passes import Cost, Coupling
from passes.analysis.polynomial import Widths


@dataclass(frozen=True)
class Subject:
    """The network whose resource is asked for.

    settings: the configuration of the search (its table `latency` is for that resource). progress: whether long
    measurements may show theirs.
    """

    network: nn.Module
    coupling: Coupling
    costs: Cost
    example_inputs: Any
    settings: Any = None
    progress: bool = False


Count = Callable[[Widths | None], Any]


@dataclass(frozen=True)
class Kind:
    """One kind of resource.

    make: for a `Subject`, a `Resource`, or only its value as a function of the widths. unit: in words. format: of a
    number, as `format()` takes it. least: the smallest absolute budget that makes sense. monotone: a smaller width
    never takes more, which lets proposals be found by bisection.
    """

    make: Callable[[Subject], Resource | Count]
    unit: str
    format: str = ",.0f"
    least: float = 0.0
    monotone: bool = False

    def of(self, name: str, subject: Subject) -> Resource:
        """The resource of a network. A maker of the user's gets a copy of the network and of its inputs."""
        network, inputs = lent(self.make, subject.network, subject.example_inputs)
        subject = replace(subject, network=network, example_inputs=inputs)
        made = call(self.make, f"resource {name!r}", "a function (subject)", subject)
        if isinstance(made, Resource):
            return made
        if not callable(made):
            raise ConfigError(
                f"resource {name!r}: its maker gave a {type(made).__name__}; expected a function of the widths, "
                "or an object with name, unit and value(widths)."
            )
        return Counted(name, self.unit, made, monotone=self.monotone)


def register_resource(
    name: str, make: Callable[[Subject], Resource | Count], *, unit: str, format: str = ",.0f", least: float = 0.0,
    monotone: bool = False, override: bool = False,
) -> None:  # fmt: skip
    """Add a resource that budgets may name (see `Kind` for the arguments).

    What `make` gives is called with widths by group. Each is an integer, or a numpy array of integers where many sizes
    are asked for at once, to which an array of values is the answer: ``np.ceil(w / 4)``, not ``math.ceil(w / 4)``.
    Without widths it is called for the network as it is.

    >>> def traffic(subject):                              # elements that all operators write
    ...     calls = subject.costs.operators
    ...     return lambda widths=None: sum(call.elements(widths) for call in calls)
    >>> register_resource("traffic", traffic, unit="elements", monotone=True, override=True)
    >>> from fxprune import Budget
    >>> print(Budget("traffic", value=5000))
    traffic at 5,000 elements
    """
    RESOURCES.register(name, Kind(make, unit, format, least, monotone), override=override)


def unit_of(name: str) -> str:
    """The unit of a resource."""
    return RESOURCES.find(name).unit if name in RESOURCES else ""


def amount(value: float, name: str) -> str:
    """A number of this resource as people read it.

    >>> amount(1234567, "flops")
    '1,234,567'
    """
    return format(value, RESOURCES.find(name).format if name in RESOURCES else ",.4g")


def counted(costs: Cost, name: str) -> Counted:
    """The resource of this name of a network's costs."""
    along = None if name == "memory" else partial(costs.along, name)  # a peak is no polynomial
    return Counted(name, unit_of(name), costs.resource(name), along=along)


flops = Kind(lambda subject: counted(subject.costs, "flops"), "FLOPs", least=1)
macs = Kind(lambda subject: counted(subject.costs, "macs"), "MACs", least=1)
params = Kind(lambda subject: counted(subject.costs, "params"), "parameters", least=1)
memory = Kind(lambda subject: counted(subject.costs, "memory"), "bytes", least=1)
