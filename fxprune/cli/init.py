"""`fxprune init`: a commented configuration to start from, and its JSON Schema for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxprune.io.printed_text import echo

OWN = {"model": "project.nets:trained", "data": "project.data:loaders"}


def init(
    out: Annotated[Path, typer.Argument(help="the file to write")] = Path("fxprune.yml"),
    model: Annotated[
        str | None, typer.Option(help="put in as `model`: torchvision:NAME, package.module:function, ...")
    ] = None,
    data: Annotated[str | None, typer.Option(help="put in as `data`: package.module:function, ...")] = None,
    ratio: Annotated[float, typer.Option(help="put in as `budget_ratio`: the share that may remain")] = 0.5,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="also in the place of files that are there")] = False,
) -> None:
    """Write a configuration that says the meaning, the range and the default of every key.

    Beside it lies fxprune-schema.json, with which editors complete and check
    the keys. One that fxprune wrote and nobody changed is renewed.
    """
    from fxprune.cli.errors import reported_errors

    with reported_errors():
        import json

        from fxprune.config.keys import NetAdaptConfig
        from fxprune.config.reference import SCHEMA_FILE, commented_yaml, json_schema
        from fxprune.errors import ConfigError
        from fxprune.io.seal import check_unchanged, sealed

        values = {"budget_ratio": ratio, "budget_type": "macs", "model": model or OWN["model"]}
        if data is not None or model is None:
            values["data"] = data or OWN["data"]
        NetAdaptConfig.from_dict(values, "fxprune init")
        schema = out.with_name(SCHEMA_FILE)
        if out.exists() and not overwrite:
            raise ConfigError(f"{out} is there already; nothing was written. Name another file, or pass --overwrite.")
        text = sealed(json.dumps(json_schema(), indent=1).encode() + b"\n")
        if not overwrite:
            check_unchanged(schema, ConfigError, "Name a file in another folder, or pass --overwrite")
        try:
            out.write_text(commented_yaml(values), encoding="utf-8")
            schema.write_bytes(text)
        except OSError as error:
            raise ConfigError(f"{out} cannot be written: {error.strerror or error}.") from error
        echo(f"written: {out}, {schema}; next: set model and data there, then fxprune netadapt {out}")
