"""Run a network and its written form side by side at two batch sizes."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fxprune.errors import ExportError
from fxprune.exporters.inputs import Inputs, call
from fxprune.exporters.outcome import Difference, difference, where_different


def other_size(size: int) -> int:
    """A second batch size; never 1, and never the 2 at which a batch of 1 is exported."""
    return size + 1 if size > 1 else 3


def check_runs(module: nn.Module, inputs: Inputs) -> None:
    """ExportError unless the network runs on its example inputs."""
    try:
        call(module, inputs)
    except Exception as error:  # a forward may raise anything
        raise ExportError(f"the network fails on its example inputs: {first_line(error)}") from error


def fixed_batch_reason(module: nn.Module, inputs: Inputs) -> str | None:
    """Why the network itself runs at no other batch size than that of its example inputs; None where it does."""
    size = inputs.batch_size
    if size is None:
        return f"no input tensor has a dimension {inputs.batch_dim}"
    try:
        call(module, inputs.resized(other_size(size)))
    except Exception as error:  # a forward may raise anything at a size that it was not made for
        return f"the network fails at batch size {other_size(size)}: {first_line(error)}"
    return None


def agreement(
    module: nn.Module, run: Callable[[Inputs], object], inputs: Inputs, sizes: tuple[int, ...], tolerance: float
) -> Difference:
    """The difference between `module` and `run`, the written form, at each batch size; ExportError above tolerance."""
    worst = Difference()
    for size in sizes or (inputs.batch_size,):
        given = inputs if size == inputs.batch_size else inputs.resized(int(size or 0))
        expected = call(module, given)
        got = run(given)
        found = difference(expected, got)
        if not found.scaled <= tolerance:
            if difference(expected, call(module, given)).absolute > 0:
                raise ExportError(
                    "the network gives another output each time it runs in eval mode, so nothing can be compared with "
                    "it; was it traced in train mode with a literal training=True? passes.capture keeps the mode live"
                )
            raise ExportError(
                f"the written network differs from the original by {found.absolute:.3g} (relative "
                f"{found.relative:.3g}) at batch size {size}, and nothing was written: "
                f"{where_different(expected, got, tolerance)}; tolerance={tolerance:.3g} may be set higher where that "
                "is meant"
            )
        worst = worst.worse(found)
    return worst


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
