"""Pruned Hugging Face models in folders: their own `save_pretrained`, and beside it what the shapes follow from.

Widths that differ from layer to layer no configuration can state. The folder then holds the configuration of the model
before pruning, the pruned weights, and a plan; `from_pretrained` builds the one by the other. (With
``same_width: huggingface`` the configuration states the widths, and the stock `from_pretrained` loads the folder.)
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from fxprune.errors import ExportError, InputError
from fxprune.io.empty_networks import empty_weights
from fxprune.io.seal import sha256_of
from fxprune.io.storage import Damaged, read_json, write_json
from fxprune.problem.wrappers import unwrapped
from fxprune.search.result import NetAdaptResult
from passes import Plan, apply_plan
from passes.arguments import file_name, is_a

PLAN = "fxprune_plan.json"


def save_pretrained(result: NetAdaptResult, folder: str | os.PathLike[str]) -> None:
    """Save the network of a search by its own `save_pretrained`, with the plan, for `fxprune.from_pretrained`.

    As there, files of the same names are replaced: in the folder of the dense model, its weights and configuration.

    Raises InputError where it is no model of transformers.
    """
    is_a(result, NetAdaptResult, "save_pretrained", "what netadapt returned", InputError)
    model: Any = unwrapped(result.model)[0]
    place = file_name(folder, "save_pretrained", "the name of a folder", InputError)
    if not callable(getattr(model, "save_pretrained", None)) or not hasattr(result.dense, "config"):
        raise InputError(f"save_pretrained: {type(model).__name__} is no model of transformers; use fxprune.export.")
    stated = result.stock is not None  # the widths, in the configuration: the stock class loads the folder
    renames = "save_original_format" in inspect.signature(model.save_pretrained).parameters and not stated
    model.save_pretrained(place, **({"save_original_format": False} if renames else {}))
    if not stated:
        dense: Any = result.dense
        dense.config.architectures = [type(model).__name__]
        dense.config.save_pretrained(place)
    weights = {file.name: sha256_of(file) for file in sorted(place.glob("*.safetensors"))}
    write_json(place / PLAN, {"plan": result.plan.to_json(), "weights": weights, "in_config": stated})


def from_pretrained(folder: str | os.PathLike[str]) -> nn.Module:
    """The pruned model that `fxprune.save_pretrained` or `prune_checkpoint` wrote, of its own class, in eval mode.

    Raises ExportError where the folder holds no such model, or is damaged.
    """
    import transformers

    place = file_name(folder, "from_pretrained", "the name of a folder", ExportError)
    known = written_in(place)
    config = transformers.AutoConfig.from_pretrained(place)
    kind = getattr(transformers, (config.architectures or [""])[0], None)
    if kind is None:
        raise ExportError(f"{place}: config.json names the class {config.architectures}, which transformers lacks")
    if known.get("in_config", False):  # the widths, so that the class has the pruned shapes by itself
        own = {} if int(transformers.__version__.split(".")[0]) >= 5 else {"torch_dtype": "auto"}
        stock: nn.Module = kind.from_pretrained(place, **own)
        return stock.eval()
    tensors: dict[str, torch.Tensor] = {}
    for name in known["weights"]:
        tensors.update(load_file(place / name))
    with empty_weights():
        dense = kind(config).eval()
    model = apply_plan(dense, Plan.from_json(known["plan"]), inplace=True)
    lost = model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()  # type: ignore[operator]
    tied = {name for name, tensor in model.state_dict().items() if tensor.data_ptr() in _pointers(model, tensors)}
    missing = sorted(set(lost.missing_keys) - tied)
    if missing or lost.unexpected_keys:
        raise ExportError(f"{place}: weights do not fit: missing {missing}, not known {sorted(lost.unexpected_keys)}")
    return model


def written_in(place: Path) -> dict[str, Any]:
    """What `fxprune_plan.json` of a folder says: the text of the plan, and the SHA-256 of each file of weights.

    Raises ExportError where the folder has none, or its files are not those that were written.
    """
    try:
        known = read_json(place / PLAN)
    except Damaged as error:
        raise ExportError(f"{error}; save the model again") from None
    if known is None:
        raise ExportError(f"{place}: there is no {PLAN}; fxprune.save_pretrained(result, folder) writes one")
    for name, digest in known["weights"].items():
        if not (place / name).is_file() or sha256_of(place / name) != digest:
            raise ExportError(f"{place / name}: damaged, or not what was written beside {PLAN}")
    return known


def _pointers(model: nn.Module, tensors: dict[str, torch.Tensor]) -> set[int]:
    """Where the loaded tensors of the model lie: those that share memory with one are loaded, too."""
    return {tensor.data_ptr() for name, tensor in model.state_dict().items() if name in tensors}
