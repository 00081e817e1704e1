"""`python -m benchmarks.candidate_cost`: what one candidate costs that is compensated and scored without training.

ResNet-50 with half of the units of every group: sliced, compensated in closed form, its norms estimated on images and
its outputs compared with the dense network's, beside one forward pass of the dense network over the same images. Both
are timed in turn, in seconds of the processor, and the least of each counts. Also the memory of the statistics, as a
share of that of the weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from benchmarks import machine
from benchmarks.options import command_line
from benchmarks.report import table, write
from fxprune.torchvision_support import ensure_torchvision
from passes import apply_plan, compensate, couple, observe
from passes.repair.batch_norms import reestimated
from passes.statistics import Batch
from passes.statistics.divergence import divergence, outputs_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; print and write the table."""
    parser = command_line("candidate_cost", __doc__, "repeats")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args(arguments)
    machine.one_thread()
    ensure_torchvision()
    import torchvision

    torch.manual_seed(0)
    dense = torchvision.models.resnet50(weights=None).eval()
    batches = [Batch((torch.randn(32, 3, options.size, options.size),)) for _ in range(-(-options.images // 32))]
    coupling = couple(dense, batches[0].args[0][:1])
    statistics = observe(dense, coupling, batches[:2], rows=2048)
    plan = coupling.plan({group.name: range(0, group.size, 2) for group in coupling.groups})
    expected = outputs_of(dense, batches)

    def candidate() -> None:
        network = compensate(apply_plan(dense, plan), statistics, plan, dense)
        divergence(reestimated(network, batches), batches, expected)

    def closed_form() -> None:
        compensate(apply_plan(dense, plan), statistics, plan, dense)

    seconds: dict[str, float] = {}
    runs: dict[str, Callable[[], object]] = {
        "dense forward pass": lambda: outputs_of(dense, batches), "closed form": closed_form, "candidate": candidate,
    }  # fmt: skip
    for _ in range(options.repeats):
        for name, run in runs.items():
            begun = time.process_time()
            run()
            seconds[name] = min(seconds.get(name, float("inf")), time.process_time() - begun)
    forward = seconds["dense forward pass"]
    allowed = 1.5 * forward + 2
    share = statistics.size_bytes / _weight_bytes(dense)
    rows = [[name, f"{value:.2f}", f"{value / forward:.2f}"] for name, value in seconds.items()]
    text = "\n".join(
        [
            f"ResNet-50, {options.images} images of {options.size} pixels, half of the units of every group", "",
            *table(["", "s", "of the forward pass"], rows), "",
            f"1.5 forward passes and 2 s: {allowed:.2f} s.",
            f"Statistics: {share:.1f} times the memory of the weights.", "",
        ]
    )  # fmt: skip
    write(options.out, "candidate_cost", text, {"seconds": seconds, "statistics": share, **machine.describe()})
    return 0


def _weight_bytes(network: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())


if __name__ == "__main__":
    sys.exit(main())
