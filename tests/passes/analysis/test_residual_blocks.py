"""Which residual branches are offered, and why others stay."""

import pytest
import torch
from torch import nn

from passes import apply_plan, capture, cost, couple, verify

IMAGE = torch.randn(1, 4, 6, 6)


class Around(nn.Module):
    """A stem, one block in `forward(x, branch)` of a subclass, and a head."""

    def __init__(self, second=4):
        super().__init__()
        self.stem, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)
        self.branch = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, second, 1))

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.summed(x))

    def summed(self, x):
        return x + self.branch(x)


class AlsoReturned(Around):
    def forward(self, x):
        x = self.stem(x)
        made = self.branch(x)
        return self.head(x + made), made.mean()


class Projected(Around):
    def __init__(self):
        super().__init__()
        self.skip = nn.Conv2d(4, 4, 1)

    def summed(self, x):
        return self.skip(x) + self.branch(x)


class Scaled(Around):
    def summed(self, x):
        return torch.add(x, self.branch(x), alpha=2)


class Broadcast(Around):
    def __init__(self):
        super().__init__(1)

    def summed(self, x):
        return x + self.branch(x)


class Concatenated(Around):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(8, 3, 1)

    def summed(self, x):
        return torch.cat([x, self.branch(x)], 1)


class Counting(Around):
    """Keeps a running mean of what the branch makes, and uses it for the head."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))

    def summed(self, x):
        made = self.branch(x)
        self.mean.mul_(0.9).add_(made.mean() * 0.1)
        return x + made


class Shared(Around):
    def summed(self, x):
        return x + self.branch(x) * self.stem.weight.sum()


class WrittenOver(Around):
    """Without the branch, `mul_` would write into what is read again."""

    def summed(self, x):
        total = x + self.branch(x)
        total.mul_(2)
        return total - x


class Repeated(Around):
    """One module in two places."""

    def summed(self, x):
        x = x + self.branch(x)
        return x + self.branch(x)


REFUSED = {
    AlsoReturned: None,
    Projected: "the skip is no identity",
    Scaled: None,
    Broadcast: None,
    Concatenated: None,
    Counting: None,
    Shared: "stem.weight is used elsewhere too",
    WrittenOver: "written over in place",
    Repeated: "is used elsewhere too",
}


@pytest.mark.parametrize("form", ["graph", "module"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_removable_branch_stays(kind, form):
    network = kind().eval()
    network = capture(network, IMAGE) if form == "graph" else network
    coupling = couple(network, IMAGE, depth=True)
    said = [str(reason) for reason in coupling.refused_blocks.values()]
    assert not coupling.blocks
    assert REFUSED[kind] is None or any(REFUSED[kind] in text for text in said), said


@pytest.mark.parametrize("form", ["graph", "module"])
def test_the_plain_block_is_offered(form):
    network = capture(Around().eval(), IMAGE) if form == "graph" else Around().eval()
    coupling = couple(network, IMAGE, depth=True)
    assert list(coupling.blocks) == ["block:branch.2"]
    assert set(coupling.blocks["block:branch.2"].tensors) == {
        f"branch.{n}.{t}" for n in (0, 2) for t in ("weight", "bias")
    }
    assert coupling.full_widths["block:branch.2"] == 1


class Parallel(Around):
    """Two branches that read one normalised input."""

    def __init__(self):
        super().__init__()
        self.norm, self.other = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)

    def summed(self, x):
        normal = self.norm(x)
        return x + self.other(normal) + self.branch(normal)


@pytest.mark.parametrize("form", ["graph", "module"])
def test_branches_that_share_what_they_read_go_one_by_one(form):
    network = capture(Parallel().eval(), IMAGE) if form == "graph" else Parallel().eval()
    coupling = couple(network, IMAGE, depth=True)
    assert list(coupling.blocks) == ["block:other", "block:branch.2"]
    assert not any("norm" in tensor for block in coupling.blocks.values() for tensor in block.tensors)
    for removed in coupling.blocks:
        plan = coupling.plan({}, removed_blocks=[removed])
        small = apply_plan(network, plan)
        assert verify(network, small, plan, IMAGE).max_error < 1e-9
        assert sum(p.numel() for p in small.parameters()) == cost(coupling).params(plan.widths)


class Caching(Around):
    """What is added is a product that a module makes itself, of keys that it returns as well."""

    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.out = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            keys = self.key(x)
            return self.out(torch.matmul(self.query(x), keys)), keys

    def __init__(self):
        super().__init__()
        self.branch = Caching.Mixing()

    def forward(self, x):
        x = self.stem(x)
        made, keys = self.branch(x)
        return self.head(x + made), keys


def test_products_that_a_module_would_still_make_keep_its_branch():
    module, graph = Caching().eval(), capture(Caching().eval(), IMAGE)
    stays = couple(module, IMAGE, depth=True)
    assert not stays.blocks and "multiplies for it" in str(stays.refused_blocks)
    coupling = couple(graph, IMAGE, depth=True)
    plan = coupling.plan({}, removed_blocks=coupling.blocks)
    small = apply_plan(graph, plan)
    assert verify(graph, small, plan, IMAGE).max_error < 1e-9
    assert cost(couple(small, IMAGE)).macs() == cost(coupling).macs(plan.widths) == (4 * 4 + 4 * 4 + 4 * 3) * 36


class Hooked(Around):
    def __init__(self):
        super().__init__()
        self.branch[0].register_forward_hook(lambda module, args, result: result)


class Twice(Around):
    def __init__(self):
        super().__init__()
        self.again = self.branch[0]


class Remembering(Around):
    """A branch that keeps what later calls count on."""

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x, cache=None):
            return self.conv(x)

    def __init__(self):
        super().__init__()
        self.branch = Remembering.Branch()


class Numbered(Around):
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.calls = nn.Conv2d(4, 4, 1), 0

        def forward(self, x):
            self.calls += 1
            return self.conv(x)

    def __init__(self):
        super().__init__()
        self.branch = Numbered.Branch()


class Keeping(Around):
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            self.last = self.conv(x)
            return self.last

    def __init__(self):
        super().__init__()
        self.branch = Keeping.Branch()


class Asking(Around):
    """A program that reads a weight of its branch, or a width, in one of its modes."""

    def __init__(self, when):
        super().__init__()
        self.branch, self.when = nn.Conv2d(4, 4, 1), when

    def summed(self, x):
        return x + self.branch(self.read(x) if self.when(self) else x)

    def read(self, x):
        return x.to(self.branch.weight.dtype)


class AskingWidth(Asking):
    def read(self, x):
        return x.view(len(x), self.branch.in_channels, 6, 6)


WHEN = {
    "always": lambda module: True,
    "training": lambda module: module.training,
    "gradients": lambda module: torch.is_grad_enabled(),
    "kernels": lambda module: torch.backends.mha.get_fastpath_enabled(),
    "never": lambda module: False,
}


@pytest.mark.parametrize(("kind", "said"), [(Asking, "attribute 'dtype'"), (AskingWidth, "attribute 'in_channels'")])
@pytest.mark.parametrize("when", WHEN)
def test_a_branch_of_which_something_is_read_in_any_mode_stays(kind, said, when):
    coupling = couple(kind(WHEN[when]).eval(), IMAGE, depth=True)
    assert bool(coupling.blocks) == (when == "never")
    for reason in coupling.refused_blocks.values():
        assert said in str(reason)
        assert ("as it is called" in str(reason)) == (when == "kernels")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Hooked, "has hooks"),
        (Twice, "held in a second place"),
        (Remembering, "takes cache"),
        (Numbered, "changes branch.calls"),
        (Keeping, ""),
    ],
)
def test_a_module_whose_branch_does_more_stays(kind, why):
    coupling = couple(kind().eval(), IMAGE, depth=True)
    said = [str(reason) for reason in coupling.refused_blocks.values()]
    assert not coupling.blocks
    assert not why or any(why in text for text in said), said


def test_blocks_cost_nothing_where_nobody_asks():
    network = capture(Around().eval(), IMAGE)
    coupling = couple(network, IMAGE)
    assert not coupling.blocks and coupling.full_widths == coupling.widths
    deep = cost(couple(network, IMAGE, depth=True))
    assert deep.macs() == cost(coupling).macs() and deep.memory() == cost(coupling).memory()
    assert deep.macs({"block:branch.2": 0}) == deep.macs() - 4 * 6 * 9 * 36 - 6 * 4 * 36
    assert deep.along("macs")["block:branch.2"].tolist()[:2] == [
        deep.macs({"block:branch.2": 0}),
        4 * 6 * 9 * 36 + 6 * 4 * 36,
    ]
