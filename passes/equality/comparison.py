"""Two outputs compared: whether they are made alike, how far they lie apart, and how much of them are numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from passes.equality.double import computable
from passes.stream.results import values_in

_NOISE = 1e-4  # of the largest element: what is smaller may be the rounding of larger numbers that cancelled


@dataclass(frozen=True)
class Comparison:
    """How two outputs agree.

    error: the largest difference of an element over its own size in the first output, or, where it is small, over the
    median size of that output (at least a ten thousandth of the largest); infinite where shapes, or what is no number,
    differ. tensors: how many were compared. finite: for each tensor of real or complex numbers the share of its
    elements that are finite; None for an empty one.
    """

    error: float
    tensors: int
    finite: tuple[float | None, ...]

    @property
    def least_finite(self) -> float:
        """The smallest share of any output that were numbers; 0 where nothing could be compared."""
        shares = [share for share in self.finite if share is not None]
        return min(shares, default=1.0 if self.tensors > len(self.finite) else 0.0)


def compare(expected: object, got: object) -> Comparison:
    """Compare what two networks return: trees of tensors, numbers and other values."""
    first, second = _compared(expected), _compared(got)
    if len(first) != len(second) or any(_differ(a, b) for a, b in zip(first, second, strict=True)):
        return Comparison(math.inf, sum(isinstance(t, torch.Tensor) for t in first), ())
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if isinstance(a, torch.Tensor)]
    error = max((difference(a, b) for a, b in pairs), default=0.0)
    return Comparison(error, len(pairs), tuple(_finite(a) for a, _ in pairs if _has_points(a)))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """How far `b` lies from `a`, of the same shape; 0 or infinity for integers and flags."""
    if torch.equal(a, b):
        return 0.0
    if not _has_points(a) or not _has_points(b):
        return math.inf
    if not (all_finite(a) and all_finite(b)):
        finite = torch.isfinite(a)
        if not torch.equal(_kinds(a), _kinds(b)):
            return math.inf
        if not bool(finite.any()):
            return 0.0
        a, b = a[finite], b[finite]
    size = a.abs()
    present = size if bool(size.min() > 0) else size[size > 0]
    usual = present.median() if present.numel() else torch.ones_like(size.max())
    floor = torch.maximum(usual, _NOISE * size.max())
    return float(((a - b).abs() / torch.maximum(size, floor)).max())


def distance(expected: Sequence[torch.Tensor], got: Sequence[torch.Tensor]) -> float:
    """The norm of the difference of two outputs over the norm of the first: what rounding leaves small.

    Whole numbers and flags are left out, and what is no finite number in one; infinite where shapes differ.
    """
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in got]:
        return math.inf
    gaps = [_gap(readable(a), readable(b)) for a, b in zip(expected, got, strict=True) if _has_points(a)]
    return max(gaps, default=0.0)


def _gap(a: torch.Tensor, b: torch.Tensor) -> float:
    finite = torch.isfinite(a) & torch.isfinite(b)
    kind = torch.complex128 if a.is_complex() else torch.float64
    first, second = a[finite].to(kind), b[finite].to(kind)
    size = float(first.norm())
    return float((first - second).norm()) / size if size else 0.0


def _compared(output: object) -> list[Any]:
    """Tensors, and the plain values that can be compared."""
    return [readable(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in values_in(output)]


def readable(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as one that can be compared: without scales, gaps or a history, its numbers of more than eight bits."""
    tensor = computable(tensor.dequantize() if tensor.is_quantized else tensor.detach())
    return tensor if tensor.layout == torch.strided and not tensor.is_nested else tensor.to_dense()


def _differ(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape == b.shape)
    if isinstance(a, float) and isinstance(b, (int, float)):
        return not (math.isclose(a, b, rel_tol=1e-9) or (math.isnan(a) and math.isnan(b)))
    return a != b


def _has_points(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether every element is a finite number: a finite sum says so, and one that is not may have overflowed."""
    if tensor.dtype in (torch.float32, torch.float64) and math.isfinite(tensor.sum()):
        return True
    return bool(torch.isfinite(tensor).all())


def _finite(tensor: torch.Tensor) -> float | None:
    if tensor.numel() and all_finite(tensor):
        return 1.0
    return float(torch.isfinite(tensor).double().mean()) if tensor.numel() else None


def _kinds(tensor: torch.Tensor) -> torch.Tensor:
    """For each element what it is: a number 0, no number 3, infinities 1 and 2."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.isnan() * 3 + (tensor == math.inf) * 1 + (tensor == -math.inf) * 2
