"""What an example leaves open (arguments, grad mode, a batch of one, types): followed, said, or refused."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from module_law import proven
from tiny import TABLE
from torch import Tensor, nn

from passes import (
    CaptureError,
    Certificate,
    Coupling,
    EquivalenceError,
    PassError,
    PlanError,
    apply_plan,
    capture,
    couple,
    verify,
)
from passes.graph.annotations import specialised_in

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 10, (2, 8), generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    """Two layers, and what a test does between them."""

    def __init__(self, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)
        for name, part in parts.items():
            setattr(self, name, part)

    def hidden(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x))


def halved(network: nn.Module, inputs: Any = X) -> tuple[Coupling, nn.Module, Certificate]:
    """Every second unit of every group is left."""
    coupling = couple(network, inputs)
    plan = coupling.plan({group.name: tuple(range(0, group.size, 2)) for group in coupling.groups})
    pruned = apply_plan(network, plan)
    return coupling, pruned, verify(network, pruned, plan, inputs)


class Heads(Base):
    """Which head answers is an argument."""

    def __init__(self) -> None:
        super().__init__(heads=nn.ModuleList(nn.Linear(16, 4) for _ in range(3)))

    def forward(self, x: Tensor, task: int = 0) -> Tensor:
        return self.heads[task](self.hidden(x))  # type: ignore[operator]


class Features(Base):
    """A flag chooses what is returned; no example gives the context."""

    def forward(self, x: Tensor, normed: bool = False, context: Tensor | None = None) -> Tensor:
        h = self.hidden(x) if context is None else self.hidden(x) + context
        return self.b(h / h.mean(-1, keepdim=True) if normed else h)


class Slimmable(Base):
    """An argument says how many units are used."""

    def forward(self, x: Tensor, share: float = 0.5) -> Tensor:
        width = int(16 * share)
        return F.relu(x @ self.a.weight[:width].t()) @ self.b.weight[:, :width].t()


@pytest.mark.parametrize(
    ("network", "said"),
    [(Heads, "its argument task is 0, its default"), (Features, "its argument normed is False, its default")],
)
def test_arguments_at_their_defaults_are_said_by_module_and_graph(network: Callable[[], nn.Module], said: str) -> None:
    model = network().eval()
    assert said in halved(model)[2].specialised
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        assert said in specialised_in(capture(model, X))


def test_arguments_that_are_not_given_and_parameters_that_are_not_used_are_said() -> None:
    assert "its arguments context were not given" in halved(Features().eval())[2].specialised
    (unused,) = [text for text in halved(Heads().eval())[2].specialised if "heads.1.weight" in text]
    assert "calls that use it may not fit" in unused


def test_an_argument_that_nothing_depends_on_is_not_said() -> None:
    class Idle(Base):
        def forward(self, x: Tensor, verbose: bool = False) -> Tensor:
            return self.b(self.hidden(x))

    assert halved(Idle().eval())[2].specialised == ()
    assert specialised_in(capture(Idle().eval(), X)) == ()


def test_units_of_which_an_argument_says_how_many_are_used_stay() -> None:
    model = Slimmable().eval()
    coupling, pruned, _ = halved(model)
    assert coupling.groups == ()
    assert torch.equal(pruned(X, share=1.0), model(X, share=1.0))


def test_what_is_done_where_gradients_are_recorded_is_proven_as_well() -> None:
    class Otherwise(Base):
        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h.softmax(-1) if torch.is_grad_enabled() else h.tanh())

    with pytest.raises(EquivalenceError, match="with gradients"):
        halved(Otherwise().eval())


def test_a_batch_of_one_is_proven_as_well() -> None:
    class Single(Base):
        def forward(self, x: Tensor) -> Tensor:
            h = self.hidden(x)
            return self.b(h.view(16)).view(1, -1) if len(x) == 1 else self.b(h)

    with pytest.raises(EquivalenceError, match="batch of 1 instead of 3"):
        halved(Single().eval())


def test_what_is_done_in_the_modules_own_types_is_compared_in_these() -> None:
    class Typed(Base):
        def forward(self, x: Tensor) -> Tensor:
            h = self.hidden(x)
            return self.b(h) if x.dtype == torch.float32 else self.b(h.exp())

    coupling, pruned, certificate = halved(Typed().eval())
    assert coupling.groups and not certificate.note.startswith("not compared")
    with torch.no_grad():
        pruned.b.weight[:, 3] *= 1.5  # type: ignore[index, operator, union-attr]
    plan = coupling.plan({group.name: tuple(range(0, group.size, 2)) for group in coupling.groups})
    with pytest.raises(EquivalenceError):
        verify(Typed().eval(), pruned, plan, X)


@pytest.mark.parametrize(
    "made",
    [
        lambda self, h: float(h.shape[-1]),
        lambda self, h: tuple(h.shape),
        lambda self, h: {"parameters": sum(p.numel() for p in self.parameters())},
        lambda self, h: h.tolist(),
        lambda self, h: h.detach().numpy(),
        lambda self, h: np.float64(h.shape[-1]),
    ],
    ids=["size", "shape", "count", "list", "array", "numpy number"],
)
def test_plain_values_that_are_made_of_sizes_are_results_too(made: Callable[[Any, Tensor], Any]) -> None:
    class Returns(Base):
        def forward(self, x: Tensor) -> Any:
            h = self.hidden(x)
            return self.b(h), made(self, h)

    with pytest.raises(EquivalenceError, match="a plain value in the result"):
        halved(Returns().eval())


def test_plain_values_that_stay_are_no_hindrance() -> None:
    class Returns(Base):
        def forward(self, x: Tensor) -> Any:
            return {"y": self.b(self.hidden(x)), "rows": len(x), "name": "net", "none": None}

    assert halved(Returns().eval())[0].groups


class Positions(nn.Module):
    """A table of positions that long inputs use otherwise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.a, self.b = nn.Embedding(10, 16), nn.Linear(16, 24), nn.Linear(24, 4)
        self.position = nn.Parameter(torch.randn(20, 16))

    def forward(self, tokens: Tensor) -> Tensor:
        n = tokens.shape[1]
        places = self.position[:n] if n < 12 else self.position[:n] * 2
        return self.b(F.relu(self.a(self.embed(tokens) + places))).mean(1)


def test_a_branch_on_the_length_that_a_graph_does_not_hold_is_said() -> None:
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        said = specialised_in(capture(Positions().eval(), TOKENS))
    assert any("not for a length 16 instead of 8" in text for text in said)


def test_a_graph_that_keeps_something_of_each_call_is_certified() -> None:
    class Average(Base):
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(16))

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            self.mean.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
            return self.b(F.relu(h - self.mean))

    model = Average().eval()
    assert halved(model)[2].max_error <= 1e-9
    assert halved(capture(model, X))[2].max_error <= 1e-9
    assert not model.mean.any(), "the user's module has not been called"


def test_layers_without_weights_are_refused_by_name() -> None:
    lazy = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 4))
    with pytest.raises(PassError, match=r"couple: 0 \(LazyLinear\) has no weights yet"):
        couple(lazy, X)
    with pytest.raises(CaptureError, match=r"capture: 0 \(LazyLinear\) has no weights yet"):
        capture(lazy, X)


class Padded(nn.Module):
    """An encoder with a padding mask; `read` is what is made of its result."""

    def __init__(self, read: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        self.enter, self.encoder, self.leave = nn.Linear(6, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 4)
        self.read = read

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.read(self.leave(self.encoder(self.enter(x), src_key_padding_mask=padding)), padding)


READS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the others": lambda y, padding: y.masked_fill(padding.unsqueeze(-1), 0),
    "the first": lambda y, padding: y[:, 0],
    "all": lambda y, padding: y,
    "the mean": lambda y, padding: y.mean(1),
}
PADDED = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("form", ["module", "graph"])
def test_a_padded_encoder_is_what_a_users_call_gives_or_refused(read: str, form: str) -> None:
    model, x = Padded(READS[read]).eval(), torch.randn(2, 5, 6)

    def pruned() -> nn.Module:
        return halved(capture(model, (x, PADDED)) if form == "graph" else model, (x, PADDED))[1]

    if read in ("all", "the mean"):
        with pytest.raises(PassError, match=r"encoder \(nn.TransformerEncoder\) .* depends on padded positions"):
            pruned()
        model.encoder.use_nested_tensor = False
    with torch.no_grad():
        assert bool(torch.isfinite(pruned()(x, PADDED)).all())


def test_a_padding_mask_without_padding_tells_nothing() -> None:
    x, none = torch.randn(2, 5, 6), torch.zeros(2, 5, dtype=torch.bool)
    for model in (Padded(READS["all"]).eval(), Padded(READS["the others"]).eval()):
        with pytest.raises(PassError, match="no position is padded"):
            couple(model, (x, none))
        with pytest.raises(CaptureError, match="no position is padded"):
            capture(model, (x, none))


@pytest.mark.parametrize("name", ["code", "graph", "meta", "_graph", "recompile", "print_readable"])
def test_names_that_a_graph_module_has_for_itself_are_refused_there_and_no_hindrance_here(name: str) -> None:
    class Named(Base):
        def __init__(self) -> None:
            super().__init__()
            self.register_parameter(name, nn.Parameter(torch.randn(16)))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.hidden(x) * getattr(self, name))

    model = Named().eval()
    assert halved(model)[1](X).shape == (3, 4)
    with pytest.raises(CaptureError, match=f"holds '{name}', a name that torch.fx.GraphModule has"):
        capture(model, X)
    assert halved(capture(nn.Sequential(model), X))[1](X).shape == (3, 4)


def test_a_part_that_was_traced_by_torch_jit_stays_whole() -> None:
    part = torch.jit.trace(nn.Linear(16, 12), torch.randn(2, 16))
    model = nn.Sequential(nn.Linear(6, 16), part, nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4)).eval()
    assert halved(model)[0].widths == {"2": 10}


class Mixing(nn.Module):
    """Attention over pixels whose result is read with channels for pixels: what goes where hangs on the image size."""

    def __init__(self, crossing: bool) -> None:
        super().__init__()
        self.crossing = crossing
        self.stem, self.key = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.value, self.out = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 1)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        key, value = self.key(x).flatten(2), self.value(x).flatten(2).mT
        y = (key.mT @ key).softmax(-1) @ value
        return self.last(self.out(x + (y if self.crossing else y.mT).reshape(x.shape)))


@pytest.mark.parametrize("crossing", [True, False])
def test_a_view_that_cuts_across_channels_by_an_image_size_keeps_them(crossing: bool) -> None:
    groups = "key 4, out 6" if crossing else "stem 8, key 4, out 6"
    certificate = proven(Mixing(crossing), torch.randn(2, 3, 2, 2), groups)[2]
    assert any("length" in size for size in certificate.sizes)


def test_a_view_that_joins_units_with_the_batch_and_cuts_them_alike_at_any_keeps_none() -> None:
    row = TABLE["ConditionalConv"]
    proven(row.make(), row.inputs(), "route 4, experts 6, experts#2 8")


class Routed(nn.Module):
    """Each input goes to one of twelve experts, of which only those run to which one goes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router = nn.Linear(6, 12, bias=False)
        self.router.weight = nn.Parameter(torch.cat([torch.eye(6), -torch.eye(6)]))
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(12))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x).argmax(-1)
        y = x.new_zeros(len(x), 4)
        for expert in chosen.unique().tolist():
            here = (chosen == expert).nonzero()[:, 0]
            y = y.index_add(0, here, self.experts[expert](x[here]))
        return y


def test_experts_to_which_the_example_does_not_lead_are_found_on_other_values() -> None:
    inputs = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    coupling = halved(Routed().eval(), inputs)[0]
    assert set(coupling.widths) == {f"experts.{number}.0" for number in range(12)}
    assert not coupling.unread


def test_what_no_run_uses_and_what_other_values_may() -> None:
    class Never(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.hidden(x)) * (float(x.sum()) if asks else 2.0)

    for asks in (False, True):
        coupling = couple(Never(token=nn.Parameter(torch.ones(16))).eval(), X)
        assert coupling.unread == {"token"} and coupling.unused == (set() if asks else {"token"})


class CheckedAttention(nn.Module):
    """Compares the shape of what it made with its own size of a head, as attention of BART and CLIP does."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim = 4, 6
        self.q, self.k, self.v, self.out = (nn.Linear(24, 24) for _ in range(4))

    def shape(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, self.head_dim).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        joined = (n * self.heads, -1, self.head_dim)
        q, k, v = (self.shape(part(x)).reshape(*joined) for part in (self.q, self.k, self.v))
        y = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        if y.size() != (n * self.heads, length, self.head_dim):
            raise ValueError(f"the result should be of size {(n * self.heads, length, self.head_dim)}, not {y.size()}")
        y = y.view(n, self.heads, length, self.head_dim).transpose(1, 2).reshape(n, length, width)
        return self.out(y)


def test_a_size_that_a_program_compares_follows_the_group_that_it_is_compared_with() -> None:
    model = nn.Sequential(nn.Linear(7, 24), *(CheckedAttention() for _ in range(3)), nn.Linear(24, 5))
    layers = ", ".join(f"{n}.q 4, {n}.q#2 6, {n}.v 6, {n}.out 24" for n in (1, 2, 3))
    proven(model, torch.randn(2, 5, 7), f"0 24, {layers}")


class Asking(nn.Module):
    """Asks for a value, and passes on what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.0 if float(x.abs().sum()) else x


def test_a_number_made_of_the_batch_and_of_heads_follows_both_in_a_program_that_asks_for_values() -> None:
    model = nn.Sequential(Asking(), nn.Linear(7, 24), CheckedAttention(), nn.Linear(24, 5))
    proven(model, torch.randn(2, 5, 7), "1 24, 2.q 4, 2.q#2 6, 2.v 6, 2.out 24")


class Bounded(Base):
    """Bounds what it computes by the least number of its type, which no lower type holds."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x)
        return self.b(torch.max(h, torch.full((), torch.finfo(h.dtype).min)))


def test_the_least_number_of_a_type_is_one_in_double_precision_too() -> None:
    proven(Bounded(), X, "a 16")


class Split(nn.Module):
    """Cuts its channels into four by sizes that it keeps in a tuple, all of them alike."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = (8, 8, 8, 8)
        self.parts = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, groups=8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first, *others = torch.split(x, self.sizes, 1)
        return torch.cat([first, *(part(other) for part, other in zip(self.parts, others, strict=True))], 1)


def test_pieces_of_one_size_that_a_program_states_one_by_one_follow_their_groups() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 1), Split(), Split(), nn.Conv2d(32, 2, 1))
    cut = proven(model, torch.randn(2, 3, 6, 6), "0 8, 0#2 8, 0#3 8, 0#4 8")[0]
    assert cut[1].sizes == (4, 4, 4, 4)


class Touched(Base):
    """Adds nothing of a parameter, so that what looks for unused ones finds none."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.hidden(x)) + 0 * self.table.weight.sum()  # type: ignore[operator,union-attr]


def test_a_parameter_that_is_only_touched_is_not_used() -> None:
    coupling = proven(Touched(table=nn.Embedding(9, 16)), X, "a 16")[1]
    assert coupling.unread == {"table.weight"}


class Entered(Base):
    """Flags of single numbers, or of rows, say where others are written, one after the other."""

    def __init__(self, rows: bool) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x)
        flags = (x[:, :1] > 0).expand_as(h) if self.rows else h > 0.1
        return self.b(h.masked_scatter(flags, h.flip(0) + 1))


@pytest.mark.parametrize("rows", [True, False])
def test_rows_written_where_flags_say_are_cut_and_single_numbers_are_not(rows: bool) -> None:
    if rows:
        proven(Entered(rows), X, "a 16")
    else:
        assert not couple(Entered(rows).eval(), X).groups


class Choosing(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: self.b(self.a(y)), lambda y: self.b(self.a(y).relu()), (x,))


def test_higher_order_operators_are_refused_by_name() -> None:
    with pytest.raises(
        PassError, match=r"Choosing calls torch's higher-order operator cond \(test_other_cases.py:\d+\)"
    ):
        couple(Choosing(), X)


def test_a_plan_for_the_module_says_so_to_its_graph() -> None:
    class Net(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu())

    net = Net().eval()
    plan, gm = couple(net, X).plan({"a": range(3)}), capture(net)
    for call in (lambda: apply_plan(gm, plan), lambda: verify(gm, gm, plan, X)):
        with pytest.raises(PlanError, match="the plan is for module .* make a plan for the graph itself"):
            call()
