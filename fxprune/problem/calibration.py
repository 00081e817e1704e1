"""Calibration data of a search: batches that are fitted to, and held-out ones that judge."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fxprune.errors import InputError
from fxprune.problem.inputs import described
from passes import Coupling, PassError
from passes.documents.described_values import examples
from passes.nested_values import tree_leaves_only
from passes.process.torch_private import pytree
from passes.statistics import Batch, batches_of
from passes.statistics.divergence import tensors_out
from passes.statistics.observing import inputs_of
from passes.stream.network_copies import apart

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """Batches on the network's device: `fitted` are summed up and fitted to, `held` only judge.

    digest: a SHA-256 over all their tensors.
    """

    fitted: list[Batch]
    held: list[Batch]
    digest: str


def calibration_of(dense: nn.Module, coupling: Coupling, batches: object, most: int = 4096) -> Calibration:
    """The first batches of a caller, up to `most` samples, checked; the last fifth of the samples is held out.

    Raises InputError where there is none, one does not fit, or a single sample would have to serve for both.
    """
    listed: list[Batch] = []
    samples = 0
    try:
        with apart(dense) as running:
            like_example, runs = _LikeExample(running, coupling), _Runs(running, coupling)
            for batch in batches_of(dense, batches, inputs_of(dense, coupling)):
                listed.append(runs(like_example(batch)))
                samples += max(batch.size, 1)
                if samples >= most:
                    break
        listed = first_samples(listed, most)
    except PassError as error:
        raise InputError(f"netadapt: calibration: {error}") from error
    if not listed:
        raise InputError("netadapt: calibration holds no batch; pass at least one, of what the network takes.")
    digest = _digest(listed)
    if len(listed) >= 5:
        cut = len(listed) - len(listed) // 5
        return Calibration(listed[:cut], listed[cut:], digest)
    fitted, held = [], []
    for batch in listed:
        cut = batch.size - max(1, batch.size // 5)
        if batch.size < 2:
            fitted.append(batch)
            continue
        fitted.append(batch.part(0, cut))
        held.append(batch.part(cut, batch.size))
    if not held:
        raise InputError(
            "netadapt: calibration: a single sample cannot be both fitted to and held out; pass at least two samples."
        )
    return Calibration(fitted, held, digest)


class _LikeExample:
    """Brings batches to the inputs of the example, for which the network was analysed.

    Labels that only the batches have are left out of the call: inputs without which the network computes the same, but
    for single numbers, its loss.
    """

    def __init__(self, network: nn.Module, coupling: Coupling) -> None:
        self.network, self.left_out = network, set[str]()
        self.names: list[str] | None = None  # what is no module has the inputs of its example and no others
        if coupling.module is not None:
            positional, named = coupling.inputs[0]["tuple"], coupling.inputs[1]["dict"]
            self.names = [*list(inspect.signature(network.forward).parameters)[: len(positional)], *named]

    def __call__(self, batch: Batch) -> Batch:
        if self.names is None or batch.args:
            return batch
        if missing := [name for name in self.names if name not in batch.kwargs]:
            raise PassError(f"a batch has no {missing[0]!r}, and example_inputs has; pass it in both or in none")
        more = {name for name, value in batch.kwargs.items() if name not in self.names and value is not None}
        made = replace(batch, kwargs={name: batch.kwargs[name] for name in self.names})
        if not more <= self.left_out:
            if not self._same(batch, made):
                raise PassError(
                    f"a batch has {', '.join(map(repr, sorted(more)))}, example_inputs has not, and the outputs follow "
                    "from it; pass it in both or in none"
                )
            self.left_out |= more
        return made

    @torch.no_grad()
    def _same(self, first: Batch, second: Batch) -> bool:
        mine, theirs = (
            tensors_out((batch.part(0, 2) if batch.size else batch).run(self.network)) for batch in (first, second)
        )
        both = zip(mine, theirs, strict=False)
        return len(mine) == len(theirs) and all(a.shape == b.shape and torch.allclose(a, b) for a, b in both)


class _Runs:
    """Runs the network on samples of each kind (types, and sizes of one sample), before any other work is done."""

    def __init__(self, network: nn.Module, coupling: Coupling) -> None:
        self.network, self.expected = network, described(examples(coupling.inputs))
        self.seen = set[object]()

    def __call__(self, batch: Batch) -> Batch:
        kind = tuple((t.dtype, t.shape[1:]) for t in tree_leaves_only(Tensor, (batch.args, dict(batch.kwargs))))
        if kind not in self.seen:
            self.seen.add(kind)
            problem = self._problem(batch.part(0, 2) if batch.size > 2 else batch)
            problem = problem and self._problem(batch)  # it may take batches of one size only
            if problem:
                raise PassError(
                    f"{problem}; pass inputs like the example inputs, which are {self.expected}"
                ) from problem
        return batch

    @torch.no_grad()
    def _problem(self, batch: Batch) -> PassError | None:
        """Why the network does not run on a batch."""
        try:
            batch.run(self.network)
        except PassError as error:
            return error
        return None


def count_samples(batches: Iterable[Batch]) -> int:
    """How many samples batches hold together; one whose inputs share no length counts as one."""
    return sum(max(batch.size, 1) for batch in batches)


def first_samples(batches: Sequence[Batch], most: int) -> list[Batch]:
    """The first batches, the last of them cut, that hold `most` samples together."""
    taken: list[Batch] = []
    left = most
    for batch in batches:
        if left <= 0:
            break
        size = batch.size
        taken.append(batch.part(0, left) if size > left else batch)
        left -= max(size, 1)
    return taken


def _digest(batches: Iterable[Batch]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        leaves, spec = pytree.tree_flatten((batch.args, dict(batch.kwargs), batch.labels))
        digest.update(str(spec).encode())
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                plain = leaf.detach().cpu()
                plain = (plain if plain.layout == torch.strided else plain.to_dense()).contiguous()
                digest.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
                digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
            else:
                digest.update(repr(leaf).encode() if isinstance(leaf, bool | int | float | str) else b"?")
    return digest.hexdigest()
