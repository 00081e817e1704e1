"""Wrappers around a network: seen through for the analysis, and put around what comes out."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fxprune import Budget, export, finetune, load, netadapt
from fxprune.problem.wrappers import unwrapped

X = torch.randn(2, 3, 9, 9)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


class PassesOn(nn.Module):
    """A wrapper of one's own: a module as any other."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.inner(*args, **kwargs)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS: list[Callable[[nn.Module], Any]] = [
    nn.DataParallel, AveragedModel, compiled, lambda model: compiled(nn.DataParallel(model)), PassesOn,
]  # fmt: skip


def check(wrapped: Any) -> None:
    before = [type(module) for module in wrapped.modules()]
    seen = []

    def evaluate(network: nn.Module) -> float:
        seen.append([type(module) for module in network.modules()])
        return -float(network(X).detach().square().mean())

    def train(network: nn.Module, steps: int) -> None:
        network(X).square().mean().backward()
        torch.optim.SGD(network.parameters(), 0.01).step()

    config = {"netadapt_max_iter": 1, "netadapt_max_rounds": 1}
    result = netadapt(
        wrapped, Budget("macs", ratio=0.7), example_inputs=X, train=train, evaluate=evaluate, config=config,
        progress=False,
    )  # fmt: skip
    for network in (result.model, result.restore(0), finetune(result, _batches(), epochs=1, progress=False).model):
        assert [type(module) for module in network.modules()] == before
        assert list(network.state_dict()) == list(wrapped.state_dict())
        assert [module.training for module in network.modules()] == [module.training for module in wrapped.modules()]
        assert network(X).shape == (2, 4, 5, 5)
    assert all(kinds == before for kinds in seen)
    assert result.model.state_dict().keys() >= {f"{_prefix(wrapped)}0.weight"}
    assert unwrapped(result.model)[0] is result.module


def _batches() -> list[tuple[Tensor, Tensor]]:
    return [(X, torch.zeros(2, 5, 5, dtype=torch.int64))]


def _prefix(wrapped: nn.Module) -> str:
    return next(name for name in wrapped.state_dict() if name.endswith("0.weight")).removesuffix("0.weight")


@pytest.mark.parametrize("wrap", WRAPPERS, ids=["DataParallel", "AveragedModel", "compiled", "both", "own"])
def test_wrappers_come_out_as_they_went_in(wrap: Callable[[nn.Module], Any]) -> None:
    check(wrap(plain()))


def test_distributed_data_parallel_is_made_anew(process_group: None) -> None:
    wrapped = nn.parallel.DistributedDataParallel(plain(), gradient_as_bucket_view=True)
    check(wrapped)


def test_names_are_those_inside_and_load_takes_both(tmp_path: Path) -> None:
    result = netadapt(nn.DataParallel(plain()), 0.5, example_inputs=X, progress=False)
    assert set(result.plan.keep) == {"0"}
    export(result.model, X, tmp_path / "net.safetensors", plan=result.plan)
    expected = result.model(X)
    for model in (plain(), nn.DataParallel(plain()), AveragedModel(plain())):
        again = load(model, tmp_path / "net.safetensors")
        assert type(again) is type(model)
        torch.testing.assert_close(again(X), expected)


def test_a_graph_in_a_wrapper_stays_a_graph_in_a_wrapper() -> None:
    wrapped = nn.DataParallel(torch.fx.symbolic_trace(plain()))
    result = netadapt(wrapped, 0.5, example_inputs=X, progress=False)
    assert type(result.model) is nn.DataParallel and isinstance(result.module, torch.fx.GraphModule)
    bare = netadapt(nn.DataParallel(plain()), 0.5, example_inputs=X, progress=False, form="graph").model
    assert isinstance(bare, torch.fx.GraphModule)  # asked for


def test_a_wrapper_shares_the_tensors_of_its_network_and_nothing_with_another() -> None:
    averaged = AveragedModel(plain())
    inner, wrap = unwrapped(averaged)
    again = wrap(plain().train())
    assert again.training and again.n_averaged is not averaged.n_averaged
    assert inner is averaged.module and unwrapped(inner) == (inner, type(wrap)())
    travelled = pickle.loads(pickle.dumps(wrap))
    assert len(pickle.dumps(wrap)) < 4000 and type(travelled(plain())) is AveragedModel
