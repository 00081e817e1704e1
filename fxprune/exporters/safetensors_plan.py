"""`.safetensors` and `.json`: the weights of a pruned network, and the plan that makes its shape from the original.

The JSON file is `Plan.to_json()` and nothing else, so that it can be read, compared and applied without fxprune.export.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from fxprune.errors import ExportError
from fxprune.exporters.files import check_free, staged
from fxprune.exporters.inputs import Inputs
from fxprune.exporters.outcome import ExportReport
from fxprune.exporters.protocol import Job
from fxprune.io.module_state import (
    State,
    check_same_form,
    read_state,
    restore_state,
    state_of,
    take_dtypes,
    text_digest,
    write_state,
)
from fxprune.io.sample import MAY_DIFFER, is_like, sample_of
from fxprune.io.tensors import modes_of, put_modes, sharing
from fxprune.problem.wrappers import unwrapped
from passes import CaptureError, Coupling, PassError, Plan, PlanError, apply_plan, capture, couple, plan_of
from passes.apply.cut_module import module_coupling_for
from passes.arguments import file_name
from passes.documents.described_values import examples
from passes.graph.fingerprint import fingerprint
from passes.graph.module_copies import like, owned_tensors
from passes.stream.network_copies import clone
from passes.trial.module_groups import module_fingerprint

_MOST_LISTED = 20


def write_safetensors(
    gm: nn.Module, inputs: Inputs, path: Path, plan: Plan | None, overwrite: bool = False
) -> ExportReport:
    """Write the weights and the plan, read both back and compare them bit by bit."""
    if plan is None:
        raise ExportError(
            f"{path}: weights alone do not say how to build the network; pass plan=result.plan (for a network that is "
            "not pruned: couple(gm, example_inputs).plan({}))"
        )
    _check_plan(gm, plan, plan_of(gm))
    if extra := [n for n, m in gm.named_modules() if type(m).get_extra_state is not nn.Module.get_extra_state]:
        raise ExportError(
            f"{path}: {extra[0] or type(gm).__name__} keeps a state of its own (get_extra_state), for which the file "
            "has no place; save the network with torch.save, or search with a workdir."
        )
    state = replace(state_of(gm), sample=sample_of(gm, plan.inputs))
    return write_pair(state, plan, path, overwrite)


def _check_plan(gm: nn.Module, plan: Plan, known: Plan | None) -> None:
    """ExportError where the plan is not the one that made the network: nothing could load what is written."""
    other = known is not None and (
        known.result_fingerprint != plan.result_fingerprint
        or (known.fingerprint == plan.fingerprint and known.keep != plan.keep)
    )
    own = fingerprint(gm) if isinstance(gm, fx.GraphModule) else module_fingerprint(gm)
    dense = known is None and plan.narrows and own == plan.fingerprint
    if other or dense:
        which = "another network" if other else "the network before pruning, and this is that one"
        raise ExportError(f"export: the plan is for {which}; pass plan=result.plan with result.model, of one search")
    graph = isinstance(gm, fx.GraphModule)
    if known is None and own != plan.fingerprint and graph is plan.calls_a_module:
        which, own_kind = ("module", "a graph") if graph else ("graph", f"a {type(gm).__name__}")
        raise ExportError(
            f"export: the plan is for a {which}, and the network is {own_kind}: nothing could load the files. Pass the "
            f"{which} that the plan made: result.model of the search, or what apply_plan returned"
        )


def write_pair(state: State, plan: Plan, path: Path, overwrite: bool = False) -> ExportReport:
    """Write tensors and plan, read both back and compare them bit by bit."""
    plan_path = path.with_suffix(".json")
    check_free(path, plan_path, overwrite=overwrite)
    check_same_form(path, True, overwrite)
    with staged(path, overwrite) as folder:
        write_state(state, folder / path.name, plan.to_json())
        (folder / plan_path.name).write_bytes(plan.to_json().encode())
        _check_written(folder / path.name, folder / plan_path.name, state, plan)
    notes = ("read back bit by bit; fxprune.load(model, path) builds the network",)
    return ExportReport("safetensors", path, (path, plan_path), notes=notes)


def load(model: nn.Module, path: str | os.PathLike[str], example_inputs: object = None) -> nn.Module:
    """Build the pruned network from the original model (with any weights, or none: device meta) and the written files.

    `path`: the `.safetensors` file or the `.json` beside it. `model` is left as it is; the result is of its class (a
    graph where the file was written of a graph), in its mode, in its wrappers and on its device. `example_inputs`: as
    for `netadapt`, where inputs of the shapes that the plan knows do not do.

    Raises ExportError that lists what differs when the files were written for another network, one of equal shapes that
    computes something else included, and names the file and the tensors that are damaged.
    """
    if not isinstance(model, nn.Module):
        raise ExportError(f"load: model is a {type(model).__name__}; expected the original model, as before pruning")
    (weights, plan_path), plan, state = read_pair(path)
    inner, wrap = unwrapped(model)
    make = _cut if state.frontend == "module" else _pruned
    pruned = make(inner, example_inputs, plan, state, plan_path)
    restore_state(pruned, state, weights)
    if state.sample is not None and not is_like(state.sample, pruned, plan.inputs):
        raise ExportError(
            f"{weights} was written for another network: the one that is built here of {type(inner).__name__} has the "
            f"same tensors and computes something else. Make the model as it was: {MAY_DIFFER}"
        )
    put_modes(pruned, modes_of(inner))
    return wrap(pruned)


def read_pair(path: str | os.PathLike[str]) -> tuple[tuple[Path, Path], Plan, State]:
    """The two files of an export, the plan and the tensors. Raises ExportError where they are damaged or not a pair."""
    weights, plan_path = _pair(path)
    text, plan = _read_plan(plan_path)
    state = read_state(weights)
    if state.plan != text_digest(text):
        raise ExportError(
            f"{plan_path} is not the plan that was written with {weights}: its checksum is another one; an export of "
            "weights and plan is two files, which stay together"
        )
    return (weights, plan_path), plan, state


def _read_plan(path: Path) -> tuple[str, Plan]:
    try:
        text = path.read_bytes().decode("utf-8")
        return text, Plan.from_json(text)
    except (OSError, UnicodeDecodeError, PlanError) as error:
        raise ExportError(f"{path}: {error}") from error


def _cut(model: nn.Module, example_inputs: object, plan: Plan, state: State, plan_path: Path) -> nn.Module:
    """The plan applied to the model itself."""
    dense = sharing(model)
    take_dtypes(dense, state)
    try:
        if example_inputs is not None:
            couple(dense, example_inputs)
        cut = apply_plan(dense, plan)
        made = clone(dense) if cut is dense else cut
        _take_unused(made, module_coupling_for(dense, plan), state)
        return made
    except PassError as error:
        raise _foreign(plan_path, error, dense, state) from error


def _take_unused(cut: nn.Module, coupling: Coupling, state: State) -> None:
    """Parameters that no run uses follow no plan; where a configuration states the widths, its class has them cut."""
    for name in coupling.unused & state.tensors.keys():
        path, _, leaf = name.rpartition(".")
        owner: Any = cut.get_submodule(path)
        setattr(owner, leaf, like(getattr(owner, leaf), state.tensors[name].clone()))


def _pruned(model: nn.Module, example_inputs: object, plan: Plan, state: State, plan_path: Path) -> nn.Module:
    """The plan applied to the model, captured as it was, with inputs like those, or with none where that fits."""
    attempts = [_inputs(model, plan, state), None] if example_inputs is None else [example_inputs]
    faults: list[ExportError] = []
    for attempt in attempts:
        if attempt is None and state.frontend == "export":
            continue
        try:
            dense = capture(model, attempt, state.frontend)
        except CaptureError as error:
            faults.append(ExportError(f"the model cannot be captured: {error}"))
            continue
        take_dtypes(dense, state)
        try:
            return apply_plan(dense, plan)
        except PassError as error:  # another fingerprint, or a network that the plan's inputs do not even fit
            faults.append(_foreign(plan_path, error, dense, state))
    raise faults[0]


def _foreign(plan_path: Path, error: PassError, dense: nn.Module, state: State) -> ExportError:
    return ExportError(f"{plan_path} was made for another network: {error}{_differences(dense, state)}")


def _inputs(model: nn.Module, plan: Plan, state: State) -> object:
    """Inputs of the shapes that the plan knows: by name where the names are known, else by position."""
    given = _zeros(model, plan)
    if len(state.inputs) != len(given) or any(name.startswith("*") for name in state.inputs):
        return given
    return {name: value for name, value in zip(state.inputs, given, strict=True) if value is not None}


def _zeros(model: nn.Module, plan: Plan) -> tuple[object, ...]:
    """Zeros of the shapes and dtypes that the plan knows, on the device of the model."""
    device = next((tensor.device for _, tensor in owned_tensors(model)), torch.device("cpu"))
    return examples(plan.inputs, device)


def _pair(given: str | os.PathLike[str]) -> tuple[Path, Path]:
    path = file_name(given, "load", "the name of a .safetensors file", ExportError)
    if path.suffix not in (".safetensors", ".json"):
        raise ExportError(
            f"{path}: load takes the .safetensors file of an export (or the .json beside it); a .pt2 is read by "
            "torch.export.load, an .onnx by onnxruntime, a .py by importing it"
        )
    pair = path.with_suffix(".safetensors"), path.with_suffix(".json")
    for file in pair:
        if not file.is_file():
            raise ExportError(f"{file} does not exist; an export of weights and plan is two files, which stay together")
    return pair


def _differences(dense: nn.Module, state: State) -> str:
    """What the stored tensors say about how the networks differ: names, dimensions, and what is larger than it was."""
    owned = dict(owned_tensors(dense))
    given = {name: state.tensors[state.ties.get(name, name)] for name in [*state.tensors, *state.ties]}
    found = [f"{name}: in the network, not in the file" for name in owned if name not in given]
    found += [f"{name}: in the file, not in the network" for name in given if name not in owned]
    for name in owned.keys() & given.keys():
        mine, theirs = tuple(owned[name].shape), tuple(given[name].shape)
        if len(mine) != len(theirs) or any(a < b for a, b in zip(mine, theirs, strict=True)):
            found.append(f"{name}: {theirs} in the pruned network, no more than {mine} here")
    more = [f"and {len(found) - _MOST_LISTED} more"] if len(found) > _MOST_LISTED else []
    return "".join(f"\n  {line}" for line in [*sorted(found)[:_MOST_LISTED], *more])


def _check_written(weights: Path, plan_path: Path, state: State, plan: Plan) -> None:
    again = read_state(weights)
    meant = {name: tensor.detach().cpu() for name, tensor in state.tensors.items()}
    same = again.tensors.keys() == meant.keys() and all(
        tensor.dtype == meant[name].dtype and torch.equal(_bits(tensor), _bits(meant[name]))
        for name, tensor in again.tensors.items()
    )
    if not same or _read_plan(plan_path)[1] != plan:
        raise ExportError(f"{weights}: what was written does not read back as it was; is the disk full or damaged?")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes: NaN compares equal to itself there."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def write(job: Job) -> ExportReport:
    """This form of a network, for `export`."""
    return write_safetensors(job.network, job.inputs, job.path, job.plan, job.overwrite)
