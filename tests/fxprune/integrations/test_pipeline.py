"""PrunePass and the passes of `passes` beside others' passes: order, truthfulness, and what comes after pruning."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from export_nets import Cnn, inputs_of
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.fx.passes.infra.pass_manager import PassManager, pass_result_wrapper
from torch.fx.passes.shape_prop import ShapeProp

from fxprune import Budget
from fxprune.exporters import export
from fxprune.integrations.prune_pass import PipelineError, Pruned, PrunePass
from passes import PruneChannels, capture, cost, couple, verify

# Few rounds: what is tested here is the pass, not the search.
FAST = {"budget_reduce_rate_init": 0.4, "strategy": "uniform", "netadapt_min_feature_size": 2}
fold = pass_result_wrapper(fuse)


def propagated(gm: fx.GraphModule) -> PassResult:
    """ShapeProp as a pass."""
    ShapeProp(gm).propagate(inputs_of(Cnn()))
    return PassResult(gm, False)


def cleaned(gm: fx.GraphModule) -> PassResult:
    """Dead-code elimination as a pass."""
    return PassResult(gm, gm.graph.eliminate_dead_code())


@pytest.fixture
def gm() -> fx.GraphModule:
    model = Cnn()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return capture(model.eval())


def pruning(share: Any = 0.5, **options: Any) -> PrunePass:
    return PrunePass(share, **{"example_inputs": inputs_of(Cnn()), "config": FAST, **options})


def flops(gm: fx.GraphModule) -> int:
    return cost(couple(gm, inputs_of(Cnn()))).flops()


def widths(gm: fx.GraphModule) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in gm.named_parameters() if p.dim() > 1}


def test_one_pass_prunes_and_proves(gm: fx.GraphModule) -> None:
    before = copy.deepcopy(gm.state_dict())
    prune = pruning()
    assert isinstance(prune, PassBase)
    pruned, modified = prune(gm)
    assert modified and flops(pruned) <= 0.5 * flops(gm)
    record = pruned.meta["fxprune"]
    assert isinstance(record, Pruned) and record.certificate.max_error <= record.certificate.tol
    verify(gm, pruned, record.plan, inputs_of(Cnn()))
    assert "fxprune" not in gm.meta
    assert all(torch.equal(tensor, before[name]) for name, tensor in gm.state_dict().items())


def test_within_the_budget_nothing_is_modified(gm: fx.GraphModule) -> None:
    result = pruning(1.0)(gm)
    assert not result.modified and result.graph_module is gm


def test_folding_after_and_before(gm: fx.GraphModule) -> None:
    example = inputs_of(Cnn())
    prune = pruning()
    pruned = prune(gm).graph_module
    after = PassManager([prune, fold], constraints=prune.before(fold))(gm)
    assert after.modified and not any(isinstance(m, nn.BatchNorm2d) for m in after.graph_module.modules())
    torch.testing.assert_close(after.graph_module(example), pruned(example), atol=1e-5, rtol=1e-5)
    folded = fold(gm).graph_module
    before = PassManager([fold, prune], constraints=prune.after(fold))(gm)
    assert flops(before.graph_module) <= 0.5 * flops(folded)
    # The proof is against the folded network: what the pass was given.
    verify(folded, before.graph_module, before.graph_module.meta["fxprune"].plan, example)


def test_beside_dead_code_elimination_and_shape_propagation(gm: fx.GraphModule) -> None:
    with gm.graph.inserting_after(next(node for node in gm.graph.nodes if node.target == "drop")):
        gm.graph.call_function(torch.relu, (next(iter(gm.graph.nodes)),))
    gm.recompile()
    prune = pruning(example_inputs=None)
    again = pass_result_wrapper(propagated)  # PassManager runs one object once, however often it is listed
    manager = PassManager([again, prune, propagated, cleaned])
    for constraint in prune.after(cleaned, propagated) + prune.before(again):
        manager.add_constraint(constraint)
    found = manager(gm).graph_module
    assert not [node for node in found.graph.nodes if node.target is torch.relu]
    shapes = {
        node.name: tuple(node.meta["tensor_meta"].shape) for node in found.graph.nodes if node.op == "call_module"
    }
    for name, module in found.named_modules():
        if isinstance(module, nn.Conv2d):
            assert shapes[name.replace(".", "_")][1] == module.out_channels


def test_orders_are_declared_and_checked(gm: fx.GraphModule) -> None:
    prune = pruning()
    wrong = PassManager([fold, prune], constraints=prune.before(fold))
    with pytest.raises(RuntimeError, match="pass schedule constraint violated"):
        wrong.validate_constraints()
    wrong.solve_constraints()
    assert wrong.passes == [prune, fold]
    with pytest.raises(RuntimeError, match="Circular dependency"):
        PassManager([fold, prune], constraints=prune.before(fold) + prune.after(fold))(gm)


def test_many_steps_prune_once(gm: fx.GraphModule) -> None:
    once = pruning()(gm).graph_module
    many = PassManager([pruning(), cleaned], steps=4)(gm)
    assert many.modified and widths(many.graph_module) == widths(once)
    absolute = pruning(Budget("flops", value=flops(gm) // 2))
    assert widths(PassManager([absolute, fold], steps=3)(gm).graph_module) == widths(absolute(gm).graph_module)


def _widened(gm: fx.GraphModule) -> None:
    for name, layer in _net(64).named_children():
        setattr(gm, name, layer)


def _net(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
        nn.Conv2d(width, 4, 1),
    )


@pytest.mark.parametrize("budget", [Budget("macs", value=100_000), 0.5], ids=["number", "share"])
def test_what_a_later_pass_changed_is_pruned_again(budget: Any) -> None:
    example = torch.randn(1, 3, 6, 6)
    prune = PrunePass(budget, example, FAST)
    pruned = prune(capture(_net(24))).graph_module
    assert not prune(pruned).modified
    assert not prune(copy.deepcopy(pruned)).modified
    _widened(pruned)
    again = prune(pruned)
    now = cost(couple(again.graph_module, example)).macs()
    before = cost(couple(pruned, example)).macs()
    assert again.modified and now <= (100_000 if isinstance(budget, Budget) else before / 2)
    assert not prune(again.graph_module).modified


def test_an_example_of_another_size_is_looked_at_again_where_a_number_is_asked_for() -> None:
    budget = Budget("macs", value=100_000)
    pruned = PrunePass(budget, torch.randn(1, 3, 6, 6), FAST)(capture(_net(24))).graph_module
    assert PrunePass(budget, torch.randn(1, 3, 9, 9), FAST)(pruned).modified


@pytest.mark.parametrize("other", [{"config": {**FAST, "exclude": ["0"]}}, {"seed": 1}], ids=["settings", "seed"])
def test_another_pass_of_the_same_budget_does_its_own_work(other: dict[str, Any]) -> None:
    given = {"config": FAST, "seed": 0}
    pruned = PrunePass(0.5, torch.randn(1, 3, 6, 6), **given)(capture(_net(24))).graph_module
    again = PrunePass(0.5, torch.randn(1, 3, 6, 6), **{**given, **other})(pruned)
    assert again.modified
    if "config" in other:
        kept = again.graph_module.get_submodule("0"), pruned.get_submodule("0")
        assert kept[0].out_channels == kept[1].out_channels


def test_a_backend_of_torch_compile_is_told_to_prune_first() -> None:
    said: list[str] = []

    def backend(gm: fx.GraphModule, example: list[torch.Tensor]) -> Any:
        with pytest.raises(PipelineError) as refused:
            PrunePass(0.5, tuple(example), FAST)(gm)
        said.append(str(refused.value))
        return gm.forward

    torch.compile(_net(8), backend=backend)(torch.randn(1, 3, 6, 6))
    assert "all weights are inputs: prune before it, torch.compile(netadapt(model, ...).model)" in said[0]


def test_the_passes_alone_fit_a_pass_manager(gm: fx.GraphModule) -> None:
    example = inputs_of(Cnn())
    coupling = couple(gm, example)
    plan = coupling.plan({group.name: tuple(range(0, group.size, 2)) for group in coupling.groups})
    result = PassManager([PruneChannels(plan), fold, propagated], run_checks_after_each_pass=True)(gm)
    expected = PruneChannels(plan)(gm).graph_module(example)
    torch.testing.assert_close(result.graph_module(example), expected, atol=1e-5, rtol=1e-5)


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(PipelineError, match="got a Cnn; capture it first"):
        pruning()(Cnn())  # type: ignore[arg-type]


def calibrated(pruned: fx.GraphModule) -> fx.GraphModule:
    """FX quantization, prepared and calibrated."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    prepared = prepare_fx(copy.deepcopy(pruned), get_default_qconfig_mapping("x86"), (inputs_of(Cnn()),))
    prepared(inputs_of(Cnn()))
    return prepared


@pytest.mark.skipif(
    "x86" not in torch.backends.quantized.supported_engines
    or importlib.util.find_spec("torch.ao.quantization.quantize_fx") is None,
    reason="this torch has no FX quantization",
)
def test_fx_quantization_follows_the_pruned_channels(gm: fx.GraphModule) -> None:
    from torch.ao.quantization.quantize_fx import convert_fx

    pruned = pruning()(gm).graph_module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao says that it moves to torchao
        prepared = calibrated(pruned)
        with pytest.raises(PipelineError, match="put PrunePass before quantization"):
            pruning()(copy.deepcopy(prepared))
        quantized = convert_fx(prepared)
    for name, module in pruned.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = quantized.get_submodule(name).weight()  # type: ignore[operator]
            assert weight.shape == module.weight.shape
            assert len(weight.q_per_channel_scales()) == weight.shape[0] == module.weight.shape[0]
    example = inputs_of(Cnn())
    error = (quantized(example) - pruned(example)).abs().max()
    assert error <= 0.1 * pruned(example).abs().max()


def test_pt2e_quantization_follows_and_is_exported(gm: fx.GraphModule, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    example = inputs_of(Cnn())
    pruned = pruning()(gm).graph_module
    shapes = {"x": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(pruned, (example,), dynamic_shapes=shapes).module()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    prepared(example)
    quantized = convert_pt2e(prepared)
    scales = sorted(len(buffer) for name, buffer in quantized.named_buffers() if name.startswith("_scale"))
    layers = [module for module in pruned.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert scales == sorted(layer.weight.shape[0] for layer in layers)
    assert export(quantized, example, tmp_path / "net.pt2").dynamic_batch
    # ONNX Runtime sums in another order, which moves a value that lies between two of the 256 levels to its neighbour
    assert export(quantized, example, tmp_path / "net.onnx", tolerance=1 / 256).dynamic_batch
    with pytest.raises(PipelineError, match="put PrunePass before quantization"):
        pruning()(quantized)


@pytest.mark.slow
def test_capture_prune_fold_compile() -> None:
    model = Cnn().eval()
    example = inputs_of(model)
    gm = capture(model, example)
    prune = pruning()
    optimised = PassManager([prune, fold], constraints=prune.before(fold))(gm).graph_module
    compiled = torch.compile(optimised, dynamic=True)
    expected = prune(gm).graph_module
    for given in (example, torch.cat([example] * 3)):
        torch.testing.assert_close(compiled(given), expected(given), atol=1e-4, rtol=1e-4)
