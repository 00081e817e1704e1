"""Whether a graph makes the calls of its module at sizes far from the example's too, found without values."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import fx, nn

from passes.ops.facts import COPIES, VIEWS
from passes.process.torch_private import OpOverload
from passes.stream.call_arguments import Arguments, bound
from passes.stream.module_run import ModuleRun, analysing_run
from passes.stream.module_stream import Watching
from passes.stream.other_sizes import other_sizes


def differs_at_far_sizes(module: nn.Module, gm: fx.GraphModule, arguments: Mapping[str, object]) -> bool:
    """Whether `module` and its graph, whose calls are alike on the example, differ at the farthest sizes that it takes.

    arguments: of forward, by name; meta tensors of other sizes take their place.
    """
    networks = (module, gm)
    given = [bound(network, dict(arguments)) for network in networks]
    try:
        runs = [analysing_run(network, real=False) for network in networks]
    except Exception:  # a module that cannot be copied, or whose code cannot be read
        return False
    of_module, of_graph = (partial(_calls, run, n.training) for run, n in zip(runs, networks, strict=True))
    try:
        if of_module(given[0]) != of_graph(given[1]):
            return False  # a front end may make one call of several
        for here, there in zip(*map(other_sizes, given), strict=True):
            expected = of_module(here)
            if expected is not None:
                return of_graph(there) != expected
        return False
    finally:
        for run in runs:
            run.release()


class _Calls(Watching):
    """Keeps which operators are called."""

    def __init__(self) -> None:
        super().__init__(real=False)
        self.calls: list[OpOverload] = []

    def watch(self, func, args, kwargs, operands, outputs) -> None:
        if func not in COPIES and func not in VIEWS:
            self.calls.append(func)


def _calls(run: ModuleRun, training: bool, arguments: Arguments) -> list[OpOverload] | None:
    """The operators that a network calls on these arguments; None where it does not take them."""
    mode = _Calls()
    try:
        run.again(mode, arguments, training)
    except Exception:  # a size that the network does not take, or values that it asks for
        return None
    return mode.calls
