"""Prune, then quantise: the chain to an int8 ONNX file, with a row for each stage."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.errors import ExportError
from fxprune.exporters import export
from fxprune.exporters.files import checked_target, staged
from fxprune.exporters.onnx_file import require_packages, seal_model
from fxprune.io.printed_text import printed
from fxprune.latency.backends.onnx_int8 import quantised
from fxprune.latency.timing import Timing, timing
from fxprune.search.result import NetAdaptResult
from passes import PassError
from passes.nested_values import tree_leaves_only
from passes.statistics.batches import Batch, batches_of

TURNS = 60


@dataclass(frozen=True)
class Stage:
    """A network on its way to int8.

    `score`: what `evaluate` says of it in ONNX Runtime; None without one. `error`: root mean square of its outputs'
    difference from the dense network's, as a share of these, over the calibration batches.
    """

    name: str
    score: float | None
    error: float
    latency: Timing
    size_bytes: int


@dataclass(frozen=True)
class Stages:
    """The chain, dense first; the last is the file at `path`."""

    path: Path
    stages: tuple[Stage, ...]
    threads: int

    def __str__(self) -> str:
        header = ("stage", "score", "error", "ms", "MB")
        rows = [
            (s.name, "" if s.score is None else f"{s.score:.6g}", f"{s.error:.2%}", f"{s.latency.ms:.3f}",
             f"{s.size_bytes / 1e6:.2f}")
            for s in self.stages
        ]  # fmt: skip
        sizes = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        table = [[cell.ljust(n) for cell, n in zip(row, sizes, strict=True)] for row in (header, *rows)]
        said = f"{self.path}; ONNX Runtime, {self.threads} thread{'s' if self.threads != 1 else ''}"
        return printed("\n".join([*("  ".join(row).rstrip() for row in table), said]))


class OnnxModule(nn.Module):
    """An ONNX network as a module, for functions that evaluate one: tensors in, tensors out."""

    def __init__(self, model: bytes, threads: int = 1) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.names = [entry.name for entry in self.session.get_inputs()]

    def feed(self, *args: object, **kwargs: object) -> dict[str, np.ndarray]:
        """The arguments of a call as arrays, by input name."""
        tensors = tree_leaves_only(Tensor, (args, kwargs))
        if len(tensors) != len(self.names):
            raise ExportError(f"the ONNX graph takes the inputs {', '.join(self.names)}; got {len(tensors)} tensors")
        return {n: np.ascontiguousarray(t.detach().cpu().numpy()) for n, t in zip(self.names, tensors, strict=True)}

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs as arrays."""
        try:
            return self.session.run(None, feed)
        except Exception as error:  # onnxruntime derives its errors from Exception, one class a status code
            raise ExportError(f"onnxruntime cannot run the network: {str(error).splitlines()[0]}") from error

    def forward(self, *args: object, **kwargs: object) -> Tensor | tuple[Tensor, ...]:
        found = tuple(torch.from_numpy(np.array(output)) for output in self.run(self.feed(*args, **kwargs)))
        return found[0] if len(found) == 1 else found


def export_int8(
    result: NetAdaptResult,
    path: str | os.PathLike[str],
    *,
    calibration: object,
    evaluate: Callable[[nn.Module], float] | None = None,
    threads: int = 1,
    overwrite: bool = False,
) -> Stages:
    """Write the network of a search to an .onnx in int8, and say what each stage costs: dense, pruned, pruned in int8.

    Each float network is exported and proven as `export` does; the last is quantised statically by onnxruntime (QDQ,
    weights int8 by channel, activations uint8) with ranges over `calibration`, batches of inputs as `netadapt` takes
    them. evaluate: called with each stage as a module that runs in ONNX Runtime. An int8 network is near to the float
    one, not equal: `Stages` says how near.

    Raises ExportError where a network cannot be exported, BackendError where it cannot be quantised.

    >>> stages = export_int8(result, "net.onnx", calibration=batches)  # doctest: +SKIP
    >>> print(stages)                                                  # doctest: +SKIP
    """
    require_packages()
    target = checked_target(path)
    if target.suffix != ".onnx":
        raise ExportError(f"{target}: unknown suffix {target.suffix!r}; an int8 network is written as .onnx")
    try:
        batches = list(batches_of(result.module, calibration))
    except PassError as error:
        raise ExportError(f"export_int8: calibration: {error}") from error
    if not batches:
        raise ExportError("export_int8: calibration holds no batch; pass at least one, of what the network takes")
    models: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, network in (("dense", result.dense), ("pruned", result.module)):
            export(network, result.example_inputs, Path(folder) / f"{name}.onnx")
            models[name] = (Path(folder) / f"{name}.onnx").read_bytes()
    reader = OnnxModule(models["pruned"], threads)
    models["pruned, int8"] = quantised(models["pruned"], [reader.feed(*b.args, **dict(b.kwargs)) for b in batches])
    with staged(target, overwrite) as place:
        (place / target.name).write_bytes(models["pruned, int8"])
        seal_model(place / target.name)
    networks = {name: OnnxModule(model, threads) for name, model in models.items()}
    outputs = {name: _outputs(network, batches) for name, network in networks.items()}
    taken = _in_turns(networks.values(), result, threads)
    found = (
        Stage(name, None if evaluate is None else float(evaluate(network)), _error(outputs[name], outputs["dense"]), ms,
              len(models[name]))
        for (name, network), ms in zip(networks.items(), taken, strict=True)
    )  # fmt: skip
    return Stages(target, tuple(found), threads)


def _outputs(network: OnnxModule, batches: Iterable[Batch]) -> list[np.ndarray]:
    return [out for b in batches for out in network.run(network.feed(*b.args, **dict(b.kwargs)))]


def _error(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """Root mean square of the difference over that of what is wanted."""
    off = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(found, wanted, strict=True))
    return float(np.sqrt(off / max(sum(float(np.square(b.astype(np.float64)).sum()) for b in wanted), 1e-300)))


def _in_turns(networks: Iterable[OnnxModule], result: NetAdaptResult, threads: int) -> list[Timing]:
    """Milliseconds for the example inputs; the networks take turns, so that what slows the machine slows all."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    given = result.example_inputs
    args, kwargs = ((), given) if isinstance(given, dict) else (given if isinstance(given, tuple) else (given,), {})
    feeds = [(network, network.feed(*args, **kwargs)) for network in networks]
    times = np.zeros((TURNS, len(feeds)))
    for turn in range(-5, TURNS):
        for place, (network, feed) in enumerate(feeds):
            begun = clock()
            network.run(feed)
            if turn >= 0:
                times[turn, place] = (clock() - begun) * 1e3
    return [timing(column) for column in times.T]
