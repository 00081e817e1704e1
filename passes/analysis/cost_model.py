"""Costs as polynomials in the group widths: exact for every width vector, evaluated without running anything.

Each operator rule counts its multiply-accumulates as a product of axes, each parameter has as many elements as the
product of its axes, and the length of an axis is a polynomial in the widths of the groups that occur in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from passes.analysis.coupling import Coupling
from passes.analysis.parameter_roles import layer_of
from passes.analysis.peak_memory import peak_bytes
from passes.analysis.polynomial import Amount, Compiled, Lengths, Widths
from passes.analysis.residual_blocks import NO_BLOCKS
from passes.arguments import got, is_a, quoted
from passes.axes.expressions import Axis
from passes.errors import PlanError
from passes.ops import Record, spelled

_FLOPS_PER_MAC = 2


@dataclass(frozen=True)
class OperatorCost:
    """One call of an operator in a forward pass.

    operator: its name, ``aten.convolution.default``. node: the graph node or the call of a module that made it.
    macs, elements: functions of the widths, as those of `Cost`: multiply-accumulates, and elements of its results.
    """

    operator: str
    node: str
    macs: Callable[[Widths | None], Amount]
    elements: Callable[[Widths | None], Amount]


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs: the calls that multiply with its parameters, and these parameters.

    name: the module's, "" for the network itself; of multiplications without a parameter (attention's scores) that of
    the node or call. macs, params: functions of the widths, as those of `Cost`; over all layers they add up to its own.
    """

    name: str
    macs: Callable[[Widths | None], Amount]
    params: Callable[[Widths | None], Amount]


class Cost(Lengths):
    """The resources of a coupled network as functions of its group widths.

    Every method takes ``widths``, {group name: size}; a group that is not named has its full size, and 0 leaves out all
    that has a part in it. A residual block of the coupling is named likewise, 0 being without its branch. A size may be
    an integer array: all arrays broadcast together and the result is an array.
    Scalars give Python integers.
    """

    @cached_property
    def _macs(self) -> Compiled:
        records = self.coupling.structure.records
        return self.compile((*m, *self.call_blocks.get(n, ())) for n, record in enumerate(records) for m in record.macs)

    @cached_property
    def _params(self) -> Compiled:
        return self.compile(product for _, product in self._parameters())

    def _parameters(self) -> Iterator[tuple[str, Sequence[Axis]]]:
        """Each parameter, tied ones once, with the axes whose lengths multiply to its size."""
        for name, axes in self.coupling.structure.tensors.items():
            if self.coupling.aliases[name] == name and name in self.coupling.trainable:
                yield name, (*axes, *self.tensor_blocks.get(name, ()))

    @cached_property
    def _memory(self) -> Callable[[np.ndarray], np.ndarray]:
        return by_blocks(self) if self.coupling.blocks else peak_bytes(self)

    def macs(self, widths: Widths | None = None) -> Amount:
        """Multiply-accumulates of one forward pass at the example batch size."""
        return self._evaluate(self._macs, widths)

    def flops(self, widths: Widths | None = None) -> Amount:
        """Floating point operations, two a MAC: what torch.utils.flop_counter counts on the rebuilt network."""
        return _FLOPS_PER_MAC * self.macs(widths)

    def params(self, widths: Widths | None = None) -> Amount:
        """Number of parameters; tied ones count once."""
        return self._evaluate(self._params, widths)

    def memory(self, widths: Widths | None = None) -> Amount:
        """Peak bytes of live activations plus the bytes of parameters and buffers."""
        return self._evaluate(self._memory, widths)

    @cached_property
    def operators(self) -> tuple[OperatorCost, ...]:
        """What each call costs, in the order of the run: the parts of any resource that is a sum over operators.

        >>> import torch; from torch import nn
        >>> from passes import couple, cost
        >>> costs = cost(couple(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 3)))
        >>> [(call.macs({"0": 4}), call.elements({"0": 4})) for call in costs.operators if call.macs()]
        [(12, 4), (8, 2)]
        """

        def made_by(number: int, products: Iterable[Sequence[Axis]]) -> Callable[[Widths | None], Amount]:
            return self._function((*axes, *self.call_blocks.get(number, ())) for axes in products)

        return tuple(
            OperatorCost(spelled(r.func), r.node, made_by(n, r.macs), made_by(n, (v.axes for v in r.outputs)))
            for n, r in enumerate(self.coupling.structure.records)
        )

    @cached_property
    def layers(self) -> tuple[LayerCost, ...]:
        """What each layer costs, in the order of the run.

        >>> import torch; from torch import nn
        >>> from passes import couple, cost
        >>> costs = cost(couple(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 3)))
        >>> [(layer.name, layer.macs({"0": 4}), layer.params({"0": 4})) for layer in costs.layers]
        [('0', 12, 16), ('2', 8, 10)]
        """
        macs: dict[str, list[Sequence[Axis]]] = {}
        for number, record in enumerate(self.coupling.structure.records):
            for layer in layers_read(record):
                macs.setdefault(layer, [])
            if record.macs:
                blocks = self.call_blocks.get(number, ())
                macs.setdefault(layer_of_call(record), []).extend((*axes, *blocks) for axes in record.macs)
        params: dict[str, list[Sequence[Axis]]] = {}
        for name, product in self._parameters():
            params.setdefault(layer_of(name), []).append(product)
        return tuple(
            LayerCost(name, self._function(macs.get(name, ())), self._function(params.get(name, ())))
            for name in {**macs, **params}
            if macs.get(name) or params.get(name)
        )

    def _function(self, products: Iterable[Sequence[Axis]]) -> Callable[[Widths | None], Amount]:
        """A sum of products of lengths as a function of the widths."""
        compiled = self.compile(products)

        def value(widths: Widths | None = None) -> Amount:
            return self._evaluate(compiled, widths)

        return value

    def resource(self, name: str) -> Callable[[Widths | None], Amount]:
        """The function of a resource by name: flops, macs, params (or weights), memory."""
        known = {
            "flops": self.flops, "macs": self.macs, "params": self.params, "weights": self.params,
            "memory": self.memory,
        }  # fmt: skip
        if not isinstance(name, str) or name not in known:
            raise PlanError(f"no resource is called {quoted(name)}; there are {', '.join(known)}")
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
        sizes = self.coupling.full_widths
        unknown = [name for name in given if name not in sizes]
        if unknown:
            self.coupling.group(unknown[0])
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

    def _evaluate(self, compiled: Callable[[np.ndarray], np.ndarray], widths: Widths | None) -> object:
        vector, scalar = self.vector(widths)
        value = compiled(vector)
        return int(value) if scalar else value


def layers_read(record: Record) -> tuple[str, ...]:
    """The layers whose parameters a call reads, in the order of its operands; of one without data all that made it."""
    named = (layer_of(name) for value in record.inputs for name in sorted(value.parameters))
    return tuple(dict.fromkeys(named))


def layer_of_call(record: Record) -> str:
    """The layer that a call's multiplications are counted for: the first whose parameters it reads, else its node."""
    return next(iter(layers_read(record)), record.node)


def by_blocks(costs: Cost) -> Callable[[np.ndarray], np.ndarray]:
    """Peak bytes where residual blocks may be missing: a sum without its branch shares memory, so each set has its own
    liveness."""
    groups, blocks = len(costs.coupling.variables), list(costs.coupling.blocks)
    known: dict[tuple[int, ...], tuple[list[int], Callable[[np.ndarray], np.ndarray]]] = {}

    def peak_without(removed: tuple[int, ...]) -> tuple[list[int], Callable[[np.ndarray], np.ndarray]]:
        if removed not in known:
            left = costs.coupling.without([blocks[number] for number in removed]).with_blocks(NO_BLOCKS)
            known[removed] = [costs.names.index(name) for name in left.variables], peak_bytes(Lengths(left))
        return known[removed]

    def evaluate(widths: np.ndarray) -> np.ndarray:
        flat = widths.reshape(len(widths), -1)
        patterns, place = np.unique(flat[groups:], axis=1, return_inverse=True)
        total = np.zeros(flat.shape[1], dtype=np.int64)
        for number, pattern in enumerate(patterns.T):
            rows, peak = peak_without(tuple(np.flatnonzero(pattern == 0).tolist()))
            columns = place.ravel() == number
            total[columns] = peak(flat[rows][:, columns])
        return total.reshape(widths.shape[1:])

    return evaluate


def _without_device(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return got(value) if value.is_meta else value.detach().cpu()
    return value


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
