"""Pruned detectors of ultralytics in their `YOLO(...)` object: put back, and trained as they are.

The object's own trainer builds the network again from its YAML file, which knows nothing of pruned sizes. `trainer`
makes one that trains the network which is there; all else (prediction, validation, export) asks the network itself.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fxprune.errors import InputError
from fxprune.problem.wrappers import unwrapped
from fxprune.search.result import NetAdaptResult
from passes.stream.restated_calls import RestatedForward

_SPLIT = "forward_split"  # what exports put in the place of forward: the same with halves of one size, chunk or not


def put_back(yolo: Any, result: NetAdaptResult | nn.Module) -> Any:
    """Make the pruned network that of a `YOLO(...)` (or `RTDETR(...)`) object, and give the object back.

    Raises InputError where it is no such object, or the network is of another class than the object's own.
    """
    _is_yolo(yolo, "put_back")
    model: nn.Module = unwrapped(result.model)[0] if isinstance(result, NetAdaptResult) else result
    if type(model) is not type(yolo.model):
        raise InputError(
            f"put_back: got a {type(model).__name__}; the object holds a {type(yolo.model).__name__}. Prune yolo.model "
            "as a whole"
        )
    for parameter, dense in zip(model.parameters(), yolo.model.parameters(), strict=True):
        parameter.requires_grad_(dense.requires_grad)
    for part in model.modules():
        forward = part.__dict__.get("forward")
        if isinstance(forward, RestatedForward) and hasattr(part, _SPLIT):
            setattr(part, _SPLIT, forward)
    yolo.model = model
    yolo.predictor = None  # it holds the network that was there
    return yolo


def trainer(yolo: Any) -> type:
    """A trainer for ``yolo.train(trainer=trainer(yolo), data=...)``: that of the task, with the network that is there.

    For one process: what ultralytics starts for several devices imports its own trainer.
    """
    _is_yolo(yolo, "trainer")
    base: Any = yolo.task_map[yolo.task]["trainer"]
    network = yolo.model

    class Trainer(base):
        """Trains the network of the object."""

        def get_model(self, cfg: object = None, weights: nn.Module | None = None, verbose: bool = True) -> nn.Module:
            """The network, where the base class builds one; `weights`: that of a run which is continued."""
            model = network if weights is None else weights
            layers: Any = model.model  # one after the other, the head behind
            classes, wanted = getattr(layers[-1], "nc", None), self.data.get("nc")
            if None not in (classes, wanted) and classes != wanted:
                raise InputError(
                    f"trainer: the data have {wanted} classes and the network {classes}, whose outputs stay as they "
                    "are; give the network its classes before it is pruned"
                )
            model.names = self.data.get("names", model.names)
            return model

    Trainer.__name__ = base.__name__
    return Trainer


def _is_yolo(yolo: object, what: str) -> None:
    if not isinstance(getattr(yolo, "model", None), nn.Module) or not hasattr(yolo, "task_map"):
        raise InputError(f"{what}: got a {type(yolo).__name__}; expected a YOLO(...) of ultralytics with its network")
