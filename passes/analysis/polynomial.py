"""Polynomials in the widths of groups: the length of an axis is one, and so is every product and sum of lengths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from passes.analysis.coupling import Coupling
from passes.analysis.tape import once_each
from passes.arguments import is_a, read_from
from passes.axes.expressions import AXES, Axis, Constant, Variable
from passes.axes.index_sets import length

Widths: TypeAlias = Mapping[str, int | np.ndarray]
"""{group name: size}; a size may be an integer array, and all arrays broadcast together."""
Amount: TypeAlias = Any
"""Of a resource: a number, or an array where a width is one."""


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


class Lengths:
    """The lengths of a coupling's axes as polynomials in the widths of its groups, which `names` lists in order.

    Behind the groups stand the residual blocks that plans may remove, each as one unit: a count of what belongs to its
    branch has that unit as a further factor, 1 or 0 (see `call_blocks`, `tensor_blocks`).
    """

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self.names = list(coupling.full_widths)
        units = {name: Variable(-1 - number, 1) for number, name in enumerate(coupling.blocks)}
        self._number = {v: n for n, v in enumerate([*coupling.variables.values(), *units.values()])}
        self.call_blocks: dict[int, tuple[Axis, ...]] = {}  # by number of a call the blocks that it goes with
        self.tensor_blocks: dict[str, tuple[Axis, ...]] = {}
        for name, block in coupling.blocks.items():
            for number in (*block.calls, block.sum):
                self.call_blocks[number] = (*self.call_blocks.get(number, ()), units[name])
            for tensor in block.tensors:
                self.tensor_blocks[tensor] = (*self.tensor_blocks.get(tensor, ()), units[name])
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
        is_a(axis, AXES, "length", "an axis of this coupling, such as those of coupling.structure.tensors")

        def width(variable: Variable) -> Polynomial:
            number = self._number.get(variable)
            return Polynomial({(): variable.size} if number is None else {(number,): 1})

        return _polynomial(length(axis, width))

    def compile(self, products: Iterable[Sequence[Axis]]) -> Compiled:
        """The sum over `products` of the product of their axes' lengths, ready to evaluate."""
        total: dict[tuple[int, ...], int] = {}
        expected = "an iterable of sequences of axes, each a product of their lengths"
        is_a(products, Iterable, "compile", expected)
        for axes in read_from(products, "compile"):
            is_a(axes, Sequence, "compile: one product", expected)
            for key, value in self.polynomial(axes).terms.items():
                total[key] = total.get(key, 0) + value
        return Compiled(Polynomial(total), len(self.names))
