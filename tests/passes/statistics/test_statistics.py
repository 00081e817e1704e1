"""What is observed is what operators read: moments against products computed from hand-made readings."""

import json
from functools import reduce

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from passes import PassError, PruneChannels, capture, couple, refine
from passes.statistics import Batch, Moments, Statistics, batches_of, hold_out, observe
from passes.statistics.divergence import distance, divergence, outputs_of


def summed(batches):
    """The part of each batch that is not held out: all but its last fifth."""
    return torch.cat([b[: len(b) - len(b) // 5] for b in batches])


def expected(rows):
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1).double()
    return rows.T @ rows / len(rows)


def read_by(weight, read, out):
    """Readings as rows such that rows @ weight.flatten(1).T is the output: checks a reading against the operator."""
    assert torch.allclose(read @ weight.flatten(1).T, out, atol=1e-4)
    return read


CONVOLUTIONS = [
    (nn.Conv2d(6, 8, 3, stride=2, padding=1, dilation=2), (6, 9, 7)),
    (nn.Conv2d(6, 8, 3, groups=2, padding=(2, 0), bias=False), (6, 9, 7)),
    (nn.Conv2d(6, 6, 3, groups=6), (6, 5, 7)),
    (nn.Conv1d(4, 6, 5, stride=3, padding=2, groups=2), (4, 17)),
    (nn.Conv3d(2, 4, (1, 3, 2), padding=(0, 1, 1)), (2, 3, 4, 5)),
    (nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1, output_padding=1), (6, 5, 4)),
    (nn.ConvTranspose2d(6, 8, (3, 2), stride=(1, 3), groups=2, dilation=(2, 1), bias=False), (6, 5, 4)),
    (nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1), (4, 9)),
]


@pytest.mark.parametrize("layer, shape", CONVOLUTIONS, ids=range(len(CONVOLUTIONS)))
def test_a_convolution_reads_rows_that_give_its_output(layer, shape):
    """tr(W G W^T) is the mean square of the output, and W times the mean its mean: only so for the right rows."""
    torch.manual_seed(0)
    net = nn.Sequential(layer)
    batches = [torch.randn(10, *shape), torch.randn(7, *shape)]
    statistics = observe(net, couple(net, batches[0][:2]), batches, rows=10**6)
    site = statistics.sites["0.weight"]
    weight = site.matrix(layer.weight.detach()).double()
    moments = statistics.of(site)
    with torch.no_grad():
        out = layer(summed(batches)).double()
    if layer.bias is not None:
        out = out - layer.bias.detach().double().reshape(-1, *[1] * (out.dim() - 2))
    channels = out.transpose(0, 1).flatten(1)
    squares, means = [], []
    for group in range(site.groups):
        full = moments.matrix(group)
        squares.append(((weight[group] @ full[:-1, :-1]) * weight[group]).sum(1))
        means.append(weight[group] @ full[:-1, -1])
    assert torch.allclose(torch.cat(squares), channels.square().mean(1), rtol=1e-4)
    assert torch.allclose(torch.cat(means), channels.mean(1), atol=1e-5)
    assert moments.count == channels.shape[1]


def test_linear_layers_of_any_rank_and_products_with_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 4), nn.Parameter(torch.randn(4, 3))

        def forward(self, x):
            return self.a(x).relu() @ self.b

    net = Net()
    x = torch.randn(20, 6, 5)
    statistics = observe(net, couple(net, x[:2]), [x])
    read = statistics.of(statistics.sites["a.weight"]).matrix()
    assert torch.allclose(read, expected(x[:16].reshape(-1, 5)), atol=1e-6)
    hidden = net.a(x[:16]).relu().detach().reshape(-1, 4)
    assert torch.allclose(statistics.of(statistics.sites["b"]).matrix(), expected(hidden), atol=1e-6)
    assert statistics.sites["b"].rows == 3
    assert statistics.sites["a.weight"].bias == "a.bias"


def test_layers_that_read_one_tensor_share_its_moments_and_used_twice_add_up():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.twice = nn.Linear(5, 4), nn.Linear(5, 4, bias=False), nn.Linear(4, 4)

        def forward(self, x):
            return self.twice(self.twice(self.q(x) * self.k(x)))

    net = Net()
    x = torch.randn(20, 5)
    statistics = observe(net, couple(net, x[:2]), [x])
    assert statistics.sites["k.weight"].moments == "q.weight"
    assert set(statistics.moments) == {"q.weight", "twice.weight"}
    first = (net.q(x[:16]) * net.k(x[:16])).detach()
    both = torch.cat([first, net.twice(first).detach()])
    assert torch.allclose(statistics.of(statistics.sites["twice.weight"]).matrix(), expected(both), atol=1e-5)


def test_chunks_of_one_parameter_are_places_of_their_own():
    net = nn.MultiheadAttention(8, 2, batch_first=True)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = net

        def forward(self, x, memory):
            return self.attention(x, memory, memory, need_weights=False)[0]

    model = Net()
    x, memory = torch.randn(10, 3, 8), torch.randn(10, 4, 8)
    statistics = observe(model, couple(model, (x[:2], memory[:2])), [(x, memory)])
    sites = [s for s in statistics.sites.values() if s.parameter == "attention.in_proj_weight"]
    assert sum(s.rows for s in sites) == 24
    found = torch.cat([s.matrix(net.in_proj_weight)[0] for s in sites])
    assert torch.equal(found, net.in_proj_weight)


@pytest.mark.parametrize("network", ["graph", "module"])
def test_a_network_is_left_as_it_was_and_sums_do_not_depend_on_the_form(network):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(), nn.Conv2d(6, 4, 1)).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.randn(10, 3, 8, 8)
    target = capture(net) if network == "graph" else net
    statistics = observe(target, couple(target, x[:2]), [x])
    assert net.training and net[1].training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    norm = statistics.sites["0.weight"].norm
    assert norm is not None and norm.mean == "1.running_mean" and norm.bias == "1.bias"


def test_parts_merge_to_the_whole_and_a_file_holds_all_of_it(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 700), nn.ReLU(), nn.Linear(700, 3))
    coupling = couple(net, torch.randn(2, 5))
    first, second = torch.randn(50, 5), torch.randn(30, 5)
    loss = lambda out, labels: out.square().sum()  # noqa: E731
    a, b = (observe(net, coupling, [x], gradients=loss) for x in (first, second))
    both = observe(net, coupling, [first, second], gradients=loss)
    merged = a.merge(b)
    assert merged.samples == both.samples == 80
    for name, site in both.sites.items():
        assert torch.allclose(merged.of(site).matrix(), both.of(site).matrix(), atol=1e-6), name
    assert merged.fisher["0"] == pytest.approx(both.fisher["0"])
    path = tmp_path / "statistics.safetensors"
    merged.save(path)
    loaded = Statistics.load(path)
    assert loaded.sites == merged.sites and loaded.fingerprint == merged.fingerprint
    assert all(torch.equal(loaded.moments[n].matrix(), m.matrix()) for n, m in merged.moments.items())
    assert all(torch.equal(loaded.moments[n].held, m.held) for n, m in merged.moments.items())
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["statistics"])["samples"] == 80
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(PassError, match="checksum"):
        Statistics.load(path)
    with pytest.raises(PassError, match="observe the same network"):
        a.merge(observe(nn.Sequential(nn.Linear(5, 3)), couple(nn.Sequential(nn.Linear(5, 3)), first[:2]), [first]))


@pytest.mark.parametrize("parts", [2, 3, 23])
def test_what_is_held_out_before_is_the_same_in_any_number_of_parts(parts):
    torch.manual_seed(0)
    net, data = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), torch.randn(23, 5)
    coupling = couple(net, data[:2])
    batches = list(batches_of(net, [data[:11], *data[11:].split(2)]))
    whole, marked = observe(net, coupling, batches), list(hold_out(batches))
    assert [batch.held for batch in batches] == [None] * len(batches) and list(hold_out(marked)) == marked
    singles = [batch.part(at, at + 1) for batch in marked for at in range(batch.size)]
    size = -(-len(singles) // parts)
    observed = [observe(net, coupling, singles[at : at + size]) for at in range(0, len(singles), size)]
    merged = reduce(Statistics.merge, observed)
    assert merged.samples == whole.samples == 23
    for name, site in whole.sites.items():
        known, found = whole.of(site), merged.of(site)
        assert (found.count, found.held_seen) == (known.count, known.held_seen) == (18, 5)
        assert torch.allclose(found.matrix(), known.matrix(), atol=1e-6), name
        rows = [moments.held[0][moments.held[0][:, 0].argsort()] for moments in (found, known)]
        assert torch.allclose(*rows, atol=1e-6)


class OneExpert(nn.Module):
    """All samples of a batch go to one expert, which the first says."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 6), nn.Linear(4, 6)])

    def forward(self, x):
        return self.experts[int(x[0, 0] > 0)](x)


def test_a_weight_that_only_some_of_the_data_reach_has_the_sums_of_these():
    torch.manual_seed(0)
    net, left, right = OneExpert(), -torch.rand(20, 4), torch.rand(20, 4)
    coupling = couple(net, left[:2])
    parts = [observe(net, coupling, [x]) for x in (left, right)]
    assert [list(part.sites) for part in parts] == [["experts.0.weight"], ["experts.1.weight"]]
    both, merged = observe(net, coupling, [left, right]), parts[0].merge(parts[1])
    assert list(merged.sites) == list(both.sites) and merged.samples == 40
    for site in both.sites.values():
        assert torch.allclose(merged.of(site).matrix(), both.of(site).matrix(), atol=1e-6)


def test_gradients_measure_what_zeroing_a_unit_does_to_first_order():
    """Of five samples the last is held out."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).double()
    x = torch.randn(8, 4).double()
    statistics = observe(net, couple(net, x[:2]), [x[:5]], gradients=lambda out, _: out.pow(2).sum())
    out = net(x[:4]).pow(2).sum()
    grads = torch.autograd.grad(out, [net[0].weight, net[0].bias])
    product = (grads[0] * net[0].weight).sum(1) + grads[1] * net[0].bias
    assert statistics.fisher["0"] == pytest.approx(product.detach().square().numpy())
    assert statistics.taylor["0"] == pytest.approx(product.detach().abs().numpy())
    sampled = observe(net, couple(net, x[:2]), [x], gradients="sampled")
    assert (sampled.fisher["0"] > 0).all()


def test_batches_in_every_usual_form_and_what_does_not_fit():
    net = nn.Linear(4, 2)
    x, y = torch.randn(6, 4), torch.arange(6)
    assert [b.labels is None for b in batches_of(net, [x])] == [True]
    (batch,) = batches_of(net, [(x, y)])
    assert batch.labels is y and len(batch.args) == 1 and batch.size == 6
    (batch,) = batches_of(net, [{"input": x, "labels": y}])
    assert batch.labels is y and list(batch.kwargs) == ["input"]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    assert [b.size for b in batches_of(net, loader)] == [4, 2]
    with pytest.raises(PassError, match="none of its keys"):
        list(batches_of(net, [{"pixels": x}]))
    with pytest.raises(PassError, match="holds 3 values"):
        list(batches_of(net, [(x, x, y)]))
    with pytest.raises(PassError, match="no batch"):
        observe(net, couple(net, x[:2]), [])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_list_of_images_is_cut_between_them(count):
    images = [torch.randn(3, 8 + number, 9) for number in range(count)]
    batch = Batch((images, [{"boxes": torch.zeros(5, 4)} for _ in images]))
    assert batch.size == count
    part = batch.part(0, 1)
    assert part.args[0][0] is images[0] and len(part.args[0]) == len(part.args[1]) == 1 and part.size == 1
    assert Batch(([torch.zeros(6, 3, 8, 8), torch.zeros(6, 3, 4, 4)],)).size == 6


def test_a_wrong_reading_is_seen():
    """The oracle of this file fails for rows in another order of taps."""
    layer = nn.Conv2d(2, 3, 2)
    x = torch.randn(4, 2, 5, 5)
    rows = F.unfold(x, 2).transpose(1, 2).reshape(-1, 8)
    out = layer(x) - layer.bias.reshape(-1, 1, 1)
    flat = out.permute(0, 2, 3, 1).reshape(-1, 3)
    read_by(layer.weight, rows, flat)
    with pytest.raises(AssertionError):
        read_by(layer.weight, rows.flip(1), flat)


def test_results_of_which_there_are_more_or_fewer_are_compared_with_the_nearest_ones():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]])
    assert float(distance([rows], [rows[[2, 0]]])) == pytest.approx(0.1)
    assert float(distance([rows], [torch.cat([rows, rows])])) == 0.0
    assert float(distance([rows], [rows[:0]])) == float(distance([rows[:0]], [rows])) == 1.0
    assert float(distance([rows[:0]], [rows[:0]])) == 0.0
    assert float(distance([rows, rows], [rows])) == 0.5
    assert float(distance([torch.randn(5000, 4)], [torch.randn(4000, 4)])) > 0


def test_blocks_of_a_moment_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr("passes.statistics.moments._TILE", 5)
    torch.manual_seed(0)
    for size in (3, 5, 9, 23):
        moments = Moments(2, size)
        moments.add(torch.randn(2, 40, size, dtype=torch.float64))
        for group in range(2):
            whole = moments.matrix(group)
            assert torch.equal(moments.diagonal(group), whole.diagonal())
            for _ in range(8):
                rows, columns = (torch.nonzero(torch.rand(size + 1) < 0.5)[:, 0] for _ in range(2))
                expected = whole.index_select(0, rows).index_select(1, columns)
                assert torch.allclose(moments.block(group, rows, columns), expected, rtol=1e-12)


def _wide(statistics: Statistics) -> Moments:
    return statistics.of(next(site for site in statistics.sites.values() if site.columns == 600))


def test_few_rows_of_many_columns_are_kept_as_they_are(tmp_path):
    net = nn.Sequential(nn.Linear(6, 600), nn.Linear(600, 3))
    batches = [torch.randn(20, 6) for _ in range(12)]
    found = observe(net, couple(net, batches[0]), batches[:3])
    moments = _wide(found)
    assert moments.kept and not moments.summed and moments.size_bytes < 601**2
    before = [tile.clone() for tile in moments.tiles]
    found.save(tmp_path / "s.safetensors")
    loaded = Statistics.load(tmp_path / "s.safetensors")
    assert _wide(loaded).kept and loaded.size_bytes == found.size_bytes
    moments.sum_up()
    for same in (moments, _wide(loaded)):
        assert all(torch.equal(a, b) for a, b in zip(before, same.tiles, strict=True)), "the same sums, bit by bit"
    more = observe(net, couple(net, batches[0]), batches)
    assert not _wide(more).kept, "of more rows the sums are smaller"
    _wide(loaded).merge(moments)
    assert torch.allclose(_wide(loaded).matrix(), moments.matrix(), rtol=1e-12)


def test_no_flipped_bit_and_no_part_of_a_file_is_loaded(tmp_path):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x, path = torch.randn(16, 6), tmp_path / "s.safetensors"
    observe(net, couple(net, x), [x]).save(path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    described = 8 + int.from_bytes(whole[:8], "little")
    for end in (8 * len(whole), 8 * described):
        for place in random.integers(end, size=60):
            damaged = bytearray(whole)
            damaged[place // 8] ^= 1 << int(place) % 8
            path.write_bytes(damaged)
            with pytest.raises(PassError, match="s.safetensors"):
                Statistics.load(path)
    for part in (b"", whole[:5], whole[:-1], whole[: described + 3], whole + b"\0"):
        path.write_bytes(part)
        with pytest.raises(PassError, match="s.safetensors"):
            Statistics.load(path)
    path.write_bytes(whole)
    assert Statistics.load(path).samples == 16


class Remembering(nn.Module):
    """Counts its calls and keeps what it saw, in attributes and in a buffer."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(()))
        self.calls, self.last = 0, None

    def forward(self, x):
        self.calls, self.last = self.calls + 1, x
        self.seen += x.shape[0]
        return self.b(torch.relu(self.norm(self.a(x))))


@pytest.mark.parametrize("form", ["module", "graph", "exported"])
def test_data_leave_no_trace_in_the_network(form):
    torch.manual_seed(0)
    net, x = Remembering().train(), torch.randn(30, 4)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    network = net
    if form == "exported":
        network = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n", max=64)},)).module()
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    elif form == "graph":
        network = capture(Plain().train())
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    coupling, batches = couple(network, x), [Batch((x,))]
    observe(network, coupling, batches, gradients="sampled")
    divergence(network, batches, outputs_of(network, batches))
    if form != "module":
        plan = coupling.plan({name: range(size // 2) for name, size in coupling.widths.items()})
        refine(PruneChannels(plan)(network).graph_module, plan, network, [x], rounds=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert (net.calls, net.last) == (0, None) and net.training and net.norm.training


class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def test_sparse_results_are_compared():
    class Sparse(nn.Linear):
        def forward(self, x):
            return super().forward(x).to_sparse()

    torch.manual_seed(0)
    net, batches = Sparse(4, 3), [Batch((torch.randn(10, 4),))]
    expected = outputs_of(net, batches)
    assert divergence(net, batches, expected) == 0 and divergence(Sparse(4, 3), batches, expected) > 0.1


def test_arrays_are_batches_and_empty_ones_are_passed_over():
    net, x = nn.Linear(4, 3), torch.randn(10, 4)
    found = list(batches_of(net, [x.numpy(), x[:0], (x.numpy(), np.arange(10)), (x[:0], torch.arange(0))]))
    assert [batch.size for batch in found] == [10, 10]
    assert all(torch.equal(batch.args[0], x) for batch in found) and torch.equal(found[1].labels, torch.arange(10))


class WritesParameters(nn.Module):
    """An embedding with a greatest norm, a weight that is clamped before it is used, an average kept in a parameter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.first, self.second = nn.Embedding(9, 6, max_norm=0.5), nn.Linear(6, 8), nn.Linear(8, 2)
        self.mean = nn.Parameter(torch.zeros(8), requires_grad=False)

    def forward(self, words):
        self.first.weight.data.clamp_(-0.1, 0.1)
        h = self.first(self.words(words)).relu()
        with torch.no_grad():
            self.mean.mul_(0.9).add_(h.mean((0, 1)) * 0.1)
        return self.second(h - self.mean)


def test_data_do_not_change_parameters_that_a_program_writes():
    net, words = WritesParameters().eval(), torch.randint(9, (20, 4))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    coupling = couple(net, words[:2])
    observe(net, coupling, [words], gradients="sampled")
    divergence(net, [Batch((words,))], outputs_of(net, [Batch((words,))]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_network_that_fails_where_the_dense_one_runs_is_not_laid_to_the_batches():
    batches = [Batch((torch.randn(4, 3),))]
    dense = outputs_of(nn.Linear(3, 2), batches)
    with pytest.raises(PassError, match=r"^the network that is compared .* of float32 \(4, 3\), as the dense one does"):
        divergence(nn.Linear(5, 2), batches, dense)
    with pytest.raises(PassError, match=r"^batches: the network does not run on one of float32 \(4, 3\): RuntimeError"):
        outputs_of(nn.Linear(5, 2), batches)
