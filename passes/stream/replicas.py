"""The module that a forward of an instance is called for: copies of `torch.nn.DataParallel` share what it holds."""

from __future__ import annotations

from types import FrameType

from torch import nn

_NEAR = 6  # frames of torch between a module's call and its forward


def called_module(forward: object, method: str, original: nn.Module, frame: FrameType | None) -> nn.Module:
    """The module in whose call `frame`, which calls `forward`, is running; `original` where none is.

    forward: what stands as `method` among the attributes of a module. A replica has the attributes of its original, and
    other weights.
    """
    for _ in range(_NEAR):
        holder = None if frame is None else frame.f_locals.get("self")
        if isinstance(holder, nn.Module) and holder.__dict__.get(method) is forward:
            return holder
        frame = None if frame is None else frame.f_back
    return original
