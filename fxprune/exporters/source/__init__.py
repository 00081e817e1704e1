"""`.py`: a network as a module of Python source that needs torch alone, with its weights in a safetensors file."""

from __future__ import annotations

from fxprune.exporters.source.writer import Source, network_source, write

__all__ = ["Source", "network_source", "write"]
