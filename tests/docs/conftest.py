"""What the snippets of a page register (rules, criteria, exporters, ...) is not there for the next test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fxprune import registries
from passes.ops import table


@pytest.fixture(autouse=True)
def _registers_for_itself(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("CRITERIA", "STRATEGIES", "BACKENDS", "WORKERS", "EXPORTERS", "RESOURCES"):
        registry = getattr(registries, name)
        monkeypatch.setattr(registry, "_items", dict(registry._items))
    before = set(table._rules)
    yield
    added = set(table._rules) - before
    if added:
        table.unregister(*added)
