"""Run a network and its written form side by side at two batch sizes.

What fails while other sizes are tried is reported, or is the answer: torch prints nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from fxprune.errors import ExportError
from fxprune.exporters.inputs import Inputs, call
from fxprune.exporters.outcome import Difference, difference, where_different
from passes.process.state import random_state, seed_all
from passes.process.torch_patches import quiet_graphs
from passes.stream.conditions import SizeConditions, Turned
from passes.stream.watched_sizes import Sizes

_SEEDS = 16  # runs of a network that draws: a choice at even odds falls one way in all of them once in 65,536
_UNSTEADY = (
    "the network gives another output each time it runs in eval mode, so nothing can be compared with it: it draws "
    "random numbers or counts its calls; take that out of forward, or let it depend on self.training. Was it traced in "
    "train mode with a literal training=True? passes.capture keeps the mode live"
)


def other_size(size: int) -> int:
    """A second batch size; never 1, and never the 2 at which a batch of 1 is exported."""
    return size + 1 if size > 1 else 3


@quiet_graphs()
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
    return _fails_at(module, inputs, other_size(size))


@quiet_graphs()
def _fails_at(module: nn.Module, inputs: Inputs, size: int) -> str | None:
    """How the network fails at this batch size; None where it runs."""
    try:
        call(module, inputs.resized(size))
    except Exception as error:  # a forward may raise anything at a size that it was not made for
        return f"the network fails at batch size {size}: {first_line(error)}"
    return None


def agreement(
    module: nn.Module, run: Callable[[Inputs], object], inputs: Inputs, sizes: tuple[int, ...], tolerance: float
) -> Difference:
    """The difference between `module` and `run`, the written form, at each batch size.

    Raises ExportError above the tolerance, and where the output of the module depends on random numbers.
    """
    worst = Difference()
    for size in sizes or (inputs.batch_size,):
        given = inputs if size == inputs.batch_size else inputs.resized(int(size or 0))
        before = random_state()
        expected = call(module, given)
        if random_state() != before:
            _check_draws(module, given, expected, tolerance)
        got = run(given)
        found = difference(expected, got)
        if not found.scaled <= tolerance:
            if difference(expected, call(module, given)).absolute > 0:
                raise ExportError(_UNSTEADY)
            raise ExportError(
                f"the written network differs from the original by {found.absolute:.3g} (relative "
                f"{found.relative:.3g}) at batch size {size}, and nothing was written: "
                f"{where_different(expected, got, tolerance)}; tolerance={tolerance:.3g} may be set higher where that "
                "is meant"
            )
        worst = worst.worse(found)
    return worst


def _check_draws(module: nn.Module, inputs: Inputs, expected: object, tolerance: float) -> None:
    """ExportError where another seed gives another output; a few runs may be alike where numbers make a choice."""
    for seed in range(_SEEDS):
        seed_all(seed)
        if not _alike(expected, call(module, inputs), tolerance):
            raise ExportError(_UNSTEADY)


@quiet_graphs()
def unfollowed_batch(
    module: nn.Module, run: Callable[[Inputs], object], inputs: Inputs, tolerance: float
) -> str | None:
    """Why `run`, which is written of one run of the module, holds at the batch size of its example inputs alone; None
    where it holds at others too.

    Beside a second size these are the conditions of the program into which the batch enters, answered the other way;
    and where there are any, the batch of 1, which programs treat apart.
    """
    assert inputs.batch_size is not None, "asked only where there is a batch"
    others = [other_size(inputs.batch_size)]
    here, there = (_asked(module, given) for given in (inputs, inputs.resized(others[0])))
    conditions = [name for name, sizes in here.items() if there.get(name, sizes) != sizes]
    expected = call(module, inputs)
    for name in conditions:
        try:
            with Turned(name):
                turned = call(module, inputs)
        except Exception:  # the other answer is that the network does not take such a batch
            continue
        if not _alike(expected, turned, tolerance):
            return f"the condition at {name} asks for the batch size, and is followed as on the example"
    if conditions and _fails_at(module, inputs, 1) is None:
        others.append(1)
    for size in others:
        try:
            agreement(module, run, inputs, (size,), tolerance)
        except Exception as error:  # the written form may raise anything at a size that it was not made for
            return f"what was written holds for the batch of the example: {first_line(error)}"
    return None


def _asked(module: nn.Module, inputs: Inputs) -> Mapping[str, Sizes]:
    """The conditions on sizes that the program asks, and the sizes that enter them."""
    with SizeConditions() as conditions:
        try:
            call(module, inputs)
        except Exception:  # integers of another class, which it does not take
            return {}
    return conditions.asked


def _alike(expected: object, got: object, tolerance: float) -> bool:
    try:
        return difference(expected, got).scaled <= tolerance
    except ExportError:  # other shapes
        return False


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
