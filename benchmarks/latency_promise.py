"""Latency budgets kept: tables, predictions and searches against ONNX Runtime, one thread, batch 1, 224 px.

    python -m benchmarks.latency_promise [--out FOLDER] [NETWORK ...]
    python -m benchmarks.latency_promise --backend onnxruntime-int8 --size 64 [NETWORK ...]    # the promise alone

For each network: how long its table takes and that a second build measures nothing; the errors of predictions at 30
random width vectors; what a data-free search to half of the latency really takes, exported by fxprune.export and timed
with onnxruntime alone, in turns with the dense network; and the importance that a search by FLOPs has lost when it is
as fast. Weights are random (seeded): no figure here depends on what a network has learnt. Run it on a quiet machine.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine, report
from benchmarks.options import command_line

NETWORKS = ("mobilenet_v2", "resnet18", "efficientnet_b0")
RATIO, VECTORS = 0.5, 30
PAIRS = 150  # runs of a network in turns with the dense one, where two networks are compared


def main() -> None:
    parser = command_line("latency_promise", __doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--backend", help="another backend: only the search and what its network takes")
    parser.add_argument("--size", type=int, default=64, help="pixels of the images, with --backend")
    options = parser.parse_args()
    machine.one_thread()
    described = machine.describe()
    if options.backend is not None:
        rows = [kept(name, options.backend, options.size) for name in options.networks]
        text = "\n".join(
            [
                f"# Half of the latency, {options.backend}, one thread, batch 1, {options.size} px",
                "",
                machine.sentence(described) + f"; at the end {machine.describe()['load_average'][0]}.",
                "",
                *report.table(PROMISE, ([str(row[name]) for name in PROMISE] for row in rows)),
                "",
                "Share: the latency of the pruned network over the dense one's, by the runtime alone, in turns.",
            ]
        )
        name = f"latency_promise_{options.backend}_{options.size}"
        report.write(options.out, name, text, {"machine": described, "networks": rows})
        return
    rows = [measured(name) for name in options.networks]
    for row in rows:
        print("\n".join(report.table(HEADER, [cells(row)])))
    text = "\n".join(
        [
            "# Latency budgets, ONNX Runtime, one thread, batch 1, 224 px",
            "",
            machine.sentence(described) + f"; at the end {machine.describe()['load_average'][0]}.",
            "",
            *report.table(HEADER, map(cells, rows)),
            "",
            f"Error: of predictions at {VECTORS} random width vectors, each timed in turns with the dense network.",
            f"Share: the exported network's latency over the dense one's; {RATIO} is promised. Lost: minus the",
            "logarithm of the share of importance that is kept, summed over the groups, by a search for latency and by",
            "one for FLOPs when it is as fast.",
        ]
    )
    report.write(options.out, "latency_promise", text, {"machine": described, "networks": rows})


HEADER = (
    "network", "table s", "networks measured", "again", "dense ms", "median error", "worst error",
    "search s", "rounds", "share", "off the promise", "lost", "lost by FLOPs",
)  # fmt: skip


def cells(row: dict[str, Any]) -> list[str]:
    return [
        row["network"], f"{row['table_s']:.0f}", str(row["networks_measured"]), str(row["measured_again"]),
        f"{row['dense_ms']:.2f}", f"{row['error_median']:.1%}", f"{row['error_worst']:.1%}", f"{row['search_s']:.0f}",
        str(row["rounds"]), f"{row['share']:.3f}", f"{row['share'] / RATIO - 1:+.1%}", f"{row['lost']:.3f}",
        f"{row['lost_by_flops']:.3f}",
    ]  # fmt: skip


def measured(name: str) -> dict[str, Any]:
    """All figures of one network."""
    from fxprune.torchvision_support import ensure_torchvision

    ensure_torchvision()
    import torch
    import torchvision

    from fxprune import Budget, netadapt
    from fxprune.latency import LatencyTable, build_table, latency_model
    from fxprune.latency.sampling import CALL, spread

    torch.manual_seed(0)
    model, x = torchvision.models.get_model(name, weights=None).eval(), torch.randn(1, 3, 224, 224)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.json"
        begun = time.perf_counter()
        table = build_table(model, x, path=path, step=8, least=8)
        table_s = time.perf_counter() - begun
        measured_again = build_table(model, x, path=path, step=8, least=8).samples - table.samples
        latency = latency_model(model, x, table=path, step=8, least=8)
        per_network = len(latency.network.units)
        networks = sum(len(e.samples) for k, e in LatencyTable.load(path).entries.items() if k != CALL) // per_network
        vectors = spread(latency.network.grid, VECTORS, seed=2024)
        errors = np.array([latency.predict_ms(w) / latency.measure(latency.network.at(w), x) - 1 for w in vectors])
        off = np.abs(errors)
        print(f"{name}: a table in {table_s:.0f} s, errors {np.median(off):.1%} and {off.max():.1%}", flush=True)
        begun = time.perf_counter()
        result = netadapt(
            model, Budget("latency", ratio=RATIO), example_inputs=x, resources=[latency], progress=False,
            config={"netadapt_min_feature_size": 8},
        )  # fmt: skip
        search_s = time.perf_counter() - begun
        share = share_of_dense(model, result.model, x, Path(folder))
        # Measured anew and long: the search stopped at the first measurement that was low enough, a lucky one.
        lost_by_flops = importance_lost_by_flops(model, x, latency, latency.timing(result.model, x, PAIRS).ms)
    return {
        "network": name, "table_s": table_s, "networks_measured": networks, "measured_again": measured_again,
        "dense_ms": result.start["latency"], "error_median": float(np.median(np.abs(errors))),
        "error_worst": float(np.abs(errors).max()), "errors": errors.tolist(), "search_s": search_s,
        "rounds": len(result.rounds), "met": result.met, "achieved_ms": result.achieved["latency"], "share": share,
        "lost": -result.score, "lost_by_flops": lost_by_flops,
        "predicted": [r.predicted["latency"] for r in result.rounds],
        "measured": [r.measured["latency"] for r in result.rounds],
    }  # fmt: skip


PROMISE = ("network", "search s", "rounds", "dense ms", "found ms", "share", "off the promise")


def kept(name: str, backend: str, size: int) -> dict[str, Any]:
    """A search to half of the latency by a backend, and the share that its runtime alone measures."""
    from fxprune.torchvision_support import ensure_torchvision

    ensure_torchvision()
    import torch
    import torchvision

    from fxprune import Budget, netadapt

    torch.manual_seed(0)
    model, x = torchvision.models.get_model(name, weights=None).eval(), torch.randn(1, 3, size, size)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        latency = {"backend": backend, "table": f"{folder}/table.json", "limits": {"points": 4, "repeats": 8}}
        config = {"netadapt_min_feature_size": 8, "latency": latency}
        result = netadapt(
            model, Budget("latency", ratio=RATIO), example_inputs=x, progress=False, config=config
        )  # fmt: skip
        search_s = time.perf_counter() - begun
        both = enumerate((model, result.model))
        runs = [runtime_alone(backend, net, x, Path(folder) / f"{number}.onnx") for number, net in both]
        share = share_in_turns(runs, time.perf_counter if backend == "openvino" else time.thread_time)
    row = {
        "network": name, "search s": round(search_s), "rounds": len(result.rounds),
        "dense ms": f"{result.start['latency']:.3f}", "found ms": f"{result.achieved['latency']:.3f}",
        "share": f"{share:.3f}", "off the promise": f"{share / RATIO - 1:+.1%}",
    }  # fmt: skip
    print(row, flush=True)
    return row


def runtime_alone(backend: str, network: Any, x: Any, path: Path) -> Callable[[], object]:
    """What runs a network once, by its runtime alone: nothing of fxprune but the export to ONNX."""
    import torch

    from fxprune import export

    if backend == "executorch":
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from executorch.runtime import Runtime

        with torch.no_grad():
            exported = torch.export.export(network.eval(), (x,))
        lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
        program = Runtime.get().load_program(lowered.buffer)  # a method does not keep it alive
        return lambda: program.load_method("forward").execute([x])
    if backend == "compile":
        compiled = torch.compile(network.eval(), dynamic=False)
        return torch.inference_mode()(lambda: compiled(x))
    export(network, x, path)
    if backend == "openvino":
        import openvino

        options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        loaded = openvino.Core().compile_model(str(path), "CPU", options)
        request, feed = loaded.create_infer_request(), {0: x.numpy()}
        return lambda: request.infer(feed, share_inputs=True, share_outputs=True)  # no copies of Python's
    import onnxruntime

    if backend == "onnxruntime-int8":
        path.write_bytes(in_int8(path, {"x": x.numpy()}))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


def in_int8(path: Path, example: dict[str, Any]) -> bytes:
    """An ONNX file after onnxruntime's static quantisation, by its example inputs."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = onnx.load(path).graph.input[0].name

    class Reader(CalibrationDataReader):
        left = iter([{name: array} for array in example.values()])

        def get_next(self) -> Any:
            return next(self.left, None)

    clean, target = path.with_suffix(".clean.onnx"), path.with_suffix(".int8.onnx")
    quant_pre_process(str(path), str(clean), skip_symbolic_shape=True)
    quantize_static(
        str(clean), str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
    )  # fmt: skip
    return target.read_bytes()


def share_in_turns(
    runs: list[Callable[[], object]], clock: Callable[[], float] = time.thread_time, pairs: int = PAIRS
) -> float:
    """The second run's time over the first's: each is compared with the first's before and after it."""
    times = np.zeros((pairs, 2))
    for pair in range(-10, pairs):
        for place, run in enumerate(runs):
            start = clock()
            run()
            if pair >= 0:
                times[pair, place] = clock() - start
    around = (times[:-1, 0] + times[1:, 0]) / 2
    return float(np.median(times[:-1, 1] / around))


def share_of_dense(dense: Any, pruned: Any, x: Any, folder: Path) -> float:
    """Latency of the exported network over that of the dense one, by nothing but onnxruntime and this thread's clock.

    The two run in turns, so that what slows the machine slows both.
    """
    modules = {"dense": dense, "pruned": pruned}
    return share_in_turns([runtime_alone("onnxruntime", net, x, folder / f"{n}.onnx") for n, net in modules.items()])


def importance_lost_by_flops(model: Any, x: Any, latency: Any, target_ms: float) -> float:
    """What a search for FLOPs has lost at the point of its curve that takes `target_ms`, measured."""
    from fxprune import Budget, netadapt

    result = netadapt(
        model, Budget("flops", ratio=0.15), example_inputs=x, progress=False, config={"netadapt_min_feature_size": 8}
    )
    low, high = 0, len(result.rounds)  # round `low` is slower than the target, `high` as fast

    @cache
    def ms(round: int) -> float:
        return latency.timing(result.restore(round), x, PAIRS).ms

    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if ms(middle) > target_ms else (low, middle)
    slow_ms, fast_ms = ms(low), ms(high)
    lost = [0.0, *(-record.score for record in result.rounds)]
    share = np.clip((slow_ms - target_ms) / max(slow_ms - fast_ms, 1e-9), 0, 1)
    return float(lost[low] + share * (lost[high] - lost[low]))


if __name__ == "__main__":
    main()
