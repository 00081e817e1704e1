"""The configuration: defaults, round trips, and errors that name key, value, range and line."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from fxprune.config.keys import NetAdaptConfig
from fxprune.errors import ConfigError
from fxprune.resources.budgets import Budget

KEYS_OF_TINYNN = """
budget_ratio: 0.55
budget_type: weights
budget_reduce_rate_init: 0.05
budget_reduce_rate_decay: 0.98
netadapt_lr: 1e-3
netadapt_max_iter: 10
netadapt_max_rounds: -1
netadapt_min_feature_size: 8
metrics: l2_norm
netadapt_dir: netadapt_train/
exclude_ops: []
skip_last_fc: true
bn_compensation: false
multiple: 8
sparsity:
  default: 0.5
  features.0.0: 0.0
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yml"
    path.write_text(text)
    return path


def test_every_key_of_the_reference_is_read(tmp_path: Path) -> None:
    config = NetAdaptConfig.from_yaml(written(tmp_path, KEYS_OF_TINYNN))
    assert config.target() == (Budget("params", ratio=0.55),)
    assert config.netadapt_lr == 0.001
    assert config.sparsity == {"default": 0.5, "features.0.0": 0.0}
    assert (config.netadapt_max_iter, config.netadapt_max_rounds, config.multiple) == (10, -1, 8)


def test_round_trips(tmp_path: Path) -> None:
    config = NetAdaptConfig(
        budgets=({"resource": "latency", "ratio": 0.6}, {"resource": "params", "value": 2_000_000}),
        exclude=("layer1.*",), workers="ray", step="auto", min_accuracy=-3.5, sparsity={"a": 0.25}, ray={"num_cpus": 2},
    )  # fmt: skip
    config.to_yaml(tmp_path / "out.yml")
    assert NetAdaptConfig.from_yaml(tmp_path / "out.yml") == config
    assert NetAdaptConfig.from_dict(config.to_dict()) == config
    assert [b.resource for b in config.target() or ()] == ["latency", "params"]
    assert NetAdaptConfig.from_yaml(written(tmp_path, NetAdaptConfig().to_yaml())) == NetAdaptConfig()
    assert NetAdaptConfig.from_yaml(written(tmp_path, "# nothing\n")) == NetAdaptConfig()


def test_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        NetAdaptConfig().seed = 3  # type: ignore[misc]


def test_unknown_key_names_the_nearest_and_the_line(tmp_path: Path) -> None:
    path = written(tmp_path, "budget_ratio: 0.5\n\nnetadapt_max_itr: 10\n")
    with pytest.raises(
        ConfigError, match=r"config\.yml, line 3: unknown key 'netadapt_max_itr'; did you mean 'netadapt_max_iter'"
    ):
        NetAdaptConfig.from_yaml(path)
    with pytest.raises(ConfigError, match="known keys: budget"):
        NetAdaptConfig.from_dict({"zzzzzz": 1})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("budget_ratio", "1.5", "more than 0 and at most 1"),
        ("budget_ratio", "0", "more than 0"),
        ("budget", "true", "a number"),
        ("budget_type", "watts", "flops, macs"),
        ("budget_reduce_rate_init", "1.0", "less than 1"),
        ("budget_reduce_rate_decay", "1.01", "at most 1"),
        ("netadapt_lr", "-1", "more than 0"),
        ("netadapt_max_iter", "2.5", "an integer of at least 0"),
        ("netadapt_max_rounds", "0", "at least 1, or -1"),
        ("netadapt_min_feature_size", "0", "at least 1"),
        ("metrics", "l3_norm", "fisher, fpgm, l1_norm, l2_norm"),
        ("exclude", "conv1", "a list of names"),
        ("sparsity", "{a: 1.0}", "a: 1.0 is not a number at least 0 and less than 1"),
        ("select", "best", "'accuracy' or 'ratio'"),
        ("workers", "dask", "an integer of at least 1, or a kind of workers: processes, ray"),
        ("step", "automatic", "'auto'"),
        ("patience", "-1", "at least 0"),
        ("max_prune", "0", "more than 0"),
        ("budgets", "[{resource: params}]", "ratio and value"),
        ("skip_last_fc", "1", "true or false"),
        ("strategy", "greedy", "allocate, knapsack, netadapt, uniform"),
        ("seed", "x", "an integer"),
    ],
)
def test_wrong_value_names_key_value_range_and_line(tmp_path: Path, key: str, value: str, expected: str) -> None:
    path = written(tmp_path, f"# a comment\n{key}: {value}\n")
    with pytest.raises(ConfigError) as caught:
        NetAdaptConfig.from_yaml(path)
    message = str(caught.value)
    assert "config.yml, line 2" in message and key in message and expected in message


def test_a_wrong_entry_of_a_table_is_named_with_its_own_line(tmp_path: Path) -> None:
    path = written(tmp_path, "budget_ratio: 0.5\nsparsity:\n  default: 0.5\n  layer1.conv: 0.25\n  layer2.conv: 1.5\n")
    said = r"config\.yml, line 5: sparsity: layer2\.conv: 1\.5 is not a number at least 0 and less than 1"
    with pytest.raises(ConfigError, match=said):
        NetAdaptConfig.from_yaml(path)
    with pytest.raises(ConfigError, match=r"line 3: layer1\.conv stands here again, after line 2"):
        NetAdaptConfig.from_yaml(written(tmp_path, "sparsity:\n  layer1.conv: 0.5\n  layer1.conv: 0.0\n"))
    with pytest.raises(ConfigError, match=r"line 2: a key: got 7"):
        NetAdaptConfig.from_yaml(written(tmp_path, "seed: 1\n7: 1\n"))


def test_names_of_layers_are_read_as_they_are_written(tmp_path: Path) -> None:
    """Layer 1.10 of nested Sequentials is not the number 1.1, and a layer `off` is not false."""
    text = "sparsity:\n  1.10: 0.5\n  1.1: 0.25\n  off: 0.0\n"
    assert NetAdaptConfig.from_yaml(written(tmp_path, text)).sparsity == {"1.10": 0.5, "1.1": 0.25, "off": 0.0}
    merged = "ray:\n  <<: {num_gpus: 0.5}\n  num_cpus: 2\n"
    assert NetAdaptConfig.from_yaml(written(tmp_path, merged)).ray == {"num_gpus": 0.5, "num_cpus": 2}


def test_budget_excludes_budget_ratio(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 2: got both budget and budget_ratio"):
        NetAdaptConfig.from_yaml(written(tmp_path, "budget: 10\nbudget_ratio: 0.5\n"))


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        NetAdaptConfig.from_yaml(tmp_path / "missing.yml")
    with pytest.raises(ConfigError, match="line 2: not valid YAML"):
        NetAdaptConfig.from_yaml(written(tmp_path, "a: [1\n"))
    with pytest.raises(ConfigError, match="expected keys with values"):
        NetAdaptConfig.from_yaml(written(tmp_path, "- 1\n"))
    with pytest.raises(ConfigError, match="line 2: seed stands here again"):
        NetAdaptConfig.from_yaml(written(tmp_path, "seed: 1\nseed: 2\n"))
    with pytest.raises(ConfigError, match="line"):
        NetAdaptConfig.from_yaml(written(tmp_path, "seed: !!python/object/apply:os.getcwd []\n"))


def test_a_whole_number_may_be_written_as_a_float() -> None:
    assert NetAdaptConfig.from_dict({"netadapt_max_iter": "1e4"}).netadapt_max_iter == 10000


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("under", ["", "ray:\n", "latency:\n", "sparsity:\n", "budgets:\n"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "line [0-9]+: the file stands for more than 20,000 values, aliases written out"),
        ("x: &x\n  y: *x\n", r"line [0-9]: the alias \*x stands inside of what it stands for"),
        ("x: " + "[" * 5000 + "]" * 5000 + "\n", "line [0-9]: lists and tables are nested more than 32 deep"),
        ("x: " + "{a: " * 5000 + "}" * 5000 + "\n", "line [0-9]: lists and tables are nested more than 32 deep"),
        ("x: [" + "1, " * 30_000 + "]\n", "line [0-9]: the file stands for more than 20,000 values"),
        ("x: " + "9" * 5000 + "\n", "line [0-9]: a number has 5,000 digits"),
        ("x: 0x" + "f" * 100_000 + "\n", "line [0-9]: a number has 100,002 digits"),
        ("x: " + "1:" * 50_000 + "1\n", "line [0-9]: a number has 100,001 digits"),
        ("x: .nan\n", "line [0-9]: .nan is no finite number"),
        ("x: -.inf\n", "line [0-9]: -.inf is no finite number"),
        ("x: 1.0e+999\n", r"line [0-9]: 1.0e\+999 is no finite number"),
        ("x: {y: {z: 1, z: 2}}\n", "line [0-9]: z stands here again, after line [0-9]"),
        ("x: 1\nx: 2\n", "line [0-9]: x stands here again, after line [0-9]"),
        ("x: 2001-02-30\n", "a value cannot be read: day"),
        ("x: !!float many\n", "a value cannot be read|could not convert"),
        ("x: !!timestamp 7\n", "a value cannot be read"),
        ("x: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("? [1, 2]\n: 3\n", "not valid YAML|unknown key"),
        ("x: *nowhere\n", "not valid YAML: found undefined alias"),
        ("# " + "x" * 1_000_001, "more than 1,000,000 bytes"),
        ("x: \x00\n", "not valid YAML"),
    ],
)
def test_hostile_yaml_is_refused_by_its_line_in_no_time(tmp_path: Path, under: str, text: str, words: str) -> None:
    nested = under + "".join(f"  {line}\n" for line in text.splitlines()) if under else text
    with pytest.raises(ConfigError, match=words) as caught:
        NetAdaptConfig.from_yaml(written(tmp_path, nested))
    assert "config.yml" in str(caught.value) and len(str(caught.value)) < 1000


HOSTILE = {
    "large": 10**400, "unprintable": 10**5000, "digits": "1" * 5000, "nan": float("nan"), "lists": [[]] * 3,
    "long": "x" * 10**6, "bytes": b"x", "type": object,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_values_of_a_dict_are_refused_shortly(name: str) -> None:
    for field in dataclasses.fields(NetAdaptConfig):
        try:
            NetAdaptConfig.from_dict({field.name: HOSTILE[name]})
        except ConfigError as error:
            assert len(str(error)) < 1000


def test_a_pipe_is_no_configuration(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yml")
    with pytest.raises(ConfigError, match="there is no such file"):
        NetAdaptConfig.from_yaml(tmp_path / "config.yml")
