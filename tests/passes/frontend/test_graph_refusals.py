"""What no graph can say is refused with the way out, and the process and torch are as before."""

from __future__ import annotations

import ast
import builtins
import io
import logging
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from passes import CaptureError, PassError, couple
from passes.frontend.choose import capture

BODIES = {
    "checkpoint": "checkpoint(self.b, x, use_reentrant=False)",  # the first: it imports torch._dynamo within the trace
    "reentrant checkpoint": "checkpoint(self.b, x, use_reentrant=True)",
    "checkpoint in train mode": "checkpoint(self.b, x, use_reentrant=False) if self.training else self.b(x)",
    "grad": "torch.func.grad(lambda t: self.b(t).pow(2).sum())(x)",
    "vmap": "torch.func.vmap(self.b)(x)",
    "jvp": "torch.func.jvp(self.b, (x,), (x,))[1]",
    "jacrev": "torch.func.jacrev(lambda t: self.b(t).sum())(x)",
    "derivative by autograd": "torch.autograd.functional.jvp(self.b, x, x)[1]",
}
IN_A_PROCESS = """
import sys
import torch, passes
from torch import nn
from torch.utils.checkpoint import checkpoint

class Net(nn.Module):
    def __init__(self, middle):
        super().__init__()
        self.a, self.c, self.middle = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 2, 3), middle
        self.b = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Softplus(), nn.Conv2d(16, 16, 3))
        self.eval()

    def forward(self, x):
        return self.c(self.middle(self, self.a(x)))

def outcome(model, x):
    try:
        graph = passes.capture(model, x)
    except passes.CaptureError as error:
        said = str(error)
        assert said.endswith("netadapt takes the module itself") and len(said) < 1500 and "\\n" not in said, said
        return "refused"
    found = []
    for one in (graph, model):
        one.zero_grad()
        y = one(x)
        y.sum().backward()
        found.append([y, *(p.grad for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(*found)
    return "right"

def middle_of(self, x):
    import torch._dynamo
    return self.b(x)

x, outcomes = torch.randn(2, 3, 12, 12), {}
assert "torch._dynamo" not in sys.modules
BODIES
plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
torch.export.export(plain, (x,))
torch.compile(plain, backend="eager")(x)
print(outcomes)
"""


def outcomes(bodies: dict[str, str]) -> dict[str, str]:
    """What comes of captures in one new process; nothing may end it, nor break torch.export and torch.compile."""
    lines = [f"outcomes[{name!r}] = outcome(Net({body}), x)" for name, body in bodies.items()]
    code = IN_A_PROCESS.replace("BODIES", "\n".join(lines))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return ast.literal_eval(done.stdout.splitlines()[-1])


def test_what_no_graph_can_say_is_refused_and_ends_no_process() -> None:
    found = outcomes({name: f"lambda self, x: {body}" for name, body in BODIES.items()})
    assert found.pop("derivative by autograd") in ("right", "refused")  # torch.export says it since torch 2.13
    assert found.pop("checkpoint in train mode") == "right"
    assert set(found.values()) == {"refused"}


def test_modules_imported_within_a_trace_find_torch_as_it_is() -> None:
    assert outcomes({"import": "middle_of"}) == {"import": "right"}


class Regions(nn.Module):
    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.a, self.b, self.enabled = nn.Linear(8, 16), nn.Linear(16, 4), enabled

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.enabled):
            x = self.a(x)
        return self.b(x.float())


class ProductTypes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        found = func(*args, **(kwargs or {}))
        if "mm" in str(func):
            self.seen.append(found.dtype)
        return found


def product_types(model: nn.Module, x: Tensor) -> list[torch.dtype]:
    with torch.no_grad(), ProductTypes() as mode:
        model(x)
    return mode.seen


@pytest.mark.parametrize("enabled", [False, True])
def test_autocast_holds_in_the_graph_where_it_held(enabled: bool) -> None:
    model, x = Regions(enabled), torch.rand(3, 8)
    gm = capture(model, x)
    inside = torch.bfloat16 if enabled else torch.float32
    assert product_types(gm, x) == product_types(model, x) == [inside, torch.float32]
    with torch.autocast("cpu", torch.bfloat16):  # a region without autocast is one within autocast too
        assert product_types(gm, x) == product_types(model, x)
    with pytest.raises(CaptureError, match="torch.autocast holds for a region"):
        capture(model, x, frontend="fx")


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x.round()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad


class Rounded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return Straight.apply(self.a(x))


def test_a_gradient_of_ones_own_is_kept_or_refused() -> None:
    model, x = Rounded(), torch.rand(2, 4)
    capture(model, x)(x).sum().backward()
    assert model.a.weight.grad is not None and model.a.weight.grad.abs().sum() > 0
    with pytest.raises(CaptureError, match="Straight, an autograd.Function, has a gradient of its own"):
        capture(model, x, frontend="export")


class Sums(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(x, Tensor) and not isinstance(x, (int, nn.Parameter)) and isinstance(x.shape, tuple)
        return x.pow(x) + torch.where(x > 0, x, 0.0) + torch.remainder(7, x)


def test_isinstance_tells_python_the_class_and_torch_never_takes_a_proxy_for_memory() -> None:
    x = torch.rand(3, 4) + 1
    torch.testing.assert_close(capture(Sums(), x, frontend="fx")(x), Sums()(x))

    class Deeper(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if isinstance(x, Tensor):  # in code that asks, too, a proxy is no tensor for C++
                torch._C._functorch._wrap_for_grad(x, 0)
            return x

    with pytest.raises(CaptureError, match="_wrap_for_grad.*incompatible function arguments"):
        capture(Deeper(), x, frontend="fx")


def as_they_are() -> list[object]:
    """All that a trace replaces."""
    holders = (nn.Module, torch.autograd.Function, torch.autocast, torch.autograd.graph.saved_tensors_hooks)
    attributes = [dict(vars(holder)) for holder in (*holders, torch.utils.checkpoint, builtins)]
    return [attributes, list(sys.meta_path), nn.MultiheadAttention.forward, torch.zeros]


class Breaks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("nothing here")


def test_all_that_is_replaced_is_put_back() -> None:
    before, x = as_they_are(), torch.rand(2, 8)
    for model in (Regions(True), Rounded(), Sums(), Breaks()):
        try:
            capture(model, x)
        except CaptureError:
            assert not isinstance(model, Sums)
        assert as_they_are() == before


def test_other_threads_run_their_modules_meanwhile() -> None:
    other, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(3, 4)
    expected, seen = other(x), []

    class Waits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            thread = threading.Thread(target=lambda: seen.append(other(torch.ones(3, 4) * given)))
            thread.start()
            thread.join()
            return x + 1

    given = x
    gm = capture(Waits(), x)
    assert torch.equal(seen[0], expected) and len(gm.graph.nodes) == 3


class Hooked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor, gain: float = 2.0) -> Tensor:
        return self.a(x) * gain


def test_hooks_of_the_model_itself_are_part_of_the_graph() -> None:
    model, x = Hooked(), torch.rand(2, 4)
    model.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    model.register_forward_hook(lambda module, args, output: output * 3)
    for frontend in ("fx", "export"):
        torch.testing.assert_close(capture(model, x, frontend=frontend)(x), model(x))
    given = capture(Hooked())
    given.register_forward_hook(lambda module, args, output: output * 3)
    with pytest.raises(CaptureError, match="hooks of its own"):
        capture(given)


def test_a_hook_on_gradients_is_refused() -> None:
    model = nn.Sequential(Hooked(), nn.Linear(4, 2))
    model[0].register_full_backward_hook(lambda module, inner, outer: (inner[0] * 2,))
    with pytest.raises(CaptureError, match="changes gradients"):
        capture(model, torch.rand(2, 4))


class Rows(nn.Module):
    """Its number of rows depends on values, and Python asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.config = nn.Linear(4, 4), type("Config", (), {"use_cache": True})

    def forward(self, x: Tensor) -> Tensor:
        found = self.backbone(x).nonzero()
        return x[: len(found)] if found.shape[0] > 3 else x


def test_one_paragraph_says_what_and_what_to_try_and_all_else_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model, printed = Rows().train(), io.StringIO()
    caplog.set_level(logging.DEBUG, logger="passes")
    with redirect_stderr(printed), redirect_stdout(printed), pytest.raises(CaptureError) as caught:
        capture(model, torch.rand(2, 4))
    said = str(caught.value)
    assert printed.getvalue() == "" and "\n" not in said and len(said) < 1500
    assert caught.value.__suppress_context__, "the traceback would show what torch.export says"
    wanted = ("test_graph_refusals.py:", "use_cache=False", "model.eval()", "model.backbone", "scope=['backbone']")
    assert all(text in said for text in wanted), said
    assert said.endswith("netadapt takes the module itself")
    assert any(record.exc_info and record.levelno == logging.DEBUG for record in caplog.records)


def test_quantised_and_scripted_parts_are_named() -> None:
    class Asks(nn.Module):
        def __init__(self, part: nn.Module) -> None:
            super().__init__()
            self.part = part

        def forward(self, x: Tensor) -> Tensor:
            x = self.part(x)
            return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError, match="the module that part was scripted from"):
        capture(Asks(torch.jit.script(nn.Linear(4, 4))), torch.rand(2, 4))
    quantised = torch.ao.nn.quantized.dynamic.Linear(4, 4)
    with pytest.raises(CaptureError, match="prune before quantising"):
        capture(Asks(quantised), torch.rand(2, 4))


def test_a_buffer_that_changes_its_size_is_no_memory() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.table = torch.arange(x.shape[1], dtype=x.dtype)
            return x * self.table

    with pytest.raises(CaptureError, match="buffer table of size .1,. is replaced by one of size .6,."):
        capture(Table(), torch.rand(2, 6))


def test_a_checkpoint_is_what_these_tests_take_it_for() -> None:
    """The oracle: torch still names what is refused as it did."""
    assert any(name.startswith("_checkpoint_without_reentrant_generator") for name in vars(torch.utils.checkpoint))
    assert checkpoint(torch.relu, torch.ones(1), use_reentrant=False) == 1


class Gathers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.b(sum((self.a(x) for x in inputs), torch.zeros(())).relu())


def test_inputs_that_a_graph_gathers_are_refused_by_name_and_the_module_takes_them() -> None:
    inputs = torch.randn(3, 6), torch.randn(3, 6)
    with pytest.raises(PassError, match=r"gathers others in \*inputs, which no analysis of a graph follows: give them"):
        couple(capture(Gathers(), inputs), inputs)
    assert [group.size for group in couple(Gathers(), inputs).groups] == [8]


class CountedByNumpy(Gathers):
    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        return self.b(self.a(x)), np.float64(x.shape[-1])


def test_numbers_of_numpy_are_plain_numbers_in_generated_code() -> None:
    graph = capture(CountedByNumpy(), torch.randn(3, 6))
    assert graph(torch.randn(3, 6))[1] == 6.0
