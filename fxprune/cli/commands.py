"""The commands around a search: netadapt, resume, rounds, restore, prune, check, report. `cli.py` mounts them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxprune.cli.paths import existing_file
from fxprune.io.printed_text import EscapingFormatter, echo, terminal

if TYPE_CHECKING:
    from fxprune.cli.jobs import Job
    from fxprune.config.keys import NetAdaptConfig
    from fxprune.journal.read_run import Run
    from fxprune.search.result import NetAdaptResult

NOT_MET, INTERRUPTED = 3, 130

EXIT_CODES = (
    "Exit codes: 0 done, the budget is met; 1 an error, which is named; 2 the command line names what is not there; "
    "3 the search ended above its budget; 130 interrupted, go on with `fxprune resume`."
)

Workdir = Annotated[Path, typer.Argument(help="folder of a search (netadapt_dir of its configuration)")]
Trust = Annotated[bool, typer.Option("--trust", help="import the code that the folder names")]
OwnConfig = Annotated[
    Path | None, typer.Option(help="your own configuration of the search; the code that it names is trusted")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="also in the place of files that fxprune did not write")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="same seed, same networks; 0: the configuration's")]


def mount(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command(epilog=EXIT_CODES)(netadapt)
    app.command(epilog=EXIT_CODES)(resume)
    app.command()(rounds)
    app.command()(restore)
    app.command()(prune)
    app.command()(check)
    app.command()(report)


def netadapt(
    config: Annotated[
        Path,
        typer.Argument(help="YAML file; `fxprune init` writes one", parser=existing_file, metavar="CONFIG"),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="torchvision:NAME, package.module:function, ..., as for analyze; else `model` of CONFIG"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="package.module:function, or cifar10:FOLDER, cifar100:FOLDER, imagenet:FOLDER; else `data` of CONFIG; "
            "without any the search compares candidates by the weights that they lose"
        ),
    ] = None,
    input: Annotated[
        list[str] | None,
        typer.Option(
            help="shape of one input, as 1,3,224,224 or 2,16:int64, once for each input; else `input` of CONFIG, "
            "else that of the first batch of the data"
        ),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="safetensors file with the model's weights")] = None,
    workdir: Annotated[Path | None, typer.Option(help="where the search is kept; else netadapt_dir of CONFIG")] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Prune a model until it meets the budget of CONFIG, and prove the result.

    `fxprune init` writes a configuration with every key and what it means.
    It needs a budget, a model and data:

        budget_ratio: 0.5            # half of the FLOPs
        model: project.nets:trained  # a function that returns the model
        data: project.data:loaders   # ... training and selection batches

    The function that `data` names may return two loaders of (inputs, labels),
    with which candidates are fine-tuned and compared by accuracy; or two
    functions, train(model, steps) and evaluate(model) -> float; or a
    fxprune.DLContext.

    With `calibration: train` (those training batches) or `calibration:
    project.data:batches` (any batches, no labels) units and widths are chosen
    by the data, and the weights that stay are repaired without training.

    The search is kept in netadapt_dir. Killed at any moment, the same command
    goes on where it was.
    """
    from fxprune.cli.errors import reported_errors

    with reported_errors(), interruptible():
        from fxprune.cli.jobs import Job
        from fxprune.config.keys import NetAdaptConfig
        from fxprune.errors import SourceError
        from passes.arguments import user_path

        settings = NetAdaptConfig.from_yaml(config)
        named = model or settings.model
        if named is None:
            raise SourceError(f"{config} names no model; write `model: package.module:function` there, or pass --model")
        job = Job(
            named,
            data or settings.data,
            tuple(input or settings.input),
            str(weights) if weights else None,
            seed or settings.seed,
        )
        run(job, settings, workdir or user_path(settings.netadapt_dir), None, quiet)


def resume(workdir: Workdir, trust: Trust = False, config: OwnConfig = None, quiet: Quiet = False) -> None:
    """Go on with a search that was interrupted, where it was: finished candidates are not trained again.

    The folder names the model and the data of the search, which are code. It
    is imported with --trust, or where your own --config names the same; never
    from inside the folder.
    """
    from fxprune.cli.errors import reported_errors

    with reported_errors(), interruptible():
        from fxprune.cli.jobs import job_in
        from fxprune.cli.refused_imports import nothing_from
        from fxprune.journal.read_run import read_run

        job, settings = job_in(workdir), read_run(workdir).config
        say_trusted(job, workdir, settings, config, trust)
        with nothing_from(workdir):
            run(job, settings, workdir, True, quiet)


def rounds(
    workdir: Workdir, as_json: Annotated[bool, typer.Option("--json", help="one JSON list, for programs")] = False
) -> None:
    """Print the rounds of a search, finished or not: what each used, chose and scored.

    Pick one of them by its trade-off, and write its network with
    `fxprune restore`.
    """
    from fxprune.cli.errors import reported_errors

    with reported_errors():
        from fxprune.journal.read_run import read_run
        from fxprune.report.rounds_table import print_rounds, rounds_data

        found = read_run(workdir)
        if as_json:
            echo(json.dumps(rounds_data(found), indent=1))
        else:
            print_rounds(found, terminal())


def restore(
    workdir: Workdir,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="file to write: .safetensors (with the plan beside it), .pt2, .onnx or .py"),
    ],
    round: Annotated[
        int | None, typer.Option(help="the round; 0 is the unpruned network; else the one returned")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="the original model; else the one that the folder names, with --trust")
    ] = None,
    input: Annotated[list[str] | None, typer.Option(help="shape of one input, with --model")] = None,
    trust: Trust = False,
    config: OwnConfig = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the network that a round chose, in the form that the suffix of OUT names; every form is checked.

    A .safetensors is read by fxprune.load(model, path), a .pt2 by
    torch.export.load, an .onnx by any ONNX runtime; a .py is source that
    needs torch alone.

    A .safetensors is written from the folder alone. The other forms need the
    original model: name it with --model; or let the one that the folder names
    be imported, with --trust, or with your own --config that names the same.
    """
    from fxprune.cli.errors import reported_errors

    with reported_errors():
        from fxprune.cli.refused_imports import nothing_from
        from fxprune.exporters.files import checked_suffix
        from fxprune.journal.read_run import read_run

        checked_suffix(out)
        found = read_run(workdir)
        if model is None and out.suffix == ".safetensors" and round != 0 and found.outline and not found.outline.plain:
            number, files = _restored_alone(found, out, round, overwrite)
        else:
            with nothing_from(workdir):
                number, files = _restored(found, out, round, _job(workdir, model, input, config, trust), overwrite)
        echo(f"round {number}: {', '.join(map(str, files))}")


def _restored_alone(run: Run, out: Path, round: int | None, overwrite: bool) -> tuple[int, tuple[Path, ...]]:
    from fxprune.exporters.files import checked_target
    from fxprune.exporters.safetensors_plan import write_pair
    from fxprune.journal.restoring import stored

    number, state, plan = stored(run, round)
    return number, write_pair(state, plan, checked_target(out), overwrite).files


def _job(workdir: Path, model: str | None, input: list[str] | None, config: Path | None, trust: bool) -> Job:
    """The model by the user's own name, or by the folder's, once that is trusted."""
    from fxprune.cli.jobs import Job, job_in

    if model is not None:
        return Job(model, None, tuple(input or ()))
    job = job_in(workdir)
    say_trusted(job, workdir, None, config, trust)
    return job


def _restored(run: Run, out: Path, round: int | None, job: Job, overwrite: bool) -> tuple[int, tuple[Path, ...]]:
    from fxprune.exporters import export
    from fxprune.journal.restoring import restored

    found = restored(run, job.build("cpu"), job.example() if job.inputs else None, round)
    written = export(found.network, found.example_inputs, out, plan=found.plan, overwrite=overwrite)
    return found.number, written.files


def say_trusted(job: Job, workdir: Path, kept: Any, config: Path | None, trust: bool) -> None:
    """Show what a folder has imported, once it is known that it may be."""
    from fxprune.cli.trust import check_trusted
    from fxprune.config.keys import NetAdaptConfig

    own = None if config is None else NetAdaptConfig.from_yaml(config)
    for line in check_trusted(job, workdir, kept, own, trust):
        echo(f"{workdir}: running {line}", err=True)


def prune(
    checkpoint: Annotated[
        Path, typer.Option(help="folder of safetensors: model.safetensors, or shards with model.safetensors.index.json")
    ],
    plan: Annotated[
        Path, typer.Option(help="JSON file of a plan: result.plan.to_json()", parser=existing_file, metavar="FILE")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder to make; it must not exist, or be empty")],
    model: Annotated[
        str | None, typer.Option(help="the model before pruning, as for analyze; else hf:CHECKPOINT")
    ] = None,
) -> None:
    """Cut a checkpoint folder as a plan says, tensor by tensor: neither the model nor a shard is whole in memory.

    Shards, their index, types and metadata stay as they were; other files of
    the folder (configuration, tokenizer) are copied. fxprune_plan.json holds
    the plan and the SHA-256 of each shard. Weights are read from safetensors
    alone.

    A model of transformers is built from the folder's config.json, without
    weights; any other is named with --model. Where the numbers of config.json
    can state the new widths, they do, and the model's own from_pretrained loads
    OUT. fxprune.from_pretrained(OUT) does so in any case.
    """
    from fxprune.cli.errors import reported_errors

    with reported_errors():
        from fxprune.cli.sources import load_without_weights
        from fxprune.errors import SourceError
        from fxprune.exporters.checkpoint_folder import prune_checkpoint, read_checkpoint
        from passes import Plan

        read_checkpoint(checkpoint)
        if model is None and not (checkpoint / "config.json").is_file():
            raise SourceError(f"{checkpoint}: there is no config.json, so nothing says what model it is; pass --model")
        made = Plan.from_json(plan.read_text(encoding="utf-8"))
        written = prune_checkpoint(load_without_weights(model or f"hf:{checkpoint}"), made, checkpoint, out)
        echo(f"{out}: {', '.join(file.name for file in written)}")


def check(
    files: Annotated[list[Path], typer.Argument(help="what export, restore or prune wrote: files, or a folder")],
) -> None:
    """Read exported files against their checksums, and name what is damaged, changed or missing; nothing is run."""
    from fxprune.cli.errors import reported_errors

    with reported_errors():
        from fxprune.exporters import check_files

        for path in files:
            echo(f"as written: {', '.join(map(str, check_files(path)))}")


def report(
    workdir: Workdir,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="HTML file; else WORKDIR/report.html")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write one HTML page about a search, finished or not: trade-off, widths, choices and their reasons, timings.

    The page needs no network and no other file. Its plots are drawn with
    matplotlib: pip install 'fxprune[report]'.
    """
    from fxprune.cli.errors import reported_errors

    with reported_errors():
        from fxprune.report import write_report

        echo(write_report(workdir, out, overwrite))


def run(job: Job, config: NetAdaptConfig, workdir: Path, resume: bool | None, quiet: bool) -> None:
    """Search, and say what came of it; exits with NOT_MET where the budget is not met."""
    import fxprune
    from fxprune.journal.own_files import taken

    model = job.build()
    found = job.load_data()
    train, evaluate = job.functions(found, model, config)
    calibration = job.calibration(found, config)
    if evaluate is None and calibration is None:
        echo("no data: candidates are compared by the weights that they lose", err=True)
    job = job.with_inputs(model, found, calibration)
    with taken(workdir) as lock, rounds_told():
        job.save(lock)
        result: NetAdaptResult = fxprune.netadapt(
            model, None, example_inputs=job.example(), train=train, evaluate=evaluate,
            calibration=calibration, config=config, workdir=lock, resume=resume, progress=not quiet, seed=job.seed,
        )  # fmt: skip
    echo(result.summary())
    if result.rounds:
        echo(f"\nkept in {workdir}; next: fxprune rounds {workdir}, fxprune restore {workdir} -o pruned.safetensors")
    if not result.met:
        raise typer.Exit(NOT_MET)


@contextmanager
def rounds_told() -> Iterator[None]:
    """Lines about rounds, which are logged where there is no terminal for bars, are printed."""
    logger, printed = logging.getLogger("fxprune.search.progress"), logging.StreamHandler()
    printed.setFormatter(EscapingFormatter())
    level = logger.level
    logger.addHandler(printed)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(printed)
        logger.setLevel(level)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends with what to do next instead of a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        echo("interrupted; what is finished is kept, `fxprune resume WORKDIR` goes on", err=True)
        raise typer.Exit(INTERRUPTED) from None
