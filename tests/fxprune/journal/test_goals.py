"""A finished search goes on: to a lower budget or more rounds, from its last round; and `keep_rounds`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_search import EXAMPLE, FAST, batches, history, make, negative_loss
from torch import nn

from fxprune import Budget, FineTune, NetAdaptResult, netadapt
from fxprune.errors import InputError, JournalError
from fxprune.io import storage
from fxprune.journal.read_run import read_run
from fxprune.journal.restoring import restored, stored

TRAIN = FineTune(batches(), lr=0.05)


def run(workdir: Path | None, budget: Any, **changes: Any) -> NetAdaptResult:
    given: dict[str, Any] = {"train": TRAIN, "evaluate": negative_loss, "config": FAST, "progress": False}
    return netadapt(make(), budget, example_inputs=EXAMPLE, workdir=workdir, **{**given, **changes})


def contents(folder: Path, pattern: str = "round-*/*") -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob(pattern)}


def candidates(folder: Path) -> int:
    return len(list(folder.glob("round-*/candidate-*.json")))


@pytest.fixture(scope="module")
def further(tmp_path_factory: pytest.TempPathFactory) -> tuple[NetAdaptResult, NetAdaptResult, Path, dict[str, bytes]]:
    """A search to 70 %, the same gone on to 50 %, its folder, and the files of the rounds to 70 %."""
    folder = tmp_path_factory.mktemp("goals") / "run"
    first = run(folder, 0.7)
    before = contents(folder)
    return first, run(folder, 0.5), folder, before


Further = tuple[NetAdaptResult, NetAdaptResult, Path, dict[str, bytes]]


def test_a_lower_budget_goes_on_from_the_last_round(further: Further) -> None:
    first, second, folder, before = further
    assert first.met and second.met and len(second.rounds) > len(first.rounds)
    assert history(second)[: len(first.rounds)] == history(first)
    assert contents(folder).items() >= before.items()  # bit for bit
    assert second.achieved["flops"] <= 0.5 * second.start["flops"] < first.achieved["flops"]
    recorded = read_run(folder)
    assert recorded.budgets == second.budgets and recorded.limits["flops"] == 0.5 * second.start["flops"]
    assert len(recorded.rounds) == recorded.accepted == len(second.rounds)


def test_nothing_that_is_finished_is_trained_again(further: Further, tmp_path: Path) -> None:
    folder = shutil.copytree(further[2], tmp_path / "copy")

    def never(model: nn.Module, steps: int) -> None:
        raise AssertionError("trained again")

    again = run(folder, 0.5, train=never)
    assert history(again) == history(further[1]) and again.timings.train == 0


def test_a_higher_budget_is_answered_from_the_rounds(further: Further, tmp_path: Path) -> None:
    first, second, folder = further[0], further[1], shutil.copytree(further[2], tmp_path / "copy")
    again = run(folder, 0.7)
    assert again.accepted == first.accepted and again.widths == first.widths
    assert len(again.rounds) == len(second.rounds) and "answered by" not in again.summary()
    between = run(folder, 0.9)
    assert between.met and between.accepted < first.accepted
    assert "answered by a round of an earlier budget" in between.summary() and "another workdir" in between.summary()
    assert read_run(folder).accepted == between.accepted and contents(folder) == contents(further[2])
    assert history(run(folder, 0.5)) == history(second)


def test_more_rounds(tmp_path: Path) -> None:
    one = run(tmp_path, 0.5, config=FAST.replace(netadapt_max_rounds=1))
    kept = contents(tmp_path)
    three = run(tmp_path, 0.5, config=FAST.replace(netadapt_max_rounds=3))
    assert (len(one.rounds), len(three.rounds)) == (1, 3) and not three.met
    assert history(three) == history(run(None, 0.5, config=FAST.replace(netadapt_max_rounds=3)))
    assert contents(tmp_path).items() >= kept.items()
    assert read_run(tmp_path).config.netadapt_max_rounds == 3


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.parametrize("at", [1, 2, 3, 5, 8])
def test_killed_after_the_goal_has_changed(
    further: Further, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    run(tmp_path, 0.7)
    left, write = [at], storage.os.replace

    def replace(source: Any, target: Any) -> None:
        write(source, target)
        left[0] -= 1
        if not left[0]:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("fxprune.io.storage.os.replace", replace)
        with pytest.raises(Killed):
            run(tmp_path, 0.5)
    assert read_run(tmp_path).result is None and read_run(tmp_path).limits["flops"] == 0.5 * further[1].start["flops"]
    again = run(tmp_path, 0.5, resume=True)
    assert history(again) == history(further[1])
    tensors = further[1].model.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in again.model.state_dict().items())


def test_a_damaged_round_of_the_first_goal_is_done_again_as_it_was(further: Further, tmp_path: Path) -> None:
    first, second, folder = further[0], further[1], shutil.copytree(further[2], tmp_path / "copy")
    shutil.rmtree(folder / f"round-{len(first.rounds):04d}")
    again = run(folder, 0.5)
    assert history(again) == history(second)


def test_other_resources_and_all_else_are_refused(further: Further) -> None:
    with pytest.raises(JournalError, match=r"budgets: .*flops.* there, .*params.* here.*are fine"):
        run(further[2], {"resource": "params", "ratio": 0.5})
    with pytest.raises(JournalError, match="netadapt_max_iter: 2 there, 3 here"):
        run(further[2], 0.4, config=FAST.replace(netadapt_max_iter=3))


def test_the_order_of_budgets_makes_no_other_goal(tmp_path: Path) -> None:
    both = [{"resource": "macs", "ratio": 0.8}, {"resource": "params", "ratio": 0.9}]
    config = FAST.replace(netadapt_max_rounds=9)
    first = run(tmp_path, [Budget(**budget) for budget in both], config=config)  # type: ignore[arg-type]
    again = run(tmp_path, [Budget(**budget) for budget in both[::-1]], config=config)  # type: ignore[arg-type]
    named = run(tmp_path, None, config=config.replace(budgets=both[::-1]))
    assert history(again) == history(named) == history(first) and again.timings.train == 0
    assert not (tmp_path / "goals.json").exists()


def test_a_network_within_its_budget_is_a_run_too(tmp_path: Path) -> None:
    def go(ratio: float, **how: Any) -> NetAdaptResult:
        return run(tmp_path, {"resource": "macs", "ratio": ratio}, **how)

    assert go(1.0).rounds == ()
    found = read_run(tmp_path)
    assert (found.rounds, found.accepted) == ((), 0) and found.result is not None and found.result["met"]
    assert torch.equal(restored(found, make(), EXAMPLE).network(EXAMPLE), make()(EXAMPLE))
    lower = go(0.8, resume=True)
    assert history(lower) == history(run(None, {"resource": "macs", "ratio": 0.8})) and go(1.0).rounds == ()
    assert history(go(0.8)) == history(lower)


@pytest.mark.parametrize("broken", ["{", '{"payload": {"goals": [{"after": 0}]}, "sha256": ""}'])
def test_damaged_goals(further: Further, tmp_path: Path, broken: str) -> None:
    folder = shutil.copytree(further[2], tmp_path / "copy")
    (folder / "goals.json").write_text(broken)
    assert "goals.json" in read_run(folder).damage[0]
    assert history(run(folder, 0.5)) == history(further[1])


def test_goals_of_another_order_are_damage(further: Further, tmp_path: Path) -> None:
    folder = shutil.copytree(further[2], tmp_path / "copy")
    found = storage.read_json(folder / "goals.json")
    assert found is not None
    storage.write_json(folder / "goals.json", {"goals": found["goals"][::-1]})
    assert "order" in read_run(folder).damage[0]


def test_goals_of_another_run_are_damage(further: Further, tmp_path: Path) -> None:
    run(tmp_path / "other", 0.9)
    run(tmp_path / "other", 0.8)
    folder = shutil.copytree(further[2], tmp_path / "copy")
    shutil.copy(tmp_path / "other/goals.json", folder)
    assert "another run" in read_run(folder).damage[0]
    assert history(run(folder, 0.5)) == history(further[1])


def test_a_damaged_run_record_of_a_search_that_went_on(further: Further, tmp_path: Path) -> None:
    folder = shutil.copytree(further[2], tmp_path / "copy")
    before = json.loads((folder / "run.json").read_text())["payload"]["identity"]
    (folder / "run.json").write_text("{")
    again = run(folder, 0.5)
    assert history(again) == history(further[1]) and again.timings.train == 0
    assert json.loads((folder / "run.json").read_text())["payload"]["identity"] == before


@pytest.fixture(scope="module")
def direct() -> NetAdaptResult:
    return run(None, 0.5)


def test_keep_rounds(direct: NetAdaptResult, tmp_path: Path) -> None:
    second, config = direct, FAST.replace(keep_rounds=2)
    kept = run(tmp_path, 0.5, config=config)
    count = len(kept.rounds)
    assert history(kept) == history(second) and count > 3
    have = sorted(path.parent.name for path in tmp_path.glob("round-*/weights.safetensors"))
    assert have == [f"round-{number:04d}" for number in (count - 1, count)]
    kept.restore(count - 1)
    with pytest.raises(JournalError, match=f"round 1 were removed, as keep_rounds asked; kept .* {count - 1}, {count}"):
        kept.restore(1)
    with pytest.raises(JournalError, match="round 1 were removed"):
        stored(read_run(tmp_path), 1)
    assert read_run(tmp_path).damage == () and len(read_run(tmp_path).rounds) == count
    again = run(tmp_path, 0.5, config=config)
    assert history(again) == history(second) and again.timings.train == 0
    on = run(tmp_path, 0.4, config=config)
    assert history(on)[:count] == history(second) and on.met
    with pytest.raises(JournalError, match="removed"):
        run(tmp_path, 0.8, config=config)


def test_removed_rounds_are_done_again_where_what_went_on_from_them_is_lost(
    direct: NetAdaptResult, tmp_path: Path
) -> None:
    kept = run(tmp_path, 0.5, config=FAST.replace(keep_rounds=1))
    (last,) = tmp_path.glob("round-*/weights.safetensors")
    last.write_bytes(b"lost")
    again = run(tmp_path, 0.5, config=FAST.replace(keep_rounds=1))
    assert history(again) == history(kept) == history(direct)
    tensors = kept.model.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in again.model.state_dict().items())


def test_the_returned_round_is_always_kept(tmp_path: Path) -> None:
    given: dict[str, Any] = {"train": None, "evaluate": lambda model: float(sum(p.numel() for p in model.parameters()))}
    floor = run(None, 0.5, **given).rounds[0].score
    config = FAST.replace(keep_rounds=1, min_accuracy=floor, patience=1)
    accepted = run(tmp_path, 0.5, config=config, **given).accepted
    assert 0 < accepted < len(read_run(tmp_path).rounds)
    assert (tmp_path / f"round-{accepted:04d}/weights.safetensors").is_file()


def test_weights_that_follow_from_the_plan_are_rebuilt(tmp_path: Path) -> None:
    given: dict[str, Any] = {"train": None, "evaluate": None}
    whole = run(tmp_path / "whole", 0.5, **given)
    result = run(tmp_path / "few", 0.5, config=FAST.replace(keep_rounds=1), **given)
    ours, theirs = result.restore(1).state_dict(), whole.restore(1).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    with pytest.raises(InputError, match="name the model with --model"):
        stored(read_run(tmp_path / "few"), 1)
    assert restored(read_run(tmp_path / "few"), make(), EXAMPLE, 1).number == 1


def test_a_search_by_calibration_data_goes_on(tmp_path: Path) -> None:
    given: dict[str, Any] = {"train": None, "evaluate": None, "calibration": [x for x, _ in batches()]}
    first = run(tmp_path, 0.7, **given)
    kept = contents(tmp_path)
    second = run(tmp_path, 0.5, **given)
    assert (len(first.rounds), len(second.rounds)) == (1, 2) and second.met and second.calibrated
    assert contents(tmp_path).items() >= kept.items()
    assert "answered by" in run(tmp_path, 0.9, **given).summary()
