"""The version of fxprune: part of what names a search, a table or a report."""

__version__ = "0.1.0"
