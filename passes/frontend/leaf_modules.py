"""Which modules are one node of a traced graph, and are not traced through."""

from __future__ import annotations

from torch import nn

from passes.process.torch_private import buffers_of, children_of, parameters_of


def stays_whole(module: nn.Module) -> bool:
    """Whether a module is an operator of torch, or only decides by its mode: DropPath, StochasticDepth."""
    return (_defined_in_torch(type(module)) and not is_opened(type(module))) or _only_reads_mode(module)


def _defined_in_torch(kind: type) -> bool:
    """Whether the forward of this class is one of torch.nn's: a subclass that keeps it is the same operator."""
    owner = next(base for base in kind.__mro__ if "forward" in vars(base))
    module = getattr(vars(owner)["forward"], "__module__", None) or owner.__module__
    return owner is not nn.Module and module.startswith(("torch.nn", "torch.ao.nn"))


def is_opened(kind: type) -> bool:
    """Whether the forward of this class, though torch's, is plain Python around attention modules."""
    return getattr(kind, "forward", None) in _OPENED


_OPENED = (nn.TransformerDecoderLayer.forward, nn.TransformerDecoder.forward, nn.Transformer.forward)


def _only_reads_mode(module: nn.Module) -> bool:
    if children_of(module) or parameters_of(module) or buffers_of(module):
        return False
    return "training" in getattr(type(module).forward, "__code__", _only_reads_mode.__code__).co_names
