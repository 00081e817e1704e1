"""Workers of one: the candidates one after the other, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from fxprune.workers.protocol import Job, Outcome, Task
from fxprune.workers.repair import Repair
from passes import Coupling


@dataclass
class Serial:
    """One candidate after the other, in this process.

    One that takes longer than the job's limit is stopped where Python code runs in the main thread, tried again, then
    reported as failed. One that hangs in compiled code, crashes or calls `os._exit` takes this process with it; only
    workers of their own processes survive that.
    """

    job: Job

    def start(self) -> None:
        pass

    def run(
        self, network: nn.Module, coupling: Coupling, tasks: Sequence[Task], repair: Repair | None = None
    ) -> Iterator[Outcome]:
        for task in tasks:
            yield self.job.do(network, task, repair)

    def close(self) -> None:
        pass


def of_job(job: Job) -> Serial:
    """Workers for a search."""
    return Serial(job)
