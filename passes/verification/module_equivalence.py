"""The proof for a module: the original with its removed units at zero beside the cut one, both run as they are.

Both run in double precision through their own `forward`: in evaluation and in train mode (with every random number
replaced by a constant), on the example, on values like it, on random ones and at other sizes (`passes.equality.draws`).
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from passes.analysis.coupling import Coupling
from passes.axes.expressions import Axis, Constant, Reason
from passes.documents.certificate import Certificate
from passes.documents.plan import Plan
from passes.equality.comparison import compare, distance
from passes.equality.constant_double import constant_double, nothing_random
from passes.equality.double import double
from passes.equality.draws import Draw, another_image, draws, extremes, smaller_example
from passes.equality.streamed import Copied, Streamed
from passes.equality.trees import map_tensors
from passes.errors import EquivalenceError, PassError
from passes.graph.module_copies import copy_module
from passes.masked.masked_stream import MaskedInference
from passes.masked.proof_weights import (
    Noise,
    dense_weights,
    device_of,
    equal_elements,
    finite_parameters,
    pruned_weights,
    random_instead,
)  # fmt: skip
from passes.ops import spelled
from passes.ops.facts import Facts
from passes.process.source_lines import innermost_line, said
from passes.stream.call_arguments import Arguments, bound
from passes.stream.inference import composite_attention
from passes.stream.module_run import ModuleRun, turning
from passes.stream.module_stream import ModuleInference
from passes.stream.results import called, plain_values_in, tensors_in
from passes.stream.stream_copies import scripted_modules
from passes.verification.evidence import Evidence, fails_in_own_types, mixed_groups
from passes.verification.repeats import Repeats, is_costly

log = logging.getLogger(__name__)

# How far apart rounding may bring two outputs: the norm of the difference over the norm.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-2, torch.float16: 0.2, torch.bfloat16: 0.5}
_WITH_NOISE = "noise in the place of equal weights"
NOT_TAKEN = ", which the dense module does not take"


def verify_module(
    module: nn.Module, pruned: nn.Module, coupling: Coupling, plan: Plan, example_inputs: object, tol: float,
    *, trained: bool, seed: int, runs: int,
) -> Certificate:  # fmt: skip
    """`verify` for a module, coupled as `coupling`, whose groups have the order that `plan` gives them."""
    for network, name in ((pruned, "pruned"), *(() if trained else ((module, "dense"),))):
        finite_parameters(network, name)
    arguments = bound(module, example_inputs)
    device = device_of(pruned)
    facts = coupling.module
    known = Repeats(module, pruned, arguments, seed, device) if is_costly(coupling) else None
    proof = _Proof(module, pruned, coupling, plan, trained, tol, known)
    less = None if known is None else known.smaller()
    start = less or Draw("the example", arguments)
    first: Draw | None = None
    pair, alike, with_noise = proof.pair(), equal_elements(module, pruned, seed), False
    for draw in draws(start.inputs, seed, runs, device, proof.seen.taken, start.label, known is not None, start.places):
        if known is not None and alike and draw.varies == "batch" and proof.agrees(draw, alike):
            with_noise = True
        else:  # programs keep what they made of a size that is small for them (a window's): not for the next draw
            keeps = known is None and draw.after < draw.before and not draw.of_batch
            proof.on(draw, proof.pair() if keeps else pair)
        first = first or draw
    if more := another_image(start.inputs, seed, device):
        proof.on(more, pair)
    for draw in extremes(start.inputs, device) if facts is not None and facts.real else ():
        proof.on(draw, pair)
    assert first is not None, "there is one draw at least"
    small, whole = smaller_example(start.inputs, seed, device, proof.seen.taken), first
    if less is not None:
        small, whole = small or first, next(draws(arguments, seed, runs, device))
    if known is None or not known.in_train_mode():
        proof.on_either(small if known is None else known.smaller(training=True), whole, training=True)
        of_batch = next((draw for draw in proof.seen.taken if draw.of_batch and draw.after > draw.before), None)
        if known is None and of_batch is not None:  # it may be made smaller as well
            whole_size = (draw for draw in draws(start.inputs, seed, runs, device) if draw.label == of_batch.label)
            proof.on_either(of_batch, next(whole_size, of_batch), training=True)
    if known is None or not known.with_gradients():
        proof.on_either(small, whole, gradients=True)
    if alike and not with_noise:
        proof.on_either(small, whole, alike, label=_WITH_NOISE)
    del pair
    for line in facts.turned if facts is not None else ():
        proof.on_either(small, whole, label=f"the example, with the other answer at {line}", turned=line)
    proof.in_own_precision(small or first)
    specialised = (*(facts.specialised if facts is not None else ()), *random_instead(module))
    same = () if known is None else tuple(known.said)
    return proof.seen.certificate(plan, coupling, tol, seed, trained, len(alike), specialised, same)


@dataclass
class _Pair:
    """Both networks in double precision, ready to run."""

    dense: ModuleRun
    pruned: nn.Module
    weights: Streamed  # of the pruned one

    @property
    def mode(self) -> MaskedInference:
        """The mode that the dense one runs under."""
        assert isinstance(self.dense.mode, MaskedInference), "it was made so"
        return self.dense.mode


@dataclass
class _Proof:
    """Runs both networks on one set of inputs after another."""

    module: nn.Module
    small: nn.Module
    coupling: Coupling
    plan: Plan
    trained: bool
    tol: float
    known: Repeats | None = None
    seen: Evidence = field(default_factory=Evidence)
    _shared: tuple[Streamed, ...] = ()

    def pair(self, noise: Noise | None = None) -> _Pair:
        """Copies of both: the dense one masked (or, after training, with the pruned weights embedded).

        Those without noise share their parameters with the pairs before.
        """
        if noise:
            return self._copies(*self._weights(noise))
        self._shared = self._shared or self._weights({})
        return self._copies(*self._shared)

    def _copies(self, dense: Streamed, cut: Streamed) -> _Pair:
        pruned = copy_module(self.small, cut)
        for part in scripted_modules(pruned).values():
            part.double()
        return _Pair(self.dense(dense), pruned, cut)

    def _weights(self, noise: Noise, copied: Copied = double) -> tuple[Streamed, Streamed]:
        """The tensors of the dense and of the pruned network, in double precision or in what `copied` makes."""
        masks = self.coupling.masks(self.plan)
        dense = dense_weights(self.coupling, self.plan, self.small, self.trained, noise)
        at_once = self.known is None or not self.known.runs_without_values
        cut = pruned_weights(self.coupling, masks, noise)
        return Streamed(dense, copied, at_once), Streamed(cut, copied, at_once)

    def dense(self, weights: Streamed) -> ModuleRun:
        """The dense module with these weights, ready to run with the removed units left out."""
        mode = MaskedInference(self.coupling, self.coupling.masks(self.plan), self.plan.removed_blocks)
        scripted = scripted_modules(self.small) if self.trained else {}  # whose weights were trained, and embedded
        return ModuleRun(self.module, mode, weights, self._axes_of, weights, scripted)

    def _axes_of(self, name: str, tensor: torch.Tensor) -> tuple[Axis, ...]:
        axes = self.coupling.axes_of(name, tensor)
        if axes is not None:
            return axes
        reason = Reason("the module keeps it of a call since it was coupled", name)
        return tuple(Constant(int(size), reason) for size in tensor.shape)

    def on_either(self, small: Draw | None, whole: Draw, noise: Noise | None = None, **how: Any) -> None:
        """Compare fresh copies of the two on the smaller example, else on the whole one."""
        self.seen.on_either(small, whole, lambda draw: self.on(draw, self.pair(noise), **how))

    def agrees(self, draw: Draw, noise: Noise) -> bool:
        """Whether the two are shown to be equal with noise; if not, it is left to runs that show why."""
        try:
            return self.on(draw, self.pair(noise), label=f"{draw.label}, {_WITH_NOISE}")
        except EquivalenceError as error:
            log.info("compared again without noise: %s", error)
            return False

    def on(
        self, draw: Draw, pair: _Pair, label: str = "", training: bool = False, gradients: bool = False,
        turned: str = "",
    ) -> bool:  # fmt: skip
        """Compare the two on one draw, and say whether that proves something; raises EquivalenceError.

        gradients: in the mode in which these are recorded. turned: the line at which a condition gets the other answer.
        """
        label = label or f"{draw.label}{', in train mode' * training}{', with gradients' * gradients}"
        pair.mode.space.forget()  # what inputs of another size tied says nothing of these
        try:
            with constant_double():
                expected = pair.dense.run(_cloned(draw.inputs), training, gradients=gradients, turned=turned)[2]
        except PassError:
            raise
        except Exception as error:  # what user code raises on inputs, or in a mode, that it does not take
            if draw.required and not training and not gradients and not turned:
                raise EquivalenceError(
                    f"the dense module does not run in double precision on {label}: {said(error)}; nothing can be "
                    "compared"
                ) from error
            self.seen.refused(draw, label, f"the dense module does not run so: {said(error)}", NOT_TAKEN)
            return False
        moved = self.seen.leading.moved(draw, tensors_in(expected))
        if moved:
            self.seen.refused(draw, label, moved, f", as {moved}")
            return False
        try:
            got = run_pruned(pair.pruned, draw.inputs, training, gradients, turned, pair.weights)
        except Exception as error:
            raise EquivalenceError(
                f"the pruned module fails on {label}, where the dense one runs: {said(error)}"
            ) from error
        self._same_numbers(expected, got, label)
        found = compare(tensors_in(expected), tensors_in(got))
        if not found.error <= self.tol:
            bound = pair.mode.bound_since(list(self.coupling.variables.values()))
            # elsewhere the masked network is right whatever is bound
            if draw.varies and bound and mixed_groups(self.coupling, self.plan):
                self.seen.refused(draw, label, "", ", where units hang together that are apart on the example")
                return False
            where = self._first_difference(pair, draw, training, gradients)
            raise EquivalenceError(
                f"{where}: outputs differ by {found.error:.3g} relative (tolerance {self.tol:g}, on {label}); "
                "the pruned module does not compute what the masked one does and must not be used"
            )
        return self.seen.agreed(draw, label, found, draw.required and not (training or gradients or turned))

    def _same_numbers(self, expected: object, got: object, label: str) -> None:
        """Numbers and texts in what both return are the same; raises EquivalenceError."""
        before, after = plain_values_in(expected), plain_values_in(got)
        differing = [pair for pair in zip(before, after, strict=False) if compare(*pair).error > self.tol]
        if differing or len(before) != len(after):
            pair = differing[0] if differing else (f"{len(before)} values", f"{len(after)} values")
            raise EquivalenceError(
                f"the pruned module returns {_shown(pair[1])}, the masked one {_shown(pair[0])}, on {label}: a plain "
                "value in the result is made of a size, or of tensors that pruning changes. Leave it out of the result"
            )

    def in_own_precision(self, draw: Draw) -> None:
        """Both run in their own types, where a program may branch on these, and agree but for rounding.

        Lets go of the weights in double precision first.
        """
        self._shared = ()
        kind = next((p.dtype for p in self.small.parameters() if p.is_floating_point()), torch.get_default_dtype())
        own = map_tensors(lambda t: t.to(kind) if t.is_floating_point() else t, draw.inputs)
        weights, cut = self._weights({}, _copy)
        dense, copied = self.dense(weights), copy_module(self.small, cut).eval()
        try:
            with nothing_random():
                expected = dense.run(own)[2]
        except Exception as error:  # what does not run so before it was pruned need not run so afterwards
            self.seen.notes.append(f"not run in {kind}: the dense module does not: {said(error)}")
            return
        try:
            with nothing_random(), torch.no_grad(), cut:  # attention by the path that a user's call takes
                got = called(copied, *_cloned(own))
        except Exception as error:
            self._runs_as_called_in_double(draw)
            raise fails_in_own_types("module", self.small, said(error)) from error
        gap = distance(tensors_in(expected), tensors_in(got))
        if gap <= _ROUNDING.get(kind, 1e-3):
            return
        with constant_double():
            exact = self.pair().dense.run(_cloned(draw.inputs))[2]
        if distance(tensors_in(exact), tensors_in(expected)) <= _ROUNDING.get(kind, 1e-3):
            raise EquivalenceError(
                f"the pruned module differs by {gap:.3g} (norm of the difference over that of the output) from the "
                f"masked one in {kind}, although not in double precision; it must not be used"
            )
        what = "in which the dense module computes something else than in double"
        self.seen.notes.append(f"not compared in {kind}, {what}")

    def _runs_as_called_in_double(self, draw: Draw) -> None:
        """Where the pruned one fails as it is called, with whatever kernels torch takes then, whether that is so in
        double precision too; raises EquivalenceError, as then no type is the reason."""
        pair = self.pair()
        try:
            with constant_double(), torch.no_grad(), pair.weights:
                called(pair.pruned.eval(), *_cloned(draw.inputs))
        except Exception as error:
            raise EquivalenceError(
                f"the pruned module fails where it is called in evaluation mode without gradients: {said(error)}; its "
                "program does something else there than where it is analysed, as attention does on its fast path"
            ) from error

    def _first_difference(self, pair: _Pair, draw: Draw, training: bool, gradients: bool) -> str:
        """The first call whose surviving positions differ, in the words of an error message."""
        pair = self.pair()
        pair.mode.results = []
        follow = Results()
        again = ModuleRun(self.small, follow, lambda _, t: _parameter(t, double(t)), lambda _, t: ())
        try:
            with constant_double():
                pair.dense.run(_cloned(draw.inputs), training, gradients=gradients)
                again.run(_cloned(draw.inputs), training, gradients=gradients)
        except Exception as error:
            return f"the two do not call the same operators ({innermost_line(error)})"
        for (func, label, expected), (other, source, got) in zip(pair.mode.results, follow.results, strict=False):
            if func is not other or not compare(expected, got).error <= self.tol:
                return f"{label} ({spelled(func)}, {source}) is the first call that differs"
        return "no single call differs by itself"


class Results(ModuleInference):
    """Keeps what each call gives, and the line of the program that made it; infers no axes."""

    def __init__(self) -> None:
        super().__init__(real=True)
        self.results: list[tuple[object, str, list[torch.Tensor]]] = []

    def _record(self, facts: Facts, args, kwargs, operands, before, outputs, template) -> None:
        self.results.append((facts.func, self.source(), [tensor.detach().clone() for tensor in outputs]))


def _shown(value: object) -> str:
    return f"an array {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)[:80]


def run_pruned(
    module: nn.Module, arguments: Arguments, training: bool, gradients: bool = False, turned: str = "",
    weights: AbstractContextManager[Any] | None = None,
) -> object:  # fmt: skip
    """What a module in double precision gives: `ModuleRun.run`. weights: the mode that fills its parameters."""
    module.train(training)
    for part in scripted_modules(module).values():
        part.eval()  # as in the dense one
    args, kwargs = _cloned(arguments)
    with ExitStack() as stack:
        stack.enter_context(constant_double())
        stack.enter_context(torch.set_grad_enabled(gradients))
        stack.enter_context(composite_attention())
        stack.enter_context(turning(turned))
        stack.enter_context(weights or nullcontext())
        return called(module, args, kwargs)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def _cloned(arguments: object) -> Any:
    return map_tensors(_copy, arguments)


def _parameter(tensor: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data
