"""What an export says about itself, and the comparison on which it rests."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fxprune.errors import ExportError
from passes.nested_values import tree_leaves_only

# What a faithful copy of a network may differ by: summation order in the dtype it computes in.
_TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 5e-2}
_FLOAT_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Difference:
    """How far two runs are apart.

    absolute: the largest difference of two elements. relative: the same, as a share of the largest element of its
    output. scaled: as a share of that element or of 1, whichever is larger; this is what a tolerance is held against.
    """

    absolute: float = 0.0
    relative: float = 0.0
    scaled: float = 0.0

    def worse(self, other: Difference) -> Difference:
        """The larger of the two in each figure; NaN counts as the largest."""
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return Difference(*(b if math.isnan(b) else max(b, a) if not math.isnan(a) else a for a, b in pairs))


@dataclass(frozen=True)
class ExportReport:
    """What `export` wrote and how it was checked.

    format: the suffix without its dot. files: all that was written, the file of `path` first. static_reason: why the
    batch size is fixed, None where it is free. batch_sizes: those at which the written form was run beside the
    network, empty where nothing was run. max_abs_error and max_rel_error: over all outputs at those sizes, None where
    nothing was run. opset: the ONNX operator set, None for other forms. notes: what a reader of the files should know.
    """

    format: str
    path: Path
    files: tuple[Path, ...]
    static_reason: str | None = None
    batch_sizes: tuple[int, ...] = ()
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    tolerance: float | None = None
    opset: int | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def compared(
        cls, format: str, path: Path, files: tuple[Path, ...], found: Difference, sizes: tuple[int, ...],
        static_reason: str | None, tolerance: float, opset: int | None = None, notes: tuple[str, ...] = (),
    ) -> ExportReport:  # fmt: skip
        """The report of a form that was run beside the network at batches of these sizes."""
        errors = found.absolute, found.relative
        return cls(format, path, files, static_reason, sizes, *errors, tolerance, opset, notes)

    @property
    def dynamic_batch(self) -> bool:
        """Whether the written network takes any batch size."""
        return self.static_reason is None

    @property
    def size_bytes(self) -> int:
        """Bytes of all the files together."""
        return sum(file.stat().st_size for file in self.files)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            **asdict(self),
            "path": str(self.path),
            "files": [str(file) for file in self.files],
            "batch_sizes": list(self.batch_sizes),
            "notes": list(self.notes),
            "dynamic_batch": self.dynamic_batch,
        }

    def __str__(self) -> str:
        names = ", ".join(file.name for file in self.files)
        parts = [f"{names}: {self.format}"]
        if self.batch_sizes:
            parts.append("any batch size" if self.dynamic_batch else f"one batch size ({self.static_reason})")
        if self.opset is not None:
            parts.append(f"opset {self.opset}")
        if self.max_abs_error is not None:
            sizes = " and ".join(map(str, self.batch_sizes)) or "as given"
            errors = f"{self.max_abs_error:.1e} (relative {self.max_rel_error:.1e})"
            parts.append(f"differs by {errors} at batch size {sizes}")
        return "; ".join([*parts, *self.notes])


def default_tolerance(module: torch.nn.Module, inputs: object) -> float:
    """1e-5, or what the coarsest floating dtype among parameters and inputs allows (float16 5e-3, bfloat16 5e-2)."""
    tensors = [*module.parameters(), *tree_leaves_only(torch.Tensor, inputs)]
    return max((_TOLERANCE.get(tensor.dtype, _FLOAT_TOLERANCE) for tensor in tensors), default=_FLOAT_TOLERANCE)


def difference(expected: object, got: object) -> Difference:
    """Compare two outputs leaf by leaf in float64; ExportError where their number or shapes differ."""
    left, right = tree_leaves_only(torch.Tensor, expected), tree_leaves_only(torch.Tensor, got)
    if len(left) != len(right):
        raise ExportError(f"the network has {len(left)} tensor outputs, the written one {len(right)}")
    worst = Difference()
    for position, (a, b) in enumerate(zip(left, right, strict=True)):
        if a.shape != b.shape:
            raise ExportError(f"output {position}: shape {tuple(b.shape)} instead of {tuple(a.shape)}")
        worst = worst.worse(_tensor_difference(a, b))
    return worst


def where_different(expected: object, got: object, tolerance: float) -> str:
    """Which outputs differ by more than the tolerance, in how many elements; and whether near-ties may be why."""
    parts, few = [], True
    left, right = tree_leaves_only(torch.Tensor, expected), tree_leaves_only(torch.Tensor, got)
    for position, (a, b) in enumerate(zip(left, right, strict=True)):
        wrong = _scaled(a, b) > tolerance
        if not (count := int(wrong.sum())):
            continue
        parts.append(f"output {position}, {count:,} of {a.numel():,} elements")
        few = few and (count <= max(1, a.numel() // 20) or not (a.is_floating_point() or a.is_complex()))
    tie = (
        ". So few may be a near-tie: where a network orders, rounds or compares (argmax, topk, sort, a threshold), two "
        "values that are nearly equal may fall either way; try other example inputs"
    )
    return "; ".join(parts[:5]) + (tie if few else "")


def _scaled(expected: torch.Tensor, got: torch.Tensor) -> torch.Tensor:
    """The difference of each element as a share of the largest one of its output, or of 1."""
    wide = torch.complex128 if expected.is_complex() else torch.float64
    a, b = (tensor.detach().to("cpu", wide) for tensor in (expected, got))
    same = (a == b) | (a.isnan() & b.isnan())
    finite = a[a.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    apart = torch.where(same, 0.0, (a - b).abs() / max(1.0, largest))
    return apart.nan_to_num(nan=math.inf, posinf=math.inf)


def _tensor_difference(expected: torch.Tensor, got: torch.Tensor) -> Difference:
    if expected.numel() == 0:
        return Difference()
    wide = torch.complex128 if expected.is_complex() else torch.float64
    a, b = (tensor.detach().to("cpu", wide) for tensor in (expected, got))
    # Equal infinities, and NaN where NaN is expected (a mask's empty row), are agreement.
    same = (a == b) | (a.isnan() & b.isnan())
    absolute = torch.where(same, 0.0, (a - b).abs()).max().item()
    finite = a[a.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    relative = 0.0 if absolute == 0 else absolute / largest if largest else math.inf
    return Difference(absolute, relative, absolute / max(1.0, largest))
