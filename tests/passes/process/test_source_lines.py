"""Where an error came from: the innermost line of the user's program, or none."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from small_search import EXAMPLE, FAST, make, negative_loss

from fxprune import netadapt
from fxprune.errors import FxpruneError, SearchError
from fxprune.training.candidate import checked_seed
from passes.process.source_lines import innermost_line


@pytest.mark.parametrize(
    "fails", [lambda: torch.ones(2) @ torch.ones(3), lambda: json.loads("{"), lambda: checked_seed(-1, "finetune")]
)
def test_the_innermost_line_is_that_of_the_user_who_called_a_library(fails: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, ValueError, FxpruneError)) as caught:
        fails()
    assert innermost_line(caught.value) == f"test_source_lines.py:{fails.__code__.co_firstlineno}"
    caught.value.__traceback__ = caught.tb.tb_next.tb_next  # as where none of the user's code was called
    assert innermost_line(caught.value) == ""


def test_what_fxprune_itself_refuses_of_a_candidate_names_no_line() -> None:
    def diverge(model: torch.nn.Module, steps: int) -> None:
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))

    given = {"train": diverge, "evaluate": negative_loss, "config": FAST, "progress": False}
    with pytest.raises(SearchError, match=r"lower the learning rate \(netadapt_lr\)\.(?! \()"):
        netadapt(make(), 0.8, example_inputs=EXAMPLE, **given)
