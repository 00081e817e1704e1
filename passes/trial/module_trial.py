"""One run of a module with cut tensors beside what its axes promise: how far it gets with a set of changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from passes.analysis.coupling import Coupling
from passes.analysis.module_facts import Edit, Literal
from passes.analysis.tape import once_each, resolve_axes
from passes.axes.expressions import Axis, leaves
from passes.equality.constant_double import constant_double
from passes.equality.double import double
from passes.equality.draws import draws
from passes.errors import PassError
from passes.graph.module_copies import like, modules_of
from passes.masked.masked_stream import MaskedInference
from passes.ops import Record
from passes.ops import constant_indices as numbers
from passes.ops.meta_shapes import empty_on_meta
from passes.process.source_lines import innermost_line, is_of_package, said
from passes.stream.call_arguments import Arguments, replaced, tensors_of
from passes.stream.call_log import LastCall, LoggedCall, Logging, WithoutDropout
from passes.stream.conditions import SizeConditions
from passes.stream.module_run import ModuleRun
from passes.stream.module_stream import Watching
from passes.stream.other_sizes import other_sizes
from passes.stream.restated_calls import Position
from passes.transform.module_sizes import fit
from passes.transform.size_attributes import edits_of_unread
from passes.transform.slicing import Slicing
from passes.trial.following import Differs, Failure, Following, Promised
from passes.trial.following_at_sizes import AtOtherSizes
from passes.trial.stated_sizes import state_sources


@dataclass(frozen=True)
class Changes:
    """What is changed in a cut module so that it follows: integers in its attributes, arguments of its calls."""

    edits: tuple[Edit, ...] = ()
    literals: tuple[Literal, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.edits or self.literals)

    def resolved(self, resolve: Callable[[Axis], Axis]) -> Changes:
        """These changes with their axes as they stand now; those of frozen ones are left out.

        So are numbers that are kept as they were: whether the sizes that they are made of still move is found anew.
        """
        edits = [replace(edit, axes=tuple(map(resolve, edit.axes))) for edit in self.edits]
        literals = [replace(item, axes=tuple(map(resolve, item.axes))) for item in self.literals]

        def moves(axes: tuple[Axis, ...]) -> bool:
            return any(map(leaves, axes))

        return Changes(tuple(e for e in edits if moves(e.axes)), tuple(i for i in literals if moves(i.axes)))

    def __add__(self, other: Changes) -> Changes:
        """Both; what the second says of the same attribute or argument holds."""
        edits = {(edit.path, edit.attribute): edit for edit in self.edits + other.edits}
        literals = {(item.path, item.site, item.position): item for item in self.literals + other.literals}
        return Changes(tuple(edits.values()), tuple(literals.values()))


@dataclass
class Trial:
    """One module, its coupling, and what each group is reduced to; `run` says how far a set of changes gets.

    copy: of the module, to be run. tape: the calls of the dense module, which those of the cut one are compared with.
    turned: the line at which a condition gets the other answer. later: as the second of two calls. logs: by mode and
    such line, the calls at other sizes of the inputs, which all trials of a module share. moved: whether in a run so
    far constants that the program makes of sizes moved with these, which at other widths may be right or not.
    """

    module: nn.Module
    copy: ModuleRun
    coupling: Coupling
    arguments: Arguments
    slicing: Slicing
    tape: Sequence[Record]
    training: bool = False
    turned: str = ""
    later: bool = False
    logs: dict[tuple[bool, str], list[LoggedCall]] = field(default_factory=dict)
    moved: bool = field(default=False, init=False)
    real: ClassVar[bool] = False
    _known: dict[Changes, Failure | None] = field(default_factory=dict)
    _unread: dict[Changes, Changes] = field(default_factory=dict)

    def run(self, changes: Changes) -> Failure | None:
        """Run the cut module; None where every call gives what its axes promise."""
        if changes not in self._known:
            self._known[changes] = self._run(changes)
        return self._known[changes]

    def runs_at(self, changes: Changes, resized: Arguments, set_mode: Callable[[nn.Module], object] | None) -> bool:
        """Whether the cut module makes the same calls on inputs of other sizes too, and asks no condition on these.

        Then both are tried in one run. set_mode: puts the copy in another mode for this run.
        """
        try:
            given = zip(tensors_of(self.arguments), tensors_of(resized), strict=True)
            lengths = {pair for old, new in given for pair in zip(old.shape, new.shape, strict=True)}
            mode = AtOtherSizes(self.promised, lengths)
            conditions = SizeConditions(whether=True)
            self._called(mode, resized, changes, WithoutDropout(mode), conditions, set_mode)
        except Exception:  # one of the two cannot be; which, other runs tell
            return False
        finally:
            if set_mode is not None:
                self.copy.copy.eval()
        if mode.is_done:
            self._known[changes] = None
        return mode.is_done and not conditions.any

    def _called(
        self, mode: Watching, arguments: Arguments, changes: Changes, functions: LastCall,
        conditions: SizeConditions | None = None, set_mode: Callable[[nn.Module], object] | None = None,
    ) -> None:  # fmt: skip
        def prepare(copied: nn.Module) -> None:
            fit(copied, self.slicing, changes.edits, changes.literals, on_trial=True)
            if set_mode is not None:
                set_mode(copied)

        with self.settings():
            self.copy.again(
                mode, arguments, self.training, functions, self.data, prepare, self.turned, conditions=conditions,
                later=self.later,
            )  # fmt: skip

    def _run(self, changes: Changes) -> Failure | None:
        mode = Following(self.promised, self.real)
        functions = LastCall(mode)
        try:
            self._called(mode, self.arguments, changes, functions)
        except Differs as difference:
            return replace(difference.failure, numbers=functions.numbers())
        except Exception as error:  # whatever the user's program raises on a smaller size
            path, source = _innermost(error, {id(m): p for p, m in modules_of(self.copy.copy).items()})
            text = f"the module cannot follow a smaller size: {said(error)}"
            return Failure(mode.place, text, path, source, numbers=functions.numbers())
        finally:
            self.moved |= mode.moved
        if mode.place < len(self.tape):
            return Failure(mode.place, "fewer operators are called than before", "", "")
        return None

    def unread(self, known: Changes) -> Changes:
        """Edits of integers that a run need not read."""
        if known not in self._unread:
            tensors, narrowed = self.coupling.structure.tensors, self.slicing.narrowed
            self._unread[known] = Changes(tuple(edits_of_unread(self.module, tensors, known.edits, narrowed)))
        return self._unread[known]

    @cached_property
    def promised(self) -> Promised:
        """What the calls of the cut module have to give."""
        return Promised(self.tape, self.slicing)

    @cached_property
    def data(self) -> dict[str, torch.Tensor]:
        """What stands for those tensors of the module that are cut."""
        size, known, aliases = self.slicing.size, self.coupling.structure.tensors, self.coupling.aliases
        found, empty = {}, cache(empty_on_meta)
        for name, tensor in self.copy.originals.items():
            shape = tuple([size(axis) for axis in known[aliases[name]]])
            if shape != tensor.shape:
                read = numbers.stated(tensor) is not None
                found[name] = self.slicing.sliced(name, tensor) if read else empty(shape, tensor.dtype)
        return found

    def settings(self) -> AbstractContextManager[None]:
        """Inside, the module runs."""
        return nullcontext()

    @cached_property
    def log(self) -> list[LoggedCall]:
        """The calls of the module's program before anything was cut."""
        try:
            return self._logged(self.arguments, state_sources)
        except Exception:  # a program may refuse integers of another class; it ran on its own
            return self._logged(self.arguments)

    def is_of_inputs(self, call: LoggedCall, position: Position, unknown: bool = False) -> bool:
        """Whether the number that `call` is given there is another where the inputs have other sizes.

        unknown: the answer where the call was not made at any.
        """
        given, mode = dict(call.numbers).get(position), (self.training, self.turned)
        if mode not in self.logs:
            self.logs[mode] = self._elsewhere()
        others = [other for other in self.logs[mode] if other.path == call.path and other.site == call.site]
        return any(dict(other.numbers).get(position) != given for other in others) if others else unknown

    def _elsewhere(self) -> list[LoggedCall]:
        """The calls at other sizes of the inputs: one size after the other, or, without values, all at once."""
        found: list[LoggedCall] = []
        drawn = (draw.inputs for draw in draws(self.arguments, runs=1) if draw.varies)
        for resized in drawn if self.real else other_sizes(self.arguments):
            try:
                found += self._logged(resized)
            except Exception:  # a size that the module does not take
                continue
            if not self.real:
                break
        return found

    def _logged(
        self, arguments: Arguments, prepare: Callable[[nn.Module], None] = lambda root: None
    ) -> list[LoggedCall]:
        mode = Watching(self.real)
        functions = Logging(mode, modules_of(self.copy.copy))
        with self.settings():
            self.copy.again(
                mode, arguments, self.training, functions, prepare=prepare, turned=self.turned, later=self.later
            )
        return functions.calls()


@dataclass
class RealTrial(Trial):
    """A trial on values, for a program that asks for some: in double precision, beside the masked original.

    What a program decides by values it decides alike in both, as they compute the same.
    """

    real: ClassVar[bool] = True

    def __post_init__(self) -> None:
        mode = MaskedInference(self.coupling, self.slicing.masks, tape=True)
        tensors, aliases = self.coupling.structure.tensors, self.coupling.aliases
        self.copy = ModuleRun(self.module, mode, self._masked, lambda name, _: tensors[aliases[name]])
        self.arguments = replaced(self.arguments, {id(t): double(t) for t in tensors_of(self.arguments)})
        with self.settings(), _in_words(self.module):
            if self.later:
                self.copy.run(self.arguments, self.training, turned=self.turned)
                mode.records.clear()
            self.copy.run(self.arguments, self.training, turned=self.turned)
        resolve_axes(once_each(mode.space.resolve), mode.values, mode.records)
        self.tape = mode.records

    def _masked(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        data = double(tensor)
        for dim, axis in enumerate(self.coupling.structure.tensors[self.coupling.aliases[name]]):
            gone = torch.from_numpy(np.flatnonzero(~self.slicing.remain(axis)))
            data.index_fill_(dim, gone.to(data.device), 0)
        return like(tensor, data)

    @cached_property
    def data(self) -> dict[str, torch.Tensor]:
        return {name: double(self.slicing.sliced(name, tensor)) for name, tensor in self.copy.originals.items()}

    def settings(self) -> AbstractContextManager[None]:
        return constant_double()


@contextmanager
def _in_words(module: nn.Module) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # an operator that knows no double precision, say
        raise PassError(
            f"{type(module).__name__} asks for values, and does not run in double precision: {said(error)}; what is "
            "cut could not be proven. Choose operators that know it (a plain implementation of experts or attention)"
        ) from error


def _innermost(error: Exception, paths: dict[int, str]) -> tuple[str, str]:
    """The path of the innermost module on the way of an error, and the user's line."""
    path, trace = "", error.__traceback__
    while trace is not None:
        # A frame keeps what it was read as: ours would hold the error, and that its frames, until the next collection.
        holder = None if is_of_package(trace.tb_frame) else trace.tb_frame.f_locals.get("self")
        if isinstance(holder, nn.Module) and id(holder) in paths:
            path = paths[id(holder)]
        trace = trace.tb_next
    return path, innermost_line(error)
