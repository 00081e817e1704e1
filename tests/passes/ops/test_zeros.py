"""What is claimed of removed units, that they are zero, holds on numbers: for every operator, in every network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from oracle import doubled, randomised
from samples import SAMPLES
from tiny import TABLE
from torch import Tensor, fx, nn

from passes import Coupling, PassError, PruneChannels, capture, couple, equation_rule, rule, verify
from passes.analysis.zero_propagation import followed
from passes.axes.expressions import leaves
from passes.axes.index_sets import survivors
from passes.equality.double import in_double
from passes.equality.trees import map_tensors
from passes.graph.module_copies import copy_with, like
from passes.masked.masked_graph import MaskedOperators
from passes.masked.proof_weights import dense_weights
from passes.ops import table, traits_of, unregister
from passes.ops import zeros as traits
from passes.stream.graph_stream import as_arguments
from passes.stream.inference import tensors_in

aten: Any = torch.ops.aten


class Checked(MaskedOperators):
    """Runs the masked network, and looks whether what is said to be zero is."""

    def __init__(self, coupling: Coupling, masks: Any) -> None:
        super().__init__(coupling, masks)
        self.found: dict[str, list[str]] = defaultdict(list)  # by node, what was wrong
        self.checked = 0
        self._tape: dict[str, list[Any]] = defaultdict(list)
        self._calls: dict[str, list[Any]] = defaultdict(list)
        _, living = followed(coupling.structure.records)
        for record, alive in zip(coupling.structure.records, living, strict=True):
            self._tape[record.node].append((record, alive))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        tape = [(record, alive) for record, alive in self._tape[self._node] if record.func is func]
        number = self._calls[self._node].count(func)
        if tape:
            self._calls[self._node].append(func)
        if number < len(tape):
            record, alive = tape[number]
            for tensor, value, living in zip(tensors_in(*_listed(result)), record.outputs, alive, strict=False):
                if list(tensor.shape) == [axis.size for axis in value.axes]:
                    self._check(tensor, value, living, func)
        return result

    def _check(self, tensor: Tensor, value: Any, living: set[Any], func: Any) -> None:
        for dim, axis in enumerate(value.axes):
            for variable in {v for v in leaves(axis) if v in self.masks} - living:
                remain = torch.from_numpy(survivors(axis, {variable: self.masks[variable]}))
                self.checked += 1
                if bool((tensor.index_select(dim, (~remain).nonzero().flatten()) != 0).any()):
                    self.found[self._node].append(f"{func} at {self._node}, dimension {dim}")

    @property
    def wrong(self) -> list[str]:
        """Not of nodes that call other operators on a CPU than on the meta device, as recurrent layers do."""
        same = [n for n in self.found if self._calls[n] == [record.func for record, _ in self._tape[n]]]
        return [text for node in same for text in self.found[node]]


def _listed(result: Any) -> Any:
    return result if isinstance(result, (tuple, list)) else (result,)


def checked(model: nn.Module, inputs: Any) -> tuple[int, list[str]] | None:
    """Half of one group after another at zero, followed call by call; None where there is nothing to prune.

    Returns how many claims were looked at, and the wrong ones.
    """
    inputs = doubled(inputs)
    gm = capture(randomised(model.double()).eval(), inputs)
    coupling = couple(gm, inputs)
    count, wrong = 0, []
    for group in coupling.groups:
        plan = coupling.plan({group.name: tuple(range(0, group.size, 2))})
        if not plan.narrows:
            continue
        weights = dense_weights(coupling, plan, gm, False, {})
        dense = copy_with(gm, lambda name, tensor, made=weights: like(tensor, made(name, tensor)))
        mode = Checked(coupling, coupling.masks(plan))
        run = _Run(dense, gm.graph, mode)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), mode, in_double(dense):
            run.run(*map_tensors(torch.clone, as_arguments(inputs, gm)), enable_io_processing=False)
        count, wrong = count + mode.checked, wrong + mode.wrong
    return (count, wrong) if coupling.groups else None


class _Run(fx.Interpreter):
    def __init__(self, root: nn.Module, graph: fx.Graph, mode: Checked) -> None:
        super().__init__(root, graph=graph)
        self.mode = mode

    def run_node(self, n: fx.Node) -> Any:
        self.mode.enter(n.name)
        return super().run_node(n)


@pytest.mark.parametrize("operator", SAMPLES)
def test_claims_hold_for_every_operator(operator: str) -> None:
    sample = SAMPLES[operator]
    torch.manual_seed(0)
    found = checked(sample.make(), torch.randn(sample.shape))
    assert found is None or (found[0] and not found[1]), found


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_claims_hold_in_every_tiny_network(name: str) -> None:
    row = TABLE[name]
    torch.manual_seed(0)
    found = checked(row.make(), row.inputs())
    assert found is None or not found[1], found


def test_every_built_in_rule_states_what_it_does_with_zeros() -> None:
    silent = [
        str(o) for o in table._rules
        if "zeros" not in table._stated.get(o, {}) and not str(o).startswith("fxprune_tests.")
    ]  # fmt: skip
    assert silent == []


@pytest.fixture
def traits_as_before() -> Iterator[None]:
    yield
    traits_of.cache_clear()


class Distances(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(torch.cdist(h[..., None], h[..., None]).sum(-1))


class Added(nn.Module):
    """A product is zero where its weight is; what is added to it is not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(torch.sigmoid(self.a(x)), x, self.b.weight.t()).sum(1)


class Padded(nn.Module):
    """Positions of another dimension are padded with ones, in removed channels as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(self.a(x), (1, 1), value=1.0).sum(1)


class NormedHeads(nn.Module):
    """A bias that heads share is added to every head, removed ones too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Linear(6, 12), nn.LayerNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x).unflatten(1, (4, 3))).sum(1)


class Places(nn.Module):
    """Places at which something stands are numbers, and not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).sort(2)[1].sum(1)


class WrittenThroughAView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y[:, :, 1:].add_(1.0)
        return y.sum(1)


@pytest.mark.parametrize("kind", [Distances, Added, Padded, NormedHeads, Places, WrittenThroughAView])
def test_what_moves_zero_is_proven_on_what_survives_or_left_alone(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().double().eval()
    x = torch.rand(2, 3, 5, dtype=torch.float64) if hasattr(model.a, "kernel_size") else torch.rand(4, 6).double()
    gm = capture(model, x)
    coupling = couple(gm, x)
    plan = coupling.plan({g.name: tuple(range(0, g.size, 2)) for g in coupling.groups})
    assert all(group.mixed for group in coupling.groups)
    verify(gm, PruneChannels(plan)(gm).graph_module, plan, x)


@pytest.mark.usefixtures("traits_as_before")
@pytest.mark.parametrize(
    ("operator", "make", "shape"),
    [(aten._cdist_forward, Distances, (4, 6)), (aten.addmm, Added, (4, 6)), (aten.constant_pad_nd, Padded, (2, 3, 5))],
)
def test_a_wrong_claim_is_caught(
    operator: Any, make: type[nn.Module], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check above, by itself; and the certificate is refused."""
    wrong = traits.PRODUCT if operator is aten.addmm else traits.CARRIED
    monkeypatch.setitem(table._stated, operator, {**table._stated[operator], "zeros": wrong})
    traits_of.cache_clear()
    model, x = make(), torch.rand(shape, dtype=torch.float64)
    found = checked(model, x)
    assert found is not None and any(str(operator) in wrong for wrong in found[1])
    gm = capture(model, x)
    coupling = couple(gm, x)
    plan = coupling.plan({g.name: tuple(range(0, g.size, 2)) for g in coupling.groups})
    with pytest.raises(PassError):
        verify(gm, PruneChannels(plan)(gm).graph_module, plan, x)


@torch.library.custom_op("fxprune_tests::moved_by_one", mutates_args=())
def moved_by_one(x: Tensor) -> Tensor:
    """A user's operator that does not keep zero."""
    return x + 1


@torch.library.custom_op("fxprune_tests::doubled_up", mutates_args=())
def doubled_up(x: Tensor) -> Tensor:
    """A user's operator that keeps zero."""
    return x * 2


@torch.library.custom_op("fxprune_tests::summed_up", mutates_args=())
def summed_up(x: Tensor) -> Tensor:
    """A user's operator that sums, and adds something for each channel."""
    return x.sum(1) + x.shape[1]


moved_by_one.register_fake(torch.empty_like)
doubled_up.register_fake(torch.empty_like)
summed_up.register_fake(lambda x: x.new_empty(x.shape[0], *x.shape[2:]))


@pytest.mark.parametrize("written_as", ["equation", "rule"])
@pytest.mark.parametrize(
    ("name", "stated", "mixed"),
    [
        ("moved_by_one", None, True),
        ("doubled_up", None, False),
        ("doubled_up", True, False),
        ("doubled_up", False, True),
        ("moved_by_one", False, True),
    ],
)
def test_a_users_rule_states_it_or_is_tried_out(written_as: str, name: str, stated: bool | None, mixed: bool) -> None:
    operator = getattr(torch.ops.fxprune_tests, name).default
    if written_as == "equation":
        equation_rule([operator], "n c *s -> n c *s", ["x"], zeros=stated)
    else:
        rule(operator, zeros=stated)(lambda call: [call.axes("x")])

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return operator(self.a(x)).sum(1)

    try:
        x = torch.randn(2, 3, 9, 9)
        gm = capture(Net().eval(), x)
        coupling = couple(gm, x)
        assert [(g.size, g.mixed) for g in coupling.groups] == [(8, mixed)]
        plan = coupling.plan({"a": (0, 3)})
        verify(gm, PruneChannels(plan)(gm).graph_module, plan, x)
    finally:
        unregister(operator)


def test_a_users_sum_that_counts_its_units_is_seen_to() -> None:
    operator = torch.ops.fxprune_tests.summed_up.default
    equation_rule([operator], "n c *s -> n *s", ["x"])

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return operator(self.a(x))

    try:
        x = torch.randn(2, 3, 9, 9)
        assert all(group.mixed for group in couple(capture(Net().eval(), x), x).groups)
    finally:
        unregister(operator)
