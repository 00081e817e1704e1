"""What an exporter is given, and how one of a user's is made safe: its files appear whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import fx, nn

from fxprune.errors import ExportError, FxpruneError
from fxprune.exporters.files import staged
from fxprune.exporters.inputs import Inputs
from fxprune.exporters.outcome import ExportReport
from fxprune.io.lent import copied, with_gradients
from fxprune.registries import EXPORTERS
from passes import CaptureError, PassError, Plan, capture
from passes.arguments import quoted
from passes.frontend.fidelity import settle
from passes.process.source_lines import said


@dataclass(frozen=True)
class Job:
    """One export.

    network: in eval mode, without wrappers. inputs: the arguments of one call (``inputs.args``, ``inputs.kwargs``).
    path: the file to write; companions may stand beside it. plan: that made the network, None where it is not known.
    tolerance: how far the written form may differ. dynamic_batch: whether any batch size is wanted. overwrite: whether
    a file of others may be replaced.
    """

    network: nn.Module
    inputs: Inputs
    path: Path
    plan: Plan | None
    tolerance: float
    dynamic_batch: bool
    overwrite: bool

    def graph(self) -> fx.GraphModule:
        """The network as a graph, which was compared with the module that it was captured from.

        Raises ExportError where it cannot be captured.
        """
        try:
            gm = self.network
            if not isinstance(gm, fx.GraphModule):
                gm = capture(gm, dict(self.inputs.kwargs) or tuple(self.inputs.args))
            settle(gm)
            return gm
        except CaptureError as error:
            raise ExportError(
                f"{self.path.suffix} is written of a graph, and this model cannot be captured: {error}"
            ) from error


@dataclass(frozen=True)
class Simple:
    """An exporter of a function that writes ``job.path`` and may return notes for the report, a text or several.

    It gets a copy of the network and of the inputs, which it may change.
    """

    write: Callable[[Job], object]

    def __call__(self, job: Job) -> ExportReport:
        with staged(job.path, job.overwrite) as folder:
            given = replace(job.inputs, args=copied(job.inputs.args), kwargs=copied(job.inputs.kwargs))
            own = replace(job, network=with_gradients(job.network), inputs=given, path=folder / job.path.name)
            try:
                told = self.write(own)
            except (FxpruneError, PassError):
                raise
            except Exception as error:  # the user's own function
                raise ExportError(f"the exporter of {job.path.suffix} failed: {said(error)}") from error
            names = sorted(file.name for file in folder.iterdir())
            if job.path.name not in names:
                raise ExportError(f"the exporter of {job.path.suffix} wrote {names or 'nothing'}, not {job.path.name}")
        notes = [told] if isinstance(told, str) else list(told) if isinstance(told, list | tuple) else []
        files = (job.path, *(job.path.parent / name for name in names if name != job.path.name))
        notes = [*map(str, notes), "not run beside the network"]
        return ExportReport(job.path.suffix[1:], job.path, files, notes=tuple(notes))


def register_exporter(suffix: str, write: Callable[[Job], object], *, override: bool = False) -> None:
    """Let `export` write files of this suffix by a function of a `Job`.

    It writes ``job.path``, which lies in a folder of its own until all is written, and may return notes.

    >>> import numpy as np
    >>> def npz(job):
    ...     np.savez(job.path, **{name: tensor.numpy() for name, tensor in job.network.state_dict().items()})
    >>> register_exporter(".npz", npz, override=True)
    """
    if not isinstance(suffix, str) or not suffix.startswith(".") or len(suffix) < 2:
        raise ExportError(f"register_exporter: got the suffix {quoted(suffix)}; expected one such as '.npz'")
    if not callable(write):
        raise ExportError(f"register_exporter: {suffix}: got a {type(write).__name__}; expected a function of a Job")
    EXPORTERS.register(suffix, Simple(write), override=override)
