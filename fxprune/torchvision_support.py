"""Make `import torchvision` possible where its compiled operators cannot load.

Beside a torch of another build (a CPU-only torch, say) torchvision's own library does not load, and the import
itself ends in `operator torchvision::nms does not exist`, though no classification, segmentation or video model needs
an operator from there. The detection models need two: `nms`, written here, and `roi_align`, for which torchvision
carries a version in plain torch that it takes by itself where the library is missing.

The stand-ins come last: where the library does load, an operator that Python defined before it ends the process, and
no exception can be caught. So torchvision's own import is tried first, in this process where that is an ordinary import
(no operator of torchvision is defined yet, and the two versions were made for each other), else in a process of its
own.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import inspect
import os
import subprocess
import sys
import warnings

import torch
from packaging.requirements import Requirement
from torch import Tensor

from fxprune.errors import FxpruneError
from passes.process.torch_private import operator_names

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_PROBE_SECONDS = 300  # an import that takes longer is taken for one that does not end
# torch.library drops an operator together with the Library object that defined it.
_library: torch.library.Library | None = None


class TorchvisionError(FxpruneError, ImportError):
    """torchvision is installed and cannot be imported beside this torch."""


def ensure_torchvision() -> None:
    """Import torchvision, with stand-ins for its operators where the native ones do not load; again is free.

    Raises ModuleNotFoundError where torchvision is not installed, TorchvisionError where it cannot be imported here.
    """
    if "torchvision" in sys.modules:
        return
    if importlib.util.find_spec("torchvision") is None:
        raise ModuleNotFoundError(
            "torchvision is not installed; install it with: pip install torchvision -c constraints.txt"
        )
    _refuse_what_ends_the_process()
    error = _import_error()
    if error is None:
        return
    if not _lacks_operators(error):
        raise _cannot_import(str(error)) from error
    _define_operators()
    _import_over_the_stand_ins()


def _refuse_what_ends_the_process() -> None:
    """Raise TorchvisionError where an import in this process may abort it, which another process finds out."""
    defined = [] if _library_is_loaded() or _library is not None else _operators()
    if not defined and _made_for_each_other():
        return
    code = _code_of_an_import_elsewhere()
    if code not in (0, 1):  # 1: an exception, which this process can catch
        raise _cannot_import("the import does not end" if code is None else f"it ends the process (exit code {code})")
    if defined and code == 0:
        raise _cannot_import(
            f"{', '.join(defined)} is defined already, and torchvision's own library would define it again, which "
            "ends the process",
            "Import torchvision before what defines it.",
        )


def _operators() -> list[str]:
    """torchvision's operators that are defined by now, by anyone."""
    return sorted({name for name in operator_names() if name.startswith("torchvision::")})


def _library_is_loaded() -> bool:
    """Whether the operators come from torchvision's own library, which is not loaded twice."""
    spec = importlib.util.find_spec("torchvision")
    folders = [os.path.realpath(folder) + os.sep for folder in (spec and spec.submodule_search_locations) or ()]
    return any(os.path.realpath(path).startswith(tuple(folders)) for path in torch.ops.loaded_libraries)


def _made_for_each_other() -> bool:
    """Whether the metadata of the torchvision found here allow this torch; the build may still be another."""
    spec = importlib.util.find_spec("torchvision")
    try:
        found = importlib.metadata.distribution("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return False
    if spec is None or spec.origin != str(found.locate_file("torchvision/__init__.py")):
        return False
    required = [Requirement(line) for line in found.requires or ()]
    versions = [requirement.specifier for requirement in required if requirement.name == "torch"]
    return bool(versions) and all(version.contains(str(torch.__version__), prereleases=True) for version in versions)


@functools.cache
def _code_of_an_import_elsewhere() -> int | None:
    """The exit code of a new process that imports torchvision, negative for a signal; None where it does not end."""
    command = [sys.executable, "-c", "import torchvision"]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_PROBE_SECONDS, env={**os.environ, "PYTHONPATH": path}
        )
    except subprocess.TimeoutExpired:
        return None
    return done.returncode


def _import_error() -> Exception | None:
    """Import torchvision from its first line; what that raises."""
    for name in [name for name in sys.modules if name.startswith("torchvision.")]:
        del sys.modules[name]  # left by an import that failed: their package is not there
    try:
        import torchvision  # noqa: F401
    except Exception as error:  # a version that was made for another torch fails in its own way: it is reported
        return error
    return None


def _lacks_operators(error: Exception) -> bool:
    """Whether the import failed because torchvision's library is missing, and nothing else."""
    missing = isinstance(error, RuntimeError) and "operator torchvision::" in str(error)
    return missing and not _library_is_loaded()


_ADVICE = "Install a pair that was made for each other: pip install torch torchvision -c constraints.txt"


def _cannot_import(why: str, advice: str = _ADVICE) -> TorchvisionError:
    spec = importlib.util.find_spec("torchvision")
    return TorchvisionError(
        f"torchvision (in {spec.origin if spec else '?'}) cannot be imported beside torch {torch.__version__}: "
        f"{(why.strip() or 'it says nothing').splitlines()[0]}. {advice}"
    )


def _import_over_the_stand_ins() -> None:
    with warnings.catch_warnings():
        # The image codecs are missing for the same reason; models do not decode files.
        warnings.filterwarnings("ignore", message="Failed to load image Python extension")
        error = _import_error()
    if error is not None:
        raise _cannot_import(str(error)) from error
    # By name: the attribute torchvision.ops.roi_align is the function, not the module.
    boxes, roi_align = sys.modules["torchvision.ops.boxes"], sys.modules["torchvision.ops.roi_align"]
    # torchvision.ops.nms asks for the compiled library before it calls the operator, which now exists without it.
    boxes._assert_has_ops = lambda: None  # type: ignore[attr-defined]
    if hasattr(roi_align, "_roi_align"):
        # The version in plain torch is wrapped in torch.compile: a minute and a C++ compiler for the first small image.
        roi_align._roi_align = inspect.unwrap(roi_align._roi_align)  # type: ignore[attr-defined]


def _define_operators() -> None:
    """Define what torchvision's import asks for and nobody has defined; kept until the process ends."""
    global _library
    if _library is not None:
        return
    library, known = torch.library.Library("torchvision", "FRAGMENT"), _operators()
    for schema in _SCHEMAS:
        name = schema.partition("(")[0]
        if f"torchvision::{name}" not in known:
            library.define(schema)
            library.impl(name, nms, "CompositeExplicitAutograd")
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
