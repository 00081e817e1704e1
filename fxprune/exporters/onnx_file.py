"""`.onnx`: translated by torch's own exporter, checked by onnx, run in onnxruntime beside the network."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fxprune.errors import ExportError
from fxprune.exporters.check import agreement, first_line
from fxprune.exporters.files import DATA, staged
from fxprune.exporters.inputs import Inputs
from fxprune.exporters.outcome import ExportReport
from fxprune.exporters.protocol import Job
from fxprune.exporters.pt2 import Exported, exported_program, or_fixed, without_user_data
from fxprune.io.seal import UNSEALED, seal, sha256_of
from fxprune.latency.backends.onnx_runtime import quiet_export
from passes.nested_values import tree_leaves_only
from passes.process.torch_private import pytree

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def write_onnx(
    module: nn.Module, inputs: Inputs, path: Path, tolerance: float, dynamic_batch: bool, overwrite: bool = False
) -> ExportReport:
    """Export, translate, save, check and run; the module is in eval mode. Weights above 2 GB go to a file beside."""
    require_packages()
    _refuse_bfloat16(module, inputs)
    exported = exported_program(module, inputs, dynamic_batch)
    return or_fixed(lambda form: _written(form, module, inputs, path, tolerance, overwrite), module, inputs, exported)


def _written(
    exported: Exported, module: nn.Module, inputs: Inputs, path: Path, tolerance: float, overwrite: bool
) -> ExportReport:
    without_user_data(exported.program)
    with staged(path, overwrite) as folder:
        with quiet_export():
            try:
                program = torch.onnx.export(exported.program, (), dynamo=True, verbose=False)
                assert program is not None, "torch.onnx.export returns no program only without dynamo"
                program.save(folder / path.name)
            except torch.onnx.OnnxExporterError as error:
                raise ExportError(f"torch.onnx cannot translate the network: {_cause(error)}") from error
        seal_model(folder / path.name)
        opset = _checked(folder / path.name)
        found = agreement(module, _session(folder / path.name), inputs, exported.sizes, tolerance)
        files = tuple(sorted((path.parent / file.name for file in folder.iterdir()), key=lambda file: file != path))
    reason = exported.static_reason
    return ExportReport.compared("onnx", path, files, found, exported.sizes, reason, tolerance, opset)


def seal_model(path: Path) -> None:
    """Leave the network alone in the file (no traces, which name the user's folders), and seal it, with the digest of
    the file of large weights where there is one."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    for function in [model.graph, *model.functions]:
        for node in function.node:
            kept = [entry for entry in node.metadata_props if "stack_trace" not in entry.key]
            del node.metadata_props[:]
            node.metadata_props.extend(kept)
    data = path.with_name(path.name + DATA)
    onnx.helper.set_model_props(
        model,
        {
            **{entry.key: entry.value for entry in model.metadata_props},
            "fxprune": UNSEALED,
            **({"fxprune_data": sha256_of(data)} if data.is_file() else {}),
        },
    )
    path.write_bytes(model.SerializeToString(deterministic=True))
    seal(path)


def require_packages() -> None:
    """ExportError naming the extra that brings what is missing."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"an .onnx export needs {', '.join(missing)}, not installed here; install the extra: "
            'pip install "fxprune[onnx]"'
        )


def _refuse_bfloat16(module: nn.Module, inputs: Inputs) -> None:
    tensors = [*module.parameters(), *pytree.tree_leaves((inputs.args, inputs.kwargs))]
    if any(isinstance(tensor, torch.Tensor) and tensor.dtype == torch.bfloat16 for tensor in tensors):
        raise ExportError(
            "onnxruntime has next to no bfloat16 operators on the CPU, so the file could not be run beside the "
            "network; export it in float32 or float16"
        )


def _checked(path: Path) -> int:
    """Let onnx check the file, shapes included; return the version of the default operator set."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx.checker refuses the file: {first_line(error)}") from error
    model = onnx.load(str(path), load_external_data=False)
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _session(path: Path) -> Callable[[Inputs], list[torch.Tensor]]:
    """A function that runs the file in onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # The file is compared as it is written: further optimisations put integer kernels, which round otherwise, in place
    # of what a quantized network says.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime derives its errors from Exception, one class a status code
        hint = "; most of its operators are for float32" if "NOT_IMPLEMENTED" in str(error) else ""
        raise ExportError(f"onnxruntime cannot load the network: {first_line(error)}{hint}") from error
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: Inputs) -> list[torch.Tensor]:
        given = tree_leaves_only(torch.Tensor, (inputs.args, inputs.kwargs))
        if len(given) != len(names):
            raise ExportError(f"the ONNX graph takes {len(names)} inputs ({', '.join(names)}), not {len(given)}")
        feed = {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, given, strict=True)}
        try:
            outputs = session.run(None, feed)
        except Exception as error:  # see above
            raise ExportError(f"onnxruntime cannot run the network: {first_line(error)}") from error
        return [torch.from_numpy(np.array(output)) for output in outputs]

    return run


def _cause(error: BaseException) -> str:
    """The innermost cause of torch's wrapped errors: the outer ones say only that the export failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}"


def write(job: Job) -> ExportReport:
    """This form of a network, for `export`."""
    return write_onnx(job.network, job.inputs, job.path, job.tolerance, job.dynamic_batch, job.overwrite)
