"""ONNX Runtime on the CPU: whole networks, and its own profile for the nodes inside them."""

from __future__ import annotations

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.latency.backends.onnx_graph import Graph, UnsupportedOperator, to_onnx
from fxprune.latency.backends.onnx_recording import record
from fxprune.latency.backends.protocol import Profile, Run, Timed
from fxprune.latency.device import Setting, cpu, cpu_alone
from fxprune.latency.errors import BackendError
from fxprune.latency.timing import Reference
from passes import capture
from passes.nested_values import tree_leaves_only
from passes.stream.graph_stream import as_arguments

log = logging.getLogger(__name__)
_TICK_MS = 1e-3  # the profile's clock counts whole microseconds, and rounds down


class OnnxRuntime(Timed):
    """onnxruntime with its CPU provider and all graph optimisations.

    Networks are translated by `onnx_graph` (milliseconds; random weights), those with an operator that it does not
    know by torch.onnx.export (seconds); `exact` asks for the latter always.
    """

    in_situ = True

    def __init__(self, threads: int = 1, exact: bool = False) -> None:
        if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnx") is None:
            raise BackendError(
                'the onnxruntime backend needs onnx and onnxruntime; install the extra: pip install "fxprune[onnx]", '
                "or use the backend eager"
            )
        import onnxruntime

        self.setting = Setting("onnxruntime", onnxruntime.__version__, threads, cpu())
        self.exact = exact

    def prepare(self, gm: nn.Module, example_inputs: object) -> Run:
        gm = as_graph(gm, example_inputs)
        return self._runner(self._session(self.model(gm, example_inputs)), example_inputs, gm)

    def model(self, gm: fx.GraphModule, example_inputs: object) -> bytes:
        """The network as ONNX, as it is run."""
        plain = exported(gm, example_inputs) if self.exact else translated(gm, example_inputs)
        return self.finished(plain, gm, example_inputs)

    def finished(self, model: bytes, gm: fx.GraphModule, example_inputs: object) -> bytes:
        """What is done to an ONNX network before it is run; here nothing."""
        return model

    def supports(self, gm: fx.GraphModule, example_inputs: object) -> bool:
        """Whether the profile can be read by fx node."""
        return translatable(gm, example_inputs)

    def profile(self, gm: fx.GraphModule, example_inputs: object, reference: Reference | None, repeats: int) -> Profile:
        graph = record(gm, example_inputs)
        model = self.finished(to_onnx(graph), gm, example_inputs)
        whole = self.pace(self._runner(self._session(model), example_inputs, gm), reference, repeats)
        with tempfile.TemporaryDirectory() as folder:
            session = self._session(model, profile=str(Path(folder) / "profile"))
            found = self.pace(self._runner(session, example_inputs, gm), reference, repeats)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        nodes, ms = by_node(events, graph, len(found.times_ms))
        return Profile(nodes, ms, found, whole.relative(whole.times_ms))

    def _session(self, model: bytes, profile: str = "") -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.setting.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        try:
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime derives its errors from Exception, one class a status code
            raise BackendError(f"onnxruntime cannot load the network: {str(error).splitlines()[0]}") from error

    def _runner(self, session: Any, example_inputs: object, gm: fx.GraphModule) -> Callable[[], object]:
        feed = fed([entry.name for entry in session.get_inputs()], gm, example_inputs)

        def run() -> object:
            return session.run(None, feed)

        return run


def on_cpu(threads: int = 1, device: str = "cpu") -> OnnxRuntime:
    """The backend for these threads; its provider is the CPU's."""
    cpu_alone("onnxruntime", device)
    return OnnxRuntime(threads)


def as_graph(network: nn.Module, example_inputs: object) -> fx.GraphModule:
    """The graph of a module; a graph is its own."""
    return network if isinstance(network, fx.GraphModule) else capture(network, example_inputs)


def fed(names: Sequence[str], gm: fx.GraphModule, example_inputs: object) -> dict[str, np.ndarray]:
    """The inputs as arrays, by the names that an ONNX network has for them."""
    tensors = tree_leaves_only(Tensor, as_arguments(example_inputs, gm))
    return {
        name: np.ascontiguousarray(tensor.detach().cpu().numpy()) for name, tensor in zip(names, tensors, strict=True)
    }


def translatable(gm: fx.GraphModule, example_inputs: object) -> bool:
    """Whether the quick translation knows every operator: names in a profile are then those of fx nodes."""
    try:
        record(gm, example_inputs)
    except UnsupportedOperator as error:
        log.info("%s; its units are exported and timed one by one", error)
        return False
    return True


def translated(gm: fx.GraphModule, example_inputs: object) -> bytes:
    """The network as ONNX with random weights, in milliseconds; as torch.onnx exports it where that knows an operator
    more."""
    try:
        return to_onnx(record(gm, example_inputs))
    except UnsupportedOperator as error:
        log.info("%s; the network is exported by torch.onnx", error)
        return exported(gm, example_inputs)


def exported(gm: fx.GraphModule, example_inputs: object) -> bytes:
    """The network as torch.onnx.export writes it."""
    gm.eval()
    try:
        with quiet_export(), torch.no_grad():
            program = torch.onnx.export(gm, as_arguments(example_inputs, gm), dynamo=True, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        raise BackendError(f"torch.onnx cannot translate the network: {str(error).splitlines()[0]}") from error
    assert program is not None, "torch.onnx.export returns no program only without dynamo"
    return program.model_proto.SerializeToString()


@contextmanager
def quiet_export() -> Iterator[None]:
    """Keep torch.onnx's progress and version talk out of the user's log; its errors are raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def by_node(events: list[dict[str, Any]], graph: Graph, runs: int) -> tuple[tuple[str, ...], np.ndarray]:
    """The profile as fx nodes and milliseconds (runs, nodes), of the last `runs` runs.

    An operator that the runtime put in by itself (a change of layout) counts to the node that ran before it.
    """
    kernels: dict[str, list[float]] = {}
    owners: dict[str, str] = {}
    last = graph.owners[0] if graph.owners else ""
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        if name not in owners:
            owners[name] = graph.owner(name) or last
        last = owners[name]
        kernels.setdefault(name, []).append(event["dur"] / 1e3 + _TICK_MS / 2)
    nodes = tuple(dict.fromkeys(owners.values()))
    ms = np.zeros((runs, len(nodes)))
    for name, taken in kernels.items():
        ms[:, nodes.index(owners[name])] += taken[-runs:]
    return nodes, ms
