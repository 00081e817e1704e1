"""Repair is least squares: exact where it can be, never worse than slicing on held-out data, and says what it did."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from passes import PassError, PlanError, PruneChannels, apply_plan, capture, couple, verify
from passes.repair import fitting, refine
from passes.repair.batch_norms import reestimated
from passes.repair.compensation import Compensate, compensate, repairs_of
from passes.statistics import Batch, observe
from passes.statistics.divergence import divergence, outputs_of


def error(network, dense, x):
    with torch.no_grad():
        return float((network.eval()(x) - dense.eval()(x)).square().mean())


class Redundant(nn.Module):
    """Units 4 to 7 are mixtures of units 0 to 3 and a constant, so that nothing is lost without them."""

    def __init__(self, kind="linear"):
        super().__init__()
        torch.manual_seed(0)
        conv = kind != "linear"
        make = (lambda i, o, k=1, **kw: nn.Conv2d(i, o, k, **kw)) if conv else (lambda i, o, k=1, **kw: nn.Linear(i, o))
        self.first = make(3, 8)
        mix = torch.randn(4, 4)
        with torch.no_grad():
            weight = self.first.weight.flatten(1)
            weight[4:] = mix @ weight[:4]
            self.first.bias[4:] = mix @ self.first.bias[:4] + 1.0
        extra = {"grouped": dict(groups=1, padding=1, bias=False)}.get(kind, {})
        self.second = make(8, 5, 3, **extra) if conv else make(8, 5)
        self.norm = nn.BatchNorm2d(5) if kind == "grouped" else nn.Identity()

    def forward(self, x):
        return self.norm(self.second(self.first(x)))


@pytest.mark.parametrize("kind, shape", [("linear", (3,)), ("conv", (3, 7, 6))])
@pytest.mark.parametrize("form", ["graph", "module"])
def test_units_that_others_can_stand_for_are_given_back_exactly(kind, shape, form):
    net = Redundant(kind).eval()
    x = torch.randn(100, *shape)
    dense = capture(net) if form == "graph" else net
    coupling = couple(dense, x[:2])
    plan = coupling.plan({"first": (0, 1, 2, 3)})
    statistics = observe(dense, coupling, [x])
    pruned = apply_plan(dense, plan)
    repaired = compensate(pruned, statistics, plan, ridges=(1e-5,))
    assert error(pruned, dense, x) > 1e-2
    assert error(repaired, dense, x) < 1e-4 * error(pruned, dense, x)
    (repair,) = repairs_of(repaired)
    assert repair.repaired and repair.before < 0.9 and repair.after > 1 - 1e-4
    assert error(pruned, dense, x) > 1e-2, "the pruned network itself is left as it was"


def test_a_running_mean_takes_the_constant_where_there_is_no_bias():
    net = Redundant("grouped").eval()
    x = torch.randn(60, 3, 6, 6)
    gm = capture(net)
    coupling = couple(gm, x[:2])
    plan = coupling.plan({"first": (0, 1, 2, 3)})
    pruned = PruneChannels(plan)(gm).graph_module
    repaired = Compensate(observe(gm, coupling, [x]), plan)(pruned).graph_module
    assert not torch.equal(repaired.get_submodule("norm").running_mean, pruned.get_submodule("norm").running_mean)
    # padding reads zeros where a constant unit would read ones, so the borders differ
    wanted, sliced, got = (n.eval()(x)[..., 1:-1, 1:-1].detach() for n in (net, pruned, repaired))
    assert (got - wanted).square().mean() < 0.2 * (sliced - wanted).square().mean()


def test_a_module_is_repaired_in_place():
    net, x = Redundant("linear").eval(), torch.randn(60, 3)
    coupling = couple(net, x[:2])
    plan = coupling.plan({"first": (0, 1, 2, 3)})
    pruned, statistics = apply_plan(net, plan), observe(net, coupling, [x])
    copied = compensate(pruned, statistics, plan)
    assert compensate(pruned, statistics, plan, inplace=True) is pruned and copied is not pruned
    assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), pruned.parameters(), strict=True))
    assert repairs_of(pruned) == repairs_of(copied) and repairs_of(pruned)


def test_never_worse_than_slicing_on_held_out_data():
    """Sixteen units seen on four samples: a fit to so little would be worse than the slice, which is kept."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(20, 16), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        net[1].weight[:, 8:] = 0  # nothing is lost by slicing
    x = torch.randn(6, 20)
    coupling = couple(net, x[:2])
    plan = coupling.plan({"0": tuple(range(8))})
    statistics = observe(net, coupling, [x])
    pruned = apply_plan(net, plan)
    assert compensate(pruned, statistics, plan) is pruned
    assert [repair.repaired for repair in repairs_of(pruned)] == [False] and repairs_of(pruned)[0].why
    gm = capture(net)
    coupling = couple(gm, x[:2])
    result = Compensate(observe(gm, coupling, [x]), coupling.plan({"0": tuple(range(8))}))(
        PruneChannels(coupling.plan({"0": tuple(range(8))}))(gm).graph_module
    )
    assert not result.modified


@pytest.mark.parametrize("inplace", [False, True])
def test_repairs_that_together_do_harm_are_left_out(inplace):
    """Each gains on the rows that its layer has held out; the network is judged by inputs on which they do not hold."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    alike, other = torch.randn(200, 1) * torch.randn(6), 9 * torch.randn(50, 6)
    coupling = couple(net, other[:2])
    plan = coupling.plan({"0": tuple(range(8))})
    statistics, elsewhere = observe(net, coupling, [alike]), observe(net, coupling, [other])
    trusting = compensate(apply_plan(net, plan), replace(statistics, held_inputs=()), plan)
    (held,) = elsewhere.held_inputs
    dense = outputs_of(net, [held])
    sliced, pruned = apply_plan(net, plan), apply_plan(net, plan)
    assert divergence(trusting, [held], dense) > divergence(sliced, [held], dense)
    made = compensate(pruned, replace(statistics, held_inputs=[held]), plan, inplace=inplace)
    assert divergence(made, [held], dense) <= divergence(sliced, [held], dense)
    (repair,) = repairs_of(made)
    assert repair.share < 1 and (repair.repaired or "all repairs together" in repair.why)
    assert (made is pruned) == inplace


@pytest.mark.parametrize("sizes, held", [([4], 1), ([2, 2, 2], 2), ([1] * 7, 2), ([1], 0), ([50], 10)])
def test_a_fifth_is_held_out_of_small_batches_too_but_not_the_first_sample(sizes, held):
    net = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2))
    statistics = observe(net, couple(net, torch.randn(1, 3)), [torch.randn(size, 3) for size in sizes])
    moments = statistics.moments["0.weight"]
    assert (moments.held_seen, moments.count) == (held, sum(sizes) - held)
    assert sum(batch.size for batch in statistics.held_inputs) == held


def test_of_many_inputs_a_few_are_kept():
    net = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2))
    batches = [torch.randn(60, 3) for _ in range(3)]
    statistics = observe(net, couple(net, batches[0][:2]), batches)
    assert [batch.size for batch in statistics.held_inputs] == [12, 4]
    assert torch.equal(statistics.held_inputs[0].args[0], batches[0][48:])
    large = torch.randn(10, 3, 700, 700)  # one image alone is larger than what is kept of small ones
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
    assert [batch.size for batch in observe(net, couple(net, large[:1]), [large]).held_inputs] == [1]


def test_what_does_not_belong_together_is_refused():
    net, other = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    x = torch.randn(30, 4)
    coupling, second = couple(net, x[:2]), couple(other, x[:2])
    plan = coupling.plan({"0": (0, 1)})
    statistics = observe(other, second, [x])
    with pytest.raises((PlanError, PassError)):
        compensate(apply_plan(net, plan), statistics, plan, net)
    mine = observe(net, coupling, [x])
    with pytest.raises(PlanError, match="the plan leaves"):
        compensate(net, mine, plan)


def small_network():
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self, width, inner):
            super().__init__()
            self.a, self.n = nn.Conv2d(width, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
            self.b, self.m = nn.Conv2d(inner, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

        def forward(self, x):
            return torch.relu(x + self.m(self.b(torch.relu(self.n(self.a(x))))))

    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Block(8, 12), Block(8, 12), nn.Flatten(), nn.Linear(8 * 36, 5))
    net.train()
    for _ in range(20):
        net(torch.randn(32, 3, 8, 8))
    return net.eval()


def test_refinement_on_own_inputs_explains_more_in_every_segment_and_is_no_worse_held_out():
    net = small_network()
    gm = capture(net)
    x, held = torch.randn(120, 3, 8, 8), torch.randn(60, 3, 8, 8)
    coupling = couple(gm, x[:2])
    plan = coupling.plan({g.name: tuple(range(5)) for g in coupling.groups if g.size == 12})
    assert len([g for g in coupling.groups if g.size == 12]) == 2
    pruned = PruneChannels(plan)(gm).graph_module
    repaired = Compensate(observe(gm, coupling, [x]), plan)(pruned).graph_module
    batches = [Batch((held,))]
    dense = outputs_of(gm, batches)
    refined = refine(repaired, plan, gm, [x[:60], x[60:]])
    assert all(s.after >= s.before for s in refined.segments)
    assert sum(s.repaired for s in refined.segments) >= 2
    scores = [divergence(n, batches, dense) for n in (pruned, repaired, refined.network)]
    assert scores[2] < 0.9 * scores[1] < 0.9 * scores[0]
    assert verify(gm, refined.network, plan, x[:2], trained=True).max_error < 1e-9


def test_refinement_changes_neither_network_and_repeats_itself():
    net = small_network()
    gm = capture(net)
    x = torch.randn(30, 3, 8, 8)
    coupling = couple(gm, x[:2])
    plan = coupling.plan({g.name: tuple(range(4)) for g in coupling.groups if g.size == 12})
    pruned = PruneChannels(plan)(gm).graph_module
    before = {k: v.clone() for m in (gm, pruned) for k, v in m.state_dict().items()}
    flags = [p.requires_grad for p in pruned.parameters()]
    first, second = (refine(pruned, plan, gm, [x], rounds=1).network.state_dict() for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    after = {k: v for m in (gm, pruned) for k, v in m.state_dict().items()}
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert flags == [p.requires_grad for p in pruned.parameters()]
    assert list(first) == list(pruned.state_dict())


def test_a_step_of_refinement_holds_no_record_of_how_it_was_found():
    """Such a record holds the values of every batch and iteration, until memory is full."""

    class Pair(nn.Sequential):
        def forward(self, x):
            return (super().forward(x),)

    torch.manual_seed(0)
    net, x = Pair(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(20, 3)
    parameters = {name: p.detach() for name, p in net.named_parameters() if name.startswith("0.")}  # not all are fitted
    problem = fitting.Problem(net, [(x,)], [[fitting.Target(torch.randn(20, 2))]], [(0, 0)])
    step = fitting._linear_step(problem, parameters, lambda gradient: gradient, 3)
    assert step.keys() == parameters.keys() and not any(change.requires_grad for change in step.values())
    found = {name: p + step[name] for name, p in parameters.items()}
    assert problem.error(found) < problem.error(parameters)


def test_norms_are_estimated_in_a_copy_and_kept_only_where_better():
    torch.manual_seed(0)
    last = nn.BatchNorm2d(2, affine=False)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 1), last)
    x = 3 * torch.randn(40, 3, 6, 6) + 1
    made = reestimated(net, [Batch((x,))])
    with torch.no_grad():
        read = net[0](x)
    assert torch.allclose(made[1].running_mean, read.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(made[1].running_var, read.transpose(0, 1).flatten(1).var(1), rtol=1e-3)
    assert torch.equal(net[1].running_mean, torch.zeros(4))
    plain = nn.Sequential(nn.Linear(3, 2))
    assert reestimated(plain, [Batch((torch.randn(4, 3),))]) is plain


def normed(kind, x):
    """One convolution or linear layer in several places, each with a norm or bias that is its own, or with none."""

    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 6, 3, bias=kind == "bias"), nn.Conv2d(6, 5, 1)
            self.one, self.two = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
            self.d = nn.Conv2d(12, 6, 3)
            if kind == "bias":
                self.d.bias = self.b.bias

        def forward(self, x):
            y = torch.relu(self.a(x) + 1)
            if kind == "bias":
                return self.b(y), self.d(2 * y)
            z = self.b(y)
            return (self.one(z), self.two(self.b(3 * y))) if kind == "norms" else (self.one(z), self.c(z))

    return Several().eval(), x


@pytest.mark.parametrize("kind", ["bias", "norms", "read"])
def test_constants_go_only_where_all_of_a_product_gets_them(kind):
    net, x = normed(kind, torch.randn(80, 3, 5, 5))
    coupling = couple(net, x[:2])
    plan = coupling.plan({"a": range(0, 12, 2)})
    pruned = apply_plan(net, plan)
    repaired = compensate(pruned, observe(net, coupling, [x]), plan)
    assert any(repair.repaired for repair in repairs_of(repaired))
    for name, before in pruned.state_dict().items():
        assert name.endswith("weight") or torch.equal(before, repaired.state_dict()[name]), name
    for wanted, sliced, got in zip(net(x), pruned(x), repaired(x), strict=True):
        assert (got - wanted).square().mean() < (sliced - wanted).square().mean()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.e, self.f, self.g = nn.Embedding(11, 24), nn.Linear(24, 24), nn.Linear(24, 11)
        self.g.weight = self.e.weight

    def forward(self, x):
        return self.g(torch.relu(self.f(self.e(x))) + self.e(x))


class There(nn.Module):
    """There by a matrix, and back by its transpose."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(6, 24)

    def forward(self, x):
        return torch.relu(self.a(x)) @ self.a.weight


@pytest.mark.parametrize("form", ["graph", "module"])
def test_a_weight_that_something_else_reads_keeps_its_slice(form):
    for net, x, tied in ((Tied().eval(), torch.randint(0, 11, (200, 4)), "e"), (There(), torch.randn(200, 6), "a")):
        dense = capture(net, x[:2]) if form == "graph" else net
        coupling = couple(dense, x[:2])
        plan = coupling.plan({name: range(0, size, 2) for name, size in coupling.widths.items()})
        pruned = apply_plan(dense, plan)
        repaired = compensate(pruned, observe(dense, coupling, [x]), plan)
        assert torch.equal(pruned.get_parameter(f"{tied}.weight"), repaired.get_parameter(f"{tied}.weight"))
        said = {repair.name: (repair.repaired, repair.why) for repair in repairs_of(repaired)}
        if tied == "a":
            assert repaired is pruned
            continue
        assert said["e.weight"][1].startswith("aten.embedding.default reads it as well") and said["f.weight"][0]


class Packed(nn.Module):
    """Queries, keys and values of three layers, whose projections share one weight and one bias."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(6, 16) for _ in range(3))
        self.attention, self.out = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 3)

    def forward(self, x):
        return self.out(self.attention(self.q(x), self.k(x), self.v(x))[0])


@pytest.mark.parametrize("route", [lambda net, _: net, capture], ids=["module", "graph"])
def test_parts_of_one_packed_weight_and_bias_are_repaired_apart(route):
    x, data = torch.randn(4, 5, 6), [torch.randn(64, 5, 6)]
    net = route(Packed().eval(), x)
    coupling = couple(net, x)
    plan = coupling.plan({group.name: range(group.size // 2) for group in coupling.groups})
    cut = apply_plan(net, plan)
    made = compensate(cut, observe(net, coupling, data), plan, net)
    assert sum(repair.parameter.endswith("in_proj_weight") for repair in repairs_of(made)) == 3
    assert all(repair.repaired for repair in repairs_of(made))
    fresh = torch.randn(64, 5, 6)
    assert error(made, net, fresh) < 0.5 * error(cut, net, fresh)
