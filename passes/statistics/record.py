"""What was observed of a network, as a value: sites, moments and importance; they add up, and go to a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from passes.analysis.coupling import Coupling
from passes.arguments import file_name, is_a
from passes.errors import PassError
from passes.statistics.batches import Batch
from passes.statistics.moments import Moments
from passes.statistics.sites import Site
from passes.statistics.storing import read, write


@dataclass
class Statistics:
    """Sums over data of one network, named by its coupling's fingerprint.

    sites: each use of a parameter by a contracting operator. moments: by the name of the site that first read the
    operand. samples: how many were seen. fisher, taylor: for each group the sums over `gradients` small batches of
    (g.w)^2 and of abs(g.w), g.w being summed over all that makes the unit; empty without a loss. network, coupling:
    what was observed. held_inputs: some of the inputs that are in no sum. These three are not saved.
    """

    fingerprint: str
    sites: dict[str, Site]
    moments: dict[str, Moments]
    samples: int = 0
    fisher: Mapping[str, np.ndarray] = field(default_factory=dict)
    taylor: Mapping[str, np.ndarray] = field(default_factory=dict)
    gradients: int = 0
    network: nn.Module | None = field(default=None, repr=False, compare=False)
    coupling: Coupling | None = field(default=None, repr=False, compare=False)
    held_inputs: Sequence[Batch] = field(default=(), repr=False, compare=False)

    def coupled(self) -> Coupling:
        """The coupling of what was observed. Raises PassError for statistics of a file that were not `bound`."""
        if self.coupling is None:
            raise PassError("these statistics come from a file; bind them to the network that they are of: bound(...)")
        return self.coupling

    def bound(self, network: nn.Module, coupling: Coupling) -> Statistics:
        """These sums beside the network that they are of. Raises PassError where they are of another one."""
        is_a(network, nn.Module, "Statistics.bound: network", "the network that they are of")
        is_a(coupling, Coupling, "Statistics.bound: coupling", "what couple(network, example_inputs) gives")
        if coupling.fingerprint != self.fingerprint:
            raise PassError(
                f"statistics of network {self.fingerprint[:12]} do not describe {coupling.fingerprint[:12]}; observe it"
            )
        return replace(self, network=network, coupling=coupling)

    def of(self, site: Site) -> Moments:
        """The moments of what `site` reads."""
        is_a(site, Site, "Statistics.of: site", "one of Statistics.sites")
        if site.moments not in self.moments:
            raise PassError(f"Statistics.of: {site.name} is no site of these statistics, which have {list(self.sites)}")
        return self.moments[site.moments]

    @property
    def size_bytes(self) -> int:
        """Memory that all sums take."""
        return sum(m.size_bytes for m in self.moments.values())

    def merge(self, other: Statistics) -> Statistics:
        """These and `other`, of the same network over other data. Raises PassError for another network.

        A weight that one of them has not seen read (an expert that no sample was sent to) has the other's sums. Each
        call of `observe` holds out a fifth of its own samples: sums of parts are those of the whole where
        `passes.statistics.hold_out` has decided for the whole before.
        """
        is_a(other, Statistics, "Statistics.merge: other", "other Statistics of the same network")
        if other.fingerprint != self.fingerprint or any(
            not _alike(site, other.sites.get(name, site)) for name, site in self.sites.items()
        ):
            raise PassError(
                f"statistics of network {other.fingerprint[:12]} cannot be added to those of {self.fingerprint[:12]}; "
                "observe the same network"
            )
        sites = {name: self.sites.get(name, site) for name, site in {**self.sites, **other.sites}.items()}
        moments = {name: Moments(m.groups, m.columns) for name, m in {**self.moments, **other.moments}.items()}
        for name, made in moments.items():
            for known in (self.moments.get(name), other.moments.get(name)):
                if known is not None:
                    made.merge(known)
        return Statistics(
            self.fingerprint, sites, moments, self.samples + other.samples,
            _added(self.fisher, other.fisher), _added(self.taylor, other.taylor),
            self.gradients + other.gradients, self.network, self.coupling, self.held_inputs or other.held_inputs,
        )  # fmt: skip

    def all_reduce(self) -> None:
        """Add up the sums of all processes of torch.distributed, where it is running; each then holds the whole.

        No inputs are held then: what is decided by those of one process would differ from that of the others.
        """
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
            return
        self.held_inputs = ()
        for name in sorted(self.moments):
            moments = self.moments[name]
            counts = torch.tensor([moments.count, moments.held_seen], dtype=torch.float64)
            moments.sum_up()
            if moments.summed:
                counts = counts.to(moments.summed[0].device)
            for tensor in [*moments.summed, counts]:
                distributed.all_reduce(tensor)
            moments.count, moments.held_seen = float(counts[0]), int(counts[1])
        for sums in (self.fisher, self.taylor):
            for name in sorted(sums):
                tensor = torch.from_numpy(sums[name])
                distributed.all_reduce(tensor)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with a checksum; a file that is there is replaced at once or not at all."""
        write(self, _path(path, "save"))

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read what `save` wrote. Raises PassError where the file is damaged or of another kind."""
        return cls(**read(_path(path, "load")))


def _path(path: str | os.PathLike[str], call: str) -> Path:
    return file_name(path, f"Statistics.{call}: path")


def _alike(first: Site, second: Site) -> bool:
    """Whether two sites of a name are one: their sums then add up."""
    return (first.moments, first.groups, first.columns) == (second.moments, second.groups, second.columns)


def _added(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    if first.keys() != second.keys():
        return {}
    return {name: first[name] + second[name] for name in first}
