"""The training helpers."""

from fxprune.context import DLContext, get_device
from fxprune.long_training import train

__all__ = ["DLContext", "get_device", "train"]
