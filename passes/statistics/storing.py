"""Statistics as one safetensors file: tensors, and what is not a tensor as JSON in its header. Never pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from passes.documents.whole_files import write_whole
from passes.errors import PassError
from passes.ops.operands import Form
from passes.statistics.moments import Moments
from passes.statistics.sites import Layout, Norm, Site

FORMAT = "fxprune-statistics-3"
_DTYPES = {"F64": torch.float64, "F32": torch.float32}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Summed(Protocol):
    """What is written: the fields of `Statistics`."""

    fingerprint: str
    sites: dict[str, Site]
    moments: dict[str, Moments]
    samples: int
    fisher: Mapping[str, np.ndarray]
    taylor: Mapping[str, np.ndarray]
    gradients: int


def write(statistics: Summed, path: Path) -> None:
    """Write `statistics` to `path`. Raises PassError."""
    tensors: dict[str, Tensor] = {}
    described: dict[str, object] = {}
    for name, moments in statistics.moments.items():
        described[name] = {
            "groups": moments.groups, "columns": moments.columns, "count": moments.count, "seen": moments.held_seen,
            "tiles": len(moments.summed), "held": moments.held is not None,
            "kept": [weight for _, weight in moments.kept],
        }  # fmt: skip
        tensors.update({f"{name}/tile{n}": tile for n, tile in enumerate(moments.summed)})
        tensors.update({f"{name}/kept{n}": rows for n, (rows, _) in enumerate(moments.kept)})
        if moments.held is not None:
            tensors[f"{name}/held"] = moments.held
    for kind, sums in (("fisher", statistics.fisher), ("taylor", statistics.taylor)):
        tensors.update({f"{kind}/{name}": torch.from_numpy(np.ascontiguousarray(s)) for name, s in sums.items()})
    facts = {
        "format": FORMAT, "fingerprint": statistics.fingerprint, "samples": statistics.samples,
        "gradients": statistics.gradients, "moments": described, "fisher": sorted(statistics.fisher),
        "taylor": sorted(statistics.taylor), "sites": [dataclasses.asdict(s) for s in statistics.sites.values()],
    }  # fmt: skip
    table: dict[str, Any] = {}
    data, at = [], 0
    for name in sorted(tensors):
        block = tensors[name].detach().cpu().contiguous().numpy().tobytes()
        kind = _NAMES[tensors[name].dtype]
        table[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [at, at + len(block)]}
        at += len(block)
        data.append(block)
    head = _head(table, json.dumps(facts, sort_keys=True), data)
    if not path.name or path.is_dir():
        raise PassError(f"{path}: this is a folder; give the name of a file")
    try:
        write_whole(path, [head, *data])
    except OSError as error:
        raise PassError(f"{path}: cannot be written: {error}") from error


def _head(table: Mapping[str, Any], facts: str, data: Iterable[bytes | memoryview]) -> bytes:
    """What a file begins with: where each tensor lies, the facts, and the checksum of all of it."""
    digest = hashlib.sha256(json.dumps([table, facts]).encode())
    for block in data:
        digest.update(block)
    head = json.dumps({**table, "__metadata__": {"statistics": facts, "sha256": digest.hexdigest()}}).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head


def read(path: Path) -> dict[str, Any]:
    """The fields of what `write` wrote, by name. Raises PassError that says what is wrong with the file."""
    try:
        raw = path.read_bytes()
        size = 8 + int.from_bytes(raw[:8], "little")
        table, body = json.loads(raw[8:size]), memoryview(raw)[size:]
        text = table.pop("__metadata__")["statistics"]
        facts = json.loads(text)
        if facts["format"] != FORMAT:
            raise PassError(f"{path}: it has format {facts['format']!r}, this version reads {FORMAT!r}")
        if _head(table, text, [body]) != raw[:size]:
            raise PassError(f"{path}: its content does not match its checksum; it is damaged, so observe anew")
        return _fields(facts, {name: _tensor(entry, body) for name, entry in table.items()})
    except OSError as error:
        raise PassError(f"{path}: cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise PassError(f"{path}: these are no statistics of fxprune: {type(error).__name__}: {error}") from error


def _tensor(entry: Any, body: memoryview) -> Tensor:
    start, stop = entry["data_offsets"]
    dtype = _DTYPES[entry["dtype"]]
    if start == stop:
        return torch.empty(entry["shape"], dtype=dtype)
    return torch.frombuffer(bytearray(body[start:stop]), dtype=dtype).reshape(entry["shape"])


def _fields(facts: Any, tensors: dict[str, Tensor]) -> dict[str, object]:
    moments = {}
    for name, entry in facts["moments"].items():
        tiles = [tensors[f"{name}/tile{n}"] for n in range(entry["tiles"])]
        held = tensors[f"{name}/held"] if entry["held"] else None
        kept = [(tensors[f"{name}/kept{n}"], float(weight)) for n, weight in enumerate(entry["kept"])]
        moments[name] = Moments(entry["groups"], entry["columns"], entry["count"], tiles, held, entry["seen"], kept)
    sums = {kind: {n: tensors[f"{kind}/{n}"].numpy() for n in facts[kind]} for kind in ("fisher", "taylor")}
    sites = {entry["name"]: _site(entry) for entry in facts["sites"]}
    plain = {name: facts[name] for name in ("fingerprint", "samples", "gradients")}
    return {**plain, **sums, "sites": sites, "moments": moments}


def _site(entry: dict[str, Any]) -> Site:
    made = dict(entry)
    made["form"] = Form(**entry["form"])
    for key in ("layout", "bias_layout"):
        if entry[key] is not None:
            shape, own, size, stride = (tuple(entry[key][name]) for name in ("shape", "own", "size", "stride"))
            made[key] = Layout(shape, own, size, stride, int(entry[key]["offset"]))
    if entry["norm"] is not None:
        made["norm"] = Norm(**entry["norm"])
    return Site(**made)
