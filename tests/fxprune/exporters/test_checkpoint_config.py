"""A cut folder of transformers states its widths in config.json where the configuration has numbers for them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune
from fxprune.exporters.checkpoint_folder import _updated
from fxprune.problem.stock_equality import differs
from passes import Plan, apply_plan, couple

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6,
}  # fmt: skip
TOKENS = {"input_ids": torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))}


def saved(folder: Path, **sizes: Any) -> Any:
    hf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**{**SIZES, **sizes})).eval()
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "note": "kept"}))
    return model


def empty(model: Any) -> Any:
    with fxprune.empty_weights():
        return type(model)(model.config).eval()


def cut_by(model: Any, share: Any) -> Plan:
    """Every group that `share` gives a share below one keeps its last units."""
    coupling = couple(model, TOKENS)
    keep = {n: range(size - int(size * share(n)), size) for n, size in coupling.widths.items() if share(n) < 1}
    return coupling.plan(keep)


@pytest.mark.parametrize("with_weights", [False, True])
def test_the_stock_class_loads_what_was_cut(with_weights: bool, tmp_path: Path) -> None:
    model = saved(tmp_path / "dense")
    plan = cut_by(model, lambda name: 0.75 if "mlp" in name else 0.5 if "embed" in name else 1)
    assert sum(plan.widths[name] < size for name, size in plan.sizes.items()) > 1
    given = model if with_weights else empty(model)
    fxprune.prune_checkpoint(given, plan, tmp_path / "dense", tmp_path / "cut")
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert (config["intermediate_size"], config["hidden_size"], config["note"]) == (30, 12, "kept")
    expected = apply_plan(model, plan)
    for load in (type(model).from_pretrained, fxprune.from_pretrained):
        loaded = load(tmp_path / "cut").eval()
        with torch.no_grad():
            torch.testing.assert_close(loaded(**TOKENS).logits, expected(**TOKENS).logits)
    assert len(fxprune.check_files(tmp_path / "cut")) == 2


def test_widths_that_differ_between_blocks_stay_in_the_plan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = saved(tmp_path / "dense")
    plan = cut_by(model, lambda name: 0.75 if "layers.0.mlp" in name else 1)
    assert plan.narrows
    with caplog.at_level(logging.WARNING):
        fxprune.prune_checkpoint(empty(model), plan, tmp_path / "dense", tmp_path / "cut")
    assert "config.json cannot state the new widths" in caplog.text and "it has one for all" in caplog.text
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["intermediate_size"] == 40
    with torch.no_grad():
        expected, got = apply_plan(model, plan)(**TOKENS), fxprune.from_pretrained(tmp_path / "cut")(**TOKENS)
    torch.testing.assert_close(got.logits, expected.logits)


def test_a_class_of_the_same_shapes_that_computes_something_else_is_told_apart(tmp_path: Path) -> None:
    """One head of twelve channels has the weights of two heads of six; a faster rotation is in a table alone."""
    hf = pytest.importorskip("transformers")
    model = empty(saved(tmp_path / "dense"))
    assert differs(model, model.config, TOKENS) == ""
    heads = hf.LlamaConfig(**{**SIZES, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12})
    assert "where the cut network has" in differs(model, heads, TOKENS)
    rotation = hf.LlamaConfig(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    assert "its table" in differs(model, rotation, TOKENS)


def test_of_a_configuration_only_what_changed_is_written() -> None:
    known = {"a": 1, "own": [1], "part": {"x": 2, "own": 3}}
    old, new = {"a": 1, "b": 2, "part": {"x": 2, "y": 5}}, {"a": 7, "b": 2, "part": {"x": 4, "y": 5}}
    assert _updated(known, old, new) == {"a": 7, "own": [1], "part": {"x": 4, "own": 3}}
