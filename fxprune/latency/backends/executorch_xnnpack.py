"""ExecuTorch with XNNPACK: what a phone's processor runs, here on this machine's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxprune.latency.backends.protocol import Run, Timed, called, held_on
from fxprune.latency.device import Setting, cpu, cpu_alone
from fxprune.latency.errors import BackendError
from passes.nested_values import tree_leaves_only


class ExecuTorch(Timed):
    """ExecuTorch's runtime; all that XNNPACK takes is its, the rest runs in portable kernels."""

    def __init__(self, threads: int = 1, device: str = "cpu") -> None:
        cpu_alone("executorch", device)
        try:
            from executorch.extension.pybindings import portable_lib
            from executorch.version import __version__
        except (ImportError, OSError) as error:
            raise BackendError(
                'the executorch backend needs executorch, built for this torch; pip install "fxprune[executorch]" '
                f"({error})"
            ) from error
        reset = getattr(portable_lib, "_unsafe_reset_threadpool", None)
        if reset is not None:
            reset(threads)
        elif threads > 1:
            raise BackendError(f"threads={threads}: this executorch does not let its threads be set; leave threads out")
        self.setting = Setting("executorch", str(__version__), threads, cpu())

    def prepare(self, gm: nn.Module, example_inputs: object) -> Run:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from executorch.runtime import Runtime

        gm.eval()
        args, kwargs = called(gm, example_inputs, held_on(gm))
        try:
            with torch.no_grad():
                exported = torch.export.export(gm, args, kwargs)
            lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
            program = Runtime.get().load_program(lowered.buffer)
            method = program.load_method("forward")  # once: the program keeps it
        except Exception as error:  # of the exporter, the partitioner and the runtime, which share no class
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise BackendError(f"executorch cannot take the network: {said}") from error
        if method is None:
            raise BackendError("executorch cannot take the network: its program has no forward")
        inputs = tree_leaves_only(Tensor, (args, kwargs))

        def run() -> object:  # from the program, whose memory the method reads and does not keep
            return program.load_method("forward").execute(inputs)

        return run
