"""A network's tensors and counts at the widths that a plan leaves: shared by graphs and by modules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np
import torch
from torch import nn

from passes.analysis.coupling import Coupling
from passes.analysis.tape import once_each
from passes.axes.expressions import Axis, Constant, Variable
from passes.axes.index_sets import Mask, kept, length, survivors
from passes.graph.module_copies import like, owned_tensors
from passes.graph.shared_weights import parametrizations_kept
from passes.ops import Value
from passes.process.torch_private import children_of, parameters_of
from passes.transform.resize_modules import COUNTING, resize_module

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
Masks = Mapping[Variable, Mask]


class Slicing:
    """What remains of every axis and tensor of a coupled network under masks of kept units."""

    def __init__(self, coupling: Coupling, masks: Masks) -> None:
        self.coupling, self.masks = coupling, masks
        widths = {variable: kept(mask) for variable, mask in masks.items()}
        self.remain = remain = once_each(lambda axis: survivors(axis, masks))  # which positions of an axis remain
        self._length = once_each(lambda axis: length(axis, lambda v: widths.get(v, v.size)))
        self._index = once_each(lambda axis: torch.from_numpy(np.flatnonzero(remain(axis))))
        self._counts = self._module_counts()

    def size(self, axis: Axis) -> int:
        """The new length of `axis`."""
        return axis.size if isinstance(axis, Constant) else self._length(axis)

    def narrowed(self, axes: Iterable[Axis]) -> list[Axis]:
        """Those of `axes` that lose positions."""
        return [a for a in axes if self.size(a) != a.size]

    def new_shape(self, name: str) -> list[int]:
        """The shape that a parameter, buffer or other tensor of the network is given."""
        return [self.size(axis) for axis in self.coupling.structure.tensors[self.coupling.aliases[name]]]

    def remaining(self, name: str) -> dict[int, torch.Tensor]:
        """The dimensions of a tensor that lose positions, each with those that stay."""
        axes = self.coupling.structure.tensors[self.coupling.aliases[name]]
        return {dim: self._index(axis) for dim, axis in enumerate(axes) if self.size(axis) != axis.size}

    def sliced(self, name: str, tensor: torch.Tensor, meta: bool = False) -> torch.Tensor:
        """The kept positions of a parameter, buffer or other tensor of the network, as a new tensor.

        Data type, device, `requires_grad` and memory format are kept. meta: for its shape alone.
        """
        if meta:
            return like(tensor, torch.empty(self.new_shape(name), dtype=tensor.dtype, device="meta"))
        data = tensor.detach()
        for dim, index in self.remaining(name).items():
            data = data.index_select(dim, index if data.is_cpu else index.to(data.device))
        memory_format = _CHANNELS_LAST.get(tensor.dim())
        if memory_format and tensor.is_contiguous(memory_format=memory_format) and not tensor.is_contiguous():
            return like(tensor, data.clone(memory_format=memory_format))
        return like(tensor, data.clone() if data.data_ptr() == tensor.data_ptr() else data)

    def kept(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """`sliced`, with the attributes that a user's program set on the tensor.

        A tensor that a module has kept of a call since it was coupled, new or of another shape, is copied as it is.
        """
        known = self.coupling.axes_of(name, tensor) is not None
        made = self.sliced(name, tensor) if known else like(tensor, tensor.detach().clone())
        made.__dict__.update(tensor.__dict__)
        return made

    @cached_property
    def first_inputs(self) -> dict[str, list[int]]:
        """The new shape of the first tensor that enters the calls of each label."""
        first: dict[str, Value] = {}
        for record in self.coupling.structure.records:
            if record.inputs:
                first.setdefault(record.node, record.inputs[0])
        return {node: [self.size(axis) for axis in value.axes] for node, value in first.items()}

    def _module_counts(self) -> dict[str, dict[str, int]]:
        """For each parameter the counts (groups, num_groups) of the operator that it enters."""
        counts: dict[str, dict[str, int]] = defaultdict(dict)
        for record in self.coupling.structure.records:
            if record.literals:
                sizes = {name: self.size(axis) for name, axis in record.literals.items()}
                counts["@" + record.node].update(sizes)
                for value in record.inputs[1:]:
                    for parameter in value.parameters:
                        counts[parameter].update(sizes)
        return counts

    def resize(self, path: str, module: nn.Module, call: str, channels: int | None) -> None:
        """Make the sizes of a layer (its tensors are sliced already) agree.

        path: its name in the network. call: the label of the calls that it makes. channels: of its input.
        """
        counts: dict[str, int] = {}
        if self._counts and isinstance(module, COUNTING):
            counts = dict(self._counts.get("@" + call, {})) if call else {}
            inner = [name for name, _ in owned_tensors(module)] if children_of(module) else parameters_of(module)
            for name in inner:
                counts.update(self._counts.get(f"{path}.{name}" if path else name, {}))
        with parametrizations_kept(module):
            resize_module(module, counts.get("groups"), counts.get("num_groups"), channels)
