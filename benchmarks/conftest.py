"""One thread for pytest-benchmark cases, and a torchvision that can be imported."""

from __future__ import annotations

from benchmarks import machine

machine.one_thread()
