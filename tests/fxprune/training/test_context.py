"""`DLContext`, and the optimizers and contexts that each candidate of a search gets of its own."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import fxprune
from fxprune import DLContext
from fxprune.errors import InputError
from fxprune.tinynn.flow import search_functions
from fxprune.training.optimizer_recipe import Recipe, names_of, recipe_of, with_inert_optimizer


def net(width: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2, bias=False))


def test_keywords_and_both_names_of_the_validation() -> None:
    def score(model: nn.Module, context: DLContext) -> float:
        return 1.0

    positional = DLContext(1, 2, 3, 4)
    assert (positional.train_loader, positional.train_sampler, positional.val_loader, positional.criterion) == (
        1,
        2,
        3,
        4,
    )
    assert DLContext(validate_fun=score).validate_func is score
    context = DLContext(validate_func=score, max_epoch=3, best_acc=0.5)
    assert context.validate_fun is score and context.best_acc == 0.5 and context.best_epoch == -1
    context.validate_fun = None
    assert context.validate_func is None
    context.anything = 7  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="two names of one function"):
        DLContext(validate_fun=score, validate_func=lambda model, context: 0.0)
    assert "max_epoch=3" in repr(context)


def test_device() -> None:
    assert fxprune.get_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


OPTIMIZERS = [
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (torch.optim.Adam, {"betas": (0.8, 0.9)}),
    (torch.optim.AdamW, {"amsgrad": True}),
    (torch.optim.RMSprop, {"alpha": 0.9}),
    (torch.optim.Adagrad, {"lr_decay": 0.1}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {}),
    (torch.optim.Rprop, {"etas": (0.4, 1.3)}),
    (torch.optim.ASGD, {"lambd": 1e-3}),
    (torch.optim.Adamax, {}),
    (torch.optim.Adadelta, {"rho": 0.8}),
    (torch.optim.LBFGS, {}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=[kind.__name__ for kind, _ in OPTIMIZERS])
def test_an_optimizer_is_rebuilt_on_other_parameters(kind, options) -> None:  # type: ignore[no-untyped-def]
    model, pruned = net(6), net(4)
    optimizer = kind(model.parameters(), lr=0.1, **options)
    rebuilt = recipe_of(optimizer, names_of(model)).at(0.01).build(pruned)
    assert type(rebuilt) is kind and rebuilt.param_groups[0]["lr"] == pytest.approx(0.01)
    assert [p.shape for p in rebuilt.param_groups[0]["params"]] == [p.shape for p in pruned.parameters()]
    for name, value in options.items():
        assert rebuilt.param_groups[0][name] == value
    assert kind is torch.optim.Adagrad or not rebuilt.state  # Adagrad starts with sums of zero


def test_groups_keep_their_options_their_parameters_and_their_share_of_the_rate() -> None:
    model, pruned = net(6), net(4)
    optimizer = torch.optim.SGD(
        [{"params": model[0].weight, "weight_decay": 0.5}, {"params": [model[2].weight], "lr": 0.02, "momentum": 0.3}],
        lr=0.1, momentum=0.9, weight_decay=1e-4,
    )  # fmt: skip
    first, second = recipe_of(optimizer, names_of(model)).at(0.01).build(pruned).param_groups
    assert first["params"][0] is pruned[0].weight and second["params"][0] is pruned[2].weight
    assert (first["lr"], first["momentum"], first["weight_decay"]) == (0.01, 0.9, 0.5)
    assert (second["lr"], second["momentum"], second["weight_decay"]) == (pytest.approx(0.002), 0.3, 1e-4)
    assert sum(len(group["params"]) for group in (first, second)) == 2  # the bias was in no group


def test_rates_where_each_group_states_its_own() -> None:
    model = net()
    groups = [{"params": model[0].parameters(), "lr": 0.4}, {"params": model[2].parameters(), "lr": 0.1}]
    recipe = recipe_of(torch.optim.SGD(groups), names_of(model))
    assert [group["lr"] for group in recipe.at(0.01).build(net()).param_groups] == pytest.approx([0.01, 0.0025])


def test_a_rate_that_a_scheduler_changed_counts_as_it_was() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    lr_scheduler.LinearLR(optimizer, start_factor=0.01)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.002)
    (group,) = recipe_of(optimizer, names_of(model)).at(0.05).build(net()).param_groups
    assert group["lr"] == pytest.approx(0.05) and "initial_lr" not in group


def test_an_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="none of the model's parameters"):
        recipe_of(torch.optim.SGD(net().parameters(), 0.1), names_of(net()))


def test_an_optimizer_that_cannot_be_rebuilt_says_what_to_do() -> None:
    class Picky(torch.optim.SGD):
        def __init__(self, params, plan):  # type: ignore[no-untyped-def]
            super().__init__(params, 0.1)

    model = net()
    recipe = recipe_of(Picky(model.parameters(), plan="x"), names_of(model))
    with pytest.raises(InputError, match="make the optimizer in train_func"):
        recipe.build(net())
    with pytest.raises(InputError, match="none of the optimizer's parameters"):
        Recipe(torch.optim.SGD, {"lr": 0.1}, (({}, ("elsewhere",)),)).build(net())


def make_schedulers(optimizer: torch.optim.Optimizer) -> list:
    return [
        lr_scheduler.CosineAnnealingLR(optimizer, 5),
        lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step),
        lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=9),
        lr_scheduler.SequentialLR(
            optimizer,
            [lr_scheduler.LinearLR(optimizer), lr_scheduler.StepLR(optimizer, 2)],
            [2],
        ),
    ]


@pytest.mark.parametrize("which", range(4))
def test_a_scheduler_that_is_held_still_steps_without_effect(which: int) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scheduler = make_schedulers(optimizer)[which]
    before = optimizer.param_groups[0]["lr"]
    copied = with_inert_optimizer(scheduler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            copied.step()
    assert copied.get_last_lr() != scheduler.get_last_lr() and optimizer.param_groups[0]["lr"] == before
    assert not {id(p) for p in model.parameters()} & {id(p) for g in copied.optimizer.param_groups for p in g["params"]}


def functions(context: DLContext, model: nn.Module, rate: float = 0.01):  # type: ignore[no-untyped-def]
    return search_functions(names_of(model), context, rate)


def batches(count: int = 4) -> list:
    return [(torch.randn(5, 3), torch.randint(2, (5,))) for _ in range(count)]


def steps_by_context(model: nn.Module, context: DLContext) -> None:
    """As TinyNN's own helper counts: context.iteration goes up, and stops at max_iteration."""
    for inputs, labels in context.train_loader:
        if context.iteration >= context.max_iteration:
            break
        step(model, context, inputs, labels)
        context.iteration += 1


def steps_by_enumeration(model: nn.Module, context: DLContext) -> None:
    for i, (inputs, labels) in enumerate(context.train_loader):
        if i >= context.max_iteration:
            break
        step(model, context, inputs, labels)


def steps_from_zero(model: nn.Module, context: DLContext) -> None:
    context.iteration = 0
    steps_by_context(model, context)


def steps_of_its_own_optimizer(model: nn.Module, context: DLContext) -> None:
    context.optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for i, (inputs, labels) in enumerate(context.train_loader):
        if i >= context.max_iteration:
            break
        step(model, context, inputs, labels)


made: list[int] = []


def step(model: nn.Module, context: DLContext, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    context.optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    context.optimizer.step()
    made.append(context.epoch)


@pytest.mark.parametrize(
    "train_func", [steps_by_context, steps_by_enumeration, steps_from_zero, steps_of_its_own_optimizer]
)
@pytest.mark.parametrize("steps", [1, 4, 11])
def test_exactly_as_many_iterations_as_asked_for(train_func, steps: int) -> None:  # type: ignore[no-untyped-def]
    model = net()
    context = DLContext(
        batches(),
        train_func=train_func,
        validate_func=lambda m, c: 0.0,
        optimizer=torch.optim.SGD(model.parameters(), 1),
    )
    train, _ = functions(context, model)
    made.clear()
    train(net(4), steps)
    assert len(made) == steps and made == [1 + i // 4 for i in range(steps)]
    assert context.iteration == 0 and context.max_iteration is None and context.epoch == 0


def test_a_train_func_that_does_not_stop_is_named(caplog) -> None:  # type: ignore[no-untyped-def]
    model = net()

    def whole_epoch(model: nn.Module, context: DLContext) -> None:
        for inputs, labels in context.train_loader:
            step(model, context, inputs, labels)

    context = DLContext(
        batches(),
        train_func=whole_epoch,
        validate_func=lambda m, c: 0.0,
        optimizer=torch.optim.SGD(model.parameters(), 1),
    )
    functions(context, model)[0](net(), 3)
    assert "made 4 iterations where context.max_iteration allowed 3" in caplog.text
    context.train_loader = []
    with pytest.raises(InputError, match="holds no batch"):
        functions(context, model)[0](net(), 3)


def test_no_candidate_sees_what_another_left_behind() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    criterion = nn.Linear(1, 1)
    seen = []

    def look(model: nn.Module, context: DLContext) -> None:
        seen.append(
            (
                context.criterion.weight.item(),
                context.scheduler.last_epoch,
                context.custom_args.get("left"),
                context.iteration,
            )
        )
        with torch.no_grad():
            context.criterion.weight += 1
        context.scheduler.step()
        context.custom_args["left"] = "behind"
        context.best_acc = 9.0
        context.iteration = context.max_iteration

    context = DLContext(
        criterion=criterion, scheduler=lr_scheduler.StepLR(optimizer, 1), custom_args={}, optimizer=optimizer,
        train_func=look, validate_func=lambda m, c: c.best_acc,
    )  # fmt: skip
    train, evaluate = functions(context, model)
    train(net(), 2)
    train(net(), 2)
    assert seen[0] == seen[1] and context.custom_args == {} and evaluate(net()) == 0.0
    assert optimizer.param_groups[0]["lr"] == 0.1 and not optimizer.state


def test_a_loader_with_a_generator_draws_from_the_candidates_seed() -> None:
    data = TensorDataset(torch.arange(8.0)[:, None])
    loader = DataLoader(data, 2, shuffle=True, generator=torch.Generator().manual_seed(5))
    orders: list[list[float]] = []

    def watch(model: nn.Module, context: DLContext) -> None:
        orders.append([value for (batch,) in context.train_loader for value in batch.flatten().tolist()])
        context.iteration = context.max_iteration

    context = DLContext(loader, train_func=watch, validate_func=lambda m, c: 0.0)
    train, _ = functions(context, net())
    for seed in (3, 4, 3):
        torch.manual_seed(seed)
        train(net(), 1)
    assert orders[0] == orders[2] != orders[1]


def test_functions_that_are_missing_are_named() -> None:
    with pytest.raises(InputError, match="no train_func and no validate_func"):
        functions(DLContext(), net())
    with pytest.raises(InputError, match="no validate_func"):
        functions(DLContext(train_func=lambda m, c: None), net())
