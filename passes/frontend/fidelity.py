"""Whether a captured graph computes what its module computes: both run on the example, before anything is made of it.

A hook, a region of another precision or a number that Python took from a parameter may be lost while a module is
traced, and every later proof starts from the graph. So the two are compared, as they are (mode, precision), on copies
whose parameters are changed a little: a number that was taken from them does not follow. A second run, with gradients
and from another seed, shows what the graph was specialised to: the grad mode, state that forward keeps, numbers that
Python draws. Large networks are compared when the first pass makes something of the graph.
"""

from __future__ import annotations

import copy
import inspect
import logging
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from passes.equality.comparison import compare
from passes.equality.constant_double import NothingRandom
from passes.equality.draws import draws
from passes.equality.padded_positions import check_padding
from passes.equality.trees import map_tensors, tensors_of
from passes.errors import CaptureError, SpecialisedWarning
from passes.frontend.far_sizes import differs_at_far_sizes
from passes.frontend.random_draws import FIXED, OF_PYTHON, OF_TORCH
from passes.graph.annotations import facts_of, note
from passes.graph.left_behind import counted_between, counts, left_behind, plain_state, set_state
from passes.graph.module_copies import copy_module, copy_with, owned_tensors
from passes.process.state import seed_all, state_kept
from passes.process.torch_private import FakeTensor, hooks_of
from passes.stream.call_arguments import CHANGED
from passes.stream.conditions import SizeConditions, Turned
from passes.stream.inference import composite_attention
from passes.stream.results import called
from passes.stream.watched_sizes import Sizes

log = logging.getLogger(__name__)
_Network = Callable[[Mapping[str, Any]], Any]
_AT_ONCE = 1 << 20  # elements of parameters and inputs up to which the two are compared at once
_MOST = 1 << 28  # elements of parameters beyond which these are shared with the copies, and stay as they are
_DRAWS = 64  # runs with other random numbers, where such are drawn and graph and module differ
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Pending:
    """A comparison that is still to be made. Copies of the graph share it."""

    model: nn.Module
    arguments: Mapping[str, Any]
    gradients: bool

    def __deepcopy__(self, memo: dict[int, object]) -> Pending:
        return self


def compare_with_module(gm: fx.GraphModule, model: nn.Module, arguments: Mapping[str, object] | None) -> None:
    """Compare `gm`, captured from `model`, with it on these arguments of forward: at once, or later if it is large.

    What the graph is specialised to is noted in it, and warned of. Raises CaptureError where the two differ.
    """
    if arguments is None:
        return
    size = 0
    for tensor in [*(tensor for _, tensor in owned_tensors(model)), *tensors_of(arguments)]:
        if tensor.is_meta or (type(tensor) is not nn.Parameter and isinstance(tensor, FakeTensor)):
            return
        size += tensor.numel()
    note(gm, pending=Pending(model, arguments, torch.is_grad_enabled()))
    if size <= _AT_ONCE:
        settle(gm)


def settle(gm: fx.GraphModule) -> None:
    """Make the comparison of `gm` that is still pending, if there is one."""
    pending = facts_of(gm).pending
    if pending is None:
        return
    found = _Comparison(gm, pending).sentences()
    known = facts_of(gm).specialised
    drawn = FIXED if FIXED.intersection(known) else ()  # said once, as it was seen while it was traced
    new = tuple(sentence for sentence in found if sentence not in known and sentence not in drawn)
    note(gm, pending=None, specialised=(*known, *new))
    for sentence in new:
        warnings.warn(f"{type(pending.model).__name__}: {sentence}", SpecialisedWarning, stacklevel=4)


class _Comparison:
    """Runs copies of the module and of its graph, which share nothing with the user's but large weights."""

    def __init__(self, gm: fx.GraphModule, pending: Pending) -> None:
        self.gm, self.model, self.arguments = gm, pending.model, pending.arguments
        self.gradients = pending.gradients
        self._weights = _changed(self.model)
        kinds = [t.dtype for _, t in owned_tensors(self.model)] + [t.dtype for t in tensors_of(self.arguments)]
        self.tolerance = max((_TOLERANCE[kind] for kind in kinds if kind in _TOLERANCE), default=1e-6)

    def sentences(self) -> tuple[str, ...]:
        """What the graph is specialised to; raises CaptureError where it computes something else."""
        named = inspect.BoundArguments(inspect.signature(self.model.forward), OrderedDict(self.arguments))
        check_padding(self.model, (named.args, named.kwargs), CaptureError)
        said = (*_of_arguments(self.arguments), *left_behind(owned_tensors(self.model)))
        try:
            module = self._module()
            before = plain_state(module.module)
            expected = self._run(module)
            said += self._of_defaults(expected)
            said += self._of_later_calls(expected, counted_between(before, plain_state(module.module)))
        except Exception as error:  # user code on a copy of itself: then nothing can be said
            return (*said, f"the graph could not be compared with the module, which does not run: {_line(error)}")
        try:
            got = self._run(self._graph())
        except Exception as error:
            raise CaptureError(
                f"{type(self.model).__name__}: the captured graph fails on the example, where the module runs: "
                f"{_line(error)}"
            ) from error
        if not self._agree(expected, got):
            reason = self._unsteady()
            if reason is None:
                raise self._lost(expected, got)
            return (*said, reason)
        said += self._of_sizes(expected)
        try:
            if self._agree(expected, self._run(module, _OTHERWISE)):
                return said
        except Exception as error:
            return (*said, f"in another grad mode the module does not run: {_line(error)}")
        return (*said, *self._why_otherwise())

    def _of_defaults(self, expected: object) -> tuple[str, ...]:
        """Flags and numbers that were left at their defaults, and on which the module depends."""
        found = []
        for name, parameter in inspect.signature(self.model.forward).parameters.items():
            value = parameter.default
            if name in self.arguments or type(value) not in CHANGED:
                continue
            other = {**self.arguments, name: CHANGED[type(value)](value)}
            try:
                same = self._agree(expected, self._run(self._module(), arguments=other))
            except Exception:  # a value that forward does not take: it reads the argument
                same = False
            if not same:
                found.append(f"its argument {name} is {value!r}, its default")
        return tuple(found)

    def _of_later_calls(self, expected: object, counted: Mapping[str, Any]) -> tuple[str, ...]:
        """Attributes that forward changes, and on which its result depends."""
        found = []
        for name, value in counted.items():
            module = self._module()
            set_state(module.module, {name: value})
            try:
                same = self._agree(expected, self._run(module))
            except Exception:  # a value that forward does not take: it reads the attribute
                same = False
            if not same:
                found.append(counts(name))
        return tuple(found)

    def _of_sizes(self, expected: Any) -> tuple[str, ...]:
        """Sizes at which the module takes another branch than the one that the graph holds."""
        if not any(line.startswith("shape") for line in self.gm.meta.get("frontend", {}).get("specialised", ())):
            return ()
        asked, moved = self._asked(self.arguments), dict[str, None]()
        for draw in draws(dict(self.arguments)):
            if draw.varies:
                own = zip(tensors_of(draw.inputs), tensors_of(self.arguments), strict=True)
                cast = {id(drawn): drawn.to(example.dtype) for drawn, example in own}
                other = map_tensors(partial(lambda cast, tensor: cast[id(tensor)], cast), draw.inputs)
                try:
                    there = self._run(self._module(), arguments=other)
                except Exception:  # a size that the module does not take
                    continue
                try:
                    same = self._agree(there, self._run(self._graph(), arguments=other))
                except Exception:  # a size that the graph does not take
                    same = False
                if not same:
                    return (f"it is a graph for the sizes of the example: not for a {draw.label}",)
                if asked:
                    moved |= {n: None for n, one in self._asked(other).items() if asked.get(n, one) != one}
        found = [f"the condition at {name} is followed as on the example" for name in self._decide(moved, expected)]
        if not found and differs_at_far_sizes(self.model, self.gm, self.arguments):
            found.append("it is a graph for the sizes of the example: at others the module calls other operators")
        return tuple(found)

    def _asked(self, arguments: Mapping[str, Any]) -> Mapping[str, Sizes]:
        """The conditions on sizes that the module asks on these arguments, and the sizes that enter them."""
        with SizeConditions() as conditions:
            try:
                self._run(self._module(), arguments=arguments)
            except Exception:  # integers of another class, which it does not take
                return {}
        return conditions.asked

    def _decide(self, conditions: Iterable[str], expected: Any) -> Iterator[str]:
        """Those of the conditions with whose other answer the module gives something else."""
        for name in conditions:
            try:
                with Turned(name):
                    other = self._run(self._module())
            except Exception:  # the other answer is that the module does not take the input
                continue
            if not self._agree(expected, other):
                yield name

    def _why_otherwise(self) -> list[str]:
        """What a second run of the module depends on that the graph does not follow."""
        found = []
        module, graph = self._module(), self._graph()
        if self._differ((module, module), (graph, graph)):
            found.append("what forward counts or keeps between calls is fixed in the graph, as it was when captured")
        for how, text in _DEPENDENCES:
            if self._differ((self._module(),), (self._graph(),), how):
                found.append(text)
        return found

    def _differ(self, modules: Sequence[_Network], graphs: Sequence[_Network], how: _Run | None = None) -> bool:
        """Whether the last of some runs of the module gives something else than that of its graph."""
        try:
            expected, got = ([self._run(one, how) for one in some][-1] for some in (modules, graphs))
        except Exception as error:  # the module, or the graph, does not run so
            log.debug("compared with %s", how, exc_info=error)
            return False
        return not self._agree(expected, got)

    def _unsteady(self) -> str | None:
        """Why runs of fresh copies of the module differ from each other, if they do, and those of the graph do not."""
        for first, second, text in _UNSTEADY:
            module, graph = (
                [self._run(make(), how) for how in (first, second)] for make in (self._module, self._graph)
            )
            if not self._agree(*module) and self._agree(*graph):
                return text
        drawn = [text for text in facts_of(self.gm).specialised if text in FIXED]
        return drawn[0] if drawn and self._draws_decide() else None

    def _draws_decide(self) -> bool:
        """Whether some numbers that forward draws have the module give something else than others."""
        first = self._run(self._module(), _Run(random=True))
        others = (self._run(self._module(), _Run(seed=seed, random=True)) for seed in range(1, _DRAWS))
        return any(not self._agree(first, other) for other in others)

    def _lost(self, expected: object, got: object) -> CaptureError:
        found = compare(expected, got)
        names = [
            f"{name or 'the module itself'}" for name, part in self.model.named_modules()
            if hooks_of(part)
        ]  # fmt: skip
        hooks = f" It has hooks on {', '.join(names[:3])}, which a trace may lose: remove them." if names else ""
        return CaptureError(
            f"{type(self.model).__name__}: the captured graph does not compute what the module computes on the example "
            f"(outputs differ by {found.error:.3g} relative, with parameters changed by a twentieth).{hooks} Something "
            "in forward is not in the graph: a hook, a region of another precision, a number or tensor that Python "
            "takes from parameters or keeps from an earlier call; take it out of forward, or use the module itself"
        )

    def _agree(self, expected: object, got: object) -> bool:
        return compare(expected, got).error <= self.tolerance

    def _module(self) -> _Named:
        copied = copy_module(self.model, lambda name, tensor: self._tensor(tensor))
        return _Named(copied, inspect.signature(self.model.forward))

    def _graph(self) -> _Network:
        root = copy_with(self.gm, lambda name, tensor: self._tensor(tensor))
        return lambda named: _Nodes(root, self.gm.graph, named).run(enable_io_processing=False)

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        made = self._weights.get(id(tensor))
        return tensor.detach().clone() if made is None else made

    def _run(
        self, function: _Network, how: _Run | None = None, arguments: Mapping[str, object] | None = None
    ) -> object:  # fmt: skip
        """What `function` returns for copies of the arguments."""
        how = how or _Run()
        gradients = self.gradients != how.other_gradients
        inputs = map_tensors(lambda tensor: tensor.detach().clone(), dict(arguments or self.arguments))
        for tensor in tensors_of(inputs) if how.inputs_recorded else ():
            tensor.requires_grad_(tensor.is_floating_point() or tensor.is_complex())
        with (
            _frozen(self._weights.values() if how.weights_frozen else ()),
            state_kept(), composite_attention(), sdpa_kernel(SDPBackend.MATH), _clock(how.later),
            nullcontext() if how.random else NothingRandom(), torch.set_grad_enabled(gradients),
        ):  # fmt: skip
            seed_all(how.seed)
            if gradients:  # what forward may write into is no leaf
                inputs = map_tensors(lambda t: t * 1 if t.requires_grad else t, inputs)
            return called(function, (inputs,), {})


@dataclass(frozen=True)
class _Named:
    """A module, called on arguments by name."""

    module: nn.Module
    signature: Any

    def __call__(self, named: Mapping[str, object]) -> object:
        given = inspect.BoundArguments(self.signature, OrderedDict(named))
        return self.module(*given.args, **given.kwargs)


@dataclass(frozen=True)
class _Run:
    """How a run differs from the first: its seed, whether torch draws, the time, and what gradients are recorded."""

    seed: int = 0
    random: bool = False
    later: bool = False
    other_gradients: bool = False
    inputs_recorded: bool = False
    weights_frozen: bool = False


_OTHERWISE = _Run(1, False, True, True, True, True)
_TIME = "the time at which forward runs is fixed in the graph"
_UNSTEADY = (
    (_Run(), _Run(later=True), _TIME),
    (_Run(), _Run(seed=1), OF_PYTHON),
    (_Run(random=True), _Run(seed=1, random=True), OF_TORCH),
)
_DEPENDENCES = (
    (_Run(later=True), _TIME),
    (_Run(seed=1), OF_PYTHON),
    (_Run(other_gradients=True), "it computes what it does in the grad mode that it was captured in"),
    (_Run(inputs_recorded=True), "it computes what it does on inputs that need no gradient"),
    (_Run(weights_frozen=True), "it computes what it does while its parameters are trained"),
)


@contextmanager
def _frozen(weights: Iterable[torch.Tensor]) -> Iterator[None]:
    """Inside, these parameters of copies need no gradient."""
    recorded = [weight for weight in weights if weight.requires_grad]
    for weight in recorded:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in recorded:
            weight.requires_grad_()


@contextmanager
def _clock(later: bool) -> Iterator[None]:
    """Inside, where asked for, the clocks of Python run thirty years ahead, which single precision sees."""
    originals = {name: getattr(time, name) for name in ("time", "monotonic", "perf_counter")} if later else {}
    try:
        for name, original in originals.items():
            setattr(time, name, lambda original=original: original() + 1e9)
        yield
    finally:
        for name, original in originals.items():
            setattr(time, name, original)


def _of_arguments(arguments: Mapping[str, object]) -> tuple[str, ...]:
    """Flags and other plain values that forward was given: the graph need not follow others."""
    return tuple(
        f"its argument {name} is {value!r}, as in the example"
        for name, value in arguments.items()
        if isinstance(value, (bool, str, int, float))
    )


class _Nodes(fx.Interpreter):
    """Runs a graph, node by node, on arguments by name."""

    def __init__(self, root: nn.Module, graph: fx.Graph, named: Mapping[str, object]) -> None:
        super().__init__(root, graph=graph)
        self.extra_traceback = False
        self._named = named

    def placeholder(self, target: Any, args: Any, kwargs: object) -> object:
        name = target.lstrip("*")
        if name in self._named:
            return self._named[name]
        return args[0] if args else {0: None, 1: (), 2: {}}[len(target) - len(name)]


def _changed(model: nn.Module) -> dict[int, torch.Tensor]:
    """Parameters changed by about a twentieth, by the identity of the originals."""
    generator = torch.Generator().manual_seed(0)
    parameters = dict.fromkeys(model.parameters())
    if sum(p.numel() for p in parameters) > _MOST:
        return {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in parameters}
    made: dict[int, torch.Tensor] = {}
    for parameter in parameters:
        if type(parameter) is not nn.Parameter:  # of a class of its own, which knows what its values may be
            made[id(parameter)] = copy.deepcopy(parameter)
            continue
        data = parameter.detach().clone()
        if (data.is_floating_point() or data.is_complex()) and data.itemsize >= 2:
            noise = torch.rand(data.shape, generator=generator, dtype=torch.float32).to(data.device, data.dtype)
            data = data * (1.02 + 0.06 * noise) if bool(data.any()) else 0.01 * noise
        made[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
        made[id(parameter)].__dict__.update(parameter.__dict__)
    return made


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
