"""What is relied on of each private name of torch: a new torch that differs fails here, and says which."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from passes.process import torch_private as private

aten: Any = torch.ops.aten


def _graph() -> fx.Graph:
    return fx.symbolic_trace(nn.Linear(2, 3)).graph


def _takes(function: Callable[..., Any], *names: str) -> bool:
    return list(inspect.signature(function).parameters)[: len(names)] == list(names)


def _module() -> nn.Module:
    module = nn.BatchNorm1d(3)
    module.register_buffer("scratch", torch.zeros(1), persistent=False)
    return module


def _pushed(push: Any, pop: Any, stack: Any, mode: Any) -> bool:
    push(mode)
    held = stack()[-1] is mode
    pop()
    return held and mode not in stack()


class _Mode(private.TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("a mode that is switched off")


def _unseen(context: Any) -> bool:
    with _Mode(), context():
        return bool(torch.ones(2).sum() == 2)


def _codegen_is_kept() -> bool:
    graph, codegen = _graph(), private.TreeCodeGen
    before = private.codegen_of(graph)
    private.set_codegen(graph, before)
    return (
        issubclass(codegen, private.CodeGen) and private.codegen_of(graph) is before and hasattr(codegen, "gen_fn_def")
    )


def _rewriting_is_told() -> bool:
    graph = _graph()
    before = private.rewrites_code(graph)
    graph.on_generate_code(lambda _: lambda body: body)
    during = private.rewrites_code(graph)
    graph.on_generate_code(lambda _: None)  # type: ignore[arg-type,return-value]
    return (before, during, private.rewrites_code(graph)) == (False, True, False)


def _first(graph: fx.Graph) -> bool:
    node = list(graph.nodes)[-2]
    private.placed_first(graph, node)
    return next(iter(graph.nodes)) is node


def _name_is_free_no_more(graph: fx.Graph) -> bool:
    private.name_taken(graph, "wanted")
    return graph.create_node("call_function", torch.relu, (), name="wanted").name != "wanted"


def _written() -> bool:
    gm = fx.symbolic_trace(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    return private.written_code(gm) == gm.graph.python_code("self").src and private.written_code(_lazy(gm)) is None


def _lazy(gm: fx.GraphModule) -> fx.GraphModule:
    return private.LazyGraphModule(gm, gm.graph)


def _exported() -> Any:
    return torch.export.export(nn.Linear(2, 3), (torch.ones(1, 2),))


def _hooked() -> nn.Module:
    module = nn.Identity()
    module.register_forward_hook(lambda *_: None)
    return module


def _tensor_hooks() -> bool:
    plain, hooked, after = (torch.ones(1, requires_grad=True) for _ in range(3))
    hooked.register_hook(lambda grad: None)
    after.register_post_accumulate_grad_hook(lambda tensor: None)
    return [private.has_tensor_hooks(t) for t in (plain, hooked, after)] == [False, True, True]


def _storage() -> bool:
    meta = torch.empty(4, device="meta")
    return private.storage_id(meta) == private.storage_id(meta[1:]) != private.storage_id(torch.empty_like(meta))


def _fused_is_put_back() -> bool:
    before = private.fused_recurrence()
    private.set_fused_recurrence(False, False)
    off = private.fused_recurrence()
    private.set_fused_recurrence(*before)
    return off == (False, False) and private.fused_recurrence() == before


def _onednn_is_off_inside() -> bool:
    before = private.fused_recurrence()
    with private.without_onednn():
        inside = private.fused_recurrence()
    return inside == (False, before[1]) and private.fused_recurrence() == before


def _precision_is_put_back() -> bool:
    kind = ("mkldnn", "matmul")
    before = private.float32_precision(*kind)
    if before is not None:
        private.set_float32_precision(*kind, before)
    return private.float32_precision(*kind) == before


def _device() -> bool:
    before = private.default_device()
    private.set_default_device(before)
    return private.default_device() is before and (before is None or hasattr(before, "device"))


def _encoder() -> bool:
    attention, behind = private.encoder_blocks(nn.TransformerEncoderLayer(4, 2))
    return _takes(attention, "x", "attn_mask", "key_padding_mask", "is_causal") and _takes(behind, "x")


def _loader() -> bool:
    loader = torch.utils.data.DataLoader(torch.ones(2, 1))
    known = hasattr(loader, "_iterator")
    private.forget_workers(loader)
    return known and loader._iterator is None


def _scheduled() -> bool:
    def step() -> None: ...

    private.mark_as_scheduled(step)
    return "_wrapped_by_lr_sched" in inspect.getsource(torch.optim.lr_scheduler) and bool(vars(step))


def _registered(program: Any) -> bool:
    tensors, constants = private.program_tensors(program)
    private.set_example_inputs(program, ((torch.zeros(1, 2),), {}))
    return sorted(tensors) == ["bias", "weight"] and constants == {} and not program.example_inputs[0][0].any()


def _is_not_compiled() -> bool:
    @private.not_compiled("a test")
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x * (1 if torch.compiler.is_compiling() else 2)

    def run(x: torch.Tensor) -> torch.Tensor:
        return doubled(x) + 1

    return float(torch.compile(run, backend="eager")(torch.ones(()))) == 3


def _root_is_looked_through() -> bool:
    class Asked:
        found = False

        @property  # type: ignore[misc]
        def __class__(self) -> type:
            Asked.found |= private.is_symbolic_trace_of_root(inspect.currentframe().f_back)  # type: ignore[union-attr,arg-type]
            return Asked

    held = nn.Linear(2, 3)
    held.asked = Asked()  # type: ignore[assignment]
    isinstance(held.asked, int)
    before, _ = Asked.found, fx.symbolic_trace(held)
    return Asked.found and not before


RELIED_ON: dict[str, Callable[[], bool]] = {
    "CHECKPOINTING": lambda: inspect.getsourcefile(torch.utils.checkpoint.CheckpointFunction) == private.CHECKPOINTING,
    "not_compiled": _is_not_compiled,
    "is_symbolic_trace_of_root": _root_is_looked_through,
    "BackwardHookFunction": lambda: issubclass(private.BackwardHookFunction, torch.autograd.Function),
    "CONSTANT_TYPES": lambda: torch.Tensor in private.CONSTANT_TYPES,
    "CodeGen": _codegen_is_kept,
    "ConvNd": lambda: issubclass(nn.ConvTranspose2d, private.ConvNd),
    "FakeTensor": lambda: issubclass(private.FakeTensor, torch.Tensor),
    "HOOK_TABLES": lambda: {"_forward_hooks", "_forward_hooks_always_called"} < set(private.HOOK_TABLES),
    "HigherOrderOperator": lambda: isinstance(torch.ops.higher_order.cond, private.HigherOrderOperator),
    "LazyGraphModule": lambda: private.is_to_be_compiled(_lazy(fx.symbolic_trace(nn.ReLU()))),
    "NormBase": lambda: issubclass(nn.InstanceNorm2d, private.NormBase),
    "OpOverload": lambda: isinstance(aten.add.Tensor, private.OpOverload),
    "OpOverloadPacket": lambda: isinstance(aten.add, private.OpOverloadPacket),
    "TorchDispatchMode": lambda: issubclass(torch.utils.flop_counter._FlopCounterMode, private.TorchDispatchMode),
    "TreeCodeGen": _codegen_is_kept,
    "buffers_of": lambda: list(private.buffers_of(_module()))[0] == "running_mean",
    "call_of": lambda: _takes(private.call_of(nn.Module), "self", "args", "kwargs"),
    "canonical_mask": lambda: _takes(
        private.canonical_mask, "mask", "mask_name", "other_type", "other_name", "target_type", "check_other"
    ),
    "children_of": lambda: list(private.children_of(nn.Sequential(nn.ReLU()))) == ["0"],
    "codegen_of": _codegen_is_kept,
    "compiled_module": lambda: isinstance(private.compiled_module(torch.compile(nn.ReLU())), nn.ReLU),
    "copy_attribute": lambda: _takes(private.copy_attribute, "from_module", "to_module", "target"),
    "default_device": _device,
    "dispatch_modes": lambda: isinstance(private.dispatch_modes(), list),
    "encoder_blocks": _encoder,
    "float32_precision": _precision_is_put_back,
    "forget_workers": _loader,
    "function_modes": lambda: isinstance(private.function_modes(), list),
    "fused_recurrence": _fused_is_put_back,
    "without_onednn": _onednn_is_off_inside,
    "has_global_hooks": lambda: private.has_global_hooks() is False,
    "has_tensor_hooks": _tensor_hooks,
    "hooks_of": lambda: len(private.hooks_of(_hooked())) == 1 and not private.hooks_of(nn.Identity()),
    "input_tree": lambda: private.input_tree(_exported().module()).num_leaves == 1,
    "is_to_be_compiled": lambda: not private.is_to_be_compiled(fx.symbolic_trace(nn.ReLU())),
    "mark_as_scheduled": _scheduled,
    "name_taken": lambda: _name_is_free_no_more(_graph()),
    "no_dispatch_modes": lambda: _unseen(private.no_dispatch_modes),
    "no_torch_dispatch": lambda: _unseen(private.no_torch_dispatch),
    "no_torch_function": lambda: callable(private.no_torch_function().__enter__),
    "operator_names": lambda: "aten::relu" in private.operator_names(),
    "output_tree": lambda: private.output_tree(_exported().module()).num_leaves == 1,
    "overload_name": lambda: private.overload_name(aten.add.Tensor) == "Tensor",
    "parameters_of": lambda: list(private.parameters_of(_module())) == ["weight", "bias"],
    "placed_first": lambda: _first(_graph()),
    "pop_dispatch_mode": lambda: _pushed(
        private.push_dispatch_mode, private.pop_dispatch_mode, private.dispatch_modes, _Mode()
    ),
    "pop_function_mode": lambda: _pushed(
        private.push_function_mode, private.pop_function_mode, private.function_modes, torch.device("cpu")
    ),
    "program_tensors": lambda: _registered(_exported()),
    "pytree": lambda: private.pytree.tree_map(lambda n: n + 1, {"a": [1, (2,)]}) == {"a": [2, (3,)]},
    "qualified_name": lambda: private.qualified_name(torch.relu) == "torch.relu",
    "qualified_operator": lambda: private.qualified_operator(aten.add) == "aten::add",
    "rewrites_code": _rewriting_is_told,
    "schema_of": lambda: [a.name for a in private.schema_of(aten.add.Tensor).arguments] == ["self", "other", "alpha"],
    "set_grad_enabled": lambda: private.set_grad_enabled(torch.is_grad_enabled()) is None,
    "spelled_target": lambda: private.spelled_target(_graph(), torch.relu) == "relu",
    "storage_id": _storage,
    "torch_assert": lambda: _takes(private.torch_assert, "condition", "message"),
    "tracer_class": lambda: private.tracer_class(_graph()) is fx.Tracer,
    "tracer_extras": lambda: private.tracer_extras(_graph()) in (None, {}),
    "transient_of": lambda: private.transient_of(_module()) == {"scratch"},
    "version_of": lambda: private.version_of(torch.ones(1).add_(1)) == 1,
    "wrapped_functions": lambda: all(len(key) == 2 for key in private.wrapped_functions()),
    "written_code": _written,
}
# Tested by what reads what they set, or as one of a pair.
WITH_ANOTHER = {
    "push_dispatch_mode", "push_function_mode", "set_codegen", "set_default_device", "set_example_inputs",
    "set_float32_precision", "set_fused_recurrence",
}  # fmt: skip


@pytest.mark.parametrize("name", RELIED_ON)
def test_torch_has_it_and_it_is_as_relied_on(name: str) -> None:
    assert RELIED_ON[name]()


def test_every_name_has_its_test() -> None:
    modules = {"annotations", "Any", "Callable", "Iterator", "attrgetter", "contextmanager", "itemgetter"}
    modules |= {"torch", "fx", "nn", "module_hooks", "sys", "FrameType", "TypeVar", "Callee"}
    names = {name for name in vars(private) if not name.startswith("_")} - modules
    assert names == set(RELIED_ON) | WITH_ANOTHER
