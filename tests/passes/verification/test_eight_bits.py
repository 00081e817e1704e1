"""Weights and values in eight bits: torch knows few operators of these types, and they are cut and proven as others."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fxprune import netadapt
from fxprune.errors import WeightError
from passes import capture

QUICK = {"sweeps": 0, "refined": 1}
INPUT = torch.linspace(-1, 1, 16).reshape(2, 8)


class Scaled(nn.Module):
    """A weight in eight bits, its scales beside it; between the layers values may be in eight bits as well."""

    def __init__(self, kind, between):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(16, 8).to(kind), requires_grad=False)
        self.register_buffer("scale", torch.rand(16).to(kind))
        self.last, self.kind, self.between = nn.Linear(16, 4), kind, between

    def forward(self, x):
        h = F.linear(x, self.weight.float()) * self.scale.float()
        return self.last((h.to(self.kind).float() if self.between else h).relu())


@pytest.mark.parametrize(("kind", "between"), [(torch.float8_e4m3fn, True), (torch.float8_e5m2, False)])
@pytest.mark.parametrize("in_graph", [False, True])
def test_networks_in_eight_bits_are_cut_and_proven(kind, between, in_graph):
    network = Scaled(kind, between).eval()
    network = capture(network, INPUT) if in_graph else network
    result = netadapt(network, 0.6, example_inputs=INPUT, calibration=[INPUT], progress=False, config=QUICK)
    assert result.certificate.max_error < 1e-9 and result.model.weight.dtype == kind
    assert result.model.weight.shape[0] == result.widths["weight"] < 16


def test_eight_bits_that_are_no_number_are_found():
    network = Scaled(torch.float8_e5m2, False)
    network.weight.data[0, 0] = float("inf")
    with pytest.raises(WeightError, match="weight: unit 0 of group weight holds NaN or infinity"):
        netadapt(network, 0.6, example_inputs=INPUT, progress=False)
