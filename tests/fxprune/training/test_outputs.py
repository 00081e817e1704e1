"""Batches and outputs of any form in `FineTune`, `Accuracy` and `finetune`; the network's own loss; tokens; pixels."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune import Accuracy, FineTune, finetune, netadapt
from fxprune.errors import InputError
from fxprune.training.outputs import loss_of, main_output, own_loss

X = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


@dataclass
class Scores:
    logits: Tensor
    loss: Tensor | None = None
    hidden: Tensor | None = None


class Named(nn.Module):
    """As Hugging Face models are called: by keyword, with labels or without, for a dataclass or a mapping."""

    def __init__(self, of: Callable[..., Any] = Scores) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 16))
        self.head, self.of = nn.Linear(16, 3), of

    def forward(self, inputs: Tensor | None = None, mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        hidden = self.body(inputs).relu()
        if mask is not None:
            hidden = hidden * mask[:, None]
        logits = self.head(hidden)
        return self.of(logits=logits, loss=None if labels is None else F.cross_entropy(logits, labels), hidden=hidden)


class Encoding(UserDict):
    """A mapping that is no dict, as tokenizers return."""


FORMS: dict[str, Any] = {
    "a dict": {"inputs": X, "labels": Y},
    "an encoding with more": Encoding({"inputs": X, "mask": torch.ones(24), "labels": Y, "ids": ["a"] * 24}),
    "labels by another name": {"inputs": X, "label": Y},
    "a pair": (X, Y),
    "a pair of lists": [X, Y],
    "arguments and labels": ((X, torch.ones(24)), Y),
    "a dict and labels": ({"inputs": X}, Y),
}


@pytest.mark.parametrize("of", [Scores, dict], ids=["dataclass", "mapping"])
@pytest.mark.parametrize("form", FORMS)
def test_batches_of_any_form_train_score_and_distil(form: str, of: Callable[..., Any]) -> None:
    batches = [FORMS[form]]
    network = Named(of)
    FineTune(batches, lr=0.2)(network, 60)
    assert Accuracy(batches)(network) > 90
    with torch.no_grad():
        assert Accuracy(batches)(network) == pytest.approx(
            100 * float((main_output(network(X)).argmax(1) == Y).float().mean())
        )
    again = finetune(Named(of), batches, epochs=40, lr=0.2, evaluate=Accuracy(batches), progress=False)
    assert again.score is not None and again.score > 90
    if form in ("a pair", "a pair of lists"):  # two inputs, or one and its labels: no example says which
        with pytest.raises(InputError, match="every input of the network may be left out"):
            finetune(Named(of), batches, teacher=network, distill=1.0, epochs=1, progress=False)
        return
    taught = finetune(Named(of), batches, teacher=network, distill=1.0, epochs=40, lr=0.05, progress=False)
    assert taught.losses[-1] < 0.3 * taught.losses[0]
    mixed = finetune(Named(of), batches, teacher=network, distill=0.5, epochs=3, progress=False)
    assert mixed.losses[-1] < mixed.losses[0]


@pytest.mark.parametrize("given", [{"inputs": X, "labels": Y}, (X, Y), {"inputs": X}])
def test_labels_beside_an_example_without_them_calibrate_all_the_same(given: Any) -> None:
    options: dict[str, Any] = {"example_inputs": {"inputs": X[:2]}, "progress": False, "config": {"sweeps": 0}}
    found = netadapt(Named(), 0.6, calibration=[given], **options)
    encoded = netadapt(Named(), 0.6, calibration=[given], **{**options, "example_inputs": Encoding({"inputs": X[:2]})})
    assert encoded.widths == found.widths
    alone = netadapt(Named(), 0.6, calibration=[{"inputs": X}], **options)
    assert found.met and alone.met and found.calibrated


def test_pairs_distil_where_an_example_says_how_many_inputs_there_are() -> None:
    result = netadapt(Named(), 0.6, example_inputs={"inputs": X[:2]}, progress=False)
    tuned = finetune(result, [(X, Y)], distill=1.0, epochs=5, lr=0.02, progress=False)
    assert tuned.losses[-1] < tuned.losses[0]


def test_calibration_of_other_inputs_than_the_example_is_refused() -> None:
    def search(example: Any, given: Any) -> None:
        netadapt(Named(), 0.6, example_inputs=example, calibration=[given], progress=False)

    mask = torch.zeros(24)
    with pytest.raises(InputError, match="a batch has 'mask', example_inputs has not, and the outputs follow from it"):
        search({"inputs": X[:2]}, {"inputs": X, "mask": mask})
    with pytest.raises(InputError, match="a batch has no 'mask', and example_inputs has"):
        search({"inputs": X[:2], "mask": mask[:2]}, {"inputs": X})


def test_a_loss_of_torch_gets_the_scores_and_another_all_outputs() -> None:
    outputs, seen = Named()(X, labels=Y), []
    assert loss_of(outputs, Y, None, "") is outputs.loss
    assert loss_of(outputs, Y, nn.CrossEntropyLoss(), "") == F.cross_entropy(outputs.logits, Y)
    assert loss_of(outputs, Y, F.cross_entropy, "") == F.cross_entropy(outputs.logits, Y)
    loss_of(outputs, Y, lambda out, labels: seen.append((out, labels)), "")  # type: ignore[arg-type, return-value]
    assert seen == [(outputs, Y)]


def test_losses_alone_are_summed_and_other_numbers_are_no_loss() -> None:
    assert own_loss({"loss_boxes": torch.tensor(2.0), "loss_classes": torch.tensor(3.0)}) == 5
    assert own_loss({"loss_boxes": torch.tensor(2.0), "score": torch.tensor(3.0)}) is None
    assert own_loss({}) is None and own_loss(X) is None


def test_without_labels_there_is_nothing_to_train_by() -> None:
    for call in (FineTune([{"inputs": X}]), lambda network, _: Accuracy([{"inputs": X}])(network)):
        with pytest.raises(InputError, match="a batch has no labels"):
            call(Named(), 2)
    with pytest.raises(InputError, match="a batch has no labels.*distill=1.0"):
        finetune(Named(), [{"inputs": X}], epochs=1, progress=False)


@pytest.mark.parametrize(
    ("classes", "labels", "said"),
    [(1, torch.randn(6, 1), "mse_loss"), (3, torch.randn(6, 3), "mse_loss"), (3, torch.rand(6), "mse_loss"),
     (1, torch.randint(2, (6,)), "binary_cross_entropy_with_logits")],
)  # fmt: skip
def test_what_cross_entropy_cannot_learn_is_refused(classes: int, labels: torch.Tensor, said: str) -> None:
    net, x = nn.Linear(4, classes), torch.randn(6, 4)
    with pytest.raises(InputError, match=f"pass a loss, such as torch.nn.functional.{said}"):
        FineTune([(x, labels)])(net, 1)


def test_shares_of_classes_are_learnt() -> None:
    net, x = nn.Linear(4, 3), torch.randn(6, 4)
    FineTune([(x, torch.rand(6, 3).softmax(1))], lr=0.1)(net, 2)
    assert torch.isfinite(net.weight).all()


class Tokens(nn.Module):
    """Scores of each token (n, t, classes), and the loss of these labels or of the next ones."""

    def __init__(self, shifted: bool, classes: int = 7) -> None:
        super().__init__()
        self.table, self.shifted = nn.Embedding(7, classes), shifted

    def forward(self, ids: Tensor, labels: Tensor | None = None) -> Scores:
        logits = self.table(ids)
        if labels is None:
            return Scores(logits)
        mine, meant = (logits[:, :-1], labels[:, 1:]) if self.shifted else (logits, labels)
        return Scores(logits, F.cross_entropy(mine.flatten(0, 1), meant.flatten()))


@pytest.mark.parametrize("length", [4, 7], ids=["other sizes", "as many tokens as classes"])
def test_scores_of_tokens_are_compared_with_the_labels_that_the_loss_means(length: int) -> None:
    ids = (torch.arange(5)[:, None] + torch.arange(length)) % 7
    ids[0, 2] = 6
    counting = Tokens(shifted=True)
    with torch.no_grad():
        counting.table.weight.copy_(8 * torch.eye(7).roll(1, 1))  # after each token comes the next number
    right = (ids[:, 1:] == (ids[:, :-1] + 1) % 7).float().mean()
    assert Accuracy([{"ids": ids, "labels": ids}])(counting) == pytest.approx(100 * float(right))
    counting.shifted = False  # now the same scores are meant for the tokens themselves
    assert Accuracy([{"ids": ids, "labels": ids}])(counting) == 0
    ignored = torch.where(ids == 6, -100, (ids + 1) % 7)
    assert Accuracy([{"ids": ids, "labels": ignored}])(counting) == 100


def test_labels_that_can_be_read_in_two_ways_are_refused() -> None:
    class Plain(Tokens):
        def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(ids).logits

    square, other = torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, 4, dtype=torch.long)
    assert Accuracy([(other, other)])(Plain(False)) is not None
    for call in (Accuracy([(square, square)]), lambda network: FineTune([(square, square)])(network, 1)):
        with pytest.raises(InputError, match="either dimension could be that of the classes"):
            call(Plain(False))
    FineTune([(square, square)], loss=lambda out, y: F.cross_entropy(out.flatten(0, 1), y.flatten()))(Plain(False), 1)


def test_maps_of_classes_have_them_in_the_second_dimension() -> None:
    images, labels = torch.randn(4, 3, 6, 5), torch.randint(2, (4, 6, 5))
    network = nn.Conv2d(3, 2, 1)
    FineTune([(images, labels)])(network, 1)
    expected = (network(images).argmax(1) == labels).float().mean()
    assert Accuracy([(images, labels)])(network) == pytest.approx(100 * float(expected))


def test_labels_that_are_no_classes_are_refused() -> None:
    with pytest.raises(InputError, match="labels that are no class numbers"):
        Accuracy([(X, X)])(nn.Linear(5, 5))
    with pytest.raises(InputError, match="do not fit"):
        Accuracy([(X, Y[:3])])(nn.Linear(5, 5))
