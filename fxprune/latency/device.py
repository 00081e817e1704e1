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

import torch

from fxprune.latency.errors import BackendError
from passes.arguments import quoted

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


def present(device: str) -> torch.device:
    """The device of that name, as torch writes it ("cuda" is the current one). Raises BackendError for one that is not
    here, or on which nothing can be computed (meta)."""
    try:
        found = torch.ones((), device=device)
        found.item()
    except Exception as error:  # each kind of device has errors of its own
        why = str(error).partition(". ")[0].partition("\n")[0][:160]
        raise BackendError(
            f"latency: device: torch cannot compute on {quoted(device)} here ({why}); "
            "expected a device of this machine, such as cpu or cuda:0"
        ) from error
    return found.device


def cpu_alone(backend: str, device: str) -> None:
    """Raise BackendError for a device other than the processor, on which that backend runs whatever it is told."""
    if present(device).type != "cpu":
        raise BackendError(
            f"latency: device: got {quoted(device)}; the backend {backend} measures on the cpu alone: "
            "leave device out, or take the backend eager or compile"
        )


def describe(device: torch.device) -> dict[str, Any]:
    """What a table says of a device."""
    if device.type == "cpu":
        return cpu()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return {"processor": name, "architecture": f"cuda {torch.version.cuda}", "vectors": ""}
    return {"processor": device.type, "architecture": platform.machine(), "vectors": ""}
