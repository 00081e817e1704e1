"""What a function that only scores does to a network is put back."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fxprune.training.unchanged import unchanged
from passes.process.torch_private import HOOK_TABLES


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor, by: float = 1.0) -> torch.Tensor:
        return x * by


def _before(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return args, {"by": kwargs["by"] + 1}


def _after(module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
    return output + kwargs["by"]


def test_hooks_that_are_removed_are_called_as_before() -> None:
    network = Scaled()
    handles = [
        network.register_forward_pre_hook(_before, with_kwargs=True),
        network.register_forward_hook(_after, with_kwargs=True, always_call=True),
    ]
    expected = network(torch.ones(1), by=2.0)
    with unchanged(network):
        for handle in handles:
            handle.remove()
    assert torch.equal(network(torch.ones(1), by=2.0), expected)
    for handle in handles:
        handle.remove()
    assert torch.equal(network(torch.ones(1), by=2.0), torch.tensor([2.0]))


def test_hooks_of_every_kind_that_are_added_are_gone() -> None:
    network = Scaled()
    with unchanged(network):
        network.register_forward_pre_hook(_before, with_kwargs=True)
        network.register_forward_hook(_after, with_kwargs=True, always_call=True)
        network.register_full_backward_hook(lambda *_: None)
        network.register_full_backward_pre_hook(lambda *_: None)
        network.register_state_dict_post_hook(lambda *_: None)
        network.register_state_dict_pre_hook(lambda *_: None)
        network.register_load_state_dict_pre_hook(lambda *_: None)
        network.register_load_state_dict_post_hook(lambda *_: None)
        assert all(vars(network)[name] for name in HOOK_TABLES)
    assert not any(vars(network)[name] for name in HOOK_TABLES)
