"""`torch.compile` with its default settings."""

from __future__ import annotations

import torch
from torch import nn

from fxprune.latency.backends.protocol import OnDevice, Run, called, torch_threads
from fxprune.latency.errors import BackendError


class Compiled(OnDevice):
    """torch.compile with its default settings; each shape is compiled for itself, which takes seconds."""

    def __init__(self, threads: int = 1, device: str = "cpu") -> None:
        super().__init__("compile", threads, device)

    def prepare(self, gm: nn.Module, example_inputs: object) -> Run:
        gm.eval()
        self.check_held(gm)
        (args, kwargs), threads = called(gm, example_inputs, self.device), self.setting.threads
        compiled = torch.compile(gm, dynamic=False)

        def run() -> None:
            with torch_threads(threads), torch.no_grad():
                compiled(*args, **kwargs)
            self.wait()

        try:
            run()
        except Exception as error:  # dynamo and inductor have errors of their own, and those of the C++ compiler
            raise BackendError(f"torch.compile cannot run the network: {str(error).splitlines()[0]}") from error
        return run
