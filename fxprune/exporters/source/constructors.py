"""A leaf module as the call that builds it, read back from its attributes and tried out on the meta device."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fxprune.errors import ExportError
from fxprune.exporters.source.literals import Imports, literal
from fxprune.exporters.source.standalone import STANDALONE
from passes.process.torch_private import ConvNd

# Attributes that every module has, and torch's own caches; no constructor argument is among them.
_OWN = frozenset(vars(nn.Module()))
_SKIPPED_PARAMETERS = frozenset({"device", "dtype"})


@dataclass
class Built:
    """The call that builds a module, and what is still to be set on the result: attribute -> expression."""

    expression: str
    corrections: dict[str, str] = field(default_factory=dict)


@dataclass
class Constructors:
    """Writes constructor calls; gathers imports and the classes that the source file must carry itself."""

    imports: Imports
    carried: dict[str, str] = field(default_factory=dict)

    def build(self, module: nn.Module, path: str) -> Built:
        """The call for `module`, which sits at `path`; ExportError where no call gives the same module."""
        what = f"{path} ({type(module).__module__}.{type(module).__name__})"
        _refuse_hooks(module, what)
        if type(module) in (nn.Sequential, nn.ModuleList):
            return self._sequence(module, path)
        cls = self._class_name(module, what)
        arguments = _arguments(module, what)
        call = f"{cls}({', '.join(self._argument(item, what) for item in arguments)})"
        fresh = self._tried(module, arguments, call, what)
        return Built(call, self._corrections(module, fresh, what))

    def _sequence(self, module: nn.Module, path: str) -> Built:
        items: list[str] = []
        corrections: dict[str, str] = {}
        for name, child in module.named_children():
            if name != str(len(items)):
                raise ExportError(f"{path}: a {type(module).__name__} with an item named {name} has no source")
            built = self.build(child, f"{path}.{name}")
            items.append(built.expression)
            corrections.update({f"{name}.{key}": value for key, value in built.corrections.items()})
        text = ", ".join(items)
        call = f"nn.Sequential({text})" if type(module) is nn.Sequential else f"nn.ModuleList([{text}])"
        return Built(call, corrections)

    def _class_name(self, module: nn.Module, what: str) -> str:
        cls = plain_class(module)
        if getattr(nn, cls.__name__, None) is cls:
            return f"nn.{cls.__name__}"
        qualified = f"{cls.__module__}.{cls.__qualname__}"
        if qualified in STANDALONE:
            self.carried[cls.__name__] = STANDALONE[qualified]
            return cls.__name__
        return self.imports.foreign(cls, what)

    def _argument(self, argument: tuple[str | None, object], what: str) -> str:
        name, value = argument
        if isinstance(value, nn.Module):
            text = self.build(value, f"{what}, argument {name}").expression
        else:
            text = literal(value, self.imports, f"{what}, argument {name}")
        return text if name is None else f"{name}={text}"

    def _tried(
        self, module: nn.Module, arguments: Iterable[tuple[str | None, object]], call: str, what: str
    ) -> nn.Module:
        positional = [value for name, value in arguments if name is None]
        named = {name: value for name, value in arguments if name is not None}
        cls = plain_class(module)
        try:
            with torch.device("meta"):
                fresh = cls(*positional, **named)
        except Exception as error:  # a constructor of someone else's class may raise anything
            raise ExportError(f"{what}: {call} fails: {error}") from error
        have, want = _shapes(fresh), _shapes(module)
        if have != want:
            names = sorted(name for name in have.keys() | want.keys() if have.get(name) != want.get(name))
            differing = ", ".join(f"{name} {have.get(name)} instead of {want.get(name)}" for name in names)
            raise ExportError(f"{what}: {call} gives other tensors: {differing}")
        return fresh

    def _corrections(self, module: nn.Module, fresh: nn.Module, what: str) -> dict[str, str]:
        """Public attributes in which the module differs from a fresh one (set after construction by its owner)."""
        found = {}
        for path, child in module.named_modules():
            rebuilt = dict(fresh.named_modules()).get(path)
            if type(rebuilt) is not type(child) and path:
                kinds = f"{type(rebuilt).__name__} at {path}, not {type(child).__name__}"
                raise ExportError(f"{what}: its constructor puts {kinds}")
            for name, value in vars(child).items():
                if name.startswith("_") or name in _OWN or isinstance(value, torch.Tensor):
                    continue
                known = vars(rebuilt).get(name, _Missing)
                if known is _Missing and type(child).__module__.startswith("torch.nn"):
                    continue  # a note that some pass left on the module; its forward cannot read it
                if not _same(known, value):
                    place = f"{path}.{name}" if path else name
                    found[place] = literal(value, self.imports, f"{what}, attribute {place}")
        return found


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of torch.nn that a module is for all it does: its own, or that of which it only changes the making."""
    own = type(module)
    for base in own.__mro__:
        if getattr(nn, base.__name__, None) is base and base is not nn.Module:
            between = own.__mro__[: own.__mro__.index(base)]
            changed = {name for cls in between for name in vars(cls) if not name.startswith("__")}
            return own if any(hasattr(base, name) for name in changed) else base
    return own


class _Missing:
    """No such attribute."""


def _same(a: object, b: object) -> bool:
    """Whether two attributes are equal; objects without an equality of their own are taken to be when of one type."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if type(a).__eq__ is object.__eq__:
        return not inspect.isfunction(a)
    return bool(a == b)


def _refuse_hooks(module: nn.Module, what: str) -> None:
    for child in module.modules():
        for name in ("_forward_pre_hooks", "_forward_hooks"):
            if getattr(child, name):
                raise ExportError(
                    f"{what}: has {name.strip('_').replace('_', ' ')} (weight norm and the like), which have no "
                    "source; remove them first"
                )
        if hasattr(child, "parametrizations"):
            raise ExportError(
                f"{what}: is parametrized; torch.nn.utils.parametrize.remove_parametrizations bakes the weights in"
            )


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in [*module.named_parameters(), *module.named_buffers()]}


def _arguments(module: nn.Module, what: str) -> list[tuple[str | None, object]]:
    """(name, value) for the constructor; name None by position. What equals the default is left out."""
    found: list[tuple[str | None, object]] = []
    for name, parameter in _parameters(plain_class(module)).items():
        if name in _SKIPPED_PARAMETERS or name.startswith("_"):
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = _attribute(module, name)
        required = parameter.default is parameter.empty
        if value is _Missing:
            if required:
                raise ExportError(
                    f"{what}: its constructor needs {name!r}, and the module has no attribute of that name to read"
                )
            continue
        if required and parameter.kind is not parameter.KEYWORD_ONLY:
            found.append((None, _short(module, value)))
        elif required or not _is_default(module, value, parameter.default):
            found.append((name, _short(module, value)))
    return found


def _parameters(cls: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """What a constructor takes; those of recurrent layers pass on all that they are given."""
    if not issubclass(cls, nn.RNNBase):
        return dict(list(inspect.signature(cls.__init__).parameters.items())[1:])
    found = dict(list(inspect.signature(nn.RNNBase.__init__).parameters.items())[2:])  # without self and mode
    if issubclass(cls, nn.RNN):
        found["nonlinearity"] = inspect.Parameter("nonlinearity", inspect.Parameter.KEYWORD_ONLY, default="tanh")
    return found


def _attribute(module: nn.Module, name: str) -> object:
    reader = next((_READ[c.__name__][name] for c in type(module).__mro__ if name in _READ.get(c.__name__, ())), None)
    if reader is not None:
        return reader(module)
    value = getattr(module, name, _Missing)
    if name == "bias" and not isinstance(value, bool):
        # A norm without any parameters has no bias to speak of.
        off = getattr(module, "affine", getattr(module, "elementwise_affine", True)) is False
        return _Missing if off else value not in (None, _Missing) if not isinstance(value, torch.Tensor) else True
    return _Missing if isinstance(value, torch.Tensor) else value


def _is_default(module: nn.Module, value: object, default: object) -> bool:
    return _same(value, default) or _same(_short(module, value), default)


def _short(module: nn.Module, value: object) -> object:
    """A convolution keeps (3, 3) where its author wrote 3; so does a layer norm keep (64,)."""
    if not isinstance(value, tuple) or len(set(value)) != 1 or not isinstance(value[0], int):
        return value
    single = isinstance(module, nn.LayerNorm) and len(value) == 1
    return value[0] if single or isinstance(module, ConvNd) else value


# What the constructor of a class takes and the module keeps under another name. By name of the class: torchvision's is
# not to be imported for this.
_LAYER: dict[str, Callable[[Any], object]] = {
    "d_model": lambda layer: layer.self_attn.embed_dim,
    "nhead": lambda layer: layer.self_attn.num_heads,
    "dim_feedforward": lambda layer: layer.linear1.out_features,
    "dropout": lambda layer: layer.dropout.p,
    "activation": lambda layer: getattr(layer, "activation", torch.nn.functional.relu),
    "layer_norm_eps": lambda layer: layer.norm1.eps,
    "batch_first": lambda layer: layer.self_attn.batch_first,
    "bias": lambda layer: layer.linear1.bias is not None,
}
_READ: dict[str, dict[str, Callable[[Any], object]]] = {
    "MultiheadAttention": {
        "bias": lambda attention: attention.in_proj_bias is not None,
        "add_bias_kv": lambda attention: attention.bias_k is not None,
        "kdim": lambda attention: None if attention.kdim == attention.embed_dim else attention.kdim,
        "vdim": lambda attention: None if attention.vdim == attention.embed_dim else attention.vdim,
    },
    "TransformerEncoderLayer": _LAYER,
    "TransformerDecoderLayer": _LAYER,
    "FrozenBatchNorm2d": {"num_features": lambda norm: norm.weight.shape[0]},
}
