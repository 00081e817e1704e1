"""Hugging Face models under the preset: saved, and loaded by the unchanged class of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxprune import Budget, netadapt
from fxprune.errors import InputError
from fxprune.problem.stock_widths import stock_widths
from passes import couple, verify

TOKENS = {"input_ids": torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))}
IMAGES = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
CONFIG = {"same_width": "huggingface", "step": 1, "netadapt_min_feature_size": 1, "budget_reduce_rate_init": 0.15}


def _models() -> dict[str, tuple[Any, Any, dict, dict]]:
    import transformers as hf

    grouped = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
    image = {k: v for k, v in SMALL.items() if k != "vocab_size"} | {"image_size": 16, "patch_size": 4}
    gpt2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
    narrow = {**SMALL, "hidden_size": 24, "num_key_value_heads": 2, "head_dim": 6}
    experts = {**grouped, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    bloom = {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}
    seen = {"text_config": {**SMALL, "projection_size": 32}, "vision_config": image, "num_labels": 3}
    ratio = {k: v for k, v in image.items() if k != "intermediate_size"} | {"num_labels": 3}
    swin = {"image_size": 16, "patch_size": 2, "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
    mamba = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 5, "num_heads": 8,
             "head_dim": 8, "n_groups": 2, "chunk_size": 4, "pad_token_id": 0, "eos_token_id": 2}  # fmt: skip
    t5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return {
        "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, grouped, TOKENS),
        "llama-narrow": (hf.LlamaForCausalLM, hf.LlamaConfig, narrow, TOKENS),
        "phi": (hf.PhiForCausalLM, hf.PhiConfig, SMALL, TOKENS),
        "qwen3-moe": (hf.Qwen3MoeForCausalLM, hf.Qwen3MoeConfig, experts, TOKENS),
        "bloom": (hf.BloomForCausalLM, hf.BloomConfig, bloom, TOKENS),
        "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config, gpt2, TOKENS),
        "bert": (hf.BertModel, hf.BertConfig, SMALL, TOKENS),
        "t5": (hf.T5ForConditionalGeneration, hf.T5Config, t5, {**TOKENS, "decoder_input_ids": TOKENS["input_ids"]}),
        "switch": (
            hf.SwitchTransformersEncoderModel,
            hf.SwitchTransformersConfig,
            {**t5, "num_experts": 4, "num_sparse_encoder_layers": 1, "expert_capacity": 8},
            TOKENS,
        ),
        "siglip": (hf.SiglipForImageClassification, hf.SiglipConfig, seen, IMAGES),
        "vit": (hf.ViTModel, hf.ViTConfig, image, IMAGES),
        "dinov2": (hf.Dinov2ForImageClassification, hf.Dinov2Config, ratio, IMAGES),
        "dinov2-fixed": (hf.Dinov2Model, hf.Dinov2Config, ratio, IMAGES),
        "mgp": (hf.MgpstrForSceneTextRecognition, hf.MgpstrConfig, {**ratio, "image_size": [16, 16]}, IMAGES),
        "swin": (hf.SwinForImageClassification, hf.SwinConfig, {**swin, "num_labels": 3}, IMAGES),
        "neox-japanese": (
            hf.GPTNeoXJapaneseForCausalLM,
            hf.GPTNeoXJapaneseConfig,
            {**{k: v for k, v in SMALL.items() if k != "intermediate_size"}, "intermediate_multiple_size": 2},
            TOKENS,
        ),
        "mamba2": (hf.Mamba2ForCausalLM, hf.Mamba2Config, mamba, TOKENS),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["llama", "llama-narrow", "gpt2", "bert", "t5", "vit", "dinov2", "mgp", "swin", "switch"]
)
def test_saved_and_loaded_by_the_stock_class(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    kind, config, sizes, inputs = _models()[name]
    torch.manual_seed(0)
    model = kind(config(**sizes)).eval()
    budget = Budget("params", ratio=0.85)
    result = netadapt(model, budget, example_inputs=inputs, config=CONFIG, progress=False)
    assert result.met and type(result.model) is kind
    result.model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs)[0], result.model.eval()(**inputs)[0])
    unused = model.dinov2.embeddings.mask_token.numel() if name == "dinov2" else 0  # follows without being counted
    cut = sum(p.numel() for p in loaded.parameters())
    assert cut == sum(p.numel() for p in result.model.parameters())
    assert result.achieved["params"] - unused <= cut <= result.achieved["params"] - (unused > 0)
    certificate = verify(model, result.model, result.plan, inputs)
    assert certificate.max_error < certificate.tol


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("phi", ("hidden_size", "num_attention_heads")),
        ("siglip", ("hidden_size", "num_attention_heads", "intermediate_size")),
        ("qwen3-moe", ("num_local_experts", "moe_intermediate_size")),
        ("switch", ("d_ff", "num_heads")),
        ("dinov2", ("hidden_size", "num_attention_heads")),
        ("dinov2-fixed", ("mlp_ratio", "num_attention_heads")),
        ("swin", ("embed_dim", "mlp_ratio")),
        ("neox-japanese", ("hidden_size", "num_attention_heads")),
    ],
)
def test_numbers_that_follow(name: str, numbers: tuple[str, ...]) -> None:
    """Heads that are as many as key-value heads; a head of another kind beside the layers; experts and their widths;
    ratios to widths that shrink or stay; heads in the layers of all stages; the size of a head, which is stated where
    the configuration has none, but not where rotations read it otherwise."""
    pytest.importorskip("transformers")
    kind, config, sizes, inputs = _models()[name]
    model = kind(config(**sizes)).eval()
    stock = stock_widths(model, couple(model, inputs), inputs)
    assert set(numbers) <= {place[-1] for places in stock.places.values() for place in places}


@pytest.mark.slow
def test_no_number_that_only_has_the_same_value() -> None:
    """The token that ends a text, which is 2 as the groups of a Mamba2 layer are."""
    pytest.importorskip("transformers")
    kind, config, sizes, inputs = _models()["mamba2"]
    model = kind(config(**sizes)).eval()
    places = {
        place for places in stock_widths(model, couple(model, inputs), inputs).places.values() for place in places
    }
    assert ("num_heads",) in places and ("eos_token_id",) not in places


@pytest.mark.slow
def test_ratios_that_must_be_whole_and_such_that_need_not(tmp_path: Path) -> None:
    """`mlp_ratio` is a whole number of DINOv2, and any of MGP-STR, where a width that no float gives exactly is met."""
    pytest.importorskip("transformers")
    for name, whole in (("dinov2-fixed", True), ("mgp", False)):
        kind, config, sizes, inputs = _models()[name]
        model = kind(config(**sizes)).eval()
        stock = stock_widths(model, couple(model, inputs), inputs)
        (first,) = (first for first, places in stock.places.items() if places.get(("mlp_ratio",)) == 1)
        assert stock.steps[first] == (32 if whole else 1)
        for width in range(stock.steps[first], 129, stock.steps[first]):
            made = kind(stock.configured(model.config, {**stock.sizes, first: width}))
            assert made.get_submodule(first).out_features == width


@pytest.mark.slow
def test_a_class_that_computes_with_its_sizes_is_refused_by_name() -> None:
    pytest.importorskip("transformers")
    kind, config, sizes, inputs = _models()["bloom"]
    with pytest.raises(InputError, match="no group can shrink so: .*(hidden_size|n_head|num_attention_heads)"):
        netadapt(kind(config(**sizes)).eval(), 0.85, example_inputs=inputs, config=CONFIG, progress=False)


def test_only_for_models_with_a_configuration() -> None:
    with pytest.raises(InputError, match="for models of transformers"):
        netadapt(nn.Linear(4, 4), 0.5, example_inputs=torch.randn(1, 4), config=CONFIG, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Mistral", "Gemma2", "Gemma3Text", "Gemma4Text", "Step3p7Text"])
def test_no_family_reads_the_widths_of_single_layers(family: str) -> None:
    """What docs/howto/frameworks.md says; once this fails, such widths can be written for the family."""
    hf = pytest.importorskip("transformers", minversion="5.24")
    config = getattr(hf, f"{family}Config")(**SMALL, num_key_value_heads=2, head_dim=8)
    name = family.removesuffix("Text")
    kind = getattr(hf, f"{name}ForCausalLM", None) or getattr(hf, f"{family}Model")
    config.per_layer_config = {0: {"intermediate_size": 24}}
    with pytest.raises(Exception, match="'intermediate_size' is a per-layer attribute"), torch.device("meta"):
        kind(config)


@pytest.mark.slow
def test_a_list_of_widths_states_each(tmp_path: Path) -> None:
    hf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"embedding_size": 16, "hidden_sizes": [32, 48], "depths": [1, 1], "layer_type": "basic", "num_labels": 3}
    model = hf.ResNetForImageClassification(hf.ResNetConfig(**sizes)).eval()
    budget = Budget("params", ratio=0.8)
    result = netadapt(model, budget, example_inputs=IMAGES, config=CONFIG, progress=False)
    assert result.met and result.model.config.hidden_sizes != [32, 48]
    result.model.save_pretrained(tmp_path)
    loaded = hf.ResNetForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**IMAGES)[0], result.model.eval()(**IMAGES)[0])
