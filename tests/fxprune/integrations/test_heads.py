"""Heads of transformers, pruned as the caller has them: dicts of what a processor gives, labels and masks or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fxprune import Budget, netadapt
from fxprune.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TEXT = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
IMAGE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
SOUND = {
    "vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48,
    "conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 2,
}  # fmt: skip
Inputs = Callable[[int], dict[str, Any]]
Case = tuple[Any, Inputs, Inputs | None]


def ids(n: int, length: int = 9) -> torch.Tensor:
    return torch.randint(3, 90, (n, length))


def text(n: int) -> dict[str, Any]:
    mask = torch.ones(n, 9, dtype=torch.long)
    mask[1:, -3:] = 0
    return {"input_ids": ids(n), "attention_mask": mask}


def with_types(n: int) -> dict[str, Any]:
    return {**text(n), "token_type_ids": torch.zeros(n, 9, dtype=torch.long)}


def images(n: int, size: int = 32) -> dict[str, Any]:
    return {"pixel_values": torch.randn(n, 3, size, size)}


def sound(n: int) -> dict[str, Any]:
    return {"input_values": torch.randn(n, 400)}


def labels(n: int, classes: int = 3) -> dict[str, Any]:
    return {"labels": torch.randint(0, classes, (n,))}


def tokens(n: int) -> dict[str, Any]:
    return {"labels": ids(n)}


def boxes(n: int) -> dict[str, Any]:
    return {"labels": [{"class_labels": torch.tensor([1, 2]), "boxes": 0.3 + 0.3 * torch.rand(2, 4)} for _ in range(n)]}


def _text_cases(hf: Any) -> dict[str, Callable[[], Case]]:
    bert, few = lambda **k: hf.BertConfig(**TEXT, **k), {"num_labels": 3}
    marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    distil = {"vocab_size": 96, "dim": 32, "hidden_dim": 48, "n_layers": 1, "n_heads": 4}
    gpt2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    t5 = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    return {
        "sequence classification": lambda: (hf.BertForSequenceClassification(bert(**few)), with_types, labels),
        "regression": lambda: (
            hf.BertForSequenceClassification(bert(num_labels=1)), with_types, lambda n: {"labels": torch.randn(n)},
        ),
        "token classification": lambda: (
            hf.DistilBertForTokenClassification(hf.DistilBertConfig(**distil, **few)), text,
            lambda n: {"labels": torch.randint(0, 3, (n, 9))},
        ),
        "question answering": lambda: (
            hf.RobertaForQuestionAnswering(hf.RobertaConfig(**TEXT)), text,
            lambda n: {"start_positions": torch.ones(n).long(), "end_positions": torch.full((n,), 2)},
        ),
        "masked language": lambda: (hf.BertForMaskedLM(bert()), with_types, tokens),
        "causal language": lambda: (
            hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT, num_key_value_heads=2)), text, tokens,
        ),
        "causal language, one matrix": lambda: (hf.GPT2LMHeadModel(hf.GPT2Config(**gpt2)), text, tokens),
        "sequences by a decoder": lambda: (
            hf.Qwen2ForSequenceClassification(hf.Qwen2Config(**TEXT, **few, num_key_value_heads=2, pad_token_id=0)),
            text, labels,
        ),
        "sequence to sequence": lambda: (
            hf.T5ForConditionalGeneration(hf.T5Config(**t5)), lambda n: {**text(n), "decoder_input_ids": ids(n, 5)},
            lambda n: {"labels": ids(n, 5)},
        ),
        "multiple choice": lambda: (
            hf.BertForMultipleChoice(bert()),
            lambda n: {name: value.view(n, 2, -1) for name, value in with_types(2 * n).items()},
            lambda n: labels(n, 2),
        ),
        "next sentence": lambda: (hf.BertForNextSentencePrediction(bert()), with_types, lambda n: labels(n, 2)),
        "pretraining": lambda: (
            hf.BertForPreTraining(bert()), with_types,
            lambda n: {**tokens(n), "next_sentence_label": torch.randint(0, 2, (n,))},
        ),
        "replaced tokens": lambda: (
            hf.ElectraForPreTraining(hf.ElectraConfig(**TEXT, embedding_size=16)), with_types,
            lambda n: {"labels": torch.randint(0, 2, (n, 9))},
        ),
        "no head": lambda: (hf.BertModel(bert()), with_types, None),
        "speech to text": lambda: (
            hf.WhisperForConditionalGeneration(
                hf.WhisperConfig(
                    vocab_size=96, num_mel_bins=8, d_model=32, encoder_layers=1, decoder_layers=1,
                    encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
                    max_source_positions=20, max_target_positions=16, decoder_start_token_id=1, **marks,
                )
            ),
            lambda n: {"input_features": torch.randn(n, 8, 40), "decoder_input_ids": ids(n, 5)},
            lambda n: {"labels": ids(n, 5)},
        ),
    }  # fmt: skip


def _other_cases(hf: Any) -> dict[str, Callable[[], Case]]:
    few = {"num_labels": 3}
    return {
        "image classification": lambda: (hf.ViTForImageClassification(hf.ViTConfig(**IMAGE, **few)), images, labels),
        "image classification, convolutions": lambda: (
            hf.ResNetForImageClassification(
                hf.ResNetConfig(embedding_size=16, hidden_sizes=[32, 48], depths=[1, 1], **few)
            ),
            images, labels,
        ),
        "segmentation": lambda: (
            hf.SegformerForSemanticSegmentation(
                hf.SegformerConfig(
                    hidden_sizes=[16, 32], depths=[1, 1], num_attention_heads=[1, 2], sr_ratios=[2, 1],
                    num_encoder_blocks=2, patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2],
                    decoder_hidden_size=32, **few,
                )
            ),
            images, lambda n: {"labels": torch.randint(0, 3, (n, 32, 32))},
        ),
        "detection": lambda: (
            hf.YolosForObjectDetection(
                hf.YolosConfig(**{**IMAGE, "image_size": [32, 32]}, num_detection_tokens=5, **few)
            ),
            images, boxes,
        ),
        "sounds": lambda: (
            hf.Wav2Vec2ForSequenceClassification(hf.Wav2Vec2Config(**SOUND, **few, classifier_proj_size=16)), sound,
            labels,
        ),
        "characters of speech": lambda: (
            hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**SOUND, pad_token_id=0)), sound,
            lambda n: {"labels": torch.randint(1, 30, (n, 4))},
        ),
        "spectrograms": lambda: (
            hf.ASTForAudioClassification(
                hf.ASTConfig(
                    hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, patch_size=4,
                    frequency_stride=4, time_stride=4, max_length=24, num_mel_bins=16, **few,
                )
            ),
            lambda n: {"input_values": torch.randn(n, 24, 16)}, labels,
        ),
        "images and text": lambda: (
            hf.LlavaForConditionalGeneration(
                hf.LlavaConfig(
                    vision_config=hf.CLIPVisionConfig(**IMAGE), image_token_index=95, vision_feature_layer=-1,
                    text_config=hf.LlamaConfig(**TEXT, num_key_value_heads=2),
                )
            ),
            _pictures_and_words, lambda n: {"labels": ids(n, 24)},
        ),
        "videos": lambda: (
            hf.VideoMAEForVideoClassification(
                hf.VideoMAEConfig(**{**IMAGE, "image_size": 16}, num_frames=4, tubelet_size=2, **few)
            ),
            lambda n: {"pixel_values": torch.randn(n, 4, 3, 16, 16)}, labels,
        ),
    }  # fmt: skip


def _pictures_and_words(n: int) -> dict[str, Any]:
    words = ids(n, 24)
    words[:, 1:17] = 95  # where the picture stands
    return {"input_ids": words, "attention_mask": torch.ones_like(words), **images(n)}


NAMES = [*_text_cases(None), *_other_cases(None)]


def _case(name: str) -> Case:
    hf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, inputs, given = {**_text_cases(hf), **_other_cases(hf)}[name]()
    return model.eval(), inputs, given


def _pruned(model: Any, example: Any, calibration: Any) -> Any:
    budget = Budget("macs", ratio=0.7)
    result = netadapt(model, budget, example_inputs=example, calibration=calibration, progress=False)
    assert result.met and result.calibrated and type(result.model) is type(model) and result.form == "module"
    return result


@pytest.mark.parametrize("name", NAMES)
def test_labels_beside_the_calibration_data(name: str) -> None:
    model, inputs, given = _case(name)
    example, batch = inputs(2), inputs(8)
    result = _pruned(model, example, [{**batch, **(given(8) if given else {})}])
    assert type(result.model(**batch)) is type(model(**batch))  # its own output class


@pytest.mark.parametrize("name", ["sequence classification", "question answering", "causal language", "detection"])
def test_labels_in_the_example_too(name: str) -> None:
    model, inputs, given = _case(name)
    assert given is not None
    result = _pruned(model, {**inputs(2), **given(2)}, [{**inputs(8), **given(8)}])
    assert torch.isfinite(result.model(**inputs(4), **given(4)).loss)


def test_a_mask_that_only_the_data_have_is_refused() -> None:
    model, inputs, _ = _case("causal language")
    example = {"input_ids": ids(2)}
    with pytest.raises(InputError, match="a batch has 'attention_mask', example_inputs has not"):
        _pruned(model, example, [inputs(8)])
