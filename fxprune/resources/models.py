"""Resources: what a budget limits, as a function of the widths; polynomials here, measured tables elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Protocol, runtime_checkable

import numpy as np
from torch import nn

from fxprune.errors import BudgetError
from passes.analysis.polynomial import Amount, Widths


@runtime_checkable
class Resource(Protocol):
    """What the search needs of a resource: its name, its unit, and its value for any widths of the original network.

    One that never grows as a width shrinks may say so by an attribute `monotone = True`; its proposals are found by
    bisection, those of others (24 channels may take longer than 32) by a look at every width.
    """

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    def value(self, widths: Widths | None = None) -> Amount:
        """The resource at these widths (groups left out: at full size); an array where a width is one."""


@runtime_checkable
class MeasuredResource(Resource, Protocol):
    """A resource whose values are predictions, and that can be measured on a whole network.

    After each round the search measures the chosen network, records prediction and measurement, takes `calibrated`
    in place of the resource, and stops by the measured value.
    """

    def measure(self, network: nn.Module, example_inputs: object) -> float:
        """Measure the network on the device, in `unit`."""

    def calibrated(self, predicted: float, measured: float) -> MeasuredResource:
        """The resource whose prediction for that network would have been what was measured."""


@dataclass(frozen=True)
class Counted:
    """A resource that the cost polynomials count exactly.

    `along(widths)`, where there is one, gives it for each group as a polynomial in that group's width alone.
    """

    name: str
    unit: str
    count: Callable[..., Amount]
    monotone: bool = True
    along: Callable[[Widths], Mapping[str, np.ndarray]] | None = None

    def value(self, widths: Widths | None = None) -> Amount:
        return self.count(widths)


def finite_value(resource: Resource, widths: Mapping[str, int | np.ndarray]) -> np.ndarray:
    """The resource at these widths, as an array of numbers.

    Raises BudgetError where one is infinite, not a number, or no number at all: it could not be held against a limit.
    """
    values = np.asarray(resource.value(widths))
    if _is_finite(values).all():
        return values
    spread, *sizes = np.broadcast_arrays(values, *widths.values())
    place = tuple(np.argwhere(~_is_finite(spread))[0])
    at = {name: size[place].item() for name, size in zip(widths, sizes, strict=True)}
    raise _not_finite(resource, spread[place], f"its value at the widths {_listed(at)}")


def finite_measurement(resource: MeasuredResource, network: nn.Module, example_inputs: object) -> float:
    """What the resource measures of a network. Raises BudgetError where that is no finite number."""
    found = np.asarray(resource.measure(network, example_inputs))
    if found.ndim or not _is_finite(found):
        raise _not_finite(resource, found, "its measurement of the network that a round chose")
    return float(found)


def _not_finite(resource: Resource, value: np.ndarray, what: str) -> BudgetError:
    """The error for a value that cannot be held against a limit."""
    return BudgetError(
        f"resource {resource.name!r}: {what} is {np.asarray(value).tolist()!r}; expected a finite number "
        f"({resource.unit}); let the resource give one for all widths that a search may try, or budget something else, "
        "such as params."
    )


def _is_finite(values: np.ndarray) -> np.ndarray:
    """Of each item, whether it is a finite number. Whole numbers of Python may be larger than those of NumPy."""
    if values.dtype.kind in "iuf":
        return np.isfinite(values)
    finite = [isinstance(item, Integral) or (isinstance(item, Real) and math.isfinite(item)) for item in values.flat]
    return np.array(finite, dtype=bool).reshape(values.shape)


def _listed(widths: Mapping[str, int], most: int = 8) -> str:
    shown = ", ".join(f"{name}={width}" for name, width in list(widths.items())[:most])
    return shown if len(widths) <= most else f"{shown} and {len(widths) - most} more"


def one_at_a_time(
    resource: Resource, widths: Mapping[str, int], names: Sequence[str]
) -> Callable[[np.ndarray], np.ndarray]:
    """A function of sizes: its entry i is the resource with only group names[i] at sizes[i], the others at `widths`.

    A name may stand several times, for several sizes of one group.
    """
    along = getattr(resource, "along", None)
    if along is not None:
        found = along(widths)
        coefficients = np.stack([found[name] for name in names])

        def horner(sizes: np.ndarray) -> np.ndarray:
            total = np.zeros(len(names), dtype=coefficients.dtype)
            for column in reversed(range(coefficients.shape[1])):
                total = total * sizes + coefficients[:, column]
            return total

        return horner

    rows = {name: row for row, name in enumerate(dict.fromkeys(names))}
    current = np.array([widths[name] for name in rows])
    row, column = np.array([rows[name] for name in names]), np.arange(len(names))

    def table(sizes: np.ndarray) -> np.ndarray:
        trial = np.repeat(current[:, None], len(names), axis=1)
        trial[row, column] = sizes
        values = finite_value(resource, {**widths, **dict(zip(rows, trial, strict=True))})
        return np.broadcast_to(values, (len(names),))

    return table
