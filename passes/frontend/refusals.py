"""Why a module cannot be made a graph, in one paragraph: what, where, and what to try. All else is logged."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import torch
from torch import nn

from passes.errors import CaptureError

log = logging.getLogger(__name__)

MODULE_ROUTE = "no graph is needed to prune it: netadapt takes the module itself"
_LONGEST = 240  # characters of what torch says


def refusal(
    model: nn.Module, stopped: str, error: BaseException, what: str | None = None, examples: bool = True
) -> CaptureError:
    """The error that says where the capture of `model` `stopped` and what to try; `error` goes to the debug log.

    what: in plain words; left out, the class of `error` stands for it. examples: whether example inputs were given.
    """
    log.debug("%s %s", type(model).__name__, stopped, exc_info=error)
    said = shortened(str(error))
    message = said if isinstance(error, CaptureError) else f"{what or type(error).__name__} ({said})"
    advice = tuple(_advice(model, str(error), what is not None, examples))
    return CaptureError(f"{type(model).__name__} {stopped}: {message}", advice)


def both(first: CaptureError, second: CaptureError) -> CaptureError:
    """One error for two front ends that failed on one model."""
    advice = [tip for tip in dict.fromkeys((*first.advice, *second.advice)) if tip != MODULE_ROUTE]
    return CaptureError(f"{first.found}. The second front end failed as well: {second.found}", (*advice, MODULE_ROUTE))


def shortened(text: str) -> str:
    """The first line that says something, without what torch adds for its own developers."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no reason was given"]
    line = re.sub(r"\s+", " ", lines[0]).rstrip(". ")
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3].rstrip() + "..."


def _advice(model: nn.Module, said: str, by_value: bool, examples: bool) -> Iterator[str]:
    if not examples:
        yield "give example_inputs, so that control flow over shapes can be followed"
    if "Cache" in said or getattr(getattr(model, "config", None), "use_cache", False):
        yield "leave its cache out (use_cache=False in the example inputs or in its config)"
    quantised = next((type(part).__name__ for part in model.modules() if _is_quantised(part)), None)
    if quantised is not None:
        yield f"prune before quantising ({quantised} is quantised)"
    scripted = next((name for name, part in model.named_modules() if isinstance(part, torch.jit.ScriptModule)), None)
    if scripted is not None:
        yield f"use the module that {scripted or 'it'} was scripted from"
    if model.training:
        yield "capture it in eval mode: model.eval()"
    parts = dict(model.named_children())
    part = next((name for name in ("backbone", "encoder", "trunk") if name in parts), None)
    if part is not None:
        yield f"capture a part, model.{part}, or name it: netadapt(..., scope=[{part!r}])"
    if by_value:
        yield "move what depends on the values of tensors into a function registered by torch.fx.wrap"
    yield MODULE_ROUTE


def _is_quantised(part: nn.Module) -> bool:
    places = [type(part).__module__, *(type(tensor).__module__ for tensor in part.parameters(recurse=False))]
    names = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torchao.", "bitsandbytes.")
    return any(place.startswith(names) for place in places)
