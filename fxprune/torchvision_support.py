"""Make `import torchvision` possible where its compiled operators cannot load.

Beside a torch of another build (a CPU-only torch, say) torchvision's `_C` library does not load, and the import
itself ends in `operator torchvision::nms does not exist`, though no classification, segmentation or video model needs
an operator from there. The detection models need two: `nms`, written here, and `roi_align`, for which torchvision
carries a version in plain torch that it takes by itself where the library is missing.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import inspect
import sys
import warnings

import torch
from torch import Tensor

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# torch.library drops an operator together with the Library object that defined it.
_library: torch.library.Library | None = None


def ensure_torchvision() -> None:
    """Import torchvision, with stand-ins for its operators where the native ones do not load; again is free.

    Raises ModuleNotFoundError where torchvision is not installed.
    """
    if "torchvision" in sys.modules:
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "torchvision is not installed; install it with: pip install torchvision -c constraints.txt"
        )
    if _native_operators_load(list(spec.submodule_search_locations)):
        import torchvision  # noqa: F401

        return
    _define_operators()
    with warnings.catch_warnings():
        # The image codecs are missing for the same reason; models do not decode files.
        warnings.filterwarnings("ignore", message="Failed to load image Python extension")
        import torchvision  # noqa: F401
    # By name: the attribute torchvision.ops.roi_align is the function, not the module.
    boxes, roi_align = sys.modules["torchvision.ops.boxes"], sys.modules["torchvision.ops.roi_align"]
    # torchvision.ops.nms asks for the compiled library before it calls the operator, which now exists without it.
    boxes._assert_has_ops = lambda: None  # type: ignore[attr-defined]
    # The version in plain torch is wrapped in torch.compile: a minute and a C++ compiler for the first small image.
    roi_align._roi_align = inspect.unwrap(roi_align._roi_align)  # type: ignore[attr-defined]


def _native_operators_load(folders: list[str]) -> bool:
    """Whether torchvision's own operators are there, or become so by loading its library as torchvision does."""
    if hasattr(torch.ops.torchvision, "nms"):
        return _library is None
    library = importlib.machinery.PathFinder.find_spec("_C", folders)
    if library is None or library.origin is None:
        return False
    try:
        torch.ops.load_library(library.origin)
    except OSError:
        return False
    return True


def _define_operators() -> None:
    global _library
    if _library is not None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
        library.impl(schema.partition("(")[0], nms, "CompositeExplicitAutograd")
    _library = library


@torch.no_grad()
def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression: the indices of the boxes kept, by falling score (equal scores: the first one first).

    dets: (n, 4) as x1, y1, x2, y2. scores: (n,). A box goes when its intersection over union with a kept box of a
    higher score is above `iou_threshold`; a box without area overlaps nothing. Returns int64, (kept,).
    """
    if dets.dim() != 2 or dets.shape[1] != 4:
        raise ValueError(f"nms: boxes must have shape (n, 4), got {tuple(dets.shape)}")
    if scores.shape != dets.shape[:1]:
        raise ValueError(
            f"nms: {dets.shape[0]} boxes need scores of shape ({dets.shape[0]},), got {tuple(scores.shape)}"
        )
    exact = dets if dets.dtype in (torch.float32, torch.float64) else dets.float()
    low, high = exact[:, :2], exact[:, 2:]
    area = (high - low).prod(1)
    remaining = torch.sort(scores, stable=True, descending=True).indices
    kept: list[Tensor] = []
    while remaining.numel():
        best, rest = remaining[0], remaining[1:]
        kept.append(best)
        sides = (torch.minimum(high[best], high[rest]) - torch.maximum(low[best], low[rest])).clamp(min=0)
        shared = sides.prod(1)
        # 0 / 0 of two empty boxes is NaN, and NaN > threshold is False: kept, as the native operator does.
        overlap = shared / (area[best] + area[rest] - shared)
        remaining = rest[~(overlap > iou_threshold)]
    return torch.stack(kept) if kept else remaining
