"""Resources: what a budget limits, as a function of the widths; polynomials here, measured tables elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from fxprune.errors import BudgetError, ConfigError, FxpruneError
from fxprune.io.lent import lent
from passes.analysis.polynomial import Amount, Widths
from passes.arguments import got, quoted
from passes.process.source_lines import said


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


def value_of(resource: Resource, widths: Widths, shape: tuple[int, ...] = ()) -> np.ndarray:
    """What a resource is at these widths, which are numbers or arrays of a shape.

    Raises ConfigError that names the resource where it fails on them, or gives anything but numbers of that shape, and
    BudgetError where one is no finite number: it could not be held against a limit.
    """
    where = f"resource {quoted(resource.name)}: value(widths)"
    try:
        found: object = resource.value({**widths})  # its own: a function may fill it up, or empty it
    except FxpruneError:
        raise
    except Exception as error:  # it may be the user's own function
        raise ConfigError(
            f"{where} failed: {said(error)}. Widths are integers or numpy arrays of them: np.ceil, not math.ceil."
        ) from error
    values = real_numbers(found)
    if values is None or (values.size != 1 and values.shape != shape):
        what = got(found) if values is None else f"an array of shape {values.shape}"
        raise ConfigError(f"{where} gave {what}; expected a number, and an array of them where a width is an array.")
    values = values.reshape(()) if values.size == 1 and not shape else np.broadcast_to(values, shape)
    if not np.isfinite(values).all():
        spread, *sizes = np.broadcast_arrays(values, *widths.values())
        place = tuple(np.argwhere(~np.isfinite(spread))[0])
        at = {name: size[place].item() for name, size in zip(widths, sizes, strict=True)}
        raise _not_finite(resource, float(spread[place]), f"its value at the widths {_listed(at)}")
    return values


def finite_measurement(resource: MeasuredResource, network: nn.Module, example_inputs: object) -> float:
    """What the resource measures of a network; one of the user's own measures a copy.

    Raises BudgetError where that is no finite number.
    """
    found: object = resource.measure(*lent(resource, network, example_inputs))
    values = real_numbers(found)
    if values is None or values.size != 1 or not np.isfinite(values).all():
        raise _not_finite(resource, found, "its measurement of the network that a round chose")
    return float(values.reshape(()))


def _not_finite(resource: Resource, value: object, what: str) -> BudgetError:
    """The error for a value that cannot be held against a limit."""
    return BudgetError(
        f"resource {quoted(resource.name)}: {what} is {value}; expected a finite number ({resource.unit}); let the "
        "resource give one for all widths that a search may try, or budget something else, such as params."
    )


def _listed(widths: Mapping[str, int], most: int = 8) -> str:
    shown = ", ".join(f"{name}={width}" for name, width in list(widths.items())[:most])
    return shown if len(widths) <= most else f"{shown} and {len(widths) - most} more"


def real_numbers(given: object) -> np.ndarray | None:
    """An array or tensor of real numbers, or what makes one, as numpy has it; None for anything else."""
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = given.double() if given.is_floating_point() else given
    try:
        found = np.asarray(given)
    except (TypeError, ValueError, RuntimeError):  # lists of unequal length, tensors without values
        return None
    if found.dtype.kind == "O":  # integers of any length among them
        return found.astype(np.float64) if all(isinstance(item, Real) for item in found.flat) else None
    return found if found.dtype.kind in "biuf" else None


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
        return value_of(resource, {**widths, **dict(zip(rows, trial, strict=True))}, (len(names),))

    return table
