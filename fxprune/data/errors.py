"""The error that a data set is not where, or not what, it should be."""

from __future__ import annotations

from fxprune.errors import FxpruneError


class DataError(FxpruneError, ValueError):
    """A data set is missing, damaged, or too small to split; the text says where it was looked for and what to do."""
