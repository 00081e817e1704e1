"""OpenVINO on the CPU."""

from __future__ import annotations

import io

from torch import nn

from fxprune.latency.backends.onnx_runtime import as_graph, fed, translated
from fxprune.latency.backends.protocol import Run, Timed
from fxprune.latency.device import Setting, cpu
from fxprune.latency.errors import BackendError
from fxprune.latency.timing import Pace, Reference, pace


class OpenVino(Timed):
    """OpenVINO with its CPU plugin, one stream, in the precision that it chooses. Networks reach it as ONNX."""

    def __init__(self, threads: int = 1, device: str = "cpu") -> None:
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
        options = {"INFERENCE_NUM_THREADS": self.setting.threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        try:
            model = self._core.read_model(io.BytesIO(translated(graph, example_inputs)))
            compiled = self._core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise BackendError(f"openvino cannot load the network: {str(error).splitlines()[0]}") from error
        feed = fed([entry.get_any_name() for entry in compiled.inputs], graph, example_inputs)
        request = compiled.create_infer_request()

        def run() -> object:
            return request.infer(feed, share_inputs=True, share_outputs=True)

        return run

    def pace(self, run: Run, reference: Reference | None = None, repeats: int = 15) -> Pace:
        """By the world's clock: the work is done on threads of OpenVINO's own."""
        return pace(run, reference, repeats=repeats, one_thread=False)
