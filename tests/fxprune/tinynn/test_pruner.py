"""The flow that TinyNN's users know: its sample script, restoring, the table of rates, and what is refused."""

from __future__ import annotations

import copy
import json
import runpy
import signal
from pathlib import Path

import pytest
import torch
import yaml
from image_files import first_pictures, write_cifar
from torch import nn

import fxprune
from fxprune import DLContext, NetAdaptPruner
from fxprune.errors import BudgetError, ConfigError, InputError, JournalError
from fxprune.tinynn.pruner import become
from fxprune.training.optimizer_recipe import names_of

CONFIG = """\
budget_type: flops
budget_ratio: 0.4
budget_reduce_rate_init: 0.25
budget_reduce_rate_decay: 0.96
metrics: l2_norm
netadapt_max_iter: 3
netadapt_max_rounds: 500
netadapt_lr: 0.001
"""

# The flow of TinyNN's NetAdapt sample, step by step, with a small network, small images and few epochs. The first four
# imports are what is changed of it: `tinynn` to `fxprune.tinynn`.
SAMPLE = """\
from fxprune.tinynn.prune import NetAdaptPruner
from fxprune.tinynn.util.cifar10 import get_dataloader, train_one_epoch, validate
from fxprune.tinynn.util.train_util import DLContext, get_device, train

import torch
from torch import nn, optim


def load_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )


def load_pruner(model):
    config = NetAdaptPruner.load_config(CONFIG)
    context = DLContext()
    context.train_loader, context.val_loader = get_dataloader(DATA, 32, 16, WORKERS)
    context.criterion = nn.BCEWithLogitsLoss()
    context.optimizer = optim.SGD(model.parameters(), config['netadapt_lr'], momentum=0.9, weight_decay=1e-4)
    context.train_func = train_one_epoch
    context.validate_func = validate
    return NetAdaptPruner(model, torch.ones(1, 3, 32, 32), config, context)


model = load_model()
pruner = load_pruner(model)
pruner.generate_config(CONFIG)
if RESTORE is not None:
    pruner.restore(iteration=RESTORE)
else:
    pruner.prune()
parameters = sum(p.numel() for p in model.parameters())

model = torch.nn.parallel.DataParallel(model)
context = DLContext()
context.device = get_device()
context.train_loader, context.val_loader = get_dataloader(DATA, 32, 16, WORKERS)
before = validate(model, context)
context.max_epoch = 2
context.criterion = nn.BCEWithLogitsLoss()
context.optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
context.scheduler = optim.lr_scheduler.CosineAnnealingLR(context.optimizer, T_max=context.max_epoch + 1, eta_min=0)
train(model, context, train_one_epoch, validate)
"""


def test_the_sample_of_tinynn_runs_with_its_imports_changed(tmp_path: Path, data_dir: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from torchvision.datasets import CIFAR10

    write_cifar(tmp_path, first_pictures(data_dir))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)  # the images are few, not the official ones
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    config, script = tmp_path / "config.yml", tmp_path / "netadapt_prune.py"
    config.write_text(CONFIG)
    script.write_text(SAMPLE)

    def run(restore: int | None = None) -> dict:
        return runpy.run_path(
            str(script), {"CONFIG": str(config), "DATA": str(tmp_path), "WORKERS": 0, "RESTORE": restore}
        )

    first = run()
    pruner = first["pruner"]
    assert pruner.calc_flops() <= pruner.budget == int(0.4 * pruner.init_flops)
    assert pruner.result.met and pruner.iteration == len(pruner.result.rounds) + 1
    assert (tmp_path / "netadapt_train" / "round-0001" / "plan.json").is_file()
    assert (tmp_path / "out" / "best_model.safetensors").is_file()
    steps = {c.steps for r in pruner.result.rounds for c in r.candidates if c.trained}
    assert steps == {3}
    table = yaml.safe_load(config.read_text())["sparsity"]
    assert table == {"0": 0.875, "3": 0.875, "6": 0.875, "11": 0.0}

    again = run()  # the same script: the search is finished, and ends in the same network
    assert again["pruner"].result.timings.train == 0 < first["pruner"].result.timings.train
    assert again["before"] == first["before"]
    restored = run(restore=1)
    assert restored["parameters"] > first["parameters"] and restored["pruner"].iteration == 2


def test_every_module_path_of_tinynns_scripts_is_there() -> None:
    from fxprune.tinynn.prune.netadapt_pruner import NetAdaptPruner as longer
    from fxprune.tinynn.util.cifar100 import get_dataloader as _  # noqa: F401
    from fxprune.tinynn.util.imagenet import get_dataloader as _  # noqa: F401, F811
    from fxprune.tinynn.util.train_util import AverageMeter, get_module_device

    assert longer is NetAdaptPruner
    assert get_module_device(nn.Linear(2, 2)) == torch.device("cpu") and get_module_device(nn.ReLU()) is None
    meter = AverageMeter()
    meter.update(2.0, 3)
    meter.update(6.0)
    assert (meter.val, meter.sum, meter.count, meter.avg) == (6.0, 12.0, 4, 3.0)
    meter.reset()
    assert (meter.val, meter.sum, meter.count, meter.avg) == (0, 0, 0, 0)


def net(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 24, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(24 * 4 * 4, 5),
    )  # fmt: skip


IMAGE = torch.zeros(1, 3, 8, 8)


def make_batches(count: int = 2) -> list:
    torch.manual_seed(1)
    return [(torch.randn(6, 3, 8, 8), torch.randint(5, (6,))) for _ in range(count)]


def make_pruner(model: nn.Module, folder: Path, /, **config) -> NetAdaptPruner:  # type: ignore[no-untyped-def]
    """A pruner with closures, parameter groups, and everything that cannot be pickled."""
    batches = make_batches()
    inner = model.module if isinstance(model, nn.DataParallel) else model
    context = DLContext(
        train_loader=batches,
        val_loader=batches,
        criterion=lambda outputs, labels: nn.functional.cross_entropy(outputs, labels),
        optimizer=torch.optim.SGD(
            [
                {"params": [p for n, p in inner.named_parameters() if n.endswith("weight")], "weight_decay": 0.01},
                {"params": [p for n, p in inner.named_parameters() if n.endswith("bias")], "lr": 0.5},
            ],
            lr=1.0,
        ),
        train_func=lambda network, own: fxprune.data.train_one_epoch(network, own),
        validate_fun=lambda network, own: fxprune.data.validate(network, own),
    )
    values = {"budget_ratio": 0.7, "budget_reduce_rate_init": 0.15, "netadapt_max_iter": 2, **config}
    return NetAdaptPruner(model, IMAGE, {"netadapt_dir": str(folder), **values}, context)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):  # type: ignore[no-untyped-def]
    """A model that was pruned in place, its pruner, and the folder of the search."""
    folder = tmp_path_factory.mktemp("search") / "journal"
    model = net().eval()
    model.classes = 5  # type: ignore[assignment]
    pruner = make_pruner(model, folder)
    pruner.prune()
    return model, pruner, folder


def test_the_model_itself_becomes_the_pruned_network(pruned) -> None:  # type: ignore[no-untyped-def]
    model, pruner, _ = pruned
    assert model is pruner.model and type(model) is nn.Sequential and not model.training
    assert model.classes == 5
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in net().parameters())
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(model(x), copy.deepcopy(model)(x)) and torch.equal(model(x), nn.DataParallel(model)(x))
    assert pruner.result.certificate.max_error < 1e-9
    assert list(model.state_dict()) == list(net().state_dict())


def test_get_sparsity_state_and_flops_tell_of_the_model(pruned) -> None:  # type: ignore[no-untyped-def]
    from torch.utils.flop_counter import FlopCounterMode

    model, pruner, _ = pruned
    state = pruner.get_sparsity_state()
    assert state["6"] == 0.0 and any(state.values())
    for name, share in state.items():
        before, after = net().get_submodule(name).weight.shape[0], model.get_submodule(name).weight.shape[0]
        assert share == pytest.approx((before - after) / before)
    with FlopCounterMode(display=False) as counter:
        model(IMAGE)
    assert pruner.calc_flops() == counter.get_total_flops() <= pruner.budget < pruner.init_flops
    assert "rounds; the budget is met" in pruner.summary() and "netadapt_max_iter: 2" in pruner.summary()


def test_any_round_is_restored_in_another_process(pruned) -> None:  # type: ignore[no-untyped-def]
    model, first, folder = pruned
    fresh = net().eval()
    pruner = make_pruner(fresh, folder)
    assert pruner.iteration == 1 and pruner.get_sparsity_state()["0"] == 0.0
    for iteration in (1, 0, len(first.result.rounds)):
        returned = pruner.restore(iteration)
        assert returned is fresh is pruner.model and pruner.iteration == iteration + 1
        expected = first.result.restore(iteration).state_dict()
        assert expected.keys() == fresh.state_dict().keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in fresh.state_dict().items())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(fresh(x), model(x))
    with pytest.raises(InputError, match="no round 9; expected 0"):
        pruner.restore(9)
    random = net()
    for parameter in random.parameters():
        nn.init.normal_(parameter)
    assert torch.equal(make_pruner(random.eval(), folder).restore(first.iteration - 1)(x), model(x))


def test_prune_after_restore_goes_on_with_the_search(pruned) -> None:  # type: ignore[no-untyped-def]
    model, first, folder = pruned
    fresh = net().eval()
    pruner = make_pruner(fresh, folder)
    pruner.restore(1)
    result = pruner.prune()
    assert [r.chosen_group for r in result.rounds] == [r.chosen_group for r in first.result.rounds]
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values(), strict=True))


def test_the_class_and_the_function_are_one_engine(pruned, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, first, _ = pruned
    from fxprune.tinynn.flow import search_functions

    fresh = net().eval()
    pruner = make_pruner(fresh, tmp_path)
    train, evaluate = search_functions(names_of(fresh), pruner.context, pruner.config.netadapt_lr)
    result = fxprune.netadapt(fresh, example_inputs=IMAGE, train=train, evaluate=evaluate, config=pruner.config)
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in result.model.state_dict().items())


def test_bn_compensation_repairs_candidates_by_the_training_batches(tmp_path: Path) -> None:
    pruner = make_pruner(net().eval(), tmp_path / "run", bn_compensation=True, netadapt_min_feature_size=2)
    pruner.context.train_loader = make_batches(20)
    result = pruner.prune()
    assert result.met and (tmp_path / "run" / "statistics.safetensors").is_file()
    for record in result.rounds:
        assert record.repaired is not None and record.repaired.kept <= record.repaired.sliced
        assert [c.steps for c in record.candidates if c.trained] == [2]
    assert result.rounds[-1].repaired.kept < result.rounds[-1].repaired.sliced
    own = make_pruner(net().eval(), tmp_path / "own", bn_compensation=True)
    own.context.train_loader = None
    with pytest.raises(InputError, match=r"set context\.train_loader, or context\.calibration"):
        own.prune()


def test_groups_and_the_rate_of_the_search_reach_every_candidate(tmp_path: Path) -> None:
    seen = []
    model = net()
    pruner = make_pruner(model, tmp_path, netadapt_max_rounds=1, netadapt_lr=0.002)

    def look(network: nn.Module, context: DLContext) -> None:
        assert context.optimizer is not None
        groups = context.optimizer.param_groups
        seen.append([(group["lr"], group["weight_decay"], len(group["params"])) for group in groups])
        own = {id(parameter) for parameter in network.parameters()}
        assert all(id(parameter) in own for group in groups for parameter in group["params"])
        fxprune.data.train_one_epoch(network, context)

    pruner.context.train_func = look
    pruner.prune()
    assert len(seen) == 2 and seen[0] == [(0.002, 0.01, 4), (pytest.approx(0.001), 0, 3)]


def test_the_contexts_optimizer_follows_the_model(pruned) -> None:  # type: ignore[no-untyped-def]
    _, first, folder = pruned
    fresh = net().eval()
    pruner = make_pruner(fresh, folder)
    for restore in (lambda: pruner.restore(1), lambda: pruner.restore(0), pruner.prune):
        restore()
        groups = pruner.context.optimizer.param_groups
        assert [(group["lr"], group["weight_decay"], len(group["params"])) for group in groups] == [
            (1, 0.01, 4),
            (0.5, 0, 3),
        ]
        assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in fresh.parameters()}
        fxprune.data.train_one_epoch(fresh, copy.copy(pruner.context))


def test_data_parallel_is_unwrapped(tmp_path: Path) -> None:
    wrapped = nn.DataParallel(net())
    make_pruner(wrapped, tmp_path).prune()
    assert type(wrapped.module) is nn.Sequential and wrapped.module[0].out_channels < net()[0].out_channels
    assert wrapped(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_the_table_of_rates_is_written_in_full_and_held_to(tmp_path: Path) -> None:
    path, search = tmp_path / "config.yml", tmp_path / "journal"
    pruner = make_pruner(net(), search)
    pruner.generate_config(path)
    written = NetAdaptPruner.load_config(path)
    assert written["sparsity"] == {"0": 0.875, "3": 0.9167, "6": 0.0}
    assert written["budget_ratio"] == 0.7 and written["netadapt_max_rounds"] == -1 and "seed" in written
    again = make_pruner(net(), search, **{**written, "netadapt_dir": str(search)})
    assert again.config == pruner.config  # a table that limits nothing is no other search

    path.write_text(path.read_text().replace("'0': 0.875", "'0': 0.0").replace("'3': 0.9167", "'3': 0.5"))
    model = net()
    edited = make_pruner(model, search, **{**NetAdaptPruner.load_config(path), "netadapt_dir": str(search)})
    edited.generate_config(path)
    assert NetAdaptPruner.load_config(path)["sparsity"] == {"0": 0.0, "3": 0.5, "6": 0.0}
    edited.prune()
    assert edited.get_sparsity_state()["0"] == 0.0 < edited.get_sparsity_state()["3"] <= 0.5
    assert model.get_submodule("0").weight.shape[0] == 16


def test_a_table_of_zeros_as_tinynn_writes_it_limits_nothing(tmp_path: Path, caplog) -> None:  # type: ignore[no-untyped-def]
    zeros = {"default": 0.0, "0": 0.0, "3": 0.0, "6": 0.0}
    pruner = make_pruner(net(), tmp_path, sparsity=zeros)
    assert pruner.config.sparsity == {} and "taken for no limit" in caplog.text
    assert make_pruner(net(), tmp_path, sparsity=0.5).config.sparsity == {"0": 0.5, "3": 0.5}


def test_what_is_wrong_is_said_when_the_pruner_is_made(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="no budget"):
        make_pruner(net(), tmp_path, budget_ratio=None)
    with pytest.raises(ConfigError, match="did you mean 'netadapt_max_iter'"):
        make_pruner(net(), tmp_path, netadapt_max_iters=3)
    with pytest.raises(InputError, match="expected a dict"):
        NetAdaptPruner(net(), IMAGE, 7, DLContext())
    with pytest.raises(InputError, match="no train_func and no validate_func"):
        NetAdaptPruner(net(), IMAGE, {"budget_ratio": 0.5}, DLContext())
    path = tmp_path / "config.yml"
    path.write_text("budget_ratio: 0.5\nnetadapt_lr: fast\n")
    with pytest.raises(ConfigError, match=r"config.yml, line 2: netadapt_lr: got 'fast'"):
        NetAdaptPruner.load_config(path)


def test_numbers_without_a_dot_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text("budget_ratio: 0.5\nnetadapt_lr: 1e-3\n")
    assert NetAdaptPruner.load_config(path) == {"budget_ratio": 0.5, "netadapt_lr": 0.001}


def test_objects_in_the_configuration_go_to_the_context(tmp_path: Path) -> None:
    model = net()
    optimizer, criterion = torch.optim.Adam(model.parameters()), nn.CrossEntropyLoss()
    context = DLContext(train_func=lambda m, c: None, validate_func=lambda m, c: 0.0)
    NetAdaptPruner(model, IMAGE, {"budget": 10**5, "netadapt_optimizer": optimizer, "criterion": criterion}, context)
    assert context.optimizer is optimizer and context.criterion is criterion


def test_restore_refuses_another_network_and_an_empty_folder(pruned, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    _, _, folder = pruned
    with pytest.raises(JournalError, match="another network"):
        make_pruner(net(20), folder).restore(1)
    with pytest.raises(JournalError, match="no run here"):
        make_pruner(net(), tmp_path).restore(1)


def test_a_search_that_stops_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = net()
    pruner = make_pruner(model, tmp_path)

    def stop(network: nn.Module, context: DLContext) -> float:
        signal.raise_signal(signal.SIGINT)

    pruner.context.train_func = stop
    with pytest.raises(KeyboardInterrupt):
        pruner.prune()
    assert type(model) is nn.Sequential and all(
        torch.equal(a, b) for a, b in zip(model.parameters(), net().parameters(), strict=True)
    )
    pruner.context.train_func = fxprune.data.train_one_epoch
    assert pruner.prune().met


def test_a_graph_becomes_another(tmp_path: Path) -> None:
    first, second = torch.fx.symbolic_trace(net()), torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 2)))
    x = torch.randn(4, 3)
    expected = second(x)
    become(first, second)
    assert torch.equal(first(x), expected)
    become(first, first)
    assert torch.equal(first(x), expected)


class Counting(nn.Module):
    """A class whose hook is a method of the object itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.calls = net(), 0
        self.body.register_forward_hook(self.count)

    def count(self, *_: object) -> None:
        self.calls += 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def test_an_object_of_a_class_is_pruned_in_place_with_its_hooks(tmp_path: Path) -> None:
    model = Counting().eval()
    wrapped = torch.compile(model, backend="eager")
    pruner = make_pruner(model, tmp_path)
    pruner.prune()
    for expected in (None, 0):
        if expected is not None:
            pruner.restore(expected)
        before = model.calls
        model(IMAGE)
        assert type(model) is Counting and model.calls == before + 1
        assert wrapped(IMAGE).shape == (1, 5)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in net().parameters())


def test_nothing_that_is_kept_is_a_pickle(pruned) -> None:  # type: ignore[no-untyped-def]
    _, _, folder = pruned
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file() and path.name != "lock"}
    assert kinds <= {".json", ".safetensors", ".yml"}
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())


@pytest.mark.slow
def test_closures_train_in_processes_too(pruned, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("cloudpickle")
    model, _, _ = pruned
    fresh = net().eval()
    make_pruner(fresh, tmp_path, workers=2).prune()
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values(), strict=True))
