"""What a caller hands to a search, checked: the network in the form of the search, its inputs, its prunable groups."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy

from fxprune.errors import InputError
from fxprune.io.tensors import modes_of, sharing
from fxprune.problem.mistaken import no_model, of_inputs
from fxprune.problem.wrappers import BARE, Wrapping, unwrapped
from passes import Coupling, PassError, capture, couple
from passes.analyse import with_blocks
from passes.analysis.residual_blocks import Blocks
from passes.arguments import choice, no_fake_tensors
from passes.errors import DoesNotRun
from passes.process.state import exclusive, seed_all, state_kept
from passes.process.torch_private import buffers_of, parameters_of

log = logging.getLogger(__name__)

_QUANTISED = (
    "torchao.quantization", "torchao.dtypes", ".ao.nn.quantized", ".ao.nn.intrinsic.quantized", ".nn.quantized",
    ".ao.nn.qat", ".ao.nn.intrinsic.qat", ".ao.quantization.observer", ".ao.quantization.fake_quantize",
)  # fmt: skip
FORMS = ("auto", "module", "graph")
LEAVE_OUT = (
    'example_inputs may be left out only where the graph\'s placeholders carry meta["val"] or meta["tensor_meta"]'
)


@dataclass(frozen=True, eq=False)
class Analysed:
    """A network as a search takes it, coupled.

    network: the module itself, without the wrappers that `wrap` puts on again, or its graph. form: "module" or
    "graph". modes: which modules were in train mode, by name, wrappers included where they come back. note: why the
    form is not that of what came in, "" where it is.
    """

    network: nn.Module
    coupling: Coupling
    example_inputs: object
    form: str
    modes: dict[str, bool]
    wrap: Wrapping = BARE
    note: str = ""


def analysed(model: object, example_inputs: object, form: str = "auto", depth: bool = False) -> Analysed:
    """Couple a network in a form: "module" is the module itself, "graph" the graph that is captured from it.

    "auto" is the form of what came in: a GraphModule is a graph. A module that cannot be analysed by running it is
    captured instead, which the log and the `note` say. depth: with the residual blocks that may be removed.
    """
    found = _analysed(model, example_inputs, form)
    if not depth:
        return found
    return replace(found, coupling=with_blocks(found.network, found.coupling, found.example_inputs))


def _analysed(model: object, example_inputs: object, form: str) -> Analysed:
    choice(form, FORMS, "netadapt: form", InputError)
    no_fake_tensors(example_inputs, "netadapt", InputError)
    if not isinstance(model, nn.Module):
        raise no_model(model)
    check_kind(model)
    modes, (inner, wrap) = modes_of(model), unwrapped(model)
    if example_inputs is None:
        example_inputs = inputs_from_meta(inner)
    if isinstance(example_inputs, list):
        example_inputs = tuple(example_inputs)
    elif isinstance(example_inputs, Mapping):  # a tokenizer's BatchEncoding, too
        example_inputs = dict(example_inputs)
    if isinstance(inner, GraphModule):
        return Analysed(*_graph(inner, example_inputs), example_inputs, "graph", modes, wrap)
    if form == "graph":
        return Analysed(*_graph(inner, example_inputs), example_inputs, "graph", modes_of(inner))
    try:
        coupling = coupled(inner, example_inputs)
    except PassError as refused:
        if form == "module":
            raise
        return _captured_instead(inner, example_inputs, refused)
    if not coupling.structure.records:
        raise InputError("netadapt: the network is empty: it runs no operation, so there is nothing to prune.")
    return Analysed(inner, coupling, example_inputs, "module", modes, wrap)


def check_kind(model: nn.Module, who: str = "netadapt") -> None:
    """Refuse what no analysis can take, and say what a copy cannot keep."""
    for name, module in model.named_modules():
        if any(is_lazy(t) for t in (*parameters_of(module).values(), *buffers_of(module).values()) if t is not None):
            raise InputError(
                f"{who}: {name or 'the model'} ({type(module).__name__}) has no weights yet; call the model once "
                "before it is pruned."
            )
        held = [type(t).__module__ for t in (*parameters_of(module).values(), *buffers_of(module).values())]
        classes = [kind.__module__ for kind in type(module).__mro__]
        if any(part in place for place in (*classes, *held) for part in _QUANTISED):
            raise InputError(
                f"{who}: {name or 'the model'} ({type(module).__name__}) is quantised, or prepared for it: its scales "
                "belong to its channels. Prune the float model, and quantise or prepare what comes out."
            )
        if getattr(getattr(module, "_hf_hook", None), "offload", False):
            raise InputError(
                f"{who}: {name or 'the model'} ({type(module).__name__}) is offloaded by accelerate, so its weights "
                "are not in it. Load the model without offloading, or bring them back first: "
                "accelerate.hooks.remove_hook_from_module(model, recurse=True)."
            )
        if getattr(module, "_compiled_call_impl", None) is not None:
            log.warning(
                "%s was compiled in place, and a pruned copy is not; call compile() on it again", name or "the model"
            )
    if isinstance(unwrapped(model)[0], torch.jit.ScriptModule):
        raise InputError(
            f"{who}: got a {type(model).__name__}, whose code cannot be changed; pass the nn.Module that it was "
            "made from."
        )


def _captured_instead(model: nn.Module, example_inputs: object, refused: PassError) -> Analysed:
    try:
        with warnings.catch_warnings(record=True) as told:
            network, coupling = _graph(model, example_inputs)
    except (PassError, InputError):
        known = "" if isinstance(refused, DoesNotRun) else 'It cannot be captured either; form="graph" says why'
        way = of_inputs(example_inputs) or known
        raise InputError(f"netadapt: {refused}." + (f" {way}." if way else "")) from refused
    for warned in told:  # of a graph that nobody gets they would be noise
        warnings.warn_explicit(warned.message, warned.category, warned.filename, warned.lineno)
    note = f"{type(model).__name__} cannot be analysed as a module, so its graph is searched and returned: {refused}"
    log.warning("%s", note)
    return Analysed(network, coupling, example_inputs, "graph", modes_of(model), note=note)


def graph_like(network: nn.Module, coupling: Coupling, example_inputs: object) -> tuple[GraphModule, Coupling]:
    """The graph of a module, with the groups that the module has. Raises InputError where there is no such graph.

    It gives no cache of attention back, which no front end takes.
    """
    try:
        gm, own = _graph(_without_cache(network), example_inputs)
    except PassError as error:
        raise InputError(f"{type(network).__name__} cannot be captured as a graph. {error}") from error
    if own.widths != coupling.widths:
        differing = sorted(set(own.widths.items()) ^ set(coupling.widths.items()))
        raise InputError(
            f"the graph of {type(network).__name__} has other groups than the module ({differing[:3]}); "
            'search with form="graph".'
        )
    if coupling.blocks:
        own = with_blocks(gm, own)
        if lacking := [name for name in coupling.blocks if name not in own.blocks]:
            raise InputError(
                f"the graph of {type(network).__name__} does not offer {lacking[0]}, which the module does: "
                f'{own.refused_blocks.get(lacking[0], "it is not there")}; search with form="graph", or exclude it.'
            )
        own = own.with_blocks(Blocks({name: own.blocks[name] for name in coupling.blocks}, own.refused_blocks))
    return gm, own


def _without_cache(network: nn.Module) -> nn.Module:
    """The network; where its Hugging Face configuration asks for a cache, a copy with its tensors that has none."""
    if not _caching(network):
        return network
    copied = sharing(network)
    for config in _caching(copied):
        config.use_cache = False
    return copied


def _caching(network: nn.Module) -> list[Any]:
    """The configurations of a network's modules that ask for a cache."""
    configs = [getattr(module, "config", None) for module in network.modules()]
    return [config for config in configs if getattr(config, "use_cache", False) is True]


def _graph(model: nn.Module, example_inputs: object) -> tuple[GraphModule, Coupling]:
    gm = capture(model, example_inputs)
    if not any(node.op not in ("placeholder", "output", "get_attr") for node in gm.graph.nodes):
        raise InputError("netadapt: the graph is empty: it holds no operation, so there is nothing to prune.")
    return gm, coupled(gm, example_inputs)


def inputs_from_meta(model: nn.Module) -> tuple[torch.Tensor, ...]:
    """Example inputs of the shapes and types that the placeholders of a traced graph carry."""
    if not isinstance(model, GraphModule):
        raise InputError(
            f"netadapt: example_inputs is missing, and a {type(model).__name__} does not say what it takes; pass "
            "example_inputs=torch.randn(1, 3, 224, 224), or what fits. "
            f"({LEAVE_OUT}.)"
        )
    found = []
    for node in model.graph.find_nodes(op="placeholder"):
        meta = node.meta.get("val")
        meta = meta if meta is not None else node.meta.get("tensor_meta")
        shape, dtype = getattr(meta, "shape", None), getattr(meta, "dtype", None)
        if shape is None or dtype is None:
            if node.args:  # an argument with a default may stay out
                continue
            raise InputError(
                f"netadapt: example_inputs is missing, and placeholder {node.name!r} carries no shape; {LEAVE_OUT}. "
                "Pass example_inputs, or run torch.fx.passes.shape_prop.ShapeProp(gm).propagate(...) first."
            )
        sizes = [int(getattr(size, "node", None).hint if isinstance(size, torch.SymInt) else size) for size in shape]  # type: ignore[union-attr]
        found.append(torch.zeros(sizes, dtype=dtype))
    return tuple(found)


def coupled(network: nn.Module, example_inputs: object) -> Coupling:
    """The analysis of a module or graph; inputs that it does not take are an error that says so.

    A network that draws numbers draws the same ones at each analysis.
    """
    try:
        with exclusive(), state_kept():
            seed_all(0)
            return couple(network, example_inputs)
    except PassError:
        raise
    except Exception as error:  # whatever the network's own operators raise on a wrong shape or type
        raise InputError(
            f"netadapt: the network does not run on example_inputs ({described(example_inputs)}): "
            f"{type(error).__name__}: {error}. "
            f"{of_inputs(example_inputs) or 'Pass a tensor, a tuple of arguments or a dict of keywords that it takes'}."
        ) from error


def described(example_inputs: object) -> str:
    """The inputs in words: shapes and types."""
    if isinstance(example_inputs, torch.Tensor):
        return f"{tuple(example_inputs.shape)} {str(example_inputs.dtype).removeprefix('torch.')}"
    if isinstance(example_inputs, dict):
        return ", ".join(f"{name}={described(value)}" for name, value in example_inputs.items())
    if isinstance(example_inputs, tuple | list):
        return ", ".join(filter(None, map(described, example_inputs)))
    return type(example_inputs).__name__


def frozen_reasons(coupling: Coupling, most: int = 5) -> str:
    """Why nothing, or not more, can be pruned: the first few reasons of the analysis."""
    reasons = list(dict.fromkeys(str(item.reason) for item in coupling.frozen))
    return "; ".join(reasons[:most]) if reasons else "the network has no weights with channels"
