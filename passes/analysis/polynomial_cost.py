"""Costs as polynomials in the group widths: exact for every width vector, evaluated without running anything.

Each operator rule counts its multiply-accumulates as a product of axes, each parameter has as many elements as the
product of its axes, and the length of an axis is a polynomial in the widths of the groups that occur in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from passes.analysis.coupling import Coupling
from passes.analysis.tape import once_each
from passes.arguments import got, is_a
from passes.axes.expressions import Axis, Constant, Variable
from passes.axes.index_sets import length
from passes.errors import PlanError

Widths = Mapping[str, Any]
_FLOPS_PER_MAC = 2


class Polynomial:
    """A sum of monomials over group numbers, with integer coefficients: ``{(): 5, (0, 0): 2}`` is 5 + 2 x0^2."""

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[tuple[int, ...], int]) -> None:
        self.terms = dict(terms)

    def __add__(self, other: Polynomial | int) -> Polynomial:
        terms = dict(self.terms)
        for key, value in _polynomial(other).terms.items():
            terms[key] = terms.get(key, 0) + value
        return Polynomial(terms)

    __radd__ = __add__

    def __mul__(self, other: Polynomial | int) -> Polynomial:
        if not isinstance(other, Polynomial):
            return Polynomial({key: value * other for key, value in self.terms.items()})
        terms: dict[tuple[int, ...], int] = {}
        for left, a in self.terms.items():
            for right, b in other.terms.items():
                key = tuple(sorted(left + right))
                terms[key] = terms.get(key, 0) + a * b
        return Polynomial(terms)

    __rmul__ = __mul__


def _polynomial(value: Polynomial | int) -> Polynomial:
    return value if isinstance(value, Polynomial) else Polynomial({(): int(value)})


class Compiled:
    """A polynomial as arrays, ready to be evaluated for one width vector or for many at once."""

    def __init__(self, polynomial: Polynomial, groups: int) -> None:
        keys = list(polynomial.terms)
        degree = max((len(k) for k in keys), default=0)
        self.coefficients = np.array([polynomial.terms[k] for k in keys], dtype=np.int64)
        self.factors = np.full((len(keys), degree), groups, dtype=np.int64)  # number `groups` stands for the constant 1
        for row, key in enumerate(keys):
            self.factors[row, : len(key)] = key
        self.groups = groups

    def __call__(self, widths: np.ndarray) -> np.ndarray:
        """Values for `widths`, an integer array (groups, ...)."""
        padded = np.concatenate([widths, np.ones((1, *widths.shape[1:]), dtype=np.int64)])
        total = np.zeros(widths.shape[1:], dtype=np.int64)
        for start in range(0, len(self.coefficients), 4096):
            rows = slice(start, start + 4096)
            values = np.broadcast_to(self.coefficients[rows, None], (len(self.coefficients[rows]), total.size))
            values = values.reshape(-1, *total.shape)
            for column in range(self.factors.shape[1]):
                values = values * padded[self.factors[rows, column]]
            total = total + values.sum(axis=0)
        return total

    def along(self, widths: np.ndarray) -> np.ndarray:
        """The polynomial as a function of each group's width alone, the others at `widths` (groups,).

        Returns coefficients (groups, degree + 1), lowest power first.
        """
        degree = self.factors.shape[1]
        result = np.zeros((self.groups, degree + 1), dtype=np.int64)
        if not len(self.coefficients):
            return result
        padded = np.append(widths, 1)
        total = int((self.coefficients * padded[self.factors].prod(axis=1)).sum())
        result[:, 0] = total
        for column in range(degree):
            group = self.factors[:, column]
            first = np.ones(len(group), dtype=bool)
            for earlier in range(column):
                first &= self.factors[:, earlier] != group
            rows = first & (group < self.groups)
            mine = self.factors[rows] == group[rows, None]
            power = mine.sum(axis=1)
            rest = self.coefficients[rows] * np.where(mine, 1, padded[self.factors[rows]]).prod(axis=1)
            np.add.at(result, (group[rows], power), rest)
            np.subtract.at(result, (group[rows], np.zeros_like(power)), rest * padded[group[rows]] ** power)
        return result


class Cost:
    """The resources of a coupled network as functions of its group widths.

    Every method takes ``widths``, {group name: size}; a group that is not named has its full size, and 0 leaves out all
    that has a part in it. A size may be an integer array: all arrays broadcast together and the result is an array.
    Scalars give Python integers.
    """

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self.names = list(coupling.variables)
        self._number = {v: n for n, v in enumerate(coupling.variables.values())}
        self._length = once_each(self._counted)

    def polynomial(self, axes: Iterable[Axis]) -> Polynomial:
        """The product of the lengths of `axes`."""
        result = Polynomial({(): 1})
        for axis in axes:
            result = result * (axis.size if isinstance(axis, Constant) else self.length(axis))
        return result

    def length(self, axis: Axis) -> Polynomial:
        """The length of an axis of this coupling."""
        return self._length(axis)

    def _counted(self, axis: Axis) -> Polynomial:
        def width(variable: Variable) -> Polynomial:
            number = self._number.get(variable)
            return Polynomial({(): variable.size} if number is None else {(number,): 1})

        return _polynomial(length(axis, width))

    def compile(self, products: Iterable[Sequence[Axis]]) -> Compiled:
        """The sum over `products` of the product of their axes' lengths, ready to evaluate."""
        total: dict[tuple[int, ...], int] = {}
        for axes in products:
            for key, value in self.polynomial(axes).terms.items():
                total[key] = total.get(key, 0) + value
        return Compiled(Polynomial(total), len(self.names))

    @cached_property
    def _macs(self) -> Compiled:
        return self.compile(macs for record in self.coupling.structure.records for macs in record.macs)

    @cached_property
    def _params(self) -> Compiled:
        structure, aliases = self.coupling.structure, self.coupling.aliases
        return self.compile(
            axes
            for name, axes in structure.tensors.items()
            if aliases[name] == name and name in self.coupling.trainable
        )

    @cached_property
    def _memory(self) -> Callable[[np.ndarray], np.ndarray]:
        from passes.analysis.peak_memory import peak_bytes

        return peak_bytes(self)

    def macs(self, widths: Widths | None = None) -> Any:
        """Multiply-accumulates of one forward pass at the example batch size."""
        return self._evaluate(self._macs, widths)

    def flops(self, widths: Widths | None = None) -> Any:
        """Floating point operations, two a MAC: what torch.utils.flop_counter counts on the rebuilt network."""
        return _FLOPS_PER_MAC * self.macs(widths)

    def params(self, widths: Widths | None = None) -> Any:
        """Number of parameters; tied ones count once."""
        return self._evaluate(self._params, widths)

    def memory(self, widths: Widths | None = None) -> Any:
        """Peak bytes of live activations plus the bytes of parameters and buffers."""
        return self._evaluate(self._memory, widths)

    def resource(self, name: str) -> Callable[[Widths | None], Any]:
        """The function of a resource by name: flops, macs, params (or weights), memory."""
        known = {
            "flops": self.flops, "macs": self.macs, "params": self.params, "weights": self.params,
            "memory": self.memory,
        }  # fmt: skip
        if not isinstance(name, str) or name not in known:
            raise PlanError(f"no resource is called {name!r}; there are {', '.join(known)}")
        return known[name]

    def along(self, name: str, widths: Widths | None = None) -> dict[str, np.ndarray]:
        """For each group, resource `name` (flops, macs, params) as a polynomial in its width alone.

        The other groups stay at `widths`. Returns {group name: coefficients, lowest power first}, integers.
        """
        known = {"flops": self._macs, "macs": self._macs, "params": self._params, "weights": self._params}
        if not isinstance(name, str) or name not in known:
            raise PlanError(f"along: got {got(name)}; expected the name of a resource, one of {', '.join(known)}")
        compiled = known[name]
        scale = _FLOPS_PER_MAC if name == "flops" else 1
        vector, scalar = self.vector(widths)
        if not scalar:
            raise PlanError("along: widths: got arrays; expected one integer a group")
        return dict(zip(self.names, scale * compiled.along(vector), strict=True))

    def vector(self, widths: Widths | None) -> tuple[np.ndarray, bool]:
        """`widths` as an integer array (groups, ...), and whether every given size was a scalar."""
        given = {} if widths is None else widths
        is_a(given, Mapping, "widths", "a mapping of group names to integers, such as plan.widths", PlanError)
        unknown = [name for name in given if name not in self.coupling.variables]
        if unknown:
            self.coupling.group(unknown[0])
        sizes = self.coupling.widths
        columns = [np.asarray(_without_device(given.get(name, sizes[name]))) for name in self.names]
        if not columns:
            return np.zeros((0,), dtype=np.int64), True
        scalar = all(c.ndim == 0 for c in columns)
        try:
            widths_of = np.stack(np.broadcast_arrays(*columns))
        except ValueError:
            shapes = {name: c.shape for name, c in zip(self.names, columns, strict=True) if c.ndim}
            raise PlanError(f"widths: arrays of these shapes do not broadcast together: {shapes}") from None
        most = np.array(list(sizes.values())).reshape(-1, *[1] * (widths_of.ndim - 1))
        if widths_of.dtype.kind not in "iu" or (widths_of < 0).any() or (widths_of > most).any():
            _refuse(self.names, columns, sizes)
        return widths_of.astype(np.int64), scalar

    def _evaluate(self, compiled: Callable[[np.ndarray], np.ndarray], widths: Widths | None) -> Any:
        vector, scalar = self.vector(widths)
        value = compiled(vector)
        return int(value) if scalar else value


def _without_device(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, torch.Tensor) and not value.is_meta else value


def _refuse(names: Sequence[str], columns: Sequence[np.ndarray], sizes: Mapping[str, int]) -> None:
    """PlanError that names the first group whose width is none."""
    for name, column in zip(names, columns, strict=True):
        expected = f"expected integers in 0..{sizes[name]}"
        if column.dtype.kind not in "iu":
            given = got(column.item() if column.ndim == 0 else column)
            raise PlanError(f"widths: group {name!r}: got {given}; {expected}")
        if column.size and (column.min() < 0 or column.max() > sizes[name]):
            raise PlanError(f"widths: group {name!r}: got {column.min()}..{column.max()}; {expected}")
    raise PlanError("widths: integers of these sizes cannot be held together; expected ordinary integers")


def cost(coupling: Coupling) -> Cost:
    """The cost polynomials of a coupled network.

    >>> from torch import nn
    >>> from passes import capture, couple, cost
    >>> import torch
    >>> net = capture(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)))
    >>> c = cost(couple(net, torch.randn(1, 3)))
    >>> c.macs(), c.macs({"0": 4}), c.params({"0": 4})
    (40, 20, 26)
    """
    is_a(coupling, Coupling, "cost", "a Coupling, which couple(network, example_inputs) returns")
    return Cost(coupling)
