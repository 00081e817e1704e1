"""Training one candidate: what leaks from one to the next, and what training must not do to a network."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from small_search import EXAMPLE, FAST, batches, history, make, negative_loss, run
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from fxprune import Accuracy, FineTune, netadapt
from fxprune.errors import SearchError

CONFIG = FAST.replace(netadapt_max_rounds=2)
DATA = TensorDataset(torch.randn(25, 3, 8, 8), torch.randint(5, (25,)))


def own_generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


LOADERS = {
    "loader": lambda: DataLoader(DATA, 6, shuffle=True, generator=own_generator()),
    "sampler": lambda: DataLoader(DATA, 6, sampler=RandomSampler(DATA, generator=own_generator())),
    "batch sampler": lambda: DataLoader(
        DATA, batch_sampler=BatchSampler(RandomSampler(DATA, generator=own_generator()), 6, drop_last=True)
    ),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_what_other_candidates_drew_from_a_loader_changes_nothing(kind: str) -> None:
    """A loader with a generator of its own goes on where it was; a resumed search or another process would not."""
    fresh, used = LOADERS[kind](), LOADERS[kind]()
    for _ in range(3):
        next(iter(used))
    first, second = (run(train=FineTune(data, lr=0.05), config=CONFIG) for data in (fresh, used))
    assert history(first) == history(second)
    chosen = [Accuracy(LOADERS[kind]()) for _ in range(2)]
    next(iter(chosen[1].batches))
    torch.manual_seed(8)
    assert chosen[0](make()) == chosen[1](make())


def test_gradients_that_another_function_switched_off_are_on_again() -> None:
    def evaluate(model: nn.Module) -> float:
        torch.set_grad_enabled(False)
        return negative_loss(model)

    expected = history(run(config=CONFIG))
    assert history(run(evaluate=evaluate, config=CONFIG)) == expected and torch.is_grad_enabled()
    with torch.no_grad():
        assert history(run(config=CONFIG)) == expected and not torch.is_grad_enabled()
    data, model = batches(), make()
    with torch.inference_mode():
        found = netadapt(
            model, 0.5, example_inputs=EXAMPLE, train=FineTune(data, lr=0.05), config=CONFIG, progress=False,
            evaluate=lambda network: -float(sum(nn.functional.cross_entropy(network(x), y).detach() for x, y in data)),
        )  # fmt: skip
    assert history(found) == expected


def test_a_candidate_that_diverges_loses_though_its_accuracy_is_a_number() -> None:
    """NaN weights have an accuracy too, that of class 0; had they won, no later round could rank their units."""

    def train(model: nn.Module, steps: int) -> None:
        if model.get_parameter("stem.weight").shape[0] < 12:
            model.tail.weight.data[0, 0] = math.nan  # type: ignore[union-attr, operator, index]

    first = run(train=train, evaluate=lambda model: 1.0, config=CONFIG).rounds[0]
    errors = {c.group: str(c.error) for c in first.candidates if c.error}
    assert set(errors) == {"stem"} and "training diverged: tail.weight holds NaN" in errors["stem"]
    assert first.chosen_group != "stem"
    with pytest.raises(SearchError, match="training diverged: .* lower the learning rate"):
        run(train=FineTune(batches(), lr=1e20), evaluate=Accuracy(batches()), config=CONFIG)


def _parametrized(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.tail)


def _replaced(model: Any) -> None:
    model.tail = nn.Conv2d(12, 3, 3, stride=2)
    model.head = nn.Linear(3, 5)


@pytest.mark.parametrize(
    ("change", "said"), [(_parametrized, "is gone"), (_replaced, r"has shape \(3, 12, 3, 3\), had \(18, ")]
)
def test_training_that_makes_another_network_is_a_failed_candidate(change: Any, said: str) -> None:
    def train(model: nn.Module, steps: int) -> None:
        if model.get_parameter("branch.0.weight").shape[0] < 14:
            change(model)

    (record,) = run(train=train, config=FAST.replace(netadapt_max_rounds=1, budget_reduce_rate_init=0.05)).rounds
    errors = {c.group: str(c.error) for c in record.candidates if c.error}
    assert set(errors) == {"branch.0"} and record.chosen_group != "branch.0"
    assert re.search(f"train changed the network itself: tail.weight {said}", errors["branch.0"])
