"""The unpruned and the pruned network side by side: costs, size on disk, measured latency, score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from fxprune.resources.kinds import amount, unit_of
from passes import Coupling, cost

COUNTS = ("macs", "params", "flops")  # their units say what they are


@dataclass(frozen=True)
class Compared:
    """One measure of both networks. unit: "" for a score."""

    name: str
    unit: str
    before: float
    after: float

    def cells(self) -> list[str]:
        """What it is, both values, and the share that is left, as text."""
        if not self.unit:
            return [self.name, f"{self.before:.6g}", f"{self.after:.6g}", ""]
        what = self.unit if self.name in COUNTS else f"{self.name}, {self.unit}"
        before, after = (
            f"{value:.4g}" if self.name == "file" else amount(value, self.name) for value in (self.before, self.after)
        )
        return [what, before, after, f"{self.after / self.before:.1%}" if self.before else ""]


def before_after(
    coupling: Coupling, widths: Mapping[str, int], networks: tuple[nn.Module, nn.Module],
    costs: tuple[Mapping[str, float], Mapping[str, float]], scores: tuple[float, float],
) -> tuple[Compared, ...]:  # fmt: skip
    """MACs, parameters, megabytes of the file of weights, whatever else was budgeted, and the score.

    costs: those of the search, before and after, by resource; a measured latency is among them where it was a budget.
    """
    counted = {}
    for name in ("macs", "params"):
        count = cost(coupling).resource(name)
        counted[name] = float(count(None)), float(count(widths))
    rows = [Compared(name, unit_of(name), *both) for name, both in counted.items()]
    rows.append(Compared("file", "MB", *(stored_bytes(network) / 1e6 for network in networks)))
    more = [name for name in costs[0] if name not in counted]
    rows += [Compared(name, unit_of(name), costs[0][name], costs[1][name]) for name in more]
    return (*rows, Compared("score", "", *scores))


def stored_bytes(network: nn.Module) -> int:
    """What a file of the network's parameters and buffers holds, tied ones once; its header of some kilobytes aside."""
    tensors = {tensor.data_ptr(): tensor for tensor in network.state_dict().values() if tensor.numel()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
