"""What code may change in the process that runs it, and how it is put back: one table."""

from __future__ import annotations

import gc
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as torch_module
from torch.utils import deterministic

from passes.process import torch_private as private

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """A setting of the process or of its current thread. `put` is called only where `read` gives another value.

    `computes`: it can change what a network computes; such values can be pickled, and workers take them over.
    """

    name: str
    read: Callable[[], object]
    put: Callable[[Any], Any]
    computes: bool = True


def attribute(name: str, owner: object, field: str, computes: bool = True) -> Setting:
    return Setting(name, lambda: getattr(owner, field), lambda value: setattr(owner, field, value), computes)


@contextmanager
def settings_kept() -> Iterator[None]:
    """Leave the settings of the process as they were, whatever is run inside and however that ends."""
    before = _read(SETTINGS)
    try:
        yield
    finally:
        put_settings(before, "it was changed")


@contextmanager
def tensors_with_values() -> Iterator[None]:
    """Inside, what is made without a device has values, also where a user's default is the meta device."""
    if torch.get_default_device().type != "meta":
        yield
        return
    with torch.device("cpu"):
        yield


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads of torch inside: their number can change the last bits of a result."""
    before = torch.get_num_threads()
    if count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count != before:
            torch.set_num_threads(before)


def computing_settings() -> dict[str, object]:
    """The settings here that can change what a network computes, for another process to take over."""
    return _read(tuple(setting for setting in SETTINGS if setting.computes))


def put_settings(values: Mapping[str, object], why: str) -> None:
    """Give settings these values. One that refuses is named in the log, and the others are still put."""
    if _read(SETTINGS) == values:
        return
    for setting in SETTINGS:  # one after another: putting one can change what the next reads
        if setting.name not in values:
            continue
        try:
            if _read((setting,)).get(setting.name, _read) != values[setting.name]:
                log.debug("%s: %s is put back", why, setting.name)
                setting.put(values[setting.name])
        except (RuntimeError, OSError, ValueError, AttributeError) as error:
            log.warning("%s: %s cannot be put back: %s", why, setting.name, error)


def _read(settings: tuple[Setting, ...]) -> dict[str, object]:
    """The values; one that cannot be read (torch refuses where old and new switches for TF32 were mixed) is left
    out."""
    values = {}
    for setting in settings:
        try:
            values[setting.name] = setting.read()
        except (RuntimeError, OSError, AttributeError) as error:
            log.debug("%s cannot be read: %s", setting.name, str(error).split(",")[0])
    return values


AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


def _read_autocast() -> tuple[object, ...]:
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    devices = tuple(
        (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in AUTOCAST_DEVICES
    )
    return depth, torch.is_autocast_cache_enabled(), devices


def _put_autocast(state: tuple[Any, ...]) -> None:
    """A region that was entered and never left keeps its cache of cast weights, which the next training makes wrong."""
    depth, cache, devices = state
    while (here := torch.autocast_decrement_nesting()) > depth:
        pass
    for _ in range(depth - here):
        torch.autocast_increment_nesting()
    torch.set_autocast_cache_enabled(cache)
    for device, enabled, dtype in devices:
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)
    torch.clear_autocast_cache()


def _read_modes() -> tuple[object, ...]:
    """Function modes (a default device is one of them), dispatch modes, and which of them is the default device."""
    return tuple(private.function_modes()), tuple(private.dispatch_modes()), private.default_device()


def _put_modes(state: tuple[Any, ...]) -> None:
    functions, dispatches, default = state
    for stack, pop, push, wanted in (
        (private.function_modes, private.pop_function_mode, private.push_function_mode, functions),
        (private.dispatch_modes, private.pop_dispatch_mode, private.push_dispatch_mode, dispatches),
    ):
        if tuple(stack()) != wanted:
            for _ in stack():
                pop()
            for mode in wanted:
                push(mode)
    private.set_default_device(default)


_DENORMAL = 1e-310


def _read_denormals() -> bool:
    """Whether the smallest numbers are taken for 0 (torch has no getter for it)."""
    return _DENORMAL * 1.0 == 0.0  # the flag of the processor holds for Python's numbers as for torch's


def _read_precisions() -> tuple[tuple[str, str, str], ...]:
    """How float32 products are computed (TF32, bfloat16), for each backend and kind of operator that torch knows."""
    kinds = [("generic", "all"), *[(b, o) for b in ("cuda", "mkldnn") for o in ("all", "matmul", "conv", "rnn")]]
    found = [(*kind, private.float32_precision(*kind)) for kind in kinds]
    return tuple((backend, kind, said) for backend, kind, said in found if said is not None)


def _put_precisions(values: tuple[tuple[str, str, str], ...]) -> None:
    for backend, operators, precision in values:
        private.set_float32_precision(backend, operators, precision)


HOOKS = [
    name for name in vars(torch_module) if name.startswith("_global_") and isinstance(vars(torch_module)[name], dict)
]


def _read_hooks() -> dict[str, dict]:
    """The hooks on every module of the process."""
    return {name: dict(getattr(torch_module, name)) for name in HOOKS}


def _put_hooks(values: dict[str, dict]) -> None:
    for name, hooks in values.items():
        own = getattr(torch_module, name)
        own.clear()
        own.update(hooks)


def _read_warnings() -> tuple[object, ...]:
    return warnings.filters, list(warnings.filters), warnings.showwarning, warnings._showwarnmsg_impl  # type: ignore[attr-defined]


def _put_warnings(state: tuple[Any, ...]) -> None:
    own, filters, warnings.showwarning, warnings._showwarnmsg_impl = state  # type: ignore[attr-defined]
    own[:] = filters
    warnings.filters = own
    with warnings.catch_warnings():  # which makes Python look at the filters again
        pass


def _put_environment(values: dict[str, str]) -> None:
    for name in set(os.environ) - set(values):
        del os.environ[name]
    os.environ.update({name: value for name, value in values.items() if os.environ.get(name) != value})


def _put_folder(folder: str | None) -> None:
    os.chdir(folder if folder is not None else tempfile.gettempdir())


def _read_folder() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None  # it was deleted


SETTINGS: tuple[Setting, ...] = (
    Setting("modes", _read_modes, _put_modes, computes=False),
    Setting("gradients", torch.is_grad_enabled, torch.set_grad_enabled),
    Setting("autocast", _read_autocast, _put_autocast),
    Setting("threads", torch.get_num_threads, torch.set_num_threads),
    Setting("default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting(
        "deterministic algorithms",
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda state: torch.use_deterministic_algorithms(state[0], warn_only=state[1]),
    ),
    attribute("filling of new memory", deterministic, "fill_uninitialized_memory"),
    Setting(
        "anomaly detection",
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda state: torch.autograd.set_detect_anomaly(*state),
    ),
    *(
        attribute(f"cudnn.{name}", torch.backends.cudnn, name)
        for name in ("enabled", "benchmark", "deterministic", "allow_tf32")
    ),
    attribute("cuda.matmul.allow_tf32", torch.backends.cuda.matmul, "allow_tf32"),
    attribute(
        "cuda.matmul.allow_fp16_reduced_precision_reduction", torch.backends.cuda.matmul,
        "allow_fp16_reduced_precision_reduction",
    ),
    attribute(
        "cuda.matmul.allow_bf16_reduced_precision_reduction", torch.backends.cuda.matmul,
        "allow_bf16_reduced_precision_reduction",
    ),
    Setting("matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    Setting("precisions", _read_precisions, _put_precisions),
    attribute("mkldnn", torch.backends.mkldnn, "enabled"),
    attribute("einsum paths", torch.backends.opt_einsum, "enabled"),
    Setting("attention fast path", torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
    Setting("flash attention", torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    Setting(
        "memory-efficient attention", torch.backends.cuda.mem_efficient_sdp_enabled,
        torch.backends.cuda.enable_mem_efficient_sdp,
    ),
    Setting("math attention", torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    Setting("cudnn attention", torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    Setting("denormal numbers", _read_denormals, torch.set_flush_denormal),
    Setting("numpy errors", np.geterr, lambda state: np.seterr(**state)),
    Setting("numpy error function", np.geterrcall, np.seterrcall, computes=False),
    Setting("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    Setting("hooks on all modules", _read_hooks, _put_hooks, computes=False),
    Setting("warnings", _read_warnings, _put_warnings, computes=False),
    Setting("environment", lambda: dict(os.environ), _put_environment, computes=False),
    Setting("working folder", _read_folder, _put_folder, computes=False),
    attribute("standard output", sys, "stdout", computes=False),
    attribute("standard error", sys, "stderr", computes=False),
    Setting("garbage collection", gc.isenabled, lambda on: gc.enable() if on else gc.disable(), computes=False),
    Setting("logging", lambda: logging.root.manager.disable, logging.disable, computes=False),
)  # fmt: skip
