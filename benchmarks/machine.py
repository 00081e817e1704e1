"""Where a figure was measured (processor, versions) and how: processor time of this process, and its peak memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PACKAGES = ("fxprune", "torch", "torchvision", "numpy", "networkx", "torch-pruning")


def describe() -> dict[str, Any]:
    """Processor, memory, system and versions; nothing that names the machine or its user."""
    import torch

    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "load_average": [round(x, 1) for x in os.getloadavg()],
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def sentence(machine: dict[str, Any]) -> str:
    """The machine and versions as one line of text."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    accelerator = "" if machine["accelerator"] == "none" else f", {machine['accelerator']}"
    hardware = f"{machine['processor']}{accelerator}, {machine['cores']} cores, {machine['memory_gib']} GiB"
    load = f"{machine['threads']} thread(s), load average {machine['load_average'][0]} when it began"
    return f"{hardware}, {machine['system']}; Python {machine['python']}, {versions}; {load}"


def one_thread() -> None:
    """Keep torch to one thread: with two on two shared cores small models run 30 times slower."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def peak_mib() -> float:
    """The largest resident size that this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


class Seconds(dict[str, float]):
    """Processor seconds by step: ``with seconds("couple"): ...``; steps of one name add up."""

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        begun = time.process_time()
        try:
            yield
        finally:
            self[step] = self.get(step, 0.0) + time.process_time() - begun


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
