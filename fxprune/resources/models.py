"""Resources: what a budget limits, as a function of the widths; polynomials here, measured tables elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from torch import nn

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
        values = resource.value({**widths, **dict(zip(rows, trial, strict=True))})
        return np.broadcast_to(np.asarray(values), (len(names),))

    return table
