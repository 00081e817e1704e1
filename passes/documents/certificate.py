"""What a proof has shown: on which inputs, how well two networks agreed, and what holds for one case only."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Certificate:
    """What was compared and how well it agreed.

    max_error: largest difference of an output element over its own size (or, where it is small, over the median size
    of that output), over all runs. outputs: how many output tensors were compared a run. batch_sizes: those that both
    networks ran at; one alone where the dense network itself accepts no other. mixed: groups proven on surviving
    units. perturbed: how many parameters had elements all alike (a zero-initialised head, norm weights of one), which
    would hide a wrong index; one more run was made with noise added to them in both networks.
    inputs: what each run was made on. sizes: which sizes were varied and worked ("length 16 instead of 8"). finite:
    the smallest share of an output, over runs, that were numbers and could be compared. note: what could not be run,
    and why. same_calls: what was not computed because both networks make the very calls there that were compared
    elsewhere, as a run without values has shown: a long input, train mode. specialised: what the network was analysed
    for (a mode, a flag, a state), in sentences; the certificate says nothing of other cases. removed_blocks: residual
    branches whose output was zero in the dense network, and that the pruned one does not hold.
    """

    max_error: float
    tol: float
    batch_sizes: tuple[int, ...]
    runs: int
    outputs: int
    seed: int
    removed_units: int
    mixed: tuple[str, ...]
    trained: bool
    perturbed: int
    note: str = ""
    inputs: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    finite: float = 1.0
    specialised: tuple[str, ...] = ()
    removed_blocks: tuple[str, ...] = ()
    same_calls: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return asdict(self)
