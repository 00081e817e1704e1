"""`fxprune init`: the file is a configuration, says every key, and its schema knows the same ones."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fxprune.cli.main import app
from fxprune.config.keys import NetAdaptConfig
from fxprune.config.reference import described_keys
from fxprune.errors import ConfigError


def test_the_file_is_a_configuration_and_every_comment_in_it_a_default(tmp_path: Path) -> None:
    out = tmp_path / "fxprune.yml"
    done = CliRunner().invoke(app, ["init", str(out), "--model", "torchvision:resnet18", "--ratio", "0.4"])
    assert done.exit_code == 0, done.output
    kept = NetAdaptConfig.from_yaml(out)
    assert kept == NetAdaptConfig(model="torchvision:resnet18", budget_ratio=0.4, budget_type="macs")
    defaults = NetAdaptConfig().to_dict()
    for field in fields(NetAdaptConfig):
        line = next(
            line for line in out.read_text().splitlines() if line.startswith((f"#{field.name}:", f"{field.name}: "))
        )
        if line.startswith("#"):
            assert NetAdaptConfig.from_dict(yaml.safe_load(line[1:])).to_dict() == defaults
    again = CliRunner().invoke(app, ["init", str(out)])
    assert again.exit_code == 1 and "is there already" in again.output


def test_the_schema_knows_every_key_and_its_entries(tmp_path: Path) -> None:
    CliRunner().invoke(app, ["init", str(tmp_path / "a.yml")])
    schema = json.loads((tmp_path / "fxprune-schema.json").read_text())
    for key in described_keys():
        place = schema["properties"]
        for name in key.table.split(".") if key.table else ():
            place = place[name]["properties"]
        assert place[key.name]["description"] == key.meaning
    assert schema["properties"]["budget_ratio"]["anyOf"][0] == {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    assert schema["properties"]["select"]["enum"] == ["accuracy", "ratio"]


def test_a_schema_that_was_edited_or_is_the_users_stays(tmp_path: Path) -> None:
    def go(name: str, *options: str) -> str:
        return " ".join(CliRunner().invoke(app, ["init", str(tmp_path / name), *options]).output.split())

    schema = tmp_path / "fxprune-schema.json"
    assert "written" in go("a.yml") and "written" in go("b.yml")
    written = schema.read_bytes()
    for text in (written.replace(b"fxprune configuration", b"my configuration"), b'{"mine": 1}'):
        schema.write_bytes(text)
        said = go("c.yml")
        assert "fxprune-schema.json exists" in said and "nothing was written" in said and "--overwrite" in said
        assert schema.read_bytes() == text and not (tmp_path / "c.yml").exists()
    assert "written" in go("c.yml", "--overwrite") and schema.read_bytes() == written


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("latency:\n  thread: 1\n", "line 2: latency: unknown key 'thread'; did you mean 'threads'?"),
        ("latency:\n  limits:\n    network: 3\n", "limits: unknown key 'network'; did you mean 'networks'?"),
        ("latency:\n  threads: none\n", "threads: got 'none', expected an integer of at least 1"),
        ("latency: {backend: onnxruntim}\n", "did you mean 'onnxruntime'|Did you mean 'onnxruntime'"),
        ("ray:\n  num_gpu: 1\n", "line 2: ray: unknown key 'num_gpu'; did you mean 'num_gpus'?"),
    ],
)
def test_a_misspelt_key_of_a_table_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.yml").write_text(text)
    with pytest.raises(ConfigError, match=said.replace("?", "[?]")):
        NetAdaptConfig.from_yaml(tmp_path / "config.yml")
