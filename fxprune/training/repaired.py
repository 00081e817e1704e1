"""What repair did to a network, as plain data that JSON holds without loss."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RepairedLayer:
    """The share of the variance of one weight's dense output that the sliced and the compensated weight explain, on
    held-out data; None where it cannot be said. why: of a weight that keeps its slice, the reason."""

    name: str
    before: float | None
    after: float | None
    why: str = ""


@dataclass(frozen=True)
class Repaired:
    """How far outputs are from the dense ones on held-out calibration data: sliced, compensated in closed form, and as
    the network was then kept, before any training. None where it was not measured."""

    sliced: float | None
    compensated: float | None
    kept: float
    layers: tuple[RepairedLayer, ...] = ()

    def __str__(self) -> str:
        found = {"sliced": self.sliced, "compensated": self.compensated, "kept": self.kept}
        said = ", ".join(f"{value:.4g} {name}" for name, value in found.items() if value is not None)
        return f"divergence from the dense outputs: {said}"
