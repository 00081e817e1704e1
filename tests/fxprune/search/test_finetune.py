"""Long training after the search: the user's epochs, the ready-made ones, distillation, and the proof afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune import Accuracy, DLContext, FineTune, finetune, netadapt, train
from fxprune.errors import InputError
from fxprune.training.distillation import output_loss
from fxprune.training.steps import rate


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip


def make_batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Images whose brightest quarter is the class: learnable in a few epochs."""
    torch.manual_seed(1)
    found = []
    for _ in range(count):
        labels = torch.randint(4, (16,))
        images = 0.3 * torch.randn(16, 3, 8, 8)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[:, :, 2 * label : 2 * label + 2] += torch.tensor([1.0, -1.0, 0.5])[:, None, None] * (label + 1)
        found.append((images, labels))
    return found


IMAGE = torch.zeros(1, 3, 8, 8)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("search")
    batches = make_batches()
    result = netadapt(
        net().eval(), 0.5, example_inputs=IMAGE, train=FineTune(batches, 0.02), evaluate=Accuracy(batches),
        config={"budget_reduce_rate_init": 0.2, "netadapt_max_iter": 2}, workdir=folder, progress=False,
    )  # fmt: skip
    return result, folder


def test_finetune_trains_the_accepted_network_and_proves_it_again(searched) -> None:  # type: ignore[no-untyped-def]
    result, _ = searched
    before = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}
    batches = make_batches()
    tuned = finetune(result, batches, evaluate=Accuracy(batches), epochs=6, lr=0.1, progress=False)
    assert tuned.score == max(tuned.scores) >= result.score and tuned.losses[-1] < tuned.losses[0]
    assert tuned.scores[tuned.epoch - 1] == tuned.score == Accuracy(batches)(tuned.model)
    assert tuned.certificate is not None and tuned.certificate.trained and tuned.certificate.max_error < 1e-9
    assert not tuned.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in result.model.state_dict().items())
    again = finetune(result, batches, evaluate=Accuracy(batches), epochs=6, lr=0.1, progress=False)
    assert again.losses == tuned.losses


def test_any_round_is_a_start_from_the_result_or_the_folder(searched) -> None:  # type: ignore[no-untyped-def]
    result, folder = searched
    options = {"epochs": 1, "progress": False}
    here = finetune(result, make_batches(), round=1, **options)
    there = finetune(folder, make_batches(), round=1, model=net().eval(), example_inputs=IMAGE, **options)
    guessed = finetune(folder, make_batches(), round=1, model=net().eval(), **options)
    assert here.model.get_submodule("3").weight.shape == result.restore(1).get_submodule("3").weight.shape
    for other in (there, guessed):
        mine = here.model.state_dict()
        assert all(torch.equal(tensor, mine[name]) for name, tensor in other.model.state_dict().items())
        assert other.certificate is not None
    assert finetune(folder, make_batches(), model=net(), **options).model.training  # as the model that was passed
    with pytest.raises(InputError, match="no round 99"):
        finetune(folder, make_batches(), round=99, model=net(), **options)
    with pytest.raises(InputError, match="pass model="):
        finetune(folder, make_batches(), **options)


def test_distillation_pulls_towards_the_dense_network(searched) -> None:  # type: ignore[no-untyped-def]
    result, _ = searched
    images = torch.cat([images for images, _ in make_batches()])
    wanted = F.log_softmax(result.dense.eval()(images), 1)

    def distance(model: nn.Module) -> float:
        return F.kl_div(F.log_softmax(model(images), 1), wanted, reduction="batchmean", log_target=True).item()

    alone = finetune(result, make_batches(), epochs=8, lr=0.05, progress=False)
    taught = finetune(result, make_batches(), epochs=8, lr=0.05, distill=1.0, temperature=2.0, progress=False)
    assert distance(taught.model) < 0.5 * distance(alone.model)
    assert all(parameter.requires_grad for parameter in result.dense.parameters())


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor | None = None, labels: Tensor | None = None) -> dict[str, Tensor]:
        scores = self.head(hidden := self.body(x).tanh())
        found = {"scores": scores, "hidden": hidden}
        return found if labels is None else {"loss": F.cross_entropy(scores, labels), **found}


@pytest.mark.parametrize("form", ["tensor", "dict", "pair", "dict and labels"])
def test_distillation_alone_needs_no_labels_and_takes_any_outputs(form: str) -> None:
    torch.manual_seed(0)
    teacher, student = TwoOutputs(), TwoOutputs()
    x, y = torch.randn(32, 4), torch.zeros(32, dtype=torch.long)
    batches = {"tensor": [x], "dict": [{"x": x}], "pair": [({"x": x}, y)], "dict and labels": [{"x": x, "labels": y}]}
    tuned = finetune(student, batches[form], teacher=teacher, distill=1.0, epochs=60, lr=0.2, progress=False)
    assert tuned.losses[-1] < 0.5 * tuned.losses[0]


def test_the_soft_loss_is_that_of_the_paper() -> None:
    student, teacher, t = torch.randn(5, 7), torch.randn(5, 7), 3.0
    p, q = F.softmax(teacher / t, 1), F.softmax(student / t, 1)
    assert output_loss(student, teacher, t).item() == pytest.approx(
        t * t * (p * (p / q).log()).sum(1).mean().item(), rel=1e-5
    )
    assert output_loss(teacher, teacher, t).item() == pytest.approx(0, abs=1e-6)


def test_a_module_is_trained_in_place() -> None:
    model = net()
    tuned = finetune(model, make_batches(), epochs=2, progress=False, amp=True, channels_last=True)
    assert tuned.model is model and tuned.certificate is None and tuned.score is None and tuned.epoch == 2
    with pytest.raises(InputError, match="distill needs a teacher"):
        finetune(model, make_batches(), epochs=1, distill=0.5)
    finetune(model, make_batches(), epochs=1, distill=0.5, teacher=net(), progress=False)


def test_the_weights_of_the_best_epoch_are_returned() -> None:
    model = net()
    scores, seen = iter([1.0, 3.0, 2.0]), []

    def evaluate(network: nn.Module) -> float:
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return next(scores)

    tuned = finetune(model, make_batches(), epochs=3, evaluate=evaluate, progress=False)
    assert (tuned.epoch, tuned.score, tuned.scores) == (2, 3.0, (1.0, 3.0, 2.0))
    assert all(torch.equal(tensor, seen[1][name]) for name, tensor in model.state_dict().items())


def test_the_rate_rises_in_a_line_and_falls_in_a_cosine() -> None:
    assert rate(0, 10, 2, least=0.1) == pytest.approx(0.1 / 2.1)
    assert rate(1, 10, 2) == pytest.approx(0.5) and rate(2, 10, 2) == 1.0
    assert rate(6, 10, 2) == pytest.approx(0.5) and rate(10, 10, 2) == pytest.approx(0)
    used: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):  # type: ignore[no-untyped-def]
            used.append(self.param_groups[0]["lr"])
            return super().step(closure)

    finetune(net(), make_batches(), epochs=4, optimizer=lambda parameters: Watched(parameters, 0.2), progress=False)
    assert len(used) == 16 and max(used) == pytest.approx(0.2) and used[0] == pytest.approx(0.2 * 0.25 / 1.25)
    assert used[-1] < 0.01


def test_what_finetune_refuses() -> None:
    for options, said in (
        ({"epochs": 0}, "epochs: got 0; expected an integer of at least 1"),
        ({"distill": 1.5}, "distill, a share of the loss: got 1.5"),
        ({"temperature": 0}, "temperature is 0"),
        ({"round": 2}, "no rounds"),
    ):
        with pytest.raises(InputError, match=said):
            finetune(net(), make_batches(), **options)
    with pytest.raises(InputError, match="expected a module"):
        finetune(7, make_batches())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="holds no batch"):
        finetune(net(), iter(make_batches(1)), epochs=2, progress=False)
    with pytest.raises(InputError, match="no parameter"):
        finetune(net().requires_grad_(False), make_batches())


def test_train_keeps_the_best_epoch(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    model, scores, epochs = net(), iter([-5.0, -3.0, -4.0]), []
    weights: list[dict] = []

    class Sampler:
        def set_epoch(self, epoch: int) -> None:
            epochs.append(epoch)

    def validate(network: nn.Module, context: DLContext) -> float:
        weights.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return next(scores)

    context = DLContext(
        make_batches(), Sampler(), make_batches(), nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1),
        max_epoch=3,
    )  # fmt: skip
    assert train(model, context, fxprune.data.train_one_epoch, validate) == -3.0  # also where a metric is negative
    assert (context.best_acc, context.best_epoch, context.epoch, epochs) == (-3.0, 1, 2, [0, 1, 2])
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in model.state_dict().items())
    saved = load_file(tmp_path / "out" / "best_model.safetensors")
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in saved.items())


def test_train_overwrites_its_own_weights_alone(tmp_path: Path) -> None:
    kept, epochs = tmp_path / "best_model.safetensors", []

    def go() -> None:
        train(net(), DLContext(max_epoch=1), lambda *_: epochs.append(1), lambda *_: 1.0, work_dir=tmp_path)

    go(), go()
    for change in (lambda: kept.write_bytes(kept.read_bytes()[:-1] + b"x"), lambda: kept.write_text("mine")):
        change()
        before = kept.read_bytes()
        with pytest.raises(InputError, match="fxprune did not write it, or it was changed since; .* work_dir=FOLDER"):
            go()
        assert kept.read_bytes() == before and len(epochs) == 2
    train(net(), DLContext(max_epoch=1), lambda *_: 0, lambda *_: 1.0, main_process=False, work_dir=tmp_path)


def test_train_takes_the_functions_of_the_context_and_names_what_is_missing(tmp_path: Path) -> None:
    model = net()
    context = DLContext(make_batches(), val_loader=make_batches(), criterion=nn.CrossEntropyLoss())
    with pytest.raises(InputError, match="no train_func"):
        train(model, context)
    context.train_func, context.validate_func = fxprune.data.train_one_epoch, fxprune.data.validate
    with pytest.raises(InputError, match="max_epoch is not set"):
        train(model, context)
    context.max_epoch, context.optimizer = 1, torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(InputError, match="quantization"):
        train(model, context, qat=True)
    assert train(model, context, work_dir=tmp_path) == context.best_acc


def test_a_part_of_a_model_is_fine_tuned_inside_the_whole() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = net()[:7], nn.Linear(24, 4)

        def forward(self, images: list[Tensor]) -> Tensor:
            return self.head(self.body(torch.stack(list(images))))

    whole = Whole().eval()
    batches = [(list(images), labels) for images, labels in make_batches(2)]
    result = netadapt(
        whole, 0.6, scope="body", example_inputs=(list(make_batches(1)[0][0][:2]),),
        config={"budget_reduce_rate_init": 0.2}, progress=False,
    )  # fmt: skip
    tuned = finetune(result, batches, epochs=2, distill=0.5, progress=False)
    assert isinstance(tuned.model, Whole) and tuned.losses[-1] < tuned.losses[0]
    assert tuned.certificate is not None and tuned.certificate.trained
    before, after = result.model.head.weight, tuned.model.head.weight
    assert not torch.equal(before, after)  # what is not pruned is trained too


def test_inputs_of_several_arguments() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.linear(a + b)

    a, b, labels = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    torch.manual_seed(0)
    first = finetune(Sum(), [((a, b), labels)], epochs=2, progress=False)
    torch.manual_seed(0)
    second = finetune(Sum(), [({"a": a, "b": b}, labels)], epochs=2, progress=False)
    assert first.losses == second.losses


def test_where_there_is_no_terminal_lines_say_how_far_an_epoch_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxprune.data.loops.EVERY_S", 0.0)
    with caplog.at_level("INFO", logger="fxprune.data.loops"):
        finetune(net(), make_batches(3), epochs=2)
        assert caplog.messages[0].startswith("fine-tune, epoch 1 of 2: 1 of 3 batches, ") and len(caplog.messages) == 6
        caplog.clear()
        finetune(net(), make_batches(3), epochs=2, progress=False)
        assert not caplog.messages
