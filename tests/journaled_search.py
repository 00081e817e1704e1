"""A short search with a journal, which tests kill, damage and resume; what is left of it must be the same network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from small_search import EXAMPLE, FAST, batches, history, make, negative_loss

from fxprune import FineTune, NetAdaptResult, netadapt

CONFIG = FAST.replace(netadapt_max_rounds=3, min_accuracy=-50.0)


def run(workdir: Path | None, **changes: Any) -> NetAdaptResult:
    given: dict[str, Any] = {
        "example_inputs": EXAMPLE, "train": FineTune(batches(), lr=0.05), "evaluate": negative_loss, "config": CONFIG,
        "progress": False,
    }  # fmt: skip
    return netadapt(
        changes.pop("model", None) or make(), changes.pop("budget", 0.5), workdir=workdir, **{**given, **changes}
    )


def assert_same(a: NetAdaptResult, b: NetAdaptResult) -> None:
    assert history(a) == history(b)
    tensors = dict(b.model.state_dict())
    assert all(torch.equal(value, tensors[name]) for name, value in a.model.state_dict().items())


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
