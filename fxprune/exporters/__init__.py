"""Out of fxprune: a network as `.pt2`, `.onnx`, weights with a plan, or Python source, checked as it is written."""

from __future__ import annotations

import os

from torch import fx, nn

from fxprune.errors import ExportError
from fxprune.exporters.check import check_runs
from fxprune.exporters.files import check_free, checked_suffix, checked_target
from fxprune.exporters.inputs import evaluating, inputs_of
from fxprune.exporters.intact import check_files
from fxprune.exporters.outcome import ExportReport, default_tolerance
from fxprune.exporters.protocol import Job, register_exporter
from fxprune.exporters.safetensors_plan import load
from fxprune.io.tensors import sharing
from fxprune.problem.wrappers import unwrapped
from fxprune.registries import EXPORTERS
from passes import Plan, plan_of
from passes.arguments import flag, integer, number
from passes.documents.plan import is_plan
from passes.process.state import leaves_no_trace

__all__ = ["ExportError", "ExportReport", "check_files", "export", "load", "register_exporter"]


@leaves_no_trace
def export(
    gm: nn.Module,
    example_inputs: object,
    path: str | os.PathLike[str],
    *,
    plan: Plan | None = None,
    batch_dim: int = 0,
    dynamic_batch: bool = True,
    tolerance: float | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write a network, pruned or not, in the form that the suffix of `path` names, and prove the written form.

    `.pt2` (torch.export), `.onnx`, `.py` (readable source, its weights beside it in a `.py.safetensors`), or
    `.safetensors` (weights, with the plan in a `.json` beside it, for `load`; `plan` is that of a search, and may be
    left out where `gm` is what PruneChannels or apply_plan returned). A module is exported as it is, without the
    wrappers around it; source is written of the graph that is captured from it.

    `example_inputs`: a tensor, a tuple of arguments or a dict of keyword arguments. The batch is dimension `batch_dim`
    of those tensors that are as long there as the first; where the network allows it, the written form takes any batch
    size, else the report says why not. What was written is loaded and run beside the network at two batch sizes: a
    difference above `tolerance` (absolute, or relative to the largest element; 1e-5 unless the dtype is coarser) is
    an ExportError. Files appear whole, after the check, or not at all; they carry a checksum over all that they hold,
    and nothing of the values of `example_inputs`. A file that fxprune did not write, or that was changed since, is
    left alone, and is an ExportError; `overwrite` insists.

    The written form is that of eval mode; `gm` is left in the mode in which it was.

    >>> net = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    >>> report = export(net, torch.randn(1, 3, 8, 8), "net.py")  # doctest: +SKIP
    """
    target = checked_suffix(checked_target(path))
    if not isinstance(gm, nn.Module):
        raise ExportError(f"export: got a {type(gm).__name__}; expected a GraphModule or another nn.Module")
    flag(dynamic_batch, "export: dynamic_batch", ExportError)
    check_free(target, overwrite=flag(overwrite, "export: overwrite", ExportError))
    if plan is not None:
        is_plan(plan, "export: plan", "the Plan of a search, result.plan", ExportError)
    if tolerance is not None:
        number(tolerance, "export: tolerance", least=0, error=ExportError)
    gm = unwrapped(gm)[0]
    plan = plan or plan_of(gm)
    if not isinstance(gm, fx.GraphModule):
        gm = sharing(gm)  # running and exporting it sets attributes (caches, counters) of another object
    inputs = inputs_of(example_inputs, gm, integer(batch_dim, "export: batch_dim", error=ExportError))
    limit = default_tolerance(gm, (inputs.args, inputs.kwargs)) if tolerance is None else tolerance
    with evaluating(gm):
        check_runs(gm, inputs)
        job = Job(gm, inputs, target, plan, limit, dynamic_batch, overwrite)
        return EXPORTERS.find(target.suffix)(job)
