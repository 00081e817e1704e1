"""Pruning by data through `netadapt`: within the budget, near the dense outputs, certified, the same each time."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fxprune import Budget, netadapt
from fxprune.errors import InputError, JournalError, SearchError
from fxprune.journal.folder import Folder as Journal
from fxprune.problem.calibration import calibration_of
from fxprune.workers import repair
from fxprune.workers.serial import Serial
from fxprune.workers.transport import pack_for_workers
from passes import apply_plan, couple
from passes.repair.batch_norms import settled
from passes.statistics import Batch


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12)
        self.b, self.m = nn.Conv2d(12, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.c = nn.Linear(16, 4)

    def forward(self, x):
        return self.c(self.m(self.b(self.n(self.a(x)).relu())).relu().mean((2, 3)))


def trained():
    torch.manual_seed(0)
    net = Net()
    x = torch.randn(200, 3, 10, 10)
    net.train()
    for _ in range(10):
        net(x)
    return net.eval(), x


def gap(network, dense, x):
    with torch.no_grad():
        wanted = dense(x)
        return float((network.eval()(x) - wanted).square().mean() / wanted.var())


def test_half_the_macs_by_data_is_nearer_to_dense_than_by_weights_and_repeats_itself():
    net, x = trained()
    held = torch.randn(100, 3, 10, 10)
    kw = dict(example_inputs=x[:2], progress=False, config={"netadapt_min_feature_size": 1, "sweeps": 0})
    by_data = [netadapt(net, 0.5, calibration=[x[:100], x[100:]], **kw) for _ in range(2)]
    by_weights = netadapt(net, 0.5, **kw)
    first, second = by_data
    assert first.met and first.achieved["flops"] <= 0.5 * first.start["flops"]
    assert gap(first.model, net, held) < 0.3 * gap(by_weights.model, net, held)
    assert first.plan == second.plan
    states = [r.model.state_dict() for r in by_data]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert first.certificate.max_error < 1e-9
    assert first.score <= 0 and "compensated" in first.rounds[0].reason


def test_batches_with_labels_and_dicts_do_as_well_and_a_journal_is_taken_up(tmp_path):
    net, x = trained()
    y = torch.zeros(200, dtype=torch.long)
    kw = dict(example_inputs=x[:2], progress=False, config={"netadapt_min_feature_size": 1, "sweeps": 0})
    plain = netadapt(net, 0.6, calibration=[x], **kw)
    labelled = netadapt(net, 0.6, calibration=[(x, y)], workdir=tmp_path / "run", **kw)
    named = netadapt(net, 0.6, calibration=[{"x": x}], **kw)
    assert plain.plan == labelled.plan == named.plan
    again = netadapt(net, 0.6, calibration=[(x, y)], workdir=tmp_path / "run", **kw)
    mine, theirs = labelled.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_evaluate_gives_the_score_and_what_makes_no_sense_is_refused():
    net, x = trained()
    kw = dict(example_inputs=x[:2], progress=False, config={"netadapt_min_feature_size": 1, "sweeps": 0})
    result = netadapt(net, 0.6, calibration=[x], evaluate=lambda m: 7.0, **kw)
    assert result.score == 7.0
    with pytest.raises(InputError, match="holds no batch"):
        netadapt(net, 0.6, calibration=[], **kw)
    with pytest.raises(InputError, match="at least two samples"):
        netadapt(net, 0.6, calibration=[x[:1]], **kw)
    with pytest.raises(InputError, match=r"batch 0: it is None"):
        netadapt(net, 0.6, calibration=[None], **kw)
    with pytest.raises(InputError, match=r"one of float64 \(.*; pass inputs like the example inputs, which are \(2, "):
        netadapt(net, 0.6, calibration=[x.double()], **kw)
    with pytest.raises(InputError, match="screen=2 compares candidates by calibration data"):
        netadapt(net, 0.6, example_inputs=x[:2], progress=False, config={"screen": 2})


REFINED = {"refine": 2, "sweeps": 0}
CLOSED = {"refine": 0, "sweeps": 0}
ROUNDS = {"strategy": "netadapt", "netadapt_min_feature_size": 1, "budget_reduce_rate_init": 0.25, "refine": 1}


def states_equal(first, second):
    mine, theirs = first.model.state_dict(), second.model.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.parametrize("strategy", ["netadapt", "knapsack", "uniform", "allocate"])
def test_every_strategy_goes_by_the_data_and_no_round_trains(strategy):
    net, x = trained()
    result = netadapt(
        net, 0.5, calibration=[x], example_inputs=x[:2], progress=False, config={**ROUNDS, "strategy": strategy}
    )
    assert result.met and len(result.rounds) == (1 if strategy == "allocate" else 3)
    for record in result.rounds:
        scored = [c for c in record.candidates if c.trained]
        assert scored and all(c.screened is not None and c.steps == 0 for c in scored)
        assert record.repaired is not None and record.repaired.kept <= record.repaired.sliced
    assert result.certificate.max_error < 1e-9


def test_the_best_of_the_screened_are_trained_from_where_repair_left_them():
    net, x = trained()
    seen = []

    def train(model, steps):
        seen.append((steps, gap(model, net, x)))
        model.train()

    kw = dict(example_inputs=x[:2], progress=False, calibration=[x], train=train, evaluate=lambda m: -gap(m, net, x))
    result = netadapt(net, 0.6, config={**ROUNDS, "screen": 1, "netadapt_max_iter": 7}, **kw)
    assert len(seen) == len(result.rounds) and all(steps == 7 for steps, _ in seen)
    assert all(sum(c.trained for c in record.candidates) == 1 for record in result.rounds)
    assert all(len([c for c in record.candidates if c.screened is not None]) == 2 for record in result.rounds)
    repaired = [gap_before for _, gap_before in seen]
    seen.clear()
    paper = netadapt(net, 0.6, config={**ROUNDS, "screen": "all", "compensate": False, "netadapt_max_iter": 7}, **kw)
    assert len(seen) == sum(c.trained for record in paper.rounds for c in record.candidates) > len(paper.rounds)
    assert max(repaired) < min(gap_before for _, gap_before in seen)


def test_a_search_that_was_killed_ends_in_the_same_network_and_observes_once(tmp_path, monkeypatch):
    net, x = trained()
    kw = dict(example_inputs=x[:2], progress=False, calibration=[x], config=ROUNDS)
    whole = netadapt(net, 0.5, **kw)
    calls, own = [], Journal.save_round

    def killed(self, record, weights):
        own(self, record, weights)
        if record.round == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save_round", killed)
        with pytest.raises(KeyboardInterrupt):
            netadapt(net, 0.5, workdir=tmp_path / "run", **kw)
    monkeypatch.setattr("fxprune.workers.observing.observe", lambda *a, **k: calls.append(a))
    again = netadapt(net, 0.5, workdir=tmp_path / "run", **kw)
    assert states_equal(whole, again) and whole.plan == again.plan and not calls
    with pytest.raises(JournalError, match="the calibration data"):
        netadapt(net, 0.5, workdir=tmp_path / "run", **{**kw, "calibration": [x + 1]})
    statistics = tmp_path / "run" / "statistics.safetensors"
    statistics.write_bytes(statistics.read_bytes()[:-8])
    for record in (tmp_path / "run").glob("round-*/round.json"):
        record.unlink()
    monkeypatch.undo()
    mended = netadapt(net, 0.5, workdir=tmp_path / "run", **kw)
    assert states_equal(whole, mended)


def test_a_repair_travels_to_another_process(monkeypatch):
    net, x = trained()
    seen, own = [], Serial.run

    def run(self, network, coupling, tasks, repair=None):
        seen.append((repair, tasks[0].plan))
        return own(self, network, coupling, tasks, repair)

    monkeypatch.setattr(Serial, "run", run)
    netadapt(net, 0.5, example_inputs=x[:2], progress=False, calibration=[x], config=ROUNDS)
    (own_repair, plan), *_ = seen
    there = pickle.loads(pack_for_workers(own_repair))
    found = [r.screen(apply_plan(r.dense.network, plan), plan) for r in (own_repair, there)]
    assert found[0] == found[1] and found[0].kept > 0


@pytest.mark.slow
def test_workers_find_the_same(tmp_path):
    net, x = trained()
    kw = dict(example_inputs=x[:2], progress=False, calibration=[x])
    alone = netadapt(net, 0.5, config=ROUNDS, **kw)
    together = netadapt(net, 0.5, config={**ROUNDS, "workers": 2}, **kw)
    assert states_equal(alone, together) and alone.plan == together.plan


def test_settled_norms_compute_the_same_and_hold_what_they_read():
    net, x = trained()
    with torch.no_grad():
        net.n.running_mean += 0.5
        net.n.running_var *= 3
    made = settled(net, [Batch((x,))])
    assert torch.allclose(made(x), net(x), atol=1e-4)
    read = net.a(x)
    assert torch.allclose(made.n.running_mean, read.mean((0, 2, 3)), atol=1e-4)
    assert not torch.allclose(net.n.running_mean, made.n.running_mean, atol=1e-2)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.qkv, self.out = nn.Conv2d(3, 12, 4, 4), nn.Linear(12, 36), nn.Linear(12, 12)
        self.norm, self.wide, self.narrow = nn.LayerNorm(12), nn.Linear(12, 24), nn.Linear(24, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).unflatten(2, (3, 3, 4)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return self.head((x + self.narrow(self.wide(self.norm(x)).relu())).mean(1))


def test_units_of_heads_that_are_formed_by_rank_are_refined_too(caplog):
    torch.manual_seed(0)
    net, x = Attending().eval(), torch.randn(120, 3, 16, 16)
    result = netadapt(net, 0.6, calibration=[x], example_inputs=x[:2], progress=False, config=REFINED)
    assert any(group.blocks > 1 for group in result.coupling.groups) and "closed form only" not in caplog.text
    assert result.repaired.kept < result.repaired.compensated < result.repaired.sliced


def test_a_network_that_takes_too_long_to_refine_is_not_refined(monkeypatch, caplog):
    monkeypatch.setattr(repair, "WORK", 100.0)
    net, x = trained()
    result = netadapt(net, 0.5, calibration=[x], example_inputs=x[:2], progress=False, config={"sweeps": 0})
    assert caplog.text.count("closed form only: with 0 million parameters refinement takes hours") == 1
    assert result.repaired.kept == result.repaired.compensated < result.repaired.sliced


def test_no_more_samples_are_used_than_asked_for():
    net, x = trained()
    for sizes in ([200], [7, 7, 7, 7, 7, 7, 158]):
        found = calibration_of(net, couple(net, x[:2]), x.split(sizes), most=30)
        assert sum(batch.size for batch in found.fitted + found.held) == 30


def test_data_and_weights_of_inference_mode_are_taken():
    torch.manual_seed(0)
    with torch.inference_mode():
        net, x = Net().eval(), torch.randn(40, 3, 10, 10)
        inside = netadapt(Net().eval(), 0.6, calibration=[x], example_inputs=x[:2], progress=False, config=REFINED)
    x0 = torch.randn(2, 3, 10, 10)
    outside = netadapt(net, 0.6, calibration=[x], example_inputs=x0, progress=False, config=REFINED)
    for result in (inside, outside):
        assert result.met and result.repaired.kept <= result.repaired.sliced


def test_train_mode_and_its_statistics_are_left_as_they_were():
    net, x = trained()
    before = {name: tensor.clone() for name, tensor in net.train().state_dict().items()}
    result = netadapt(net, 0.5, calibration=[x], example_inputs=x[:2], progress=False, config=REFINED)
    assert result.met and net.n.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


class Cache:
    """What no front end takes: keys and values for later calls."""

    def __init__(self, key_cache, value_cache):
        self.key_cache, self.value_cache = key_cache, value_cache

    def update(self, keys, values):
        return keys, values

    def get_seq_length(self):
        return len(self.key_cache[0])


class Decoding(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(use_cache=True)
        self.body = Attending()

    def forward(self, x):
        found = self.body(x)
        return {"scores": found, "cache": Cache([x.clone()], [x.clone()]) if self.config.use_cache else None}


def test_a_network_is_refined_in_a_graph_without_its_cache(caplog):
    torch.manual_seed(0)
    net, x = Decoding().eval(), torch.randn(120, 3, 16, 16)
    result = netadapt(net, 0.6, calibration=[x], example_inputs=x[:2], progress=False, config=REFINED)
    assert "closed form only" not in caplog.text
    assert result.repaired.kept < result.repaired.compensated < result.repaired.sliced
    for network in (net, result.model):
        assert network.config.use_cache is True and isinstance(network(x[:2])["cache"], Cache)


class Finding(nn.Module):
    """As a detector does: a list with an entry for each image, of as many results as stand out."""

    def __init__(self, least=0.0):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.head, self.least = nn.Conv2d(16, 5, 1), least

    def forward(self, x):
        found = self.head(self.body(x)).flatten(2).transpose(1, 2)
        chosen = found[..., 4] > found[..., 4].mean() + self.least
        return [{"boxes": rows[one][:, :4], "scores": rows[one][:, 4]} for rows, one in zip(found, chosen, strict=True)]


def test_as_many_results_as_the_values_say_are_compared_and_another_graph_is_not_refined(caplog):
    torch.manual_seed(0)
    net, x = Finding().eval(), torch.randn(40, 3, 8, 8)
    result = netadapt(net, 0.5, calibration=[x], example_inputs=x[:2], progress=False, config=REFINED)
    assert isinstance(result.model, Finding) and result.met
    assert result.repaired.kept <= result.repaired.sliced
    said = "closed form only: the graph, captured at the example's sizes, gives something else"
    assert caplog.text.count(said) == 1, "it is captured once, for all that are refined"


def test_a_network_that_finds_nothing_in_the_data_is_named(caplog):
    net, x = Finding(least=1.0).eval(), torch.randn(40, 3, 8, 8)
    netadapt(net, 0.8, calibration=[x / 100], example_inputs=100 * x[:2], progress=False, config=CLOSED)
    assert "the network gives no result at all" in caplog.text


def test_outputs_that_are_no_numbers_are_said_not_compared(monkeypatch):
    net, x = trained()
    monkeypatch.setattr("fxprune.workers.repair.divergence", lambda *a: float("nan"))
    with pytest.raises(SearchError, match="every candidate failed.*hold NaN or infinity"):
        netadapt(net, 0.5, calibration=[x], example_inputs=x[:2], progress=False, config=ROUNDS)


def test_a_peak_of_memory_and_weights_alone_are_allocated_too():
    net, x = trained()
    kw = dict(example_inputs=x[:2], progress=False)
    by_memory = netadapt(net, Budget("memory", ratio=0.9), calibration=[x], config=CLOSED, **kw)
    assert by_memory.met and by_memory.repaired.kept <= by_memory.repaired.sliced
    by_weights = netadapt(net, 0.6, config={"strategy": "allocate", "netadapt_min_feature_size": 1}, **kw)
    assert by_weights.met and len(by_weights.rounds) == 1 and by_weights.repaired is None
