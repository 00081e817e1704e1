"""Tables of misuse: what each public function is given wrong, and how the error that it ends in is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

import fxprune
import passes
from fxprune import DLContext, export
from passes import PruneChannels, capture, cost, couple

Misuse = Callable[[SimpleNamespace], Any]


class Net(nn.Module):
    """Two groups, conv1 and conv2."""

    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, hidden, 3), nn.Conv2d(hidden, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv2(torch.relu(self.conv1(x)))))


def everything(folder: Path) -> SimpleNamespace:
    """What misuse starts from: all of it right."""
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    gm = capture(net, x)
    coupling = couple(gm, x)
    plan = coupling.plan({"conv1": range(4)})
    pruned = PruneChannels(plan)(gm).graph_module
    export(pruned, x, folder / "net.safetensors", plan=plan)
    (folder / "text.yml").write_text("budget_ratio: 0.5\n")
    batches = [(x, torch.randint(5, (2, 4, 4)))]
    return SimpleNamespace(
        net=net, x=x, gm=gm, coupling=coupling, plan=plan, pruned=pruned, folder=folder, batches=batches,
        other=couple(capture(Net(7), x), x), file=folder / "net.safetensors", costs=cost(coupling),
        context=DLContext(train_loader=batches),
    )  # fmt: skip


NO_MODULES = {"None": None, "text": "net", "tensor": torch.zeros(2), "class": Net, "dict": {}, "function": print}
NO_INPUTS = {
    "text": "x", "number": 3, "array": np.zeros((2, 3, 8, 8)), "empty": (), "empty dict": {}, "None inside": (None,),
    "channels": torch.zeros(2, 4, 8, 8), "dims": torch.zeros(8, 8), "integers": torch.zeros(2, 3, 8, 8).long(),
    "too many": (torch.zeros(2, 3, 8, 8), torch.zeros(2)), "name": {"y": torch.zeros(2, 3, 8, 8)},
    "meta": torch.zeros(2, 3, 8, 8, device="meta").long(), "too small": torch.zeros(2, 3, 2, 2), "set": {1, 2},
    "no rows": torch.zeros(0, 3, 8, 8)[:, :2],
}  # fmt: skip


class Unspoken:
    """Has no words for itself."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")

    __str__ = __repr__


class Incomparable:
    """Is neither equal to anything nor true or false."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("cannot be compared")

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")


class FailsLater:
    """Batches whose source fails after `count` of them."""

    def __init__(self, count: int, *item: torch.Tensor) -> None:
        self.count, self.item = count, item

    def __iter__(self) -> Iterator[object]:
        for _ in range(self.count):
            yield self.item[0] if len(self.item) == 1 else self.item
        raise OSError("the disk is gone")


# What no argument takes that is a number, a text, or True or False.
def numbers() -> Iterator[int]:
    """Stands for a generator that nobody has read yet: each call of a table gets one."""
    yield 1


ODD: dict[str, Any] = {
    "object": object(), "no words": Unspoken(), "incomparable": Incomparable(), "array": np.zeros((2, 2)),
    "set": {1, 2}, "complex": 1j, "meta": torch.zeros(2, device="meta"), "module": Net(),
    "generator": numbers,
}  # fmt: skip
# What no file or folder is called.
ODD_FILES: dict[str, Any] = {
    **ODD, "long": "n" * 5000, "zero byte": "a\0b", "no Unicode": "\ud800", "bytes": b"x", "number": 3,
}  # fmt: skip
ODD_BATCHES: dict[str, Any] = {
    "fails": FailsLater(0), "fails later": FailsLater(1, torch.zeros(2, 3, 8, 8)), "one number": np.array(3),
    "fails after a pair": FailsLater(1, torch.zeros(2, 3, 8, 8), torch.zeros(2).long()),
}  # fmt: skip
NO_PLANS: dict[str, Any] = {"None": None, "text": "{}", "dict": {"conv1": (0,)}, "number": 3, "coupling": ...}


class Table:
    """Misuses by name; a value `...` stands for what only a fixture can give."""

    def __init__(self) -> None:
        self.calls: dict[str, Misuse] = {}

    def one(self, where: str, **given: Misuse) -> None:
        for what, call in given.items():
            self._add(f"{where}: {what.replace('_', ' ')}", call)

    def each(self, where: str, wrong: dict[str, Any], call: Callable[[SimpleNamespace, Any], Any]) -> None:
        for what, value in wrong.items():
            self._add(f"{where}: {what}", lambda e, value=value: call(e, value() if value is numbers else value))

    def _add(self, name: str, call: Misuse) -> None:
        assert name not in self.calls, f"{name} stands twice"
        self.calls[name] = call


def fault(call: Misuse, e: SimpleNamespace) -> str | None:
    """What is wrong with the way in which a misuse ends; None for an error of the packages in words."""
    try:
        call(e)
    except (fxprune.FxpruneError, passes.PassError) as error:
        text = str(error)
        return None if 20 < len(text) < 2000 and "object at 0x" not in text else f"poor words: {text[:300]}"
    except Exception as error:
        return f"{type(error).__module__}.{type(error).__name__}: {str(error)[:200]}"
    return "accepted"
