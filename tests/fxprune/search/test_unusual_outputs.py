"""Outputs that are complex, infinite in places, or a single number: compared, imitated, or refused before any work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxprune import finetune, netadapt
from fxprune.errors import InputError
from passes.statistics.divergence import distance, tensors_out

QUICK = {"sweeps": 0, "refined": 1, "netadapt_min_feature_size": 1}
DATA = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "complex": lambda y: torch.view_as_complex(y.unflatten(-1, (3, 2))),
    "excluded classes": lambda y: torch.cat([y, torch.full_like(y[:, :1], -torch.inf)], -1),
    "an infinite value": lambda y: torch.cat([y[:, :1], torch.full_like(y[:, :1], torch.inf)]).flatten(),
    "a single number": lambda y: y.mean(),
}


class Net(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.form = nn.Linear(8, 16), nn.Linear(16, 6), FORMS[form]

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self.last(self.first(x).relu()))


@pytest.mark.parametrize("form", FORMS)
def test_they_are_compared_and_imitated(form: str) -> None:
    dense = Net(form)
    result = netadapt(dense, 0.5, example_inputs=DATA[:2], calibration=[DATA], config=QUICK, progress=False)
    mine, theirs = (tensors_out(network.eval()(DATA)) for network in (result.model, dense))
    assert 0 < -result.score < 1 and 0 < float(distance(theirs, mine).detach()) < 1
    tuned = finetune(result, [DATA], epochs=8, distill=1.0, lr=1e-4, progress=False)
    assert 0 < tuned.losses[-1] < tuned.losses[0]


def test_the_distance_of_complex_tensors_is_that_of_their_parts() -> None:
    dense, other = torch.randn(2, 4, 3, 2).unbind()
    mine, theirs = (tensors_out(torch.view_as_complex(t)) for t in (other, dense))
    expected = (dense - other).square().mean() / dense.var(unbiased=False)
    assert torch.allclose(distance(theirs, mine), expected)


def test_data_on_which_the_network_gives_no_number_are_refused_before_any_work() -> None:
    spoiled = [DATA, torch.cat([DATA, DATA[:1] * torch.nan])]
    with pytest.raises(InputError, match="on batch 2 of the 2 that judge .* gives NaN or infinity"):
        netadapt(Net("complex"), 0.5, example_inputs=DATA[:2], calibration=spoiled, config=QUICK, progress=False)
