"""One pass of data over the dense network: what every weight reads, summed up."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from passes.analysis.coupling import Coupling
from passes.arguments import got, integer, is_a, tell
from passes.errors import PassError
from passes.graph.given_networks import given
from passes.graph.module_copies import evaluate_mode, owned_tensors
from passes.ops.operands import Contraction
from passes.process.settings import tensors_with_values
from passes.process.torch_private import fused_recurrence, pytree, set_fused_recurrence
from passes.statistics.batches import Batch, batches_of
from passes.statistics.gradients import GradientSums, Loss
from passes.statistics.held_samples import hold_out
from passes.statistics.moments import Moments
from passes.statistics.record import Statistics
from passes.statistics.sites import Site
from passes.statistics.watching import Watcher
from passes.stream.inference import composite_attention
from passes.stream.network_copies import apart

_INPUTS, _INPUT_BYTES = 16, 5 * 2**20  # samples that are held out, and their bytes, of which the inputs are kept


@tensors_with_values()
@torch.inference_mode(False)
def observe(
    model: nn.Module,
    coupling: Coupling,
    batches: object,
    *,
    gradients: Loss | str | None = None,
    rows: int = 16384,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Statistics:
    """Second moments of the contracted operand of every operator that takes a parameter, over all `batches`.

    model: the network that `coupling` was made of, a graph or any module; a copy with its weights runs in eval mode.
    batches: tensors, tuples or dicts of inputs, with or without labels. gradients: a loss of ``(output, labels)``, or
    "sampled" for labels drawn from the network's own outputs; then importance by gradients is summed as well. rows: how
    many readings of one operator are used of a batch at most (a convolution reads each place of each image), fewer of
    one with more than 1,024 columns; drawn at random where there are more. progress: called with the number of samples
    so far.

    A fifth of the samples (see `passes.statistics.hold_out`; none of a single one) is held out of all sums and only
    measures errors; the inputs of some are kept, which judge repairs as a whole. Memory: one symmetric matrix an
    operand in double precision, held by halves, and activations of one batch.

    Raises PassError where there is no batch, or one does not fit.

    >>> from passes import capture, couple
    >>> from passes.statistics import observe
    >>> gm = capture(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)))
    >>> statistics = observe(gm, couple(gm, torch.randn(1, 3)), [torch.randn(50, 3)])
    >>> {name: (site.rows, site.columns) for name, site in statistics.sites.items()}
    {'0.weight': (8, 3), '2.weight': (2, 8)}
    """
    rows, seed = _checked(model, coupling, gradients, rows, seed, progress)
    moments: dict[str, Moments] = {}
    generator = torch.Generator().manual_seed(seed)
    held = [False]

    def seen(site: Site, found: Contraction) -> None:
        if site.moments != site.name:
            return
        known = moments.get(site.name)
        if known is None:
            known = moments[site.name] = Moments(site.groups, site.columns)
        if held[0]:
            known.hold(found.read(max(32, rows // 16), generator), generator)
            return
        read = found.read(min(rows, max(2048, rows * 1024 // site.columns)), generator)
        if read.shape[1]:
            known.add(read, found.count / read.shape[1])

    sums = GradientSums(coupling, gradients, seed) if gradients is not None else None
    samples, inputs = 0, _Inputs()
    with apart(model) as running, composite_attention(), plain_recurrence(model):
        watcher = Watcher(running, seen)
        for batch in hold_out(batches_of(model, batches, inputs_of(model, coupling))):
            held[0] = bool(batch.held)
            with torch.no_grad(), watcher:
                batch.run(running)
            watcher.forget()
            if batch.held:
                inputs.add(batch)
            elif sums is not None:
                sums.add(running, batch)
            samples += max(batch.size, 1)
            tell(progress, samples, "observe")
    if not samples:
        raise PassError("observe: there is no batch; pass at least one")
    made = Statistics(
        coupling.fingerprint, dict(watcher.sites), moments, samples,
        sums.fisher if sums else {}, sums.taylor if sums else {}, sums.count if sums else 0, model, coupling,
        inputs.batches,
    )  # fmt: skip
    made.all_reduce()
    for name, site in made.sites.items():
        if not all(bool(torch.isfinite(tile).all()) for tile in made.of(site).tiles):
            raise PassError(f"observe: {name} reads values that are no finite numbers; leave such samples out")
    return made


def _checked(
    model: Any, coupling: Any, gradients: object, rows: object, seed: object, progress: object
) -> tuple[int, int]:  # fmt: skip
    """`rows` and `seed`, where all that `observe` is given is of its kind; raises PassError."""
    is_a(model, nn.Module, "observe: model", "the network that the coupling was made of")
    is_a(coupling, Coupling, "observe: coupling", "what couple(model, example_inputs) gives")
    given(model, "observe")
    sizes = {name: tuple(tensor.shape) for name, tensor in owned_tensors(model)}
    for name, axes in coupling.structure.tensors.items():
        expected = tuple(axis.size for axis in axes)
        if sizes.get(name, expected) != expected:
            raise PassError(
                f"observe: {name} has the shape {sizes[name]}, and {expected} in the coupling, which is that of "
                "another network; couple this one"
            )
    if not (gradients is None or callable(gradients) or (isinstance(gradients, str) and gradients == "sampled")):
        raise PassError(f'observe: gradients: got {got(gradients)}; expected a loss of (output, labels), or "sampled"')
    if progress is not None and not callable(progress):
        raise PassError(f"observe: progress: got {got(progress)}; expected a function of the number of samples")
    return integer(rows, "observe: rows", least=1), integer(seed, "observe: seed", least=0, below=2**63)


def inputs_of(model: nn.Module, coupling: Coupling) -> int | None:
    """How many inputs a batch has by position, as the example had; None where it named others than the first ones."""
    if coupling.module is None:
        return len(coupling.inputs)
    positional, named = coupling.inputs[0]["tuple"], coupling.inputs[1]["dict"]
    first = list(inspect.signature(model.forward).parameters)[: len(positional) + len(named)]
    return len(first) if set(first[len(positional) :]) == set(named) else None


class _Inputs:
    """The first samples that are held out, one at least, up to a number of them and of bytes."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self._samples, self._room = _INPUTS, float(_INPUT_BYTES)

    def add(self, batch: Batch) -> None:
        inputs = (batch.args, dict(batch.kwargs))
        size_bytes = sum(t.numel() * t.element_size() for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor))
        size = max(batch.size, 1)
        take = min(size, self._samples, max(int(size * self._room / max(size_bytes, 1)), not self.batches))
        if take <= 0:
            return
        self._samples, self._room = self._samples - take, self._room - size_bytes * take / size
        part = batch.part(0, take) if take < size else batch
        inputs = (part.args, dict(part.kwargs))
        self.batches.append(Batch(*pytree.tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, inputs)))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; each module's own flag outside."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        evaluate_mode(model)
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def plain_recurrence(model: nn.Module) -> Iterator[None]:
    """Recurrent layers as the products that they consist of: fused kernels hide them."""
    if not any(isinstance(module, nn.RNNBase) for module in model.modules()):
        yield
        return
    before = fused_recurrence()
    try:
        set_fused_recurrence(False, False)
        yield
    finally:
        set_fused_recurrence(*before)
