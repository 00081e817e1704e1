"""The version of fxprune: part of what names a search, a table or a report.

The one place where it is written: the build reads it here, the newest heading of CHANGELOG.md and a release's tag
(v0.2.0) repeat it, and tests/docs/test_version.py compares them.
"""

__version__ = "0.2.0"
