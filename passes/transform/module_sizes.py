"""A copy of a module whose tensors are cut already: its layers' sizes, and its attributes, made to agree."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from math import prod
from types import FunctionType

import numpy as np
import torch
from torch import nn

from passes.analysis.module_facts import Edit, Literal
from passes.axes.expressions import Axis, Constant, Product
from passes.graph.module_copies import modules_of
from passes.graph.shared_weights import parametrizations_kept
from passes.process.torch_private import parameters_of
from passes.stream.head_attention import HeadAttention, is_torchs_attention, no_nested_tensors, with_heads
from passes.stream.restated_calls import SIZES, Restated, RestatedForward
from passes.stream.skipped_branches import Silent, WithoutBranch
from passes.transform.resize_modules import NORMS, is_sized, resize_view_module
from passes.transform.size_attributes import set_integer
from passes.transform.slicing import Slicing


def fit(
    module: nn.Module, slicing: Slicing, edits: Sequence[Edit], literals: Sequence[Literal], on_trial: bool = False
) -> None:
    """Make sizes in layers, attributes and calls of `module`, whose tensors are cut, agree with the axes.

    on_trial: not all of the calls are known yet; those that are not run as they are written.
    """
    modules = modules_of(module)
    for path, part in modules.items():
        if is_sized(type(part)):
            slicing.resize(path, part, path, _channels(part, path, slicing) if isinstance(part, NORMS) else None)
        elif isinstance(part, HeadAttention) or is_torchs_attention(part):
            _fit_attention(part, path, slicing)
    for part in modules.values():
        if isinstance(part, nn.TransformerEncoder) and any(isinstance(m, HeadAttention) for m in part.modules()):
            no_nested_tensors(part)
    views = {path: part for path, part in modules.items() if isinstance(part, nn.Unflatten)}
    for record in slicing.coupling.structure.all_records if views else ():
        if record.node in views:
            shapes = [[slicing.size(axis) for axis in value.axes] for value in (record.inputs[0], record.outputs[0])]
            resize_view_module(views[record.node], *shapes)
    for edit in edits:
        if isinstance(modules.get(edit.path), (Silent, type(None))):  # it went with a residual branch
            continue
        set_integer(modules[edit.path], edit.attribute, prod(slicing.size(axis) for axis in edit.axes))
    for path in dict.fromkeys(literal.path for literal in literals):
        caller = modules.get(path)
        if caller is None or isinstance(caller, Silent) or isinstance(caller.__dict__.get("forward"), WithoutBranch):
            continue
        here = [_restated(literal, slicing) for literal in literals if literal.path == path]
        for method in dict.fromkeys(("forward", *(name for item in here for name in item.site.methods))):
            if isinstance(inspect.getattr_static(type(caller), method, None), FunctionType):
                setattr(caller, method, RestatedForward(caller, here, method, on_trial))


def _channels(part: nn.Module, path: str, slicing: Slicing) -> int | None:
    """How many channels enter a normalisation; None where it has a weight, which says so itself."""
    if parameters_of(part).get("weight") is not None:
        return None
    with parametrizations_kept(part):
        weightless = getattr(part, "weight", None) is None
    shape = slicing.first_inputs.get(path) if weightless else None
    if shape is None or len(shape) < 2:
        return None
    return shape[-1] if isinstance(part, (nn.LayerNorm, nn.RMSNorm)) else shape[1]


def _restated(literal: Literal, slicing: Slicing) -> Restated:
    sizes = [slicing.size(axis) for axis in literal.axes]
    before = prod(axis.size for axis in literal.axes)
    if literal.position == SIZES:
        return Restated(literal.site, literal.position, tuple(sizes))
    if not literal.axes:
        return Restated(literal.site, literal.position, literal.value)
    if literal.order is not None:
        return Restated(literal.site, literal.position, (literal.left(slicing.masks).order or (), torch.int64))
    if literal.negative:
        return Restated(literal.site, literal.position, -prod(sizes), before=before)
    if literal.absolute:
        return Restated(literal.site, literal.position, prod(sizes), before=before)
    pruned = [part for axis in literal.axes for part in _factors(axis) if not isinstance(part, Constant)]
    ratio = prod(slicing.size(part) for part in pruned), prod(part.size for part in pruned)
    return Restated(literal.site, literal.position, prod(sizes), ratio, before)


def _factors(axis: Axis) -> tuple[Axis, ...]:
    return axis.factors if isinstance(axis, Product) else (axis,)


def _fit_attention(part: nn.MultiheadAttention, path: str, slicing: Slicing) -> None:
    """The sizes of attention: torch's class holds them while ``embed_dim = heads * head_dim``, a subclass any."""

    def axis_of(name: str, dim: int) -> Axis:
        return slicing.coupling.structure.tensors[f"{path}.{name}" if path else name][dim]

    heads, size = part.num_heads, part.head_dim
    value_size = part.value_head_dim if isinstance(part, HeadAttention) else size
    if part.in_proj_weight is not None:
        kept = np.split(slicing.remain(axis_of("in_proj_weight", 0)), [heads * size, 2 * heads * size])
    else:
        kept = [slicing.remain(axis_of(name, 0)) for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")]
    queries, values = kept[0].reshape(heads, size), kept[2].reshape(heads, value_size)
    embedded = slicing.size(axis_of("out_proj.weight", 0))
    left = int(queries.any(axis=1).sum())
    sizes, value_sizes = (int(by_head.sum(axis=1).max()) for by_head in (queries, values))
    if not isinstance(part, HeadAttention):
        entering = slicing.size(axis_of("in_proj_weight" if part.in_proj_weight is not None else "q_proj_weight", 1))
        if left * sizes == left * value_sizes == embedded == entering and sizes == size:
            part.num_heads = left
        else:
            part = with_heads(part)
    if isinstance(part, HeadAttention):
        part.num_heads, part.head_dim, part.value_head_dim = left, sizes, value_sizes
    part.embed_dim = embedded
    for attribute, name in (("kdim", "k_proj_weight"), ("vdim", "v_proj_weight")):
        separate = part.in_proj_weight is None
        setattr(part, attribute, slicing.size(axis_of(name, 1)) if separate else embedded)
