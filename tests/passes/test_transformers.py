"""Families of transformers, tiny and random: cut by half as they are, proven, saved, and used as their users do.

What is asked of each stands in `benchmarks.module_networks`: `generate` gives the tokens and logits of one forward a
token, beams are the same with the cache and without, `save_pretrained` writes the cut weights, longer inputs are taken.
"""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from benchmarks.module_networks import transformers_cases  # noqa: E402
from benchmarks.modules import TOLERANCE, check  # noqa: E402

CASES = {case.name: case for case in transformers_cases()}
FAMILIES = (
    *(
        "llama-labels",
        "mistral",
        "qwen3",
        "gemma",
        "gpt2",
        "bert-labels",
        "modernbert",
        "t5-labels",
        "vit-classes",
        "dinov2",
    ),
    *("clip", "siglip", "whisper", "swin", "segformer", "detr", "mamba2"),
)
EXPERTS = ("mixtral", "qwen3-moe", "qwen3-moe-loop", "qwen3-moe-batched")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*FAMILIES, *EXPERTS])
def test_cut_as_it_is(name: str) -> None:
    case = CASES[name]
    line = check(type(case)(case.name, case.make, case.after, graph=False))
    assert line.failures == {} and line.class_kept
    assert line.error is not None and line.error <= TOLERANCE
    assert len(set(line.batches)) > 1
    assert name not in EXPERTS or line.coverage > 0.95
