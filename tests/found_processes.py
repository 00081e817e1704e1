"""Processes that belong to a test, found by what stands in their environment."""

from __future__ import annotations

from pathlib import Path

from fxprune.workers import process_guard


def group_of(token: str) -> dict[int, str]:
    """The processes whose environment holds the token, and what they are."""
    found = {}
    for pid in process_guard.processes():
        try:
            if token.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:100]
        except OSError:
            continue
    return found
