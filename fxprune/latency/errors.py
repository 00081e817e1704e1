"""What the latency part raises; each text names the file or backend, what was found and what to do."""

from __future__ import annotations

from fxprune.errors import FxpruneError


class LatencyError(FxpruneError, RuntimeError):
    """Latency cannot be measured or predicted as asked."""


class BackendError(LatencyError):
    """A backend is unknown, not installed, or cannot run the network."""


class TableError(LatencyError, ValueError):
    """A table cannot be used; the subclasses say why."""


class CorruptedTable(TableError):
    """The file is no table, or its content is not what its checksum says."""


class TableVersionError(TableError):
    """The file has another format version, or was measured with another version of the backend."""


class ForeignTable(TableError):
    """The table was measured on another device, with another backend or number of threads."""


class UncoveredTable(TableError):
    """The table lacks units of the network, and nothing may be measured here."""
