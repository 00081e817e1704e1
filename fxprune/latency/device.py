"""What a measurement belongs to: the device, the backend with its version, the number of threads."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fxprune.latency.errors import BackendError

_VECTORS = ("sse4_2", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve", "sve2", "neon")


@dataclass(frozen=True)
class Setting:
    """Under which conditions a table's numbers hold. Two tables are of one kind where these are equal."""

    backend: str
    version: str
    threads: int
    device: Mapping[str, Any] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """A short name for files: readable, and different for different settings."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.backend}-{self.threads}t-{digest}"

    @property
    def device_name(self) -> str:
        """The device in a few words."""
        return ", ".join(str(value) for value in self.device.values() if value)

    def __str__(self) -> str:
        version = f" {self.version}" if self.version else ""
        threads = f", {self.threads} thread{'s' if self.threads != 1 else ''}" if self.threads else ""
        return f"{self.backend}{version}{threads} on {self.device_name}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Setting:
        return Setting(str(data["backend"]), str(data["version"]), int(data["threads"]), dict(data["device"]))


@cache
def _processor() -> tuple[str, str]:
    """Name and vector instruction sets of this machine's processor."""
    name, flags = platform.processor() or platform.machine(), ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        label, _, value = line.partition(":")
        if label.strip() in ("model name", "Hardware") and value.strip():
            name = value.strip()
        if label.strip() in ("flags", "Features"):
            found = set(value.split())
            flags = " ".join(v for v in _VECTORS if v in found)
    return name, flags


def cpu() -> dict[str, Any]:
    """This machine's processor, by what decides how fast it computes. No host name, nothing personal."""
    name, vectors = _processor()
    return {"processor": name, "architecture": platform.machine(), "vectors": vectors}


def describe(kind: str) -> dict[str, Any]:
    """The device of that torch type ("cpu", "cuda", ...)."""
    if kind == "cpu":
        return cpu()
    import torch

    if kind == "cuda":
        if not torch.cuda.is_available():
            raise BackendError("latency: device: cuda, and torch finds no CUDA device here; measure on the cpu")
        return {"processor": torch.cuda.get_device_name(), "architecture": f"cuda {torch.version.cuda}", "vectors": ""}
    return {"processor": kind, "architecture": platform.machine(), "vectors": ""}
