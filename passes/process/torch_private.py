"""What torch calls by an underscore and these packages rely on, under plain names: nothing else names it.

A test a name (tests/passes/process/test_torch_private.py) says what is relied on, so that a new torch fails there.
Where torch has a public way that does the same as fast, that is taken instead.
"""

# ruff: noqa: F401  (what is imported here is for others)

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter, itemgetter
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.nn.modules.module as module_hooks
import torch.utils.checkpoint
from torch import fx, nn
from torch._ops import HigherOrderOperator as HigherOrderOperator
from torch._ops import OpOverload as OpOverload
from torch._ops import OpOverloadPacket as OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
from torch.fx._lazy_graph_module import _LazyGraphModule as LazyGraphModule
from torch.fx._symbolic_trace import _constant_attribute_types as CONSTANT_TYPES
from torch.fx.graph import CodeGen as CodeGen
from torch.fx.graph import _PyTreeCodeGen as TreeCodeGen
from torch.fx.graph_module import _copy_attr as copy_attribute
from torch.fx.node import _get_qualified_name as qualified_name
from torch.nn.functional import _canonical_mask as canonical_mask
from torch.nn.modules._functions import BackwardHookFunction as BackwardHookFunction
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.modules.conv import _ConvNd as ConvNd
from torch.overrides import _get_current_function_mode_stack as function_modes
from torch.overrides import _pop_mode as pop_function_mode
from torch.overrides import _push_mode as push_function_mode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes as no_dispatch_modes
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as dispatch_modes
from torch.utils._python_dispatch import _pop_mode as pop_dispatch_mode
from torch.utils._python_dispatch import _push_mode as push_dispatch_mode

# -- what reads programs in place of running them ----------------------------------------------------------------------

CHECKPOINTING: str = torch.utils.checkpoint.__file__
Callee = TypeVar("Callee", bound=Any)


def not_compiled(why: str) -> Callable[[Callee], Callee]:
    """A function that torch.compile ends a graph before, and runs as it is, with all that it calls. As
    `torch.compiler.disable`, which imports the whole compiler."""

    def marked(function: Callee) -> Callee:
        dynamo, noted = torch._C._dynamo.eval_frame, vars(function)
        noted.update(_torchdynamo_disable=True, _torchdynamo_disable_msg=why)
        skip = dynamo._FrameAction.SKIP
        dynamo.set_code_exec_strategy(function.__code__, dynamo._FrameExecStrategy(skip, skip))
        return function

    return marked


def is_symbolic_trace_of_root(frame: FrameType) -> bool:
    """Whether a frame looks through the attributes of the module that torch.fx is about to trace."""
    code = frame.f_code
    at_root = code.co_name == "collect_tensor_attrs" and not frame.f_locals.get("prefix_atoms")
    return at_root and code.co_filename == sys.modules[fx.Tracer.__module__].__file__


# -- operators ---------------------------------------------------------------------------------------------------------


def schema_of(operator: object) -> Any:
    """The schema of an overload; None of what is none."""
    return getattr(operator, "_schema", None)


def qualified_operator(packet: OpOverloadPacket) -> str:
    """``namespace::name`` of an overload packet."""
    name: str = packet._qualified_op_name
    return name


def overload_name(overload: OpOverload) -> str:
    """``Tensor`` of ``aten.add.Tensor``."""
    name: str = overload._overloadname
    return name


torch_assert = torch._assert
set_grad_enabled = torch._C._set_grad_enabled  # as a node of a graph
# Inside, no mode sees what is called.
no_torch_function, no_torch_dispatch = torch._C.DisableTorchFunction, torch._C._DisableTorchDispatch

# -- tensors -----------------------------------------------------------------------------------------------------------


def storage_id(tensor: torch.Tensor) -> int:
    """One number a storage, whatever device it is on; on meta all have the address 0."""
    number: int = tensor.untyped_storage()._cdata
    return number


def version_of(tensor: torch.Tensor) -> int:
    """How often a tensor was written in place."""
    return tensor._version


def has_tensor_hooks(tensor: torch.Tensor) -> bool:
    """Whether something runs when a gradient reaches a tensor."""
    return bool(tensor._backward_hooks) or bool(getattr(tensor, "_post_accumulate_grad_hooks", None))


# -- modules -----------------------------------------------------------------------------------------------------------


# The tables of a module's own parameters, buffers and children, to read and to write; None is an empty place. An
# analysis asks for them some thousand times, and a getter in C takes a third of the time of a function.
parameters_of: Callable[[nn.Module], dict[str, nn.Parameter | None]] = attrgetter("_parameters")
buffers_of: Callable[[nn.Module], dict[str, torch.Tensor | None]] = attrgetter("_buffers")
children_of: Callable[[nn.Module], dict[str, nn.Module | None]] = attrgetter("_modules")


def transient_of(module: nn.Module) -> set[str]:
    """The names of its buffers that no state dict holds."""
    return module._non_persistent_buffers_set


# Every table of hooks that a module has, those that say how a hook of another table is called included.
HOOK_TABLES = tuple(name for name, held in vars(nn.Module()).items() if isinstance(held, dict) and "hooks" in name)
_hooks_in = itemgetter("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooks_of(module: nn.Module) -> list[Callable[..., object]]:
    """The hooks around a call of a module."""
    held = _hooks_in(module.__dict__)
    return [hook for hooks in held for hook in hooks.values()] if any(held) else []


def has_global_hooks() -> bool:
    """Whether every module of the process has hooks around its forward."""
    return bool(module_hooks._global_forward_pre_hooks or module_hooks._global_forward_hooks)


def call_of(kind: type[nn.Module]) -> Callable[..., object]:
    """The function that runs hooks and forward when a module of this class is called."""
    return kind._call_impl


def written_code(gm: fx.GraphModule) -> str | None:
    """The code that a call of a graph module runs; None where it is written from the graph when it is wanted.

    Also None where torch writes calls of its profiler into it, under names that it does not tell.
    """
    code: str | None = gm.__dict__.get("_code")
    return None if code is None or is_to_be_compiled(gm) or "_RecordFunctionFast" in code else code


def is_to_be_compiled(gm: fx.GraphModule) -> bool:
    """Whether it is of torch's lazy kind, and its code is not written yet: its forward then shows no arguments."""
    return isinstance(gm, LazyGraphModule) and gm._needs_recompile()


def encoder_blocks(layer: nn.TransformerEncoderLayer) -> tuple[Callable[..., torch.Tensor], ...]:
    """Its methods for attention and for the layers behind it."""
    return layer._sa_block, layer._ff_block


def compiled_module(module: Any) -> nn.Module:
    """What torch.compile was given to make this module."""
    return module._orig_mod


# -- exports and training ----------------------------------------------------------------------------------------------


def program_tensors(program: torch.export.ExportedProgram) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its parameters and buffers, and its constants, to read and to write."""
    return program._state_dict, program._constants


def set_example_inputs(
    program: torch.export.ExportedProgram, inputs: tuple[tuple[object, ...], dict[str, object]]
) -> None:
    """Replace the inputs that a program was exported with."""
    program._example_inputs = inputs


def input_tree(exported: fx.GraphModule) -> pytree.TreeSpec:
    """How the inputs of an exported module, ``(args, kwargs)``, are arranged."""
    assert exported._in_spec is not None, "exported with a tree"
    return exported._in_spec


def output_tree(exported: fx.GraphModule) -> pytree.TreeSpec:
    """How the flat results of an exported module's graph are arranged."""
    assert exported._out_spec is not None, "exported with a tree"
    return exported._out_spec


def operator_names() -> list[str]:
    """Every operator that is defined by now, as ``namespace::name``."""
    return torch._C._dispatch_get_all_op_names()


def forget_workers(loader: Any) -> None:
    """Have a loader that keeps its worker processes start new ones."""
    loader._iterator = None


def mark_as_scheduled(step: Any) -> None:
    """Have a scheduler take this `step` of an optimizer for one that it has wrapped, and not warn."""
    step._wrapped_by_lr_sched = True


# -- graphs ------------------------------------------------------------------------------------------------------------


def codegen_of(graph: fx.Graph) -> CodeGen:
    """What writes the code of a graph."""
    return graph._codegen


def rewrites_code(graph: fx.Graph) -> bool:
    """Whether a function that `on_generate_code` was given changes the code of a graph after it is written."""
    return codegen_of(graph)._body_transformer is not None


def set_codegen(graph: fx.Graph, codegen: CodeGen) -> None:
    """Have the code of a graph written by this; `Graph.set_codegen` is there for those that take no arguments anew."""
    graph._codegen = codegen


def tracer_class(graph: fx.Graph) -> type[fx.Tracer] | None:
    """The class of the tracer that made a graph, or None."""
    return graph._tracer_cls


def tracer_extras(graph: fx.Graph) -> dict[str, object] | None:
    """What a graph keeps of its tracer, or None."""
    return graph._tracer_extras


def name_taken(graph: fx.Graph, name: str) -> None:
    """Have no node that is made later take this name."""
    graph._graph_namespace.create_name(name, None)


def placed_first(graph: fx.Graph, node: fx.Node) -> None:
    """Move a node to the beginning of its graph."""
    graph._root.append(node)


def spelled_target(graph: fx.Graph, target: Callable[..., object] | str) -> str:
    """The name that a node of this target is given."""
    return graph._target_to_str(target)


def wrapped_functions() -> dict[tuple[int, str], dict[str, object]]:
    """What `fx.wrap` has registered, by (identity of the namespace, name): namespaces. To read and to write."""
    return fx._symbolic_trace._wrapped_fns_to_patch


# -- settings ----------------------------------------------------------------------------------------------------------


def default_device() -> torch.device | None:
    """The mode that stands for torch.set_default_device, or None."""
    return getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)


def set_default_device(mode: object) -> None:
    """Have `mode`, which is on the stack or None, count as the default device."""
    torch._GLOBAL_DEVICE_CONTEXT.device_context = mode


def float32_precision(backend: str, operators: str) -> str | None:
    """How float32 products are computed there (TF32, bfloat16); None before torch 2.9."""
    read = getattr(torch._C, "_get_fp32_precision_getter", None)
    return None if read is None else read(backend, operators)


def set_float32_precision(backend: str, operators: str, precision: str) -> None:
    """Have them computed so."""
    torch._C._set_fp32_precision_setter(backend, operators, precision)


@contextmanager
def without_onednn() -> Iterator[None]:
    """Inside, nothing runs in kernels of oneDNN; the public switch sets TF32 as well, and warns of it (torch 2.13)."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def fused_recurrence() -> tuple[bool, bool]:
    """Whether recurrent layers may run in kernels of oneDNN and of cuDNN."""
    return torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()


def set_fused_recurrence(mkldnn: bool, cudnn: bool) -> None:
    """Set both; the public switches would set precision and determinism as well."""
    torch._C._set_mkldnn_enabled(mkldnn)
    torch._C._set_cudnn_enabled(cudnn)
