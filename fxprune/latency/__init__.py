"""Latency budgets in milliseconds: measured tables, predictions for any widths, whole networks measured.

    from fxprune.latency import build_table, latency_model, measure_latency_ms

    table = build_table(model, x, backend="onnxruntime")           # once; goes on where it was interrupted
    latency = latency_model(model, x, table=table)                  # a resource for netadapt(..., resources=[latency])
    latency.predict_ms({"layer1.0.conv1": 32})
    measure_latency_ms(model, x, backend="onnxruntime")             # a whole network: median and interval

A budget alone is enough: `netadapt(model, Budget("latency", ratio=0.5), ...)` does the first two by itself.
"""

from __future__ import annotations

from fxprune.latency.device import Setting
from fxprune.latency.errors import (
    BackendError,
    CorruptedTable,
    ForeignTable,
    LatencyError,
    TableError,
    TableVersionError,
    UncoveredTable,
)
from fxprune.latency.measuring import (
    build_table,
    default_path,
    latency_model,
    latency_resource,
    measure_latency_ms,
    width_grid,
)
from fxprune.latency.predict import LatencyModel, MeasuredLatency
from fxprune.latency.sampling import Limits
from fxprune.latency.table import LatencyTable, merge_files
from fxprune.latency.timing import Timing

__all__ = [
    "BackendError", "CorruptedTable", "ForeignTable", "LatencyError", "LatencyModel", "LatencyTable", "Limits",
    "MeasuredLatency", "Setting", "TableError", "TableVersionError", "Timing", "UncoveredTable", "build_table",
    "default_path", "latency_model", "latency_resource", "measure_latency_ms", "merge_files", "width_grid",
]  # fmt: skip
