"""The network of a round, built anew from the original model and the folder of the search."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fxprune.errors import InputError, JournalError
from fxprune.io.module_state import State
from fxprune.io.sample import MAY_DIFFER
from fxprune.io.tensors import from_bytes
from fxprune.journal.program_digest import program_digest
from fxprune.journal.read_run import Run
from fxprune.journal.rebuilding import rebuild
from fxprune.problem.inputs import analysed, described
from passes import Plan
from passes.documents.described_values import examples
from passes.stream.call_arguments import example_of


@dataclass(frozen=True, eq=False)
class Restored:
    """The network of round `number`, in the wrappers of the model; `plan` starts from `dense`, which is without any."""

    number: int
    network: nn.Module
    dense: nn.Module
    plan: Plan
    example_inputs: object


def restored(run: Run, model: nn.Module, example_inputs: object = None, round: int | None = None) -> Restored:
    """The network of a round; None is the round that the search returned, 0 the unpruned network.

    `model` is the original one, with any weights; `example_inputs` may be left out once a round is finished.
    """
    number = _number(run, round)
    if example_inputs is None and run.rounds:
        example_inputs = zeros(Plan.from_json(run.rounds[0].plan), run.form)
    given = analysed(model, example_inputs, run.form)
    dense, coupling = given.network, given.coupling
    if coupling.fingerprint != run.model["graph"]:
        raise JournalError(
            f"{run.folder}: the search that is kept here was of another network than this {type(model).__name__}, "
            "or of other inputs; pass the model as it was before pruning, and the inputs of the search."
        )
    asked, values = run.model, coupling.module is not None and coupling.module.real
    comparable = described(given.example_inputs) == asked["example_inputs"] and not values
    if asked["program"] and comparable and program_digest(dense, coupling) != asked["program"]:
        raise JournalError(
            f"{run.folder}: the network of the search that is kept here computes something else than this "
            f"{type(model).__name__}, which has the same tensors: {MAY_DIFFER}; pass the model as it was before "
            "pruning."
        )
    plan = Plan.from_json(run.rounds[number - 1].plan) if number else coupling.plan({})
    network = rebuild(dense, run.rounds, number, run.journal, given.modes, given.wrap)
    return Restored(number, network, dense, plan, given.example_inputs)


def stored(run: Run, round: int | None = None) -> tuple[int, State, Plan]:
    """The number, tensors and plan of a round from the folder alone, without the model and without importing code.

    Raises InputError where the folder does not hold all of it, and the original model is needed.
    """
    number = _number(run, round)
    if number == 0:
        raise InputError(
            f"{run.folder}: the weights of the unpruned network are not kept; name the model with --model."
        )
    outline = run.outline
    if outline is None or outline.plain:
        why = f"tensors that are no buffers ({', '.join(outline.plain)})" if outline else "no outline of the network"
        raise InputError(f"{run.folder}: the network has {why}, so its model is needed; name it with --model.")
    weights = run.weights(number)
    if weights is None:
        raise InputError(
            f"{run.folder}: the weights of round {number} were removed, as keep_rounds asked, and follow from the "
            "unpruned network's; name the model with --model."
        )
    found = from_bytes(weights)
    tensors = {name: tensor for name, tensor in found.items() if name not in outline.ties}
    lost = sorted({*outline.ties, *outline.order, *outline.transient, *outline.ties.values()} - found.keys())
    if lost:
        raise JournalError(f"{run.folder}: round {number} has no weights of {lost[0]}, which its outline names.")
    state = State(tensors, outline.ties, outline.order, outline.transient, outline.frontend, outline.inputs)
    return number, state, Plan.from_json(run.rounds[number - 1].plan)


def _number(run: Run, round: int | None) -> int:
    number = run.accepted if round is None else round
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= len(run.rounds):
        raise InputError(f"{run.folder} has no round {number!r}; expected 0 (unpruned) to {len(run.rounds)}.")
    return number


def zeros(plan: Plan, form: str) -> tuple[object, ...] | dict[str, object]:
    """Inputs of the shapes and types that a plan for a module or a graph was made for."""
    if form == "module":
        call = example_of(plan.inputs)
        return dict(call.kwargs) if call.kwargs else call.args
    return examples(plan.inputs)
