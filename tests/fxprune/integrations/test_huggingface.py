"""Hugging Face models with a width of its own in each layer: saved with their plan, and loaded again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune import Budget, netadapt
from fxprune.errors import ExportError, InputError

CONFIG = {"step": 1, "netadapt_min_feature_size": 2, "budget_reduce_rate_init": 0.15, "strategy": "knapsack"}


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_saved_with_its_plan_and_loaded(tied: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    inputs = {"input_ids": torch.randint(3, 60, (2, 9))}
    result = netadapt(model, Budget("params", ratio=0.7), example_inputs=inputs, config=CONFIG, progress=False)
    fxprune.save_pretrained(result, tmp_path)
    loaded = fxprune.from_pretrained(tmp_path)
    assert type(loaded) is transformers.LlamaForCausalLM
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, result.model.eval()(**inputs).logits)
    assert loaded.generate(inputs["input_ids"], max_new_tokens=3, do_sample=False).shape == (2, 12)
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-9] ^= 4
    weights.write_bytes(data)
    with pytest.raises(ExportError, match="model.safetensors: damaged"):
        fxprune.from_pretrained(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("same_width", [[], "huggingface"])
@pytest.mark.parametrize("kind", ["ViT", "Dinov2"])
def test_weights_that_transformers_renames_are_loaded(kind: str, same_width: object, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4
    )
    model = getattr(transformers, f"{kind}Model")(config).eval()
    inputs = {"pixel_values": torch.randn(2, 3, 16, 16)}
    settings = {**CONFIG, "same_width": same_width}
    result = netadapt(model, Budget("params", ratio=0.8), example_inputs=inputs, config=settings, progress=False)
    fxprune.save_pretrained(result, tmp_path / "smaller")
    loaded = fxprune.from_pretrained(tmp_path / "smaller")
    with torch.no_grad():
        wanted = result.model.eval()(**inputs)[0]
        torch.testing.assert_close(loaded(**inputs)[0], wanted)
        if same_width:
            stock = type(model).from_pretrained(tmp_path / "smaller").eval()
            torch.testing.assert_close(stock(**inputs)[0], wanted)


def test_what_is_no_such_model(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    result = netadapt(net, 0.6, example_inputs=torch.randn(1, 4), config=CONFIG, progress=False)
    with pytest.raises(InputError, match="Sequential is no model of transformers"):
        fxprune.save_pretrained(result, tmp_path)
