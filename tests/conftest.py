"""One thread, fixed seeds, an importable torchvision and the path of the shared data, for every test."""

from __future__ import annotations

import os
import random
from pathlib import Path

# Before torch is imported: with two threads on two shared cores small models run 30 times slower.
os.environ["OMP_NUM_THREADS"] = "1"
# Processes that tests start look for the packages where pytest does (`pythonpath` in pyproject.toml).
_ROOT = str(Path(__file__).parents[1])
os.environ["PYTHONPATH"] = os.pathsep.join([_ROOT, *filter(None, [os.getenv("PYTHONPATH")])])


import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from fxprune.torchvision_support import ensure_torchvision  # noqa: E402

torch.set_num_threads(1)
ensure_torchvision()


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with CIFAR-10 and the trained networks: $FXPRUNE_DATA, else ../shared/data beside the project."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FXPRUNE_DATA", beside))
    if not (folder / "cifar10.npz").is_file():
        pytest.skip("needs the shared data (cifar10.npz and trained weights); set FXPRUNE_DATA to its folder")
    return folder
