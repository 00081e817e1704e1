"""The tables inside a configuration: what `latency:` and `ray:` may say."""

from __future__ import annotations

from fxprune.config import rules as rule
from fxprune.config.rules import Entry
from fxprune.registries import BACKENDS

_COUNT = rule.integer(least=1)

LIMITS = {
    "tolerance": Entry(rule.number(above=0, below=1), "share by which predictions may be wrong; then it ends", 0.02),
    "networks": Entry(_COUNT, "most networks that are measured", 40),
    "points": Entry(_COUNT, "most points that are measured of a unit", 8),
    "repeats": Entry(_COUNT, "runs that a sample is the median of", 16),
}
LATENCY = {
    "backend": Entry(rule.registered(BACKENDS), "what runs the network", "onnxruntime"),
    "threads": Entry(_COUNT, "threads of the backend", 1),
    "device": Entry(
        rule.text(),
        "the device that holds the network, as torch names it: eager and compile measure there, others on the cpu",
        "cpu",
    ),
    "table": Entry(
        rule.anything("the name of a file"),
        "file of measurements, which is used and completed; null: one a device in the user's cache",
    ),
    "foreign": Entry(rule.flag(), "the table was measured on another device and is taken as it is", False),
    "measure": Entry(rule.anything("a function"), "in Python only: measure(network, inputs) -> milliseconds"),
    "step": Entry(
        rule.either(_COUNT, rule.choice("auto")), "distance of the widths that are measured; null: that of the search"
    ),
    "least": Entry(_COUNT, "least width that is measured; null: that of the search"),
    "limits": Entry(rule.entries(LIMITS), "when measuring ends", {}),
    "progress": Entry(rule.flag(), "whether measuring shows how far it is", True),
}
RAY = {
    "address": Entry(rule.text(), "the cluster; null: one on this machine, for this search alone"),
    "num_cpus": Entry(rule.number(least=0), "processors of one candidate", 1),
    "num_gpus": Entry(rule.number(least=0), "GPUs of one candidate; may be a fraction"),
    "resources": Entry(rule.table(rule.number(least=0)), "other resources of one candidate, by name", {}),
    "memory": Entry(rule.number(least=0), "bytes of memory of one candidate"),
}
RAY_INIT = (
    "namespace", "runtime_env", "object_store_memory", "labels", "include_dashboard", "dashboard_host",
    "dashboard_port", "configure_logging", "logging_level", "log_to_driver", "_node_ip_address", "_temp_dir",
    "_system_config",
)  # fmt: skip
"""What else is handed to `ray.init` as it is."""
