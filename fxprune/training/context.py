"""`DLContext`: all that training and validating a network needs, in one object that the functions of a flow share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

TrainFunction = Callable[[nn.Module, "DLContext"], object]
ValidateFunction = Callable[[nn.Module, "DLContext"], float]


class Scheduler(Protocol):
    """What changes learning rates when it is asked to: any of torch's, or a user's own."""

    def step(self) -> object: ...


class DLContext:
    """What `train_func(model, context)` and `validate_func(model, context)` work with.

    The keywords are those of TinyNeuralNetwork, in its order, then fxprune's own; every one is an attribute that may
    be set later, and so may any other attribute that a user's functions want to find.

    `train_func` trains for one epoch, or until `iteration` reaches `max_iteration`; `validate_func` (or
    `validate_fun`) returns one number, higher is better. `scheduler` steps once an epoch, `iter_scheduler` once an
    iteration after the `warmup_iteration` iterations in which `warmup_scheduler` steps. `grad_scaler` switches
    float16 autocast on, `amp` autocast to a type of its own (True: bfloat16). `progress`: a bar on a terminal.
    `calibration`: batches by which a search chooses and repairs; where the configuration says `bn_compensation: true`,
    by default those of `train_loader`.

    >>> context = DLContext(max_epoch=3)
    >>> context.criterion = nn.CrossEntropyLoss()
    """

    def __init__(
        self,
        train_loader: object = None,
        train_sampler: object = None,
        val_loader: object = None,
        criterion: Callable[..., object] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Scheduler | None = None,
        iter_scheduler: Scheduler | None = None,
        warmup_scheduler: Scheduler | None = None,
        epoch: int = 0,
        max_epoch: int | None = None,
        iteration: int = 0,
        warmup_iteration: int = 0,
        max_iteration: int | None = None,
        gpu: object = None,
        device: torch.device | str | None = None,
        grad_scaler: torch.amp.GradScaler | None = None,
        print_freq: int = 50,
        train_func: TrainFunction | None = None,
        validate_fun: ValidateFunction | None = None,
        custom_args: dict[str, object] | None = None,
        *,
        validate_func: ValidateFunction | None = None,
        best_acc: float = 0.0,
        best_epoch: int = -1,
        amp: bool | torch.dtype | None = None,
        channels_last: bool = False,
        progress: bool = True,
        calibration: object = None,
    ) -> None:
        if validate_fun is not None and validate_func is not None and validate_fun is not validate_func:
            raise TypeError("DLContext: got validate_fun and validate_func, which are two names of one function.")
        self.train_loader = train_loader
        self.train_sampler = train_sampler
        self.val_loader = val_loader
        self.criterion = criterion
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.iter_scheduler = iter_scheduler
        self.warmup_scheduler = warmup_scheduler
        self.epoch = epoch
        self.max_epoch = max_epoch
        self.iteration = iteration
        self.warmup_iteration = warmup_iteration
        self.max_iteration = max_iteration
        self.gpu = gpu
        self.device = device
        self.grad_scaler = grad_scaler
        self.print_freq = print_freq
        self.train_func = train_func
        self.validate_func = validate_func or validate_fun
        self.custom_args = custom_args
        self.best_acc = best_acc
        self.best_epoch = best_epoch
        self.amp = amp
        self.channels_last = channels_last
        self.progress = progress
        self.calibration = calibration

    @property
    def validate_fun(self) -> ValidateFunction | None:
        """The other name of `validate_func`."""
        return self.validate_func

    @validate_fun.setter
    def validate_fun(self, function: ValidateFunction | None) -> None:
        self.validate_func = function

    def __repr__(self) -> str:
        given = {name: value for name, value in vars(self).items() if value is not None}
        return f"DLContext({', '.join(f'{name}={_short(value)}' for name, value in given.items())})"


def get_device() -> torch.device:
    """The GPU that is current, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def device_of(model: nn.Module, context: DLContext) -> torch.device:
    """Where the functions of a context work: the device that it names, else the one that the model is on."""
    if context.device is not None:
        return torch.device(context.device)
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


def _short(value: object) -> str:
    if isinstance(value, bool | int | float | str | torch.device | torch.dtype):
        return repr(value)
    return getattr(value, "__name__", type(value).__name__)
