"""The weights of a proof: the dense ones with removed units at zero, or trained ones embedded; in double precision."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from passes.analysis.coupling import Coupling
from passes.axes.expressions import Variable
from passes.axes.index_sets import Mask, survivors
from passes.documents.plan import Plan
from passes.equality.comparison import all_finite, readable
from passes.equality.double import computable, double
from passes.equality.streamed import Copied, Make
from passes.errors import EquivalenceError
from passes.graph.module_copies import owned_tensors

Noise = Mapping[str, torch.Tensor]


def finite_parameters(network: nn.Module, which: str) -> None:
    """Raise EquivalenceError where a parameter of the `which` network holds what is no finite number."""
    for name, parameter in network.named_parameters():
        numbers = parameter.is_floating_point() or parameter.is_complex()
        if parameter.is_meta or not numbers or all_finite(values := readable(parameter)):
            continue
        wrong = int((~torch.isfinite(values)).sum())
        if wrong:
            raise EquivalenceError(
                f"{name} of the {which} network holds {wrong} of {parameter.numel()} elements that are no finite "
                "numbers (NaN or infinity); what such a network computes cannot be compared. Train it again or load "
                "weights that are numbers"
            )


def equal_elements(dense: nn.Module, pruned: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Noise of the dense shape for every parameter and statistic of `pruned` whose elements are all alike.

    That of statistics is positive: variances are among them.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes, noise = dict(owned_tensors(dense)), {}
    parameters = {name for name, _ in pruned.named_parameters()}
    for name, small in [*pruned.named_parameters(), *pruned.named_buffers()]:
        numbers = small.is_floating_point() or small.is_complex()
        if name not in shapes or small.is_meta or small.numel() < 2 or not numbers:
            continue
        if bool((small == small.flatten()[0]).all()):
            kind = torch.complex128 if small.is_complex() else torch.float64
            made = 0.1 * torch.randn(shapes[name].shape, generator=generator, dtype=kind)
            noise[name] = (made if name in parameters else made.abs()).to(small.device)
    return noise


def device_of(network: nn.Module) -> torch.device:
    """Where a proof runs: on the device of the network's tensors, and without the meta device, which has no values."""
    return next((t.device for _, t in owned_tensors(network) if not t.is_meta), torch.device("cpu"))


def random_instead(network: nn.Module) -> tuple[str, ...]:
    """What a certificate says of parameters that are drawn because the network has none; nothing where it has them."""
    if any(parameter.is_meta for parameter in network.parameters()):
        return ("its weights are on the meta device: proven with random ones",)
    return ()


def dense_weights(coupling: Coupling, plan: Plan, pruned: nn.Module, trained: bool, noise: Noise) -> Make:
    """What the dense network's tensors hold: those of removed units zero.

    trained: with the weights of `pruned` in the places that are kept.
    """
    masks = coupling.masks(plan)
    removed: dict[str, list[tuple[int, np.ndarray]]] = defaultdict(list)
    for group in coupling.groups:
        gone = np.setdiff1d(np.arange(group.size), plan.keep[group.name])
        if len(gone):
            for where in group.slices:
                removed[where.tensor].append((where.dim, where.index[gone].ravel()))
    small = dict(owned_tensors(pruned)) if trained else {}

    def masked(name: str, tensor: torch.Tensor, copied: Copied = double) -> torch.Tensor:
        exact = copied(drawn(coupling, name, tensor) if tensor.is_meta else tensor)
        data = computable(exact)
        if coupling.axes_of(name, tensor) is None or name in coupling.unused:
            return exact
        if name in small and not small[name].is_meta:
            remain = _remaining(coupling, masks, name)
            got, expected = tuple(small[name].shape), tuple(len(kept) for kept in remain)
            if got == expected:
                data = _embedded(data, computable(copied(small[name])), remain)
            elif isinstance(tensor, torch.nn.Parameter):  # what a module keeps of its last call may have any shape
                raise EquivalenceError(
                    f"verify: {name} has the shape {got} in the pruned network; expected {expected}, which the plan "
                    "leaves of it. Pass the plan that made this network; layers that were exchanged afterwards cannot "
                    "be compared"
                )
        if name in noise:
            data += noise[name]
        for dim, positions in removed[coupling.aliases[name]]:
            data.index_fill_(dim, torch.from_numpy(positions).to(data.device), 0)
        return data.to(exact.dtype)

    return masked


def pruned_weights(coupling: Coupling, masks: Mapping[Variable, Mask], noise: Noise) -> Make:
    """What the pruned network's tensors hold: their own values, with the kept part of the noise."""

    def shrunk(name: str, tensor: torch.Tensor, copied: Copied = double) -> torch.Tensor:
        if tensor.is_meta:
            index = np.ix_(*_remaining(coupling, masks, name))
            return copied(drawn(coupling, name, tensor)[tuple(map(torch.from_numpy, index))])
        exact = copied(tensor)
        if name not in noise or coupling.axes_of(name, noise[name]) is None or name in coupling.unused:
            return exact
        index = np.ix_(*_remaining(coupling, masks, name))
        data = computable(exact)
        data += noise[name][tuple(torch.from_numpy(i).to(data.device) for i in index)]
        return data.to(exact.dtype)

    return shrunk


def drawn(coupling: Coupling, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Random values for a tensor of the dense network that is on the meta device, the same ones each time.

    Near one where it has one dimension, as scales and variances are; else such that products stay near one.
    """
    if not tensor.is_floating_point():
        raise EquivalenceError(
            f"{name} holds whole numbers on the meta device, so it is unknown what is computed; make the network under "
            "fxprune.empty_weights(), which leaves values to what a constructor computes"
        )
    first = coupling.aliases.get(name, name)
    axes = coupling.structure.tensors.get(first)
    shape = list(tensor.shape) if axes is None else [axis.size for axis in axes]
    generator = torch.Generator().manual_seed(zlib.crc32(first.encode()))
    made = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        made /= math.sqrt(math.prod(shape[1:]))
    else:
        made.mul_(0.1).add_(1.0).abs_()
    return made.to(tensor.dtype)


def _remaining(coupling: Coupling, masks: Mapping[Variable, Mask], name: str) -> list[np.ndarray]:
    axes = coupling.structure.tensors[coupling.aliases[name]]
    return [np.flatnonzero(survivors(axis, masks)) for axis in axes]


def _embedded(data: torch.Tensor, small: torch.Tensor, remain: list[np.ndarray]) -> torch.Tensor:
    if not remain:
        return small.to(data.device)
    result = torch.zeros_like(data)
    index = np.ix_(*remain)
    result[tuple(torch.from_numpy(i).to(data.device) for i in index)] = small.to(data.device, data.dtype)
    return result
