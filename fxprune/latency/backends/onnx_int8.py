"""ONNX Runtime after static quantisation: weights in int8, activations in uint8, scales from calibration data."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import fx

from fxprune.latency.backends.onnx_runtime import OnnxRuntime, fed
from fxprune.latency.device import Setting, cpu, cpu_alone
from fxprune.latency.errors import BackendError


class OnnxRuntimeInt8(OnnxRuntime):
    """As `OnnxRuntime`, each network quantised before it is timed.

    Scales are those of the example inputs: they decide the outputs, not the time.
    """

    def __init__(self, threads: int = 1, exact: bool = False) -> None:
        super().__init__(threads, exact)
        self.setting = Setting("onnxruntime-int8", self.setting.version, threads, cpu())

    def finished(self, model: bytes, gm: fx.GraphModule, example_inputs: object) -> bytes:
        return quantised(model, [fed(input_names(model), gm, example_inputs)])


def on_cpu(threads: int = 1, device: str = "cpu") -> OnnxRuntimeInt8:
    """The backend for these threads; its provider is the CPU's."""
    cpu_alone("onnxruntime-int8", device)
    return OnnxRuntimeInt8(threads)


def input_names(model: bytes) -> list[str]:
    """The names of the inputs of an ONNX network, initialisers left out."""
    import onnx

    graph = onnx.load_from_string(model).graph
    stored = {tensor.name for tensor in graph.initializer}
    return [entry.name for entry in graph.input if entry.name not in stored]


def quantised(model: bytes, batches: Iterable[dict[str, np.ndarray]]) -> bytes:
    """An ONNX network after static quantisation: QDQ, weights int8 by channel, activations uint8, ranges by minimum and
    maximum over `batches` (arrays by input name).

    Weights have a range of seven bits: with eight, sums of two products overflow 16 bits on x86 processors without VNNI
    instructions, and outputs are wrong there (ONNX Runtime's documentation of quantisation, on its accuracy).

    Raises BackendError where onnxruntime cannot quantise it.
    """
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, found: Sequence[dict[str, np.ndarray]]) -> None:
            self.left: Iterator[dict[str, np.ndarray]] = iter(found)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    level = logging.root.level
    with tempfile.TemporaryDirectory() as folder:
        source, clean, target = (Path(folder) / f"{name}.onnx" for name in ("source", "clean", "int8"))
        source.write_bytes(model)
        try:
            logging.root.setLevel(logging.ERROR)  # it advises on the root logger what is done here
            onnxruntime.set_default_logger_severity(3)
            quant_pre_process(str(source), str(clean), skip_symbolic_shape=True)
            quantize_static(
                str(clean), str(target), Reader(list(batches)), quant_format=QuantFormat.QDQ, per_channel=True,
                weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8, reduce_range=True,
            )  # fmt: skip
        except Exception as error:  # of onnx, onnxruntime and its quantiser, which share no class
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise BackendError(f"onnxruntime cannot quantise the network: {said}") from error
        finally:
            logging.root.setLevel(level)
            onnxruntime.set_default_logger_severity(2)  # its own default
        return target.read_bytes()
