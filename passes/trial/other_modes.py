"""What one call in evaluation mode does not show: branches of train mode, and tensors kept for the next call."""

from __future__ import annotations

import dis
from types import CodeType, FunctionType

from torch import nn

from passes.graph.module_copies import modules_of
from passes.process.outside_state import codes_of
from passes.stream.call_arguments import Arguments
from passes.stream.module_run import ModuleInferred
from passes.trial.other_runs import calls_made_of

_TESTS = ("JUMP", "TO_BOOL", "UNARY_NOT", "COMPARE", "STORE")  # what is done with a flag that is not just handed on


def look_at_kept_tensors(inferred: ModuleInferred, arguments: Arguments) -> None:
    """Run a module once more that has just run for the first time, with the tensors that it put into its attributes.

    Where this second call uses some, a hidden state for instance, what it states holds as well.
    """
    mode = inferred.run.mode
    kept = {mode.value(tensor).key for tensor in inferred.run.kept()}
    if not kept or inferred.run_beside(arguments, later=True):
        return
    if not any(value.key in kept for record in inferred.runs_beside[-1].records for value in record.inputs):
        inferred.runs_beside.pop()


def look_at_train_mode(inferred: ModuleInferred, arguments: Arguments) -> bool:
    """Run a module that branches on its mode in train mode as well, where it calls other operators then.

    What these state holds as well. What torch's layers do in train mode is known. Where it makes the first of its calls
    and no others, as a detector that returns what its heads give, its outputs alone are new, and nothing is tried.
    Returns whether it was run.
    """
    found, known = calls_made_of(inferred, arguments, in_train_mode)
    if found == known or inferred.run_beside(arguments, training=True):
        return False
    if found == known[: len(found or ())]:
        inferred.runs_beside.pop()
    return True


def in_train_mode(root: nn.Module) -> None:
    """Put all modules in train mode but torch's own layers."""
    for part in modules_of(root).values():
        part.training = not _is_of_torch(type(part))


def branches_on_mode(root: nn.Module) -> bool:
    """Whether classes of modules from outside of torch decide by ``self.training``, which is more than to hand it on.

    It is read from the code of their methods.
    """
    kinds = {base for part in modules_of(root).values() for base in type(part).__mro__ if not _is_of_torch(base)}
    functions = (function for kind in kinds for function in vars(kind).values() if isinstance(function, FunctionType))
    return any(_tests_mode(code) for function in functions for code in codes_of(function.__code__))


def _is_of_torch(kind: type) -> bool:
    """Whether it is one of torch's classes, or stands for one in a copy."""
    return kind.__module__.partition(".")[0] in ("torch", "passes")


def _tests_mode(code: CodeType) -> bool:
    if "training" not in code.co_names:
        return False
    steps = list(dis.get_instructions(code))
    read = [place for place, step in enumerate(steps[:-1]) if step.opname == "LOAD_ATTR" and step.argval == "training"]
    return any(name in steps[place + 1].opname for place in read for name in _TESTS)
