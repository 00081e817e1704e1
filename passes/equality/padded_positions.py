"""Padded positions of `nn.TransformerEncoder`: torch gives zeros there on its fast path, and other numbers elsewhere.

Evaluated without gradients, an encoder with a padding mask runs on nested tensors and leaves zeros at padded
positions; with gradients, in train mode, in a graph and with fewer heads it leaves what attention gives there. A module
is the same network in all of these only if nothing reads these positions, which is tried here.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from passes.equality.comparison import compare
from passes.equality.constant_double import nothing_random
from passes.equality.trees import map_tensors
from passes.errors import PassError
from passes.graph.module_copies import copy_module, like, modules_of
from passes.stream.call_arguments import Arguments
from passes.stream.inference import composite_attention
from passes.stream.results import tensors_in

_TOLERANCE = 1e-6


def check_padding(module: nn.Module, arguments: Arguments, error: type[PassError] = PassError) -> None:
    """Raise `error` where results for `arguments` depend on what an encoder of `module` gives at padded positions."""
    paths = [
        path for path, part in modules_of(module).items()
        if isinstance(part, nn.TransformerEncoder) and getattr(part, "use_nested_tensor", False)
    ]  # fmt: skip
    held = next(module.parameters(), None)
    if not paths or held is None or held.is_meta:
        return
    copied = copy_module(
        module, lambda _, t: like(t, t.detach() if isinstance(t, nn.Parameter) else t.detach().clone())
    )
    copied.eval()
    watched = [_Padded(path, modules_of(copied)[path]) for path in paths]

    def run() -> object:
        args, kwargs = map_tensors(torch.clone, arguments)
        return copied(*args, **kwargs)

    with nothing_random(), torch.no_grad(), composite_attention(), sdpa_kernel(SDPBackend.MATH):
        try:
            first = run()
            for one in watched:
                one.factor = 2
            second = run()
        except Exception:  # that it does not run is said by the analysis
            return
    called = [one.path or type(module).__name__ for one in watched if one.masked]
    if not called:
        return
    where, remedy = (
        f"{type(module).__name__}: {called[0]} (nn.TransformerEncoder) has a padding mask",
        (f"set use_nested_tensor = False on {called[0]}, which gives the same in all of these"),
    )
    if not any(one.padded for one in watched):
        raise error(
            f"{where} in which no position is padded, so it is unknown whether padded ones are read: there torch gives "
            "zeros in evaluation without gradients, and other numbers in train mode, in a graph and once it is cut. "
            f"Give example inputs with padding, or {remedy}"
        )
    error_of = compare(tensors_in(first), tensors_in(second)).error
    if not error_of <= _TOLERANCE:
        raise error(
            f"{where}, and its result depends on padded positions: there torch gives zeros in evaluation without "
            "gradients, and other numbers in train mode, in a graph and once it is cut. Leave these positions out of "
            f"the result (multiply by the mask), or {remedy}"
        )


class _Padded:
    """Watches one encoder, and multiplies what it gives at padded positions by `factor`."""

    def __init__(self, path: str, encoder: nn.Module) -> None:
        self.path, self.factor, self.masked, self.padded = path, 1, False, False
        encoder.register_forward_hook(self._changed, with_kwargs=True)

    def _changed(
        self, module: nn.Module, args: tuple, kwargs: dict[str, torch.Tensor | None], output: object
    ) -> object:
        mask = kwargs.get("src_key_padding_mask", args[2] if len(args) > 2 else None)
        if mask is None or not isinstance(output, torch.Tensor) or output.dim() != 3:
            return output
        flags = mask if mask.dtype == torch.bool else mask == -torch.inf
        self.masked, self.padded = True, self.padded or bool(flags.any())
        return torch.where(flags.unsqueeze(-1), output * self.factor, output)
