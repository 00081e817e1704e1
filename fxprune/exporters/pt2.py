"""`.pt2`: an ExportedProgram, with a dynamic batch where torch.export can show that one is possible."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx, nn

from fxprune.errors import ExportError
from fxprune.exporters.check import agreement, first_line, fixed_batch_reason, other_size
from fxprune.exporters.files import staged
from fxprune.exporters.inputs import Inputs, call
from fxprune.exporters.outcome import ExportReport
from fxprune.exporters.protocol import Job
from fxprune.io.seal import UNSEALED, seal
from passes.process.torch_private import program_tensors, pytree, set_example_inputs


@dataclass(frozen=True)
class Exported:
    """An ExportedProgram, why its batch size is fixed (None: it is free), the batch sizes to check it at, and that of
    the example inputs."""

    program: torch.export.ExportedProgram
    static_reason: str | None
    sizes: tuple[int, ...]
    size: int | None = None


def exported_program(module: nn.Module, inputs: Inputs, dynamic_batch: bool = True) -> Exported:
    """torch.export of a module in eval mode: with a dynamic batch, or with the batch of its inputs and the reason.

    Raises ExportError where torch.export refuses both.
    """
    size = inputs.batch_size
    reason = fixed_batch_reason(module, inputs) if dynamic_batch else "asked for with dynamic_batch=False"
    if reason is None and size is not None:
        # torch.export takes a size of 0 or 1 for a constant.
        example = inputs if size > 1 else inputs.resized(2)
        shapes = example.dynamic_shapes(module, torch.export.Dim("batch"))
        try:
            program = _export(module, example, shapes)
        except Exception as error:  # torch.export has no common base for what it raises
            reason = f"torch.export: {first_line(error)}"
        else:
            return Exported(program, None, (size, other_size(size)), size)
    try:
        program = _export(module, inputs, None)
    except Exception as error:  # see above
        raise ExportError(f"torch.export refuses the network: {first_line(error)}") from error
    return Exported(program, reason, () if size is None else (size,), size)


def _export(module: nn.Module, inputs: Inputs, shapes: dict[str, object] | None) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        # The list of an RNN's weights that torch keeps beside its parameters; they are the same tensors.
        warnings.filterwarnings("ignore", message=r"The tensor attributes? .*_flat_weights")
        return torch.export.export(module, inputs.args, inputs.kwargs, dynamic_shapes=shapes)


def write_pt2(
    module: nn.Module, inputs: Inputs, path: Path, tolerance: float, dynamic_batch: bool, overwrite: bool = False
) -> ExportReport:
    """Export, save, load what was saved and run it beside the network; the module is in eval mode."""
    exported = exported_program(module, inputs, dynamic_batch)
    return or_fixed(lambda form: _written(form, module, inputs, path, tolerance, overwrite), module, inputs, exported)


def or_fixed(
    write: Callable[[Exported], ExportReport], module: nn.Module, inputs: Inputs, exported: Exported
) -> ExportReport:
    """What `write` makes of a program; where it cannot with a free batch, of the one with the batch of the inputs.

    A batch that is also a number of groups (the weights of a modulated convolution, one a sample) can be said to
    torch.export and to no translator; some programs run at no other size than they were exported at.
    """
    try:
        return write(exported)
    except ExportError as error:
        if exported.static_reason is not None or exported.size is None:
            raise
        fixed = exported_program(module, inputs, False)
        reason = f"with a free batch {first_line(error)[:300]}"
        return write(Exported(fixed.program, reason, (exported.size,), exported.size))


def _written(
    exported: Exported, module: nn.Module, inputs: Inputs, path: Path, tolerance: float, overwrite: bool
) -> ExportReport:
    without_user_data(exported.program)
    with staged(path, overwrite) as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        try:
            torch.export.save(exported.program, folder / path.name)
        except Exception as error:  # an output class without a name for files, a constant of an unknown type, ...
            raise ExportError(f"torch.export cannot save the network: {first_line(error)}") from error
        _seal_archive(folder / path.name)
        loaded = torch.export.load(folder / path.name).module()
        found = agreement(module, lambda given: _run(loaded, given), inputs, exported.sizes, tolerance)
    return ExportReport.compared("pt2", path, (path,), found, exported.sizes, exported.static_reason, tolerance)


def _run(loaded: nn.Module, inputs: Inputs) -> object:
    try:
        return call(loaded, inputs)
    except Exception as error:  # its guards raise AssertionError, its operators whatever they raise
        raise ExportError(
            f"the written network fails at batch size {inputs.batch_size}, and the original does not: "
            f"{first_line(error)}"
        ) from error


def without_user_data(program: torch.export.ExportedProgram) -> None:
    """Leave the network alone in a program, in place.

    torch.export.save writes the example inputs, and of each tensor the whole storage, which may hold all the images of
    which the example is the first two. Zeros of the same shapes stand for the inputs. Traces name the user's folders.
    """
    if program.example_inputs is not None:
        set_example_inputs(program, pytree.tree_map_only(torch.Tensor, torch.zeros_like, program.example_inputs))
    for table in program_tensors(program):
        apart: dict[int, object] = {}
        for name, tensor in table.items():
            if isinstance(tensor, torch.Tensor) and _is_part(tensor):
                if id(tensor) not in apart:
                    values = tensor.detach().clone()
                    is_parameter = isinstance(tensor, nn.Parameter)
                    apart[id(tensor)] = nn.Parameter(values, tensor.requires_grad) if is_parameter else values
                table[name] = apart[id(tensor)]
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)


def _is_part(tensor: torch.Tensor) -> bool:
    if tensor.layout is not torch.strided or tensor.is_meta:
        return False
    return tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()


def _seal_archive(path: Path) -> None:
    """Give the zip archive a comment with the seal: its last record says how long a comment follows."""
    with open(path, "rb+") as file:
        file.seek(-22, 2)
        end = file.read(22)
        assert end[:4] == b"PK\5\6" and end[20:] == b"\0\0", "torch.export.save writes a zip archive without a comment"
        file.seek(-2, 2)
        file.write(len(UNSEALED).to_bytes(2, "little") + UNSEALED.encode())
    seal(path)


def write(job: Job) -> ExportReport:
    """This form of a network, for `export`."""
    return write_pt2(job.network, job.inputs, job.path, job.tolerance, job.dynamic_batch, job.overwrite)
