"""A `transformers.Trainer` as the training code of a search: its data, loss, metrics, optimizer for each candidate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxprune import Budget, NetAdaptConfig, netadapt
from fxprune.errors import InputError
from fxprune.integrations.transformers import functions

pytestmark = pytest.mark.slow  # transformers and accelerate are imported
CONFIG = NetAdaptConfig(netadapt_max_iter=3, budget_reduce_rate_init=0.3, netadapt_max_rounds=1, step=4)


def examples(count: int) -> list[dict[str, Any]]:
    tokens = torch.randint(5, 60, (count, 9), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": int((row < 20).sum() > 2)} for row in tokens]


def model() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(
        vocab_size=64, dim=16, hidden_dim=24, n_layers=1, n_heads=2, max_position_embeddings=16, num_labels=2
    )
    return transformers.DistilBertForSequenceClassification(config).eval()


def accuracy(predicted: Any) -> dict[str, float]:
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}


def arguments(folder: Path, **options: Any) -> Any:
    pytest.importorskip("accelerate")
    from transformers import TrainingArguments

    return TrainingArguments(
        str(folder), max_steps=2, learning_rate=1e-2, report_to=[], disable_tqdm=True, use_cpu=True, **options
    )


def trainer(folder: Path, kind: type | None = None, network: nn.Module | None = None, **options: Any) -> Any:
    from transformers import Trainer

    own = {name: options.pop(name) for name in ("optimizers", "callbacks", "eval_dataset") if name in options}
    given: dict[str, Any] = {"train_dataset": examples(32), "eval_dataset": examples(16), **own}
    return (kind or Trainer)(network or model(), arguments(folder, **options), compute_metrics=accuracy, **given)


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"gradient_accumulation_steps": 2}])
def test_a_search_trains_scores_and_calibrates_by_the_trainer(options: Any, tmp_path: Path) -> None:
    f = functions(trainer(tmp_path, **options), metric="accuracy")
    dense = model()
    forward = dense.__dict__.get("forward")
    score = f.evaluate(dense)
    assert 0 <= score <= 1 and dense.__dict__.get("forward") is forward
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    f.train(dense, 3)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    assert dense.__dict__.get("forward") is forward and f.trainer.model is not dense
    result = netadapt(
        model(), Budget("macs", ratio=0.8), example_inputs={"input_ids": torch.randint(5, 60, (2, 9))},
        train=f.train, evaluate=f.evaluate, config=CONFIG, progress=False,
    )  # fmt: skip
    assert result.rounds and not result.data_free
    chosen = netadapt(
        model(), Budget("macs", ratio=0.8), example_inputs={"input_ids": torch.randint(5, 60, (2, 9))},
        calibration=f.calibration, config={"refine": 0}, progress=False,
    )  # fmt: skip
    assert chosen.calibrated and type(chosen.model) is type(dense)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_training_is_the_same_each_time_and_counts_steps(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Counting(TrainerCallback):
        steps = 0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            Counting.steps += 1

    f = functions(trainer(tmp_path, callbacks=[Counting()]), metric="accuracy")
    networks = [model(), model()]
    for network in networks:
        torch.manual_seed(3)
        f.train(network, 5)
    assert Counting.steps == 10
    first, second = (network.state_dict() for network in networks)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_each_candidate_has_callbacks_of_its_own(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    ended: list[int] = []

    class Stopping(TrainerCallback):
        """Stops at the third step that it counts: once for all candidates, if they shared it."""

        def __init__(self) -> None:
            self.steps, self.trainer = [0], None

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.steps[0] += 1
            control.should_training_stop = self.steps[0] >= 3

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            assert self.trainer is given  # what it refers to is not copied with it
            ended.append(state.global_step)

    own = Stopping()
    given = trainer(tmp_path, callbacks=[own])
    own.trainer = given
    for _ in range(2):
        functions(given).train(model(), 5)
    assert ended == [3, 3] and own.steps == [0]


def test_a_class_and_an_optimizer_of_ones_own_are_kept(tmp_path: Path) -> None:
    from transformers import Trainer

    class Weighted(Trainer):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.weight, self.seen = 0.0, []

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
            self.seen.append((type(self), self.optimizer))
            return self.weight * super().compute_loss(model, inputs, *args, **options)

    network = model()
    optimizer = torch.optim.SGD([{"params": network.parameters(), "lr": 0.5}], 0.1)
    given = trainer(tmp_path, Weighted, network, optimizers=(optimizer, None))
    trained = model()
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    functions(given).train(trained, 2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())  # a loss of zero
    kinds = {kind for kind, _ in given.seen}
    assert kinds == {Weighted}
    rebuilt = given.seen[0][1]
    rebuilt = getattr(rebuilt, "optimizer", rebuilt)
    assert type(rebuilt) is torch.optim.SGD and rebuilt.param_groups[0]["initial_lr"] == 0.5
    assert rebuilt.param_groups[0]["params"][0] is next(trained.parameters())


def test_less_of_a_loss_is_better_and_what_is_missing_is_said(tmp_path: Path) -> None:
    f = functions(trainer(tmp_path))
    assert (f.metric, f.higher) == ("eval_loss", False) and f.evaluate(model()) < 0
    best = functions(trainer(tmp_path, metric_for_best_model="accuracy", greater_is_better=True))
    assert (best.metric, best.higher) == ("eval_accuracy", True)
    with pytest.raises(InputError, match="no 'eval_f1'; pass functions"):
        functions(trainer(tmp_path), metric="f1").evaluate(model())
    with pytest.raises(InputError, match="the trainer has no eval_dataset"):
        functions(trainer(tmp_path, eval_dataset=None))
    with pytest.raises(InputError, match="expected a transformers.Trainer"):
        functions(model())  # type: ignore[arg-type]
