"""The rounds of a search: the schedule, the choice, determinism, failing candidates, when it ends."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from small_search import EXAMPLE, FAST, batches, history, make, negative_loss, run
from torch import nn

from fxprune import Budget, FineTune, NetAdaptResult
from fxprune.errors import ConfigError, InputError, SearchError, WeightError


@pytest.fixture(scope="module")
def result() -> NetAdaptResult:
    torch.manual_seed(0)
    return run()


def test_meets_the_budget_and_each_round_its_target(result: NetAdaptResult) -> None:
    assert result.met and result.stopped == "the budget is met"
    before = result.start["flops"]
    assert result.achieved["flops"] <= 0.5 * before
    here = before
    for number, record in enumerate(result.rounds, 1):
        assert record.round == number
        assert record.targets["flops"] == max(0.5 * before, here * 0.85)
        assert record.achieved["flops"] <= record.targets["flops"] < here
        here = record.achieved["flops"]
    assert result.rounds[-2].achieved["flops"] > 0.5 * before


def test_choice_is_the_best_of_the_feasible(result: NetAdaptResult) -> None:
    for record in result.rounds:
        scored = [c for c in record.candidates if c.feasible]
        assert all(c.trained and c.score is not None and c.error is None for c in scored)
        assert record.winner.score == max(c.score for c in scored if c.score is not None) == record.score
        assert all(c.score is None for c in record.candidates if not c.feasible)
        assert all(c.steps == 2 for c in scored)
        assert record.score < -1  # no sentinel score


def test_what_is_returned_is_certified_runs_and_trains(result: NetAdaptResult) -> None:
    assert result.certificate.max_error <= 1e-9
    model = copy.deepcopy(result.model)
    assert model(torch.randn(3, 3, 8, 8)).shape == (3, 5)
    assert {n: p.shape for n, p in model.named_parameters()}["stem.weight"][0] == result.widths["stem"]
    model(EXAMPLE).sum().backward()
    assert "the budget is met" in result.summary() and result.rounds[0].chosen_group in result.summary()
    assert result.timings.train > 0 and 0 <= result.timings.overhead <= 1


def test_restore(result: NetAdaptResult) -> None:
    assert result.restore(0)(EXAMPLE).shape == (2, 5)
    last = result.restore(len(result.rounds))
    for (name, a), (other, b) in zip(last.state_dict().items(), result.model.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b)
    first = result.restore(1)
    assert first.eval() is first and negative_loss(first) == result.rounds[0].score
    for wrong in (-1, len(result.rounds) + 1, "1", True):
        with pytest.raises(InputError, match="there is no round"):
            result.restore(wrong)  # type: ignore[arg-type]


def test_deterministic(result: NetAdaptResult) -> None:
    torch.manual_seed(99)
    again = run()
    assert history(again) == history(result)
    for a, b in zip(again.model.parameters(), result.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert history(run(seed=1)) != history(result)
    assert history(run(config=FAST.replace(seed=1))) == history(run(seed=1))


def test_the_random_state_of_the_caller_is_left_alone() -> None:
    model = make()
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    run(model=model, config=FAST.replace(netadapt_max_rounds=1))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("training", [True, False])
def test_the_original_is_untouched_and_its_mode_is_carried(training: bool) -> None:
    model = make().train(training)
    model.norm.eval()  # type: ignore[union-attr, operator]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = run(model=model, config=FAST.replace(netadapt_max_rounds=2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training is training and all(p.grad is None for p in model.parameters())
    assert result.model.training is training
    assert result.model.get_submodule("norm").training is False
    assert result.restore(1).training is training


def test_exactly_so_many_steps_and_fresh_weights_for_each_candidate() -> None:
    seen: list[tuple[int, float]] = []
    start = float(make().head.bias.detach().sum())  # type: ignore[union-attr, operator]

    def train(model: nn.Module, steps: int) -> None:
        assert model.training
        seen.append((steps, float(model.head.bias.detach().sum())))  # type: ignore[union-attr, operator]
        with torch.no_grad():
            model.head.bias += 100.0  # type: ignore[operator]
        raise RuntimeError("stop") if len(seen) % 2 else None or _Done()

    class _Done(Exception):
        pass

    with pytest.raises(SearchError, match="every candidate failed"):
        run(train=train, config=FAST.replace(netadapt_max_iter=7))
    assert len(seen) > 1 and {steps for steps, _ in seen} == {7}
    assert {value for _, value in seen} == {start}


def test_what_a_candidate_does_not_prune_is_bit_identical_before_fine_tuning() -> None:
    dense, seen = make(), []

    def train(model: nn.Module, steps: int) -> None:
        sizes = {name: model.get_parameter(f"{name}.weight").shape[0] for name in ("stem", "branch.0", "tail")}
        seen.append(sizes)
        for name, tensor in dense.named_parameters():
            mine = model.get_parameter(name)
            if mine.shape == tensor.shape:
                assert torch.equal(mine, tensor)
            else:  # every row of the pruned tensor is one of the dense
                rows = {bytes(row.detach().numpy().tobytes()) for row in tensor}
                assert mine.shape[0] == tensor.shape[0] or all(r.detach().numpy().tobytes() in rows for r in mine)

    result = run(model=dense, train=train, config=FAST.replace(netadapt_max_rounds=1))
    assert not any(c.error for c in result.rounds[0].candidates)
    assert [{**result.original_widths, **c.widths} for c in result.rounds[0].candidates if c.trained] == seen


def test_default_train_takes_exactly_the_steps() -> None:
    given = []

    class Counting:
        def __iter__(self) -> Any:
            for batch in batches():
                given.append(1)
                yield batch

    FineTune(Counting())(make(), 7)
    assert len(given) == 7
    with pytest.raises(InputError, match="no batch"):
        FineTune([])(make(), 1)


def test_a_failing_candidate_is_reported_and_not_fatal(caplog: pytest.LogCaptureFixture) -> None:
    def evaluate(model: nn.Module) -> float:
        if model.tail.weight.shape[0] < 18:  # type: ignore[union-attr, operator, index]
            return float("nan")
        if model.get_submodule("branch.0").weight.shape[0] < 14:  # type: ignore[union-attr, operator, index]
            raise RuntimeError("out of memory")
        return negative_loss(model)

    result = run(evaluate=evaluate, config=FAST.replace(netadapt_max_rounds=1, budget_reduce_rate_init=0.05))
    (record,) = result.rounds
    errors = {c.group: c.error for c in record.candidates if c.error}
    assert set(errors) == {"branch.0", "tail"}
    assert "evaluate returned nan" in str(errors["tail"])
    assert "RuntimeError: out of memory (test_search.py:" in str(errors["branch.0"])
    assert record.chosen_group == "stem" and "out of memory" in caplog.text


def test_all_candidates_failing_is_fatal_with_the_reasons() -> None:
    def train(model: nn.Module, steps: int) -> None:
        raise ValueError("no data there")

    with pytest.raises(SearchError, match="Round 1: every candidate failed.*stem: train: ValueError: no data there"):
        run(train=train)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "evaluate returned nan"),
        (float("inf"), "evaluate returned inf"),
        (None, "evaluate returned None;"),
        ((0.5, 0.1), "a tuple"),
        (torch.zeros(2), "shape"),
        ("0.5", "evaluate returned the text '0.5'"),
        (True, "evaluate returned True"),
    ],
)
def test_scores_that_are_no_number(value: Any, said: str) -> None:
    with pytest.raises(InputError, match=f"the unpruned network cannot be evaluated: .*{said}"):
        run(evaluate=lambda model: value)


def test_scores_that_are_numbers_of_other_kinds() -> None:
    for value in (1, torch.tensor(0.25), torch.tensor([[0.25]])):
        assert run(evaluate=lambda model, v=value: v, train=None, config=FAST.replace(netadapt_max_rounds=1)).rounds


def test_ties_go_to_the_first() -> None:
    result = run(evaluate=lambda model: -7.0, train=None)
    for record in result.rounds:
        assert record.chosen == min(c.index for c in record.candidates if c.feasible)
        assert "first of equals" in record.reason or "only candidate" in record.reason


def test_select_ratio_weighs_the_score_by_what_is_saved() -> None:
    result = run(config=FAST.replace(select="ratio"))
    before, score = result.start["flops"], result.baseline
    here = before
    for record in result.rounds:
        merits = {
            c.index: (c.score - score) / ((here - max(c.resources["flops"], 0.5 * before)) / before)
            for c in record.candidates
            if c.score is not None
        }
        assert record.chosen == max(merits, key=lambda index: (merits[index], -index))
        here, score = record.achieved["flops"], record.score


def test_min_accuracy_and_patience() -> None:
    def evaluate(model: nn.Module) -> float:
        return sum(p.numel() for p in model.parameters()) / 1000

    strict = run(evaluate=evaluate, train=None, config=FAST.replace(min_accuracy=4))
    assert strict.rounds[-1].score < 4 <= strict.score
    assert strict.accepted == len(strict.rounds) - 1 and not strict.met and "min_accuracy" in strict.stopped
    assert sum(p.numel() for p in strict.model.parameters()) / 1000 == strict.score
    patient = run(evaluate=evaluate, train=None, config=FAST.replace(min_accuracy=4, patience=1))
    assert len(patient.rounds) == len(strict.rounds) + 1 and patient.accepted == strict.accepted


def test_candidates_per_round_trains_those_that_lose_least() -> None:
    result = run(config=FAST.replace(candidates_per_round=1, netadapt_max_rounds=2))
    for record in result.rounds:
        trained = [c for c in record.candidates if c.trained]
        left = [c for c in record.candidates if c.feasible and not c.trained]
        assert len(trained) == 1 and max(c.lost for c in trained) <= min(c.lost for c in left)


def test_data_free() -> None:
    result = run(train=None, evaluate=None)
    assert result.data_free and result.met and "no data were given" in result.summary()
    assert result.baseline == 0 > result.score > -10
    for record in result.rounds:
        feasible = [c for c in record.candidates if c.feasible]
        assert record.winner.lost == min(c.lost for c in feasible)
    assert result.score == pytest.approx(-sum(r.winner.lost for r in result.rounds))


@pytest.mark.parametrize("strategy", ["uniform", "knapsack"])
def test_other_strategies_make_one_joint_proposal_a_round(strategy: str) -> None:
    result = run(config=FAST.replace(strategy=strategy, netadapt_min_feature_size=1))
    assert result.met
    assert all(len(record.candidates) == 1 for record in result.rounds)
    assert any(len(record.winner.widths) > 1 for record in result.rounds)


def test_joint_proposals_where_no_single_group_meets_the_target() -> None:
    config = FAST.replace(budget_reduce_rate_init=0.85)
    result = run(budget=0.15, config=config)
    assert result.met and len(result.rounds[0].winner.widths) > 1
    assert "more" in result.rounds[0].chosen_group
    stuck = run(budget=0.15, config=config.replace(joint=False))
    assert not stuck.met and not stuck.rounds and "no proposal of round 1" in stuck.stopped


def test_several_budgets_are_all_met() -> None:
    budgets = [Budget("flops", ratio=0.6), Budget("params", ratio=0.7), Budget("memory", ratio=0.95)]
    result = run(budget=budgets, train=None, evaluate=None)
    for budget in budgets:
        assert result.achieved[budget.resource] <= budget.limit(result.start[budget.resource])
    for record in result.rounds:
        assert all(record.achieved[name] <= target for name, target in record.targets.items())


def test_layers_are_held_back() -> None:
    held = run(train=None, evaluate=None, budget=0.75, config=FAST.replace(exclude=("branch.0", "ta*")))
    assert (held.widths["branch.0"], held.widths["tail"]) == (14, 18) and held.widths["stem"] < 12
    assert {c.group for r in held.rounds for c in r.candidates} == {"stem"}
    by_type = FAST.replace(exclude_ops=("Conv2d",))
    with pytest.raises(InputError, match="lets none of them shrink"):
        run(config=by_type)
    table = run(train=None, evaluate=None, budget=0.65, config=FAST.replace(sparsity={"default": 0.5, "stem": 0.0}))
    assert table.widths["stem"] == 12 and table.widths["tail"] >= 9 and table.widths["branch.0"] >= 7
    spelled = FAST.replace(sparsity={"default": 0.5, "branch_0": 0.0})  # as TinyNN spells branch.0
    assert run(train=None, evaluate=None, budget=0.8, config=spelled).widths["branch.0"] == 14
    with pytest.raises(ConfigError, match="sparsity: 'branch.00' matches no layer or group; did you mean 'branch.0'"):
        run(config=FAST.replace(sparsity={"branch.00": 0.0}))
    most = run(train=None, evaluate=None, budget=0.5, config=FAST.replace(max_prune=0.4))
    assert all(most.widths[name] >= 0.6 * size for name, size in most.original_widths.items())
    with pytest.raises(ConfigError, match="exclude: 'brnch.0' matches no layer or group; did you mean 'branch.0'"):
        run(config=FAST.replace(exclude=("brnch.0",)))
    run(config=FAST.replace(exclude=("head",), netadapt_max_rounds=1))  # not prunable anyway


def test_widths_for_hardware() -> None:
    result = run(train=None, evaluate=None, config=FAST.replace(round_to=4))
    assert all(w % 4 == 0 or w == result.original_widths[g] for g, w in result.widths.items())
    both = run(train=None, evaluate=None, budget=0.9, config=FAST.replace(round_to=4, step=6))
    assert all(w % 12 == 0 or w == both.original_widths[g] for g, w in both.widths.items())
    assert run(train=None, evaluate=None, config=FAST.replace(step="auto", netadapt_min_feature_size=None)).met


def test_weights_that_are_nan() -> None:
    model = make()
    model.tail.weight.data[2] = math.nan  # type: ignore[union-attr, operator, index]
    with pytest.raises(WeightError, match="tail.weight: unit 2"):
        run(model=model, train=None, evaluate=None)
