"""Small networks of other libraries, of random weights, and what their users do with them once they are cut."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.modules import After, Case
from benchmarks.networks import calibrate

LENGTH = 7
_TEXT: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
    "max_position_embeddings": 64,
}  # fmt: skip
_GROUPED: dict[str, Any] = {**_TEXT, "num_key_value_heads": 2, "head_dim": 6, "pad_token_id": 0}
_IMAGE: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_SEQ: dict[str, Any] = {"vocab_size": 61, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4}


def text(labels: bool = False, length: int = LENGTH) -> dict[str, torch.Tensor]:
    """Two sentences, the second one padded."""
    ids = torch.randint(3, 61, (2, length))
    mask = torch.ones(2, length, dtype=torch.int64)
    mask[1, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask} | ({"labels": ids.clone()} if labels else {})


def image(size: int = 32) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, 3, size, size)}


def transformers_cases() -> list[Case]:
    from fxprune.torchvision_support import ensure_torchvision

    ensure_torchvision()  # transformers imports it
    import transformers as hf

    _ = hf.LlamaForCausalLM  # imports what all models share, once before the processes are forked

    def decoder(name: str, kind: str, config: str, options: dict[str, Any], labels: bool = False) -> Case:
        return case(name, kind, config, options, lambda: text(labels), generates)

    def case(
        name: str, kind: str, config: str, options: dict[str, Any], inputs: Callable[[], Any], after: After = saves
    ) -> Case:
        def make() -> tuple[nn.Module, Any]:
            torch.manual_seed(0)
            model = getattr(hf, kind)(getattr(hf, config)(**options))
            torch.manual_seed(1)
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1 and "norm" in name.lower():
                    nn.init.uniform_(parameter, 0.5, 1.5)
            return model.eval(), inputs()

        return Case(name, make, after)

    gpt = {"vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64}
    vision, words = {**_IMAGE}, {**_TEXT, "hidden_size": 24}
    both = {"text_config": words, "vision_config": vision, "projection_dim": 16}

    moe = {**_GROUPED, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
           "decoder_sparse_step": 1, "norm_topk_prob": True}  # fmt: skip

    def pairs() -> dict[str, torch.Tensor]:
        return text() | image()

    return [
        decoder("llama", "LlamaForCausalLM", "LlamaConfig", _GROUPED),
        decoder("llama-labels", "LlamaForCausalLM", "LlamaConfig", _GROUPED, True),
        decoder("llama-eager", "LlamaForCausalLM", "LlamaConfig", {**_GROUPED, "attn_implementation": "eager"}),
        decoder("mistral", "MistralForCausalLM", "MistralConfig", {**_GROUPED, "sliding_window": 4}),
        decoder("qwen2", "Qwen2ForCausalLM", "Qwen2Config", _GROUPED),
        decoder("qwen3", "Qwen3ForCausalLM", "Qwen3Config", _GROUPED),
        decoder("gemma", "GemmaForCausalLM", "GemmaConfig", _GROUPED),
        decoder("gemma2", "Gemma2ForCausalLM", "Gemma2Config", {**_GROUPED, "query_pre_attn_scalar": 6}),
        decoder("phi", "PhiForCausalLM", "PhiConfig",
                {**_TEXT, "hidden_size": 32, "pad_token_id": 0}),
        decoder("gptneox", "GPTNeoXForCausalLM", "GPTNeoXConfig", _TEXT),
        decoder("opt", "OPTForCausalLM", "OPTConfig", {**_TEXT, "ffn_dim": 40, "word_embed_proj_dim": 24}),
        decoder("bloom", "BloomForCausalLM", "BloomConfig",
                {"vocab_size": 61, "hidden_size": 24, "n_layer": 2, "n_head": 4}),
        decoder("gpt2", "GPT2LMHeadModel", "GPT2Config", gpt),
        decoder("gpt2-labels", "GPT2LMHeadModel", "GPT2Config", gpt, True),
        decoder("gpt2-eager", "GPT2LMHeadModel", "GPT2Config", {**gpt, "attn_implementation": "eager"}),
        decoder("mamba", "MambaForCausalLM", "MambaConfig",
                {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 5, "time_step_rank": 3}),
        decoder("mamba2", "Mamba2ForCausalLM", "Mamba2Config",
                {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 5, "num_heads": 6,
                 "head_dim": 8, "n_groups": 2, "chunk_size": 4, "pad_token_id": 0, "eos_token_id": 2}),
        decoder("mixtral", "MixtralForCausalLM", "MixtralConfig",
                {**_GROUPED, "num_local_experts": 3, "experts_implementation": "eager"}),
        decoder("qwen3-moe", "Qwen3MoeForCausalLM", "Qwen3MoeConfig", moe),
        decoder("qwen3-moe-loop", "Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**moe, "experts_implementation": "eager"}),
        decoder("qwen3-moe-batched", "Qwen3MoeForCausalLM", "Qwen3MoeConfig",
                {**moe, "experts_implementation": "batched_mm"}),
        case("bert", "BertModel", "BertConfig", _TEXT, text),
        case("bert-labels", "BertForMaskedLM", "BertConfig", _TEXT, lambda: text(True)),
        case("bert-classes", "BertForSequenceClassification", "BertConfig", {**_TEXT, "num_labels": 3},
             lambda: text() | {"labels": torch.tensor([0, 2])}),
        case("distilbert", "DistilBertModel", "DistilBertConfig",
             {"vocab_size": 61, "dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 40,
              "max_position_embeddings": 64}, text),
        case("roberta", "RobertaModel", "RobertaConfig", {**_TEXT, "pad_token_id": 1}, text),
        case("modernbert", "ModernBertModel", "ModernBertConfig",
             {**_TEXT, "pad_token_id": 0, "local_attention": 4, "bos_token_id": 1, "eos_token_id": 2,
              "cls_token_id": 1, "sep_token_id": 2}, text),
        case("deberta", "DebertaV2Model", "DebertaV2Config",
             {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}, text),
        case("t5", "T5Model", "T5Config", _SEQ,
             lambda: text() | {"decoder_input_ids": torch.randint(3, 61, (2, 5))}),
        case("t5-labels", "T5ForConditionalGeneration", "T5Config", {**_SEQ, "decoder_start_token_id": 0},
             lambda: text(True), generates_from_encoder),
        case("bart-labels", "BartForConditionalGeneration", "BartConfig",
             {"vocab_size": 61, "d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
              "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 36,
              "max_position_embeddings": 64}, lambda: text(True), generates_from_encoder),
        case("switch-encoder", "SwitchTransformersEncoderModel", "SwitchTransformersConfig",
             {**_SEQ, "num_experts": 3, "num_sparse_encoder_layers": 1, "expert_capacity": 8}, text),
        case("longformer", "LongformerModel", "LongformerConfig", {**_TEXT, "attention_window": 4, "pad_token_id": 0},
             lambda: text(length=8)),
        case("vit", "ViTModel", "ViTConfig", _IMAGE, image),
        case("vit-classes", "ViTForImageClassification", "ViTConfig", {**_IMAGE, "num_labels": 3},
             lambda: image() | {"labels": torch.tensor([0, 2])}),
        case("dinov2", "Dinov2Model", "Dinov2Config", {**_IMAGE, "layerscale_value": 0.5}, image),
        case("clip", "CLIPModel", "CLIPConfig", both, pairs),
        case("clip-vision", "CLIPVisionModel", "CLIPVisionConfig", _IMAGE, image),
        case("siglip", "SiglipModel", "SiglipConfig",
             {"text_config": {**words, "projection_size": 24}, "vision_config": vision}, pairs),
        case("siglip-vision", "SiglipVisionModel", "SiglipVisionConfig", _IMAGE, image),
        case("vilt", "ViltModel", "ViltConfig", {**_TEXT, **_IMAGE}, pairs),
        case("whisper", "WhisperForConditionalGeneration", "WhisperConfig",
             {"vocab_size": 61, "d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
              "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 36, "num_mel_bins": 8,
              "max_source_positions": 20, "max_target_positions": 16, "pad_token_id": 0, "bos_token_id": 1,
              "eos_token_id": 2, "decoder_start_token_id": 1, "suppress_tokens": [], "begin_suppress_tokens": []},
             lambda: {"input_features": torch.randn(2, 8, 40), "labels": torch.randint(3, 61, (2, 5))},
             generates_from_encoder),
        case("wav2vec2", "Wav2Vec2Model", "Wav2Vec2Config",
             {**_TEXT, "conv_dim": (12, 12), "conv_stride": (5, 2), "conv_kernel": (10, 3),
              "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
              "apply_spec_augment": False}, lambda: torch.randn(2, 400)),
        case("encodec", "EncodecModel", "EncodecConfig",
             {"num_filters": 4, "hidden_size": 16, "codebook_size": 8, "codebook_dim": 16, "upsampling_ratios": [4, 2],
              "target_bandwidths": [1.5, 3.0], "sampling_rate": 240}, lambda: {"input_values": torch.randn(2, 1, 96)}),
        case("swin", "SwinModel", "SwinConfig",
             {"image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4],
              "window_size": 4}, image),
        case("segformer", "SegformerForSemanticSegmentation", "SegformerConfig",
             {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [12, 24],
              "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [2, 4], "mlp_ratios": [2, 2],
              "decoder_hidden_size": 16, "num_labels": 3}, image),
        case("convnext", "ConvNextModel", "ConvNextConfig",
             {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2, "image_size": 32}, image),
        case("resnet-hf", "ResNetModel", "ResNetConfig",
             {"embedding_size": 8, "hidden_sizes": [12, 16], "depths": [1, 2], "layer_type": "basic"}, image),
        case("detr", "DetrForObjectDetection", "DetrConfig",
             {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None,
              "backbone_config": _resnet_config(hf), "d_model": 24, "encoder_layers": 1, "decoder_layers": 1,
              "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40,
              "decoder_ffn_dim": 36, "num_queries": 5, "num_labels": 3}, image),
        case("vit-mae", "ViTMAEModel", "ViTMAEConfig", {**_IMAGE, "mask_ratio": 0.0}, image),
    ]  # fmt: skip


def _resnet_config(hf: Any) -> Any:
    return hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[12, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )


def saves(model: nn.Module, cut: Any, inputs: Any) -> None:
    """`save_pretrained` writes the cut weights, and the cut model takes a longer input where the original does."""
    with tempfile.TemporaryDirectory() as folder:
        cut.save_pretrained(folder)
        written = load_file(Path(folder) / "model.safetensors")
    state = {tensor.data_ptr(): tensor for tensor in cut.state_dict().values()}.values()  # tied ones once
    counts = [sum(tensor.numel() for tensor in tensors) for tensors in (written.values(), state)]
    if counts[0] != counts[1]:
        raise AssertionError(f"save_pretrained wrote {counts[0]:,} elements, the cut model has {counts[1]:,}")
    if isinstance(inputs, dict) and "input_ids" in inputs and "attention_mask" in inputs:
        longer = {k: torch.cat([v, v], 1) if k in ("input_ids", "attention_mask") else v for k, v in inputs.items()}
        if "labels" in inputs and inputs["labels"].dim() == 2:
            longer["labels"] = torch.cat([inputs["labels"]] * 2, 1)
        with torch.no_grad():
            try:
                model(**longer)
            except Exception:  # noqa: BLE001 the original does not take it
                return
            cut(**longer)


def generates(model: nn.Module, cut: Any, inputs: Any) -> None:
    """Greedy generation with the cache gives the tokens and logits of one forward a token; beams are the same with it
    and without."""
    saves(model, cut, inputs)
    prompt = inputs["input_ids"][:1]
    given = {"attention_mask": torch.ones_like(prompt)}

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        return cut(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits

    _same_step_by_step(cut, prompt, given, logits)
    _same_without_cache(cut, prompt, {**_TOKENS, **given, "num_beams": 3})


def generates_from_encoder(model: nn.Module, cut: Any, inputs: Any) -> None:
    """The same of an encoder with a decoder."""
    saves(model, cut, inputs)
    name = "input_ids" if "input_ids" in inputs else "input_features"
    source = inputs[name][:1]

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        return cut(**{name: source}, decoder_input_ids=tokens, use_cache=False).logits

    _same_step_by_step(cut, source, {}, logits)
    _same_without_cache(cut, source, {**_TOKENS, "num_beams": 3})


_TOKENS: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def _same_step_by_step(
    cut: Any, prompt: torch.Tensor, given: dict[str, Any], logits: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """logits: without the cache, of all tokens so far."""
    cut.generation_config.forced_eos_token_id = None  # BART's last token, whatever the logits are
    made = cut.generate(prompt, **given, **_TOKENS, output_logits=True, return_dict_in_generate=True)
    begun = made.sequences.shape[1] - len(made.logits)
    with torch.no_grad():
        for step, found in enumerate(made.logits, begun):
            expected = logits(made.sequences[:, :step])[:, -1]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            if expected.argmax(-1).tolist() != made.sequences[:, step].tolist():
                raise AssertionError(f"generate gives token {made.sequences[:, step].tolist()}, step {step}")


def _same_without_cache(cut: Any, prompt: torch.Tensor, options: dict[str, Any]) -> None:
    if not torch.equal(cut.generate(prompt, **options), cut.generate(prompt, use_cache=False, **options)):
        raise AssertionError(f"generate gives other tokens with its cache than without ({options})")


def other_cases() -> list[Case]:
    """timm, ultralytics, torchvision's detectors."""
    return [*timm_cases(), *yolo_cases(), *detector_cases()]


def timm_cases() -> list[Case]:
    from fxprune.torchvision_support import ensure_torchvision

    ensure_torchvision()  # timm imports it
    import timm

    names = [
        "resnet18", "resnet50d", "efficientnet_b0", "mobilenetv3_small_100", "convnext_atto", "vit_tiny_patch16_224",
        "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224", "resmlp_12_224", "regnetx_002",
        "densenet121", "ghostnet_100", "repvgg_a0", "hrnet_w18_small", "dla34", "mobilevit_xxs", "levit_128s",
        "poolformer_s12", "eva02_tiny_patch14_224", "tf_efficientnetv2_b0", "fastvit_t8", "edgenext_xx_small",
        "pvt_v2_b0", "maxvit_rmlp_pico_rw_256", "efficientformer_l1", "nfnet_l0", "cspresnet50", "res2net50_14w_8s",
        "coat_lite_tiny", "gmlp_s16_224", "convmixer_768_32", "davit_tiny", "xcit_nano_12_p16_224",
        "volo_d1_224", "hardcorenas_a", "mnasnet_small", "lcnet_050", "selecsls42b", "vovnet39a", "tinynet_e",
    ]  # fmt: skip

    def case(name: str) -> Case:
        def make() -> tuple[nn.Module, Any]:
            torch.manual_seed(0)
            model = timm.create_model(name, pretrained=False, num_classes=7)
            size = model.pretrained_cfg["input_size"] if model.pretrained_cfg.get("fixed_input_size") else (3, 64, 64)
            inputs = torch.randn(2, *size)
            return with_signal(model, inputs), inputs

        return Case(f"timm-{name}", make, after_timm)

    return [case(name) for name in names]


def with_signal(model: nn.Module, *inputs: Any) -> nn.Module:
    """Random norms of batches with the statistics of `inputs`: with new ones the signal dies out, or grows, with depth.

    What an output does not depend on, a proof says nothing of.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    calibrate(model, *inputs)
    return model


def after_timm(model: Any, cut: Any, inputs: Any) -> None:
    """What timm's users call."""
    with torch.no_grad():
        features = cut.forward_features(inputs)
        cut.forward_head(features)
        if not _resets(copy.deepcopy(model)):
            return
        cut.reset_classifier(5)
        if cut(inputs).shape[-1] != 5:
            raise AssertionError("reset_classifier did not give five classes")
    if cut.pretrained_cfg != model.pretrained_cfg:
        raise AssertionError("pretrained_cfg changed")


def _resets(model: Any) -> bool:
    try:
        model.reset_classifier(5)
    except AssertionError:
        return False
    return True


def yolo_cases() -> list[Case]:
    def case(name: str) -> Case:
        def make() -> tuple[nn.Module, Any]:
            from ultralytics import YOLO

            torch.manual_seed(0)
            model = YOLO(f"{name}.yaml", verbose=False).model
            inputs = torch.randn(1, 3, 64, 64)
            with_signal(copied := copy.deepcopy(model), inputs)  # a run leaves anchors behind
            model.load_state_dict(copied.state_dict())
            return model.eval(), inputs

        return Case(f"yolo-{name}", make, lambda model, cut, inputs: after_yolo(name, cut))

    return [case(name) for name in ("yolov8n", "yolo11n", "yolov8n-seg", "yolov8n-cls", "yolov5n", "yolov10n")]


def after_yolo(name: str, cut: Any) -> None:
    """`predict` on an array, the loss, one step of training."""
    import numpy as np
    from ultralytics import YOLO
    from ultralytics.cfg import get_cfg

    yolo = YOLO(f"{name}.yaml", verbose=False)
    yolo.model = cut
    yolo.predict(np.zeros((64, 64, 3), dtype=np.uint8), imgsz=64, verbose=False)
    if "cls" in name or "seg" in name:
        return
    cut.args = get_cfg()
    batch = {
        "img": torch.rand(2, 3, 64, 64), "cls": torch.zeros(2, 1), "batch_idx": torch.tensor([0.0, 1.0]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.3, 0.3], [0.4, 0.4, 0.2, 0.2]]),
    }  # fmt: skip
    for parameter in cut.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    cut.train()
    loss, _ = cut(batch)
    loss.sum().backward()
    with torch.no_grad():
        for parameter in cut.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    cut(batch)


def detector_cases() -> list[Case]:
    def case(name: str) -> Case:
        def make() -> tuple[nn.Module, Any]:
            from fxprune.torchvision_support import ensure_torchvision

            ensure_torchvision()
            from torchvision.models import detection

            torch.manual_seed(0)
            sizes = {} if name.startswith("ssd") else {"min_size": 64, "max_size": 96}  # SSD states its own
            model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=4, **sizes)
            inputs = [torch.rand(3, 64, 72), torch.rand(3, 70, 64)]
            return with_signal(model, inputs), (inputs,)

        return Case(f"detector-{name}", make, graph=False)

    names = ("fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn", "fcos_resnet50_fpn", "ssdlite320_mobilenet_v3_large")  # fmt: skip  # noqa: E501
    return [case(name) for name in names]
