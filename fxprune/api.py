"""`netadapt`: a trained network in, a smaller one that meets its budget and is proven equal out."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.fx import GraphModule

from fxprune.config.keys import NetAdaptConfig
from fxprune.errors import InputError
from fxprune.io.checkpoint import take_values_from
from fxprune.io.tensors import named_tensors, versions_of
from fxprune.journal.protocol import Journal, Memory
from fxprune.journal.rebuilding import rebuild
from fxprune.problem.calibration import calibration_of
from fxprune.problem.inputs import Analysed, analysed
from fxprune.problem.mistaken import check_stored, check_weights
from fxprune.problem.scope import scope_names
from fxprune.problem.search_problem import Problem
from fxprune.problem.stock_widths import state_widths
from fxprune.problem.width_grids import no_multiples
from fxprune.problem.wrappers import unwrapped
from fxprune.registries import WORKERS
from fxprune.resources.budgets import Budget
from fxprune.resources.models import Resource
from fxprune.search.call_arguments import check_functions, check_resources, check_settings, read_budgets, read_config
from fxprune.search.expected_size import said_size
from fxprune.search.problem_making import check_problem, make_problem
from fxprune.search.progress import Progress, make_progress, reporting
from fxprune.search.proof import prove_halves, proven
from fxprune.search.result import NetAdaptResult, Timings
from fxprune.search.rounds import Found, search
from fxprune.training.candidate import Evaluate, Train, begin_anew, checked_seed, seeded, train_candidate
from fxprune.training.process_group import processes
from fxprune.workers.lifetime import processes_end_here
from fxprune.workers.protocol import Job, Timed
from fxprune.workers.transport import pack
from passes import Plan
from passes.arguments import file_name, flag, user_path
from passes.process.settings import tensors_with_values, torch_threads
from passes.stream.network_copies import clone

log = logging.getLogger(__name__)


@tensors_with_values()
@torch.inference_mode(False)  # a network that is made in that mode can never be trained
def netadapt(
    model: nn.Module | GraphModule,
    budget: float | int | Budget | Sequence[Budget] | None = None,
    *,
    example_inputs: object = None,
    form: str = "auto",
    scope: str | Sequence[str] | None = None,
    train: Train | None = None,
    evaluate: Evaluate | None = None,
    calibration: object = None,
    checkpoint: str | os.PathLike | None = None,
    config: NetAdaptConfig | dict | str | Path | None = None,
    workdir: str | os.PathLike | None = None,
    resume: bool | None = None,
    resources: Sequence[Resource] = (),
    progress: bool = True,
    seed: int = 0,
) -> NetAdaptResult:
    """Prune a network until it meets a budget (NetAdapt, ECCV 2018), and certify what comes out.

    `model`: any module, or a graph that the caller traced; it is left as it is. What comes out is of its class, also
    inside DataParallel, DistributedDataParallel, AveragedModel and torch.compile. `budget`: a float in (0, 1] is a
    share of the FLOPs, an int an absolute number, a `Budget` any other resource, a list several that must all be met;
    None takes that of the configuration. `example_inputs`: a tensor, a tuple of positional arguments or a dict of
    keywords; may be left out where a graph's placeholders carry shapes.

    `train(model, steps)` fine-tunes a candidate in place (it is in train mode; what it returns is ignored),
    `evaluate(model)` returns one number, higher is better (it is in eval mode; its changes are not kept). Without
    evaluate the search is data-free: candidates are compared by the importance that they lose, which takes seconds.

    `calibration`: batches of inputs (tensors, tuples, dicts or a DataLoader; labels may be there and are not used).
    Then units and widths are chosen from one pass of these data, candidates are repaired and compared by how far their
    outputs are from the dense network's, and the weights that are kept are fitted to what it computes: minutes, no
    training, no labels. With `train` the best of the candidates are fine-tuned from there (`screen` of the
    configuration); `finetune(result, batches, distill=1.0)` goes on without labels.

    `checkpoint`: a folder of safetensors that holds the weights of a model which was made without any, under
    ``fxprune.empty_weights()``. They are read tensor by tensor to rank units; `result.model` is without weights, too,
    the proof is made with random ones, and `fxprune.prune_checkpoint(model, result.plan, checkpoint, out)` cuts the
    folder. A model that has other weights than the folder is refused. A model without weights and without a checkpoint
    is searched by costs: all units count alike.

    `workdir` keeps a journal: the same call continues there after a kill, and ends in the same network; it takes the
    number of torch's threads that the run began with. With a lower budget or more rounds (`netadapt_max_rounds`) a
    finished search goes on from its last round; a higher budget is answered from its rounds. `resume=True` says that
    it should continue, `resume=False` that it must not. `resources` replaces or adds resources by name (a measured
    latency table). `seed`, where it is not 0, goes before the configuration's.

    `form="module"` prunes the module itself, `form="graph"` the GraphModule that is captured from it, which is then
    what train, evaluate and the result hold. "auto" is the form of what came in, or the graph of a module that cannot
    be analysed as it is (`result.note` says why).

    `scope` names submodules (``"backbone"``) outside of which no parameter is cut; costs, budgets and proofs are those
    of the whole model.

    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    >>> result = netadapt(model, 0.5, example_inputs=torch.randn(1, 3, 9, 9), progress=False)
    >>> result.model(torch.randn(2, 3, 9, 9)).shape
    torch.Size([2, 4, 5, 5])
    """
    seed = checked_seed(seed, "netadapt")
    begun = time.perf_counter()
    settings = read_config(config)
    budgets = read_budgets(budget, settings)
    check_functions(train, evaluate)
    check_settings(settings, calibration is not None)
    check_resources(resources)
    if (train is not None or evaluate is not None) and processes() > 1:
        log.warning(
            "torch.distributed runs %d processes, and each that calls netadapt searches on its own: they end with the "
            "same network only where train and evaluate do the same in each (the same data), or average over the "
            "processes. Or search in one process, and load what it saved in the others.", processes(),
        )  # fmt: skip
    if workdir is not None:
        file_name(workdir, "netadapt: workdir", "the name of a folder", InputError)
    if resume is not None:
        flag(resume, "netadapt: resume", InputError)
    with reporting(make_progress(progress)) as shown:
        shown.stage("analysing the network")
        given = analysed(model, example_inputs, form, settings.depth)
        if checkpoint is not None:
            take_values_from(given.network, checkpoint)
            check_stored(given.network, checkpoint)
        check_weights(given.network, train, evaluate, calibration)
        train, evaluate = given.wrap.inside(train), given.wrap.inside(evaluate)
        names = scope_names(unwrapped(model)[0], scope)
        data = None
        if calibration is not None:
            shown.stage("reading calibration data")
            with seeded(seed or settings.seed):  # a loader that shuffles gives the same batches when the run is resumed
                begin_anew(calibration)
                data = calibration_of(given.network, given.coupling, calibration, settings.calibration_samples)
        shown.stage("counting and measuring what is budgeted")
        problem = make_problem(given, budgets, settings, seed, train, evaluate, resources, progress, names, data)
        ready = time.perf_counter()

        within = all(problem.start[name] <= limit for name, limit in problem.limits.items())
        if not within:
            check_problem(problem)
        journal = open_journal(workdir, resume, problem)
        problem = journal.resumed(problem)
        if workdir is not None and not within and journal.recorded_result() is None:
            shown.message(said_size(problem, user_path(workdir)))
        workers = make_workers(problem, train, evaluate)
        try:
            with torch_threads(problem.threads), processes_end_here():
                if not within:
                    start(problem, workers)
                    shown.started(problem)
                baseline = 0.0 if evaluate is None else score_dense(problem, evaluate, journal, workers, shown)
                if within:
                    found = Found((), 0, "the network is within its budget already", True)
                else:
                    found = search(problem, baseline, workers, journal, shown)
                shown.stage("building and proving the pruned network")
                return finish(problem, given, found, baseline, journal, workers, begun, ready - begun)
        except KeyboardInterrupt:
            if workdir is not None:
                log.warning("interrupted; the same call with workdir=%r goes on where it stopped", os.fspath(workdir))
            raise
        finally:
            workers.close()
            journal.close()


def open_journal(workdir: str | os.PathLike | None, resume: bool | None, problem: Problem) -> Journal:
    if workdir is None:
        if resume:
            raise InputError("netadapt: resume=True needs the workdir of the run that it should continue.")
        return Memory()
    if without := [name for name, tensor in named_tensors(problem.dense) if tensor.is_meta]:
        raise InputError(
            f"netadapt: {without[0]} is on the meta device, and a workdir keeps the weights of each round; load some "
            "(model.to_empty(device='cpu') makes room), or search without a workdir."
        )
    from fxprune.journal.folder import open_folder

    return open_folder(workdir, problem, resume)


def make_workers(problem: Problem, train: Train | None, evaluate: Evaluate | None) -> Timed:
    """The workers that the configuration names; a search without data and evaluate needs none but this process."""
    config = problem.config
    asked = config.workers if problem.scored else 1
    count = asked if isinstance(asked, int) else 1
    kind = asked if not isinstance(asked, int) else "serial" if asked == 1 else "processes"
    job = Job(train, evaluate, count, config.worker_retries, config.candidate_time_limit, dict(config.ray))
    return Timed(WORKERS.call(kind, job), WORKERS.said(kind))


def start(problem: Problem, workers: Timed) -> None:
    """Get workers ready; a network that cannot be sent to another process is an error before the first of them."""
    if getattr(workers.workers, "sends", False):
        pack(problem.dense, problem.coupling, problem.coupling.plan({}))
    workers.start()


def score_dense(problem: Problem, evaluate: Evaluate, journal: Journal, clock: Timed, progress: Progress) -> float:
    """The score of the unpruned network; an evaluate that fails on it fails on all, so it is an error.

    First of all, and once a search, what the search may cut is cut and proven.
    """
    known = journal.baseline()
    if known is not None:
        return known
    if problem.grids:
        progress.stage("proving the network with a random half of its units")
        prove_halves(problem)
    progress.stage("evaluating the unpruned network")
    limit_s = problem.config.candidate_time_limit
    trained = train_candidate(clone(problem.dense), 0, problem.seed, None, evaluate, limit_s)
    if trained.score is None:
        raise InputError(f"netadapt: the unpruned network cannot be evaluated: {trained.error}.")
    clock.evaluate += trained.seconds_evaluate
    journal.save_baseline(trained.score)
    return trained.score


def finish(
    problem: Problem,
    given: Analysed,
    found: Found,
    baseline: float,
    journal: Journal,
    clock: Timed,
    begun: float,
    seconds_analysis: float,
) -> NetAdaptResult:
    """Build the accepted network anew, certify it, and put it into the mode of the one that was handed in."""
    accepted = found.rounds[found.accepted - 1] if found.accepted else None
    plan = Plan.from_json(accepted.plan) if accepted else problem.coupling.plan({})
    model = rebuild(problem.dense, found.rounds, found.accepted, journal, given.modes, given.wrap)
    if problem.stock is not None and accepted:
        state_widths(unwrapped(model)[0], problem.stock, plan, problem.example_inputs)
    verifying = time.perf_counter()
    trained = (problem.trains or problem.calibration is not None) and accepted is not None
    certificate = proven(problem, unwrapped(model)[0], plan, trained)
    ended = time.perf_counter()
    registered = named_tensors(problem.dense)
    result = NetAdaptResult(
        model=model,
        plan=plan,
        certificate=certificate,
        rounds=found.rounds,
        accepted=found.accepted,
        budgets=problem.budgets,
        start=problem.start,
        achieved=accepted.achieved if accepted else dict(problem.start),
        widths=accepted.widths if accepted else problem.coupling.full_widths,
        original_widths=problem.coupling.full_widths,
        baseline=baseline,
        score=accepted.score if accepted else baseline,
        data_free=not problem.scored,
        calibrated=problem.calibration is not None and not problem.evaluates,
        met=found.met,
        stopped=found.stopped,
        timings=Timings(
            total=ended - begun,
            analysis=seconds_analysis,
            train=clock.train,
            evaluate=clock.evaluate,
            verify=ended - verifying,
            workers=problem.config.workers if isinstance(problem.config.workers, int) else 1,
        ),
        dense=problem.dense,
        versions=versions_of(registered),
        program=clone(problem.dense, [tensor for _, tensor in registered]),
        coupling=problem.coupling,
        example_inputs=problem.example_inputs,
        modes=given.modes,
        journal=journal,
        form=given.form,
        note=given.note,
        wrap=given.wrap,
        problem=problem,
        stock=problem.stock,
    )
    remember(result, journal)
    if others := no_multiples(problem.dense, problem.coupling, problem.config, result.widths):
        log.warning(
            "round_to: %d: left whole, at a width that is no multiple of it: %s; layers are narrowed to multiples, and "
            "never widened", problem.config.round_to or problem.config.multiple, ", ".join(others),
        )  # fmt: skip
    return result


def remember(result: NetAdaptResult, journal: Journal) -> None:
    """Record the result, unless the same one is recorded already: the record keeps what was timed in the run that found
    it."""
    known, now = journal.recorded_result(), result.to_dict()
    timed = ("timings", "certificate", "layers")
    if known is None or any(known.get(key) != now[key] for key in now if key not in timed):
        journal.save_result(now)
