"""Small networks of torchaudio and kornia, of random weights: speech, and the matching of images.

Most of them no front end captures: they ask for values, run step by step, or take lengths. ``pip install torchaudio
kornia`` first; without them this list cannot be run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.modules import Case

_WAVE: dict[str, Any] = {
    "extractor_mode": "group_norm", "extractor_conv_layer_config": [(32, 10, 5), (32, 3, 2), (32, 3, 2)],
    "extractor_conv_bias": False, "encoder_embed_dim": 48, "encoder_projection_dropout": 0.0,
    "encoder_pos_conv_kernel": 16, "encoder_pos_conv_groups": 4, "encoder_num_layers": 2, "encoder_num_heads": 4,
    "encoder_attention_dropout": 0.0, "encoder_ff_interm_features": 96, "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.0, "encoder_layer_norm_first": False, "encoder_layer_drop": 0.0, "aux_num_out": 10,
}  # fmt: skip
_TACOTRON: dict[str, Any] = {
    "symbol_embedding_dim": 64, "encoder_embedding_dim": 64, "decoder_rnn_dim": 64, "attention_rnn_dim": 64,
    "prenet_dim": 32, "attention_hidden_dim": 32, "postnet_embedding_dim": 64, "n_mels": 20,
}  # fmt: skip
_TRANSDUCER: dict[str, Any] = {
    "input_dim": 20, "encoding_dim": 32, "num_symbols": 12, "segment_length": 4, "right_context_length": 1,
    "time_reduction_input_dim": 16, "time_reduction_stride": 2, "transformer_num_heads": 4, "transformer_ffn_dim": 32,
    "transformer_num_layers": 2, "transformer_dropout": 0.0, "transformer_activation": "gelu",
    "transformer_left_context_length": 2, "transformer_max_memory_size": 0,
    "transformer_weight_init_scale_strategy": "depthwise", "transformer_tanh_on_mem": False,
    "symbol_embedding_dim": 16, "num_lstm_layers": 1, "lstm_layer_norm": True, "lstm_layer_norm_epsilon": 1e-3,
    "lstm_dropout": 0.0,
}  # fmt: skip
_SEPARATION: dict[str, Any] = {
    "num_sources": 2, "enc_kernel_size": 16, "enc_num_feats": 32, "msk_kernel_size": 3, "msk_num_feats": 16,
    "msk_num_hidden_feats": 32, "msk_num_layers": 2, "msk_num_stacks": 2,
}  # fmt: skip
_VOCODER: dict[str, Any] = {
    "upsample_scales": [2, 2], "n_classes": 16, "hop_length": 4, "n_rnn": 32, "n_fc": 32, "n_res_block": 2,
    "n_hidden": 16, "n_output": 16, "kernel_size": 3, "n_freq": 20,
}  # fmt: skip


def speech_cases() -> list[Case]:
    from fxprune.torchvision_support import ensure_torchvision

    ensure_torchvision()
    import kornia.feature as matching
    import torchaudio.models as speech

    def case(name: str, make: Callable[[], nn.Module], inputs: Callable[[], Any]) -> Case:
        def both() -> tuple[nn.Module, Any]:
            torch.manual_seed(0)
            return make().eval(), inputs()

        return Case(f"speech-{name}", both)

    def patches() -> torch.Tensor:
        return torch.rand(4, 1, 32, 32)

    def lengths(*numbers: int) -> torch.Tensor:
        return torch.tensor(numbers)

    return [
        case(
            "conformer", lambda: speech.Conformer(40, 4, 64, 2, 15), lambda: (torch.randn(2, 50, 40), lengths(50, 40))
        ),
        case(
            "tacotron2", lambda: speech.Tacotron2(**_TACOTRON),
            lambda: (torch.randint(0, 100, (2, 12)), lengths(12, 9), torch.randn(2, 20, 16), lengths(16, 11)),
        ),
        case("wav2vec2", lambda: speech.wav2vec2_model(**_WAVE), lambda: torch.randn(2, 800)),
        case("conv-tasnet", lambda: speech.ConvTasNet(**_SEPARATION), lambda: torch.randn(2, 1, 400)),
        case("deepspeech", lambda: speech.DeepSpeech(20, 32, 10), lambda: torch.randn(2, 1, 30, 20)),
        case(
            "emformer", lambda: speech.Emformer(32, 4, 64, 2, 4, right_context_length=1),
            lambda: (torch.randn(2, 9, 32), lengths(9, 7)),
        ),
        case(
            "rnn-t", lambda: speech.rnnt.emformer_rnnt_model(**_TRANSDUCER),
            lambda: (torch.randn(2, 10, 20), lengths(8, 8), torch.randint(0, 12, (2, 5)), lengths(5, 4)),
        ),
        case("wavernn", lambda: speech.WaveRNN(**_VOCODER), lambda: (torch.randn(2, 1, 32), torch.randn(2, 1, 20, 10))),
        case("wav2letter", lambda: speech.Wav2Letter(10, "mfcc", 20), lambda: torch.randn(2, 20, 400)),
        case("squim", speech.squim_objective_base, lambda: torch.randn(1, 8000)),
        case("hdemucs", lambda: speech.HDemucs(["voice", "rest"], channels=8), lambda: torch.randn(1, 2, 44100)),
        case(
            "loftr", lambda: matching.LoFTR(pretrained=None),
            lambda: ({"image0": torch.rand(1, 1, 64, 64), "image1": torch.rand(1, 1, 64, 64)},),
        ),
        case("disk", matching.DISK, lambda: torch.rand(1, 3, 64, 64)),
        case("keynet", lambda: matching.KeyNet(False), lambda: torch.rand(1, 1, 64, 64)),
        case("hardnet", lambda: matching.HardNet(False), patches),
        case("sosnet", lambda: matching.SOSNet(False), patches),
        case("hynet", lambda: matching.HyNet(False), patches),
        case("tfeat", lambda: matching.TFeat(False), patches),
        case("orinet", lambda: matching.OriNet(False), patches),
    ]  # fmt: skip
