"""Which weights and constants can be repaired: those that nothing reads but the products that the repair is fitted to.

Repaired weights make good for summands that one product has lost. An embedding that is tied to them, or the same matrix
transposed, would get other values for no reason.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from passes.analysis.coupling import Coupling
from passes.ops import Record, spelled
from passes.ops.facts import COPIES, VIEWS
from passes.process.torch_private import OpOverload, schema_of
from passes.statistics.sites import Site

aten = torch.ops.aten


class Uses:
    """What reads the tensors of the network that `coupling` is of; sites: all that were observed of it."""

    def __init__(self, coupling: Coupling, sites: Iterable[Site]) -> None:
        self.coupling, self.sites = coupling, list(sites)
        self._readers: dict[str, list[Record]] = {}
        for record in coupling.structure.all_records:
            for name in {name for value in record.inputs for name in value.parameters}:
                self._readers.setdefault(name, []).append(record)

    def elsewhere(self, site: Site) -> str:
        """What else reads the weight of `site`, in words; "" for nothing."""
        other = next((r for r in self._read(site.parameter) if not r.macs and not _only_moves(r)), None)
        if other is not None:
            return f"{spelled(other.func)} reads it as well"
        mine = [s for s in self.sites if self._name(s.parameter) == self._name(site.parameter)]
        return "it is read in two layouts" if len(mine) > 1 and _overlap(mine) else ""

    def takes_constants(self, site: Site) -> str:
        """The tensor that takes up constants: a bias, else the running mean of the norm that follows; "" for none, or
        where something else reads it, or the product goes elsewhere as well."""
        products = [record for record in self._read(site.parameter) if record.macs]
        if site.bias:
            readers = [record for record in self._read(site.bias) if not _only_moves(record)]
            return site.bias if _same(readers, products) else ""
        if site.norm is None:
            return ""
        norms = [record for record in self._read(site.norm.mean) if not _only_moves(record)]
        made = {value.key for record in products for value in record.outputs}
        read = [record for record in self.coupling.structure.all_records if any(v.key in made for v in record.inputs)]
        return site.norm.mean if _same(norms, read) and all(r.inputs[0].key in made for r in norms) else ""

    def _name(self, tensor: str) -> str:
        return self.coupling.aliases.get(tensor, tensor)

    def _read(self, tensor: str) -> list[Record]:
        return self._readers.get(self._name(tensor), [])


def _same(some: Iterable[Record], others: Iterable[Record]) -> bool:
    return {id(record) for record in some} == {id(record) for record in others}


def _only_moves(record: Record) -> bool:
    """Whether a call gives a parameter's own values, wherever they stand: what reads these reads the parameter."""
    made = record.outputs and all(value.parameters for value in record.outputs)
    return bool(made) and (record.func in _MOVING or _is_view(record.func))


_MOVING = VIEWS | COPIES | {aten._to_copy.default}


def _is_view(func: OpOverload) -> bool:
    infos = [argument.alias_info for argument in schema_of(func).arguments]
    return any(info is not None and not info.is_write for info in infos)


def _overlap(sites: Iterable[Site]) -> bool:
    """Whether an element of the parameter of these sites is read by two of them."""
    seen: torch.Tensor | None = None
    for layout in (site.layout for site in sites):
        if seen is None:
            seen = torch.empty_strided(layout.shape, layout.own, dtype=torch.bool).zero_()
        size = [1 if step == 0 else length for length, step in zip(layout.size, layout.stride, strict=True)]
        read = seen.as_strided(size, layout.stride, layout.offset)
        if bool(read.any()):
            return True
        read.fill_(True)
    return False
