"""A sample of what a network computes: weights and shapes alone do not tell two programs apart.

Networks of one class with other slopes, strides or formulas have equal tensors. A few numbers of the outputs for inputs
that are drawn alike wherever the network is built say whether it is the one that was written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from passes.documents.described_values import Described, examples
from passes.process.state import seed_all, state_kept
from passes.process.torch_private import pytree
from passes.statistics.divergence import tensors_out
from passes.stream.network_copies import apart

MAY_DIFFER = "a function in it, a number (a slope, an epsilon, a stride) or its code differs"
"""What may be another in a network of the same tensors that computes something else."""

Sample = tuple[tuple[float, ...], ...]
_MOST = 32  # numbers of each output
_CPU = 1e-3  # how far they may lie apart, relative, in single precision or better on a processor
_OTHERS = 3e-2  # and else: other kernels, or fewer digits


@torch.no_grad()
def sample_of(network: nn.Module, inputs: Sequence[Described]) -> Sample | None:
    """Numbers of each output, evenly spaced, for inputs of these shapes (of `Plan.inputs`), in eval mode.

    None where the network does not run on such inputs, gives no numbers, or gives others at the next call.
    """
    found = _numbers(network, inputs)
    return found if found is not None and found == _numbers(network, inputs) else None


@torch.no_grad()
def is_like(sample: Sample, network: nn.Module, inputs: Sequence[Described]) -> bool:
    """Whether a network gives what the one gave of which the sample is, but for rounding."""
    found = _numbers(network, inputs)
    if found is None or [len(row) for row in found] != [len(row) for row in sample]:
        return False
    tensors = [t for t in network.parameters() if t.is_floating_point()]
    exact = all(t.device.type == "cpu" and t.dtype in (torch.float32, torch.float64) for t in tensors)
    for mine, theirs in zip(map(torch.tensor, found), map(torch.tensor, sample), strict=True):
        if float((mine - theirs).norm()) > (_CPU if exact else _OTHERS) * float(theirs.norm()):
            return False
    return True


@torch.no_grad()
def give_the_same(one: nn.Module, other: nn.Module, inputs: Sequence[Described]) -> bool:
    """Whether `other` gives what `one` gives, but for rounding; also where `one` gives nothing to compare by."""
    found = _numbers(one, inputs)
    return found is None or is_like(found, other, inputs) or sample_of(one, inputs) is None


@torch.no_grad()
def equal_outputs(one: nn.Module, other: nn.Module, inputs: Sequence[Described]) -> bool:
    """Whether `other` gives, to the last digit, what `one` gives: all of the outputs, in eval mode.

    Other kernels are no reason to differ here: both are run by this process. False where `one` gives nothing to compare
    by, or other numbers at the next call.
    """
    expected = _outputs(one, inputs)
    return bool(expected) and all(_equal(expected or (), _outputs(again, inputs)) for again in (one, other))


def _equal(some: Sequence[Tensor], others: Sequence[Tensor] | None) -> bool:
    if others is None or [(t.shape, t.dtype) for t in some] != [(t.shape, t.dtype) for t in others]:
        return False
    return all(map(torch.equal, some, others))


def _numbers(network: nn.Module, inputs: Sequence[Described]) -> Sample | None:
    outputs = _outputs(network, inputs)
    if not outputs:
        return None
    rows = [output.double().flatten()[:: max(1, output.numel() // _MOST)][:_MOST] for output in outputs]
    return tuple(tuple(float(f"{n:.6g}") for n in row.tolist()) for row in rows) if _are_numbers(rows) else None


def _outputs(network: nn.Module, inputs: Sequence[Described]) -> Sequence[Tensor] | None:
    """What a copy of the network gives for inputs that are drawn; none or None where it gives no tensor, or
    does not run."""
    device = next((t.device for t in [*network.parameters(), *network.buffers()]), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)

    def drawn(leaf: object) -> object:
        if not isinstance(leaf, Tensor):
            return leaf
        if not leaf.is_floating_point() and not leaf.is_complex():
            return torch.ones_like(leaf)  # a mask that hides nothing, a length, an index that there is
        kind = torch.complex64 if leaf.is_complex() else torch.float32
        return torch.randn(leaf.shape, generator=generator, dtype=kind).to(leaf)

    given = pytree.tree_map(drawn, examples(inputs, device))
    args, kwargs = (given, {}) if isinstance(network, fx.GraphModule) else given
    with state_kept(), apart(network) as running:
        seed_all(0)
        try:
            return tensors_out(running(*args, **kwargs))
        except Exception:  # a program may take the example's own values alone: then there is no sample of it
            return None


def _are_numbers(rows: Sequence[Tensor]) -> bool:
    return all(bool(row.isfinite().all()) for row in rows)
