"""What the folder of a search may have run: nothing that the user did not name, and nothing that lies in it.

A folder may come from anyone. Its weights, plans and records are read as data. The model and the data of a search are
code, which its `command.json` only names: that code is imported where the user says so.
"""

from __future__ import annotations

from pathlib import Path

from fxprune.cli.jobs import Job
from fxprune.config.keys import NetAdaptConfig
from fxprune.errors import TrustError

_DATA_SETS = ("cifar10", "cifar100", "imagenet")
BUILT_IN = {"model": ("torchvision", "timm", "hf"), "data": _DATA_SETS, "calibration": ("train", *_DATA_SETS)}


def check_trusted(
    job: Job, workdir: Path, kept: NetAdaptConfig | None, own: NetAdaptConfig | None, trust: bool
) -> list[str]:
    """What a folder has imported or reached, in words; TrustError where the user has not said that it may be.

    `job` and `kept`: the names and the configuration in the folder; kept None: only the model is built. `own`: a
    configuration of the user, from the command line; what it says as well is the user's own word. `trust`: all is.
    """
    named = {
        f"the {part}": (name, own is not None and getattr(own, part) == name)
        for part, name in (
            ("model", job.model),
            ("data", job.data if kept is not None else None),
            ("calibration", kept.calibration if kept is not None else None),
        )
        if name is not None and name.partition(":")[0] not in BUILT_IN[part]
    }
    address = kept.ray.get("address") if kept is not None and kept.workers == "ray" else None
    if address is not None:
        same = own is not None and own.ray.get("address") == address
        named["the Ray cluster at"] = (f"{address}, to which code is sent and from which it comes", same)
    foreign = [f"{what} {name}" for what, (name, is_own) in named.items() if not is_own]
    if foreign and not trust:
        raise TrustError(
            f"{workdir}: this folder names code to run: {'; '.join(foreign)}. If you know where the folder comes from, "
            "pass --trust; or pass --config FILE, your own configuration, which names the same. Nothing was imported."
        )
    return [f"{what} {name}" for what, (name, _) in named.items()]
