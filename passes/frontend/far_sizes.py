"""Whether a graph makes the calls of its module at sizes far from the example's too, found without values."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from passes.ops.views import COPIES, VIEWS
from passes.process.torch_private import OpOverload
from passes.stream.call_arguments import Arguments, bound
from passes.stream.module_run import analysing_run
from passes.stream.module_stream import Watching
from passes.stream.other_sizes import other_sizes


def differs_at_far_sizes(module: nn.Module, gm: fx.GraphModule, arguments: Mapping[str, object]) -> bool:
    """Whether `module` and its graph, whose calls are alike on the example, differ at the farthest sizes that it takes.

    arguments: of forward, by name; meta tensors of other sizes take their place.
    """
    given = [bound(network, dict(arguments)) for network in (module, gm)]
    if _calls(module, given[0]) != _calls(gm, given[1]):
        return False  # a front end may make one call of several
    for of_module, of_graph in zip(*map(other_sizes, given), strict=True):
        expected = _calls(module, of_module)
        if expected is not None:
            return _calls(gm, of_graph) != expected
    return False


class _Calls(Watching):
    """Keeps which operators are called."""

    def __init__(self) -> None:
        super().__init__(real=False)
        self.calls: list[OpOverload] = []

    def watch(self, func, args, kwargs, operands, outputs) -> None:
        if func not in COPIES and func not in VIEWS:
            self.calls.append(func)


def _calls(network: nn.Module, arguments: Arguments) -> list[OpOverload] | None:
    """The operators that a network calls on these arguments; None where it does not take them."""
    mode = _Calls()
    try:
        analysing_run(network, real=False).again(mode, arguments, network.training)
    except Exception:  # a size that the network does not take, or values that it asks for
        return None
    return mode.calls
