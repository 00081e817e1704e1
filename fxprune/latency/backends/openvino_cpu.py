"""OpenVINO on the CPU: whole networks, and its own counters for the nodes inside them."""

from __future__ import annotations

import io
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from torch import fx, nn

from fxprune.latency.backends.onnx_graph import to_onnx
from fxprune.latency.backends.onnx_recording import record
from fxprune.latency.backends.onnx_runtime import as_graph, fed, translatable, translated
from fxprune.latency.backends.protocol import Profile, Run, Timed
from fxprune.latency.device import Setting, cpu, cpu_alone
from fxprune.latency.errors import BackendError
from fxprune.latency.timing import Pace, Reference, pace

if TYPE_CHECKING:
    from openvino import InferRequest


class OpenVino(Timed):
    """OpenVINO with its CPU plugin, one stream, in the precision that it chooses. Networks reach it as ONNX."""

    in_situ = True

    def __init__(self, threads: int = 1, device: str = "cpu") -> None:
        cpu_alone("openvino", device)
        try:
            import onnx  # noqa: F401 - networks are translated with it
            import openvino
        except ImportError as error:
            raise BackendError(
                'the openvino backend needs openvino and onnx; install the extra: pip install "fxprune[openvino]"'
            ) from error
        self._core = openvino.Core()
        self.setting = Setting("openvino", str(openvino.__version__), threads, cpu())

    def prepare(self, gm: nn.Module, example_inputs: object) -> Run:
        graph = as_graph(gm, example_inputs)
        return self._runner(translated(graph, example_inputs), graph, example_inputs)[0]

    def supports(self, gm: fx.GraphModule, example_inputs: object) -> bool:
        """Whether the profile can be read by fx node."""
        return translatable(gm, example_inputs)

    def profile(self, gm: fx.GraphModule, example_inputs: object, reference: Reference | None, repeats: int) -> Profile:
        graph = record(gm, example_inputs)
        model = to_onnx(graph)
        whole = self.pace(self._runner(model, gm, example_inputs)[0], reference, repeats)
        infer, request = self._runner(model, gm, example_inputs, counting=True)
        rows: list[Counter[str]] = []

        def run() -> None:
            infer()
            row, last = Counter[str](), graph.owners[0]
            for entry in request.get_profiling_info():  # what it put in by itself counts to the node before it
                last = graph.owner(entry.node_name) or last
                row[last] += entry.real_time.total_seconds() * 1e3
            rows.append(row)

        found = self.pace(run, reference, repeats)
        kept = rows[-len(found.times_ms) :]
        nodes = tuple(name for name in kept[0] if name)
        ms = np.array([[row[name] for name in nodes] for row in kept])
        return Profile(nodes, ms, found, whole.relative(whole.times_ms))

    def _runner(
        self, model: bytes, gm: fx.GraphModule, example_inputs: object, counting: bool = False
    ) -> tuple[Run, InferRequest]:
        options = {"INFERENCE_NUM_THREADS": self.setting.threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        try:
            loaded = self._core.read_model(io.BytesIO(model))
            compiled = self._core.compile_model(loaded, "CPU", {**options, "PERF_COUNT": counting})
        except RuntimeError as error:
            raise BackendError(f"openvino cannot load the network: {str(error).splitlines()[0]}") from error
        feed = fed([entry.get_any_name() for entry in compiled.inputs], gm, example_inputs)
        request = compiled.create_infer_request()

        def run() -> object:
            return request.infer(feed, share_inputs=True, share_outputs=True)

        return run, request

    def pace(self, run: Run, reference: Reference | None = None, repeats: int = 15) -> Pace:
        """By the world's clock: the work is done on threads of OpenVINO's own."""
        return pace(run, reference, repeats=repeats, one_thread=False)
