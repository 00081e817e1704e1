"""Whether the class of a model, built from a configuration, computes what a cut model computes."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from fxprune.io.empty_networks import empty_weights
from fxprune.problem.config_numbers import said
from passes.equality.constant_double import constant_double
from passes.process.torch_private import pytree
from passes.statistics.divergence import tensors_out
from passes.stream.call_arguments import bound
from passes.verification.same_calls import MetaRuns

_CLOSE = 1e-6  # of the largest element, in double precision


def differs(cut: nn.Module, config: object, example_inputs: object) -> str:
    """Why the stock class with these weights is another function than the cut network, or "".

    A network without weights is compared call by call (same operators on the same tensors with the same numbers), and
    by its tables (positions, frequencies); one with weights by its outputs.
    """
    without = any(parameter.is_meta for parameter in cut.parameters())
    return (_other_calls if without else _other_outputs)(cut, config, example_inputs)


def _other_calls(cut: nn.Module, config: object, example_inputs: object) -> str:
    with empty_weights():
        stock = type(cut)(copy.deepcopy(config)).eval()
    arguments = bound(cut, example_inputs)
    expected, got = (MetaRuns(network).calls(arguments) for network in (cut, stock))
    if expected is None or got is None:
        return f"{'it' if expected is None else 'the stock class'} does not run without values"
    for mine, theirs in zip(expected, got, strict=False):
        if mine != theirs:
            return f"it calls {theirs.func} with {theirs.sizes} where the cut network has {mine.func} with {mine.sizes}"
    if len(expected) != len(got):
        return f"it makes {len(got)} calls of operators where the cut network makes {len(expected)}"
    tables = [dict(network.named_buffers()) for network in (cut, stock)]
    for name in sorted({*tables[0], *tables[1]}):
        one, other = (held.get(name) for held in tables)
        if one is None or other is None or one.is_meta or other.is_meta or not torch.equal(one, other):
            return f"its table {name} is another one"
    return ""


def _other_outputs(cut: nn.Module, config: object, example_inputs: object) -> str:
    stock = type(cut)(copy.deepcopy(config))
    stock.load_state_dict(cut.state_dict())
    inputs = pytree.tree_map_only(torch.Tensor, _wide, example_inputs)
    with torch.no_grad(), constant_double():
        expected = tensors_out(_called(copy.deepcopy(cut).eval().double(), inputs))
        try:
            got = tensors_out(_called(stock.eval().double(), inputs))
        except Exception as error:  # a forward may compute sizes that these numbers do not give
            return f"built so, it does not run: {said(error)}"
    for mine, theirs in zip(expected, got, strict=True):
        if mine.is_floating_point():
            off = float((mine - theirs).abs().max()) / (float(mine.abs().max()) or 1.0)
            if not off <= _CLOSE:
                return f"its outputs differ by {off:.2g} of the largest: it computes with the size itself"
    return ""


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _called(network: nn.Module, inputs: object) -> object:
    if isinstance(inputs, Mapping):
        return network(**inputs)
    return network(*inputs) if isinstance(inputs, tuple | list) else network(inputs)
