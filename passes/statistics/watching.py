"""A dispatch mode that sees each contraction of a weight as the network runs, and the norm that follows it."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from passes.graph.module_copies import owned_tensors
from passes.ops import signature, traits_of
from passes.ops.meta_shapes import LightMode
from passes.ops.operands import Contraction, contraction_of
from passes.process.torch_private import OpOverload, version_of
from passes.statistics.sites import Layout, Norm, Site

aten = torch.ops.aten
_RECENT = 6  # operands and results that are remembered, so that none of their addresses is used again meanwhile
Seen = Callable[[Site, Contraction], None]


class Watcher(LightMode):
    """Calls `seen(site, contraction)` for each contraction of a parameter; `sites` are those found so far, by name."""

    def __init__(self, network: nn.Module, seen: Seen | None = None) -> None:
        super().__init__()
        self.sites: dict[str, Site] = {}
        self.seen = seen
        self.node = ""
        self._owners: dict[int, list[tuple[str, Tensor]]] = {}
        self._names: dict[int, str] = {}
        for name, tensor in owned_tensors(network):
            if id(tensor) not in self._names:
                self._names[id(tensor)] = name
                if tensor.layout == torch.strided and tensor.numel():
                    self._owners.setdefault(tensor.untyped_storage().data_ptr(), []).append((name, tensor))
        self._parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
        self._copies: dict[int, tuple[str, Tensor, Tensor]] = {}
        self._layouts: dict[tuple[str, str, Layout], str] = {}
        self._operands: deque[tuple[tuple, Tensor, str]] = deque(maxlen=_RECENT)
        self._results: deque[tuple[weakref.ref[Tensor], str]] = deque(maxlen=_RECENT)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = contraction_of(func, args, kwargs, lambda t: self._owner(t) is not None)
        name = self._noticed(found) if found is not None else None
        if traits_of(func).running_statistics:
            self._norm(func, args, kwargs)
        result = func(*args, **kwargs)
        if name is not None and isinstance(result, Tensor):
            self._results.append((weakref.ref(result), name))
        elif func.overloadpacket is aten._to_copy and self._owner(args[0]) is not None:
            owner, own = self._owner(args[0]) or ("", result)
            if own.shape == args[0].shape == result.shape:
                self._copies[result.untyped_storage().data_ptr()] = (owner, own, result)
        return result

    def forget(self) -> None:
        """Let go of what was remembered of one run."""
        self._copies.clear()
        self._operands.clear()
        self._results.clear()

    def _owner(self, tensor: object) -> tuple[str, Tensor] | None:
        """The parameter that `tensor` is a view of, if it is one."""
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_sparse:
            return None
        address = tensor.untyped_storage().data_ptr()
        if not address:
            return None
        for name, own in self._owners.get(address, ()):
            start, offset = own.storage_offset(), tensor.storage_offset()
            if start <= offset < start + own.numel() and name in self._parameters and own.dtype == tensor.dtype:
                return name, own
        copied = self._copies.get(address)
        return (copied[0], copied[1]) if copied is not None else None

    def _layout(self, tensor: Tensor) -> Layout | None:
        copied = self._copies.get(tensor.untyped_storage().data_ptr())
        owner = self._owner(tensor)
        if owner is None:
            return None
        base = copied[2] if copied is not None else owner[1]
        offset = int(tensor.storage_offset()) - int(base.storage_offset())
        return Layout(tuple(base.shape), tuple(base.stride()), tuple(tensor.shape), tuple(tensor.stride()), offset)

    def _noticed(self, found: Contraction) -> str | None:
        owner, layout = self._owner(found.weight), self._layout(found.weight)
        if owner is None or layout is None or not found.data.is_floating_point():
            return None
        if found.form.kind in ("rows", "columns") and found.weight.dim() == 3 and 0 in found.weight.stride():
            return None  # one matrix for every element of the batch: read as `linear` or not at all
        parameter = owner[0]
        key = (parameter, f"{found.form}", layout)
        name = self._layouts.get(key)
        if name is None:
            number = sum(known == parameter for known, _, _ in self._layouts)
            name = self._layouts[key] = parameter if not number else f"{parameter}#{number}"
            self.sites[name] = self._site(name, parameter, layout, found)
        site = self.sites[name]
        if self.seen is not None:
            self.seen(site, found)
        return name

    def _site(self, name: str, parameter: str, layout: Layout, found: Contraction) -> Site:
        matrix = found.form.matrix(found.weight)
        groups, rows, columns = (int(n) for n in matrix.shape)
        bias, bias_layout = None, None
        owner = self._owner(found.bias) if found.bias is not None else None
        if owner is not None and found.bias is not None and tuple(found.bias.shape) == (groups * rows,):
            bias, bias_layout = owner[0], self._layout(found.bias)
        data = found.data
        mark = (data.data_ptr(), version_of(data), tuple(data.shape), tuple(data.stride()), found.reading)
        shared = next((known for key, _, known in self._operands if key == mark), None)
        if shared is None:
            self._operands.append((mark, data, name))
            shared = name
        return Site(
            name, parameter, found.form, layout, groups, rows, columns, shared, bias, bias_layout, None, self.node
        )

    def _norm(self, func: OpOverload, args: tuple, kwargs: Mapping[str, object]) -> None:
        names = signature(func)[0]
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        source = call.get("input")
        name = next((known for ref, known in reversed(self._results) if ref() is source), None)
        mean, var = call.get("running_mean"), call.get("running_var")
        if name is None or mean is None or var is None or id(mean) not in self._names or id(var) not in self._names:
            return
        weight, bias = (
            self._names.get(id(call[key])) if call.get(key) is not None else None for key in ("weight", "bias")
        )
        eps = float(call.get("eps", call.get("epsilon", 1e-5)))
        site = self.sites[name]
        if site.norm is None:
            norm = Norm(weight, bias, self._names[id(mean)], self._names[id(var)], eps)
            self.sites[name] = Site(**{**vars(site), "norm": norm})
