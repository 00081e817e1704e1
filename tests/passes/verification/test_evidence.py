"""A smaller example may prove, never refute: what differs there, or proves nothing, is decided by the whole one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from passes import EquivalenceError, PruneChannels, capture, couple, verify
from passes.equality.comparison import compare
from passes.equality.draws import Draw
from passes.verification import equivalence
from passes.verification.evidence import Evidence

SMALL, WHOLE = Draw("small", (torch.ones(1, 2),)), Draw("whole", (torch.ones(4, 2),), required=True)


def judged(answers: dict[str, bool | None], asked: list[str], seen: Evidence) -> Callable[[Draw], bool]:
    """Answers as told, None being a difference; an example that proves nothing leaves a note."""

    def proves(draw: Draw) -> bool:
        asked.append(draw.label)
        answer = answers[draw.label]
        if answer is None:
            raise EquivalenceError(f"they differ on {draw.label}")
        if not answer:
            seen.refused(draw, draw.label, "it does not run")
        return answer

    return proves


@pytest.mark.parametrize(
    "small, whole, asked",
    [(True, True, ["small"]), (False, True, ["small", "whole"]), (None, True, ["small", "whole"])],
)
def test_the_whole_example_decides_where_the_smaller_one_does_not_prove(
    small: bool | None, whole: bool, asked: list[str]
) -> None:
    seen, met = Evidence(), list[str]()
    seen.on_either(SMALL, WHOLE, judged({"small": small, "whole": whole}, met, seen))
    assert met == asked and seen.notes == []


def test_a_difference_on_the_whole_example_is_one() -> None:
    seen = Evidence()
    for small in (SMALL, None):
        with pytest.raises(EquivalenceError, match="they differ on whole"):
            seen.on_either(small, WHOLE, judged({"small": None, "whole": None}, [], seen))


def test_what_holds_no_number_is_noted_or_refused() -> None:
    seen, empty = Evidence(), compare([torch.full((2,), torch.nan)], [torch.full((2,), torch.nan)])
    assert not seen.agreed(SMALL, "small", empty, must=False)
    assert seen.notes == ["not proven on small: output 0 holds no finite number"] and seen.inputs == []
    with pytest.raises(EquivalenceError, match=r"output 0 holds no finite number on whole \(a buffer\), so there is"):
        seen.agreed(WHOLE, "whole", empty, must=True, also=" (a buffer)")


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.Conv1d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)))


def test_a_graph_is_judged_by_the_whole_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run with noise (the norm's weights are all alike) begins with the smaller one of a large example."""
    inputs = torch.randn(2, 3, 4096, dtype=torch.float64)
    gm = capture(Normed().double().eval(), inputs)
    plan = couple(gm, inputs).plan({"first": range(4)})
    pruned = PruneChannels(plan)(gm).graph_module
    run, noisy = equivalence._Proof.on, list[str]()

    def differs(whole: bool) -> Callable[..., object]:
        def on(self: equivalence._Proof, draw: Draw, *rest: object) -> object:
            if len(rest) > 2:
                noisy.append(draw.label)
                if whole or draw.label.endswith("made smaller"):
                    raise EquivalenceError(f"outputs differ on {draw.label}")
            return run(self, draw, *rest)  # type: ignore[arg-type]

        return on

    monkeypatch.setattr(equivalence._Proof, "on", differs(whole=False))
    certificate = verify(gm, pruned, plan, inputs)
    assert noisy == ["the example, made smaller", "the example"] and certificate.perturbed > 0
    assert certificate.inputs[-1] == "noise in the place of equal weights" and "differ" not in certificate.note
    monkeypatch.setattr(equivalence._Proof, "on", differs(whole=True))
    with pytest.raises(EquivalenceError, match="outputs differ on the example$"):
        verify(gm, pruned, plan, inputs)
