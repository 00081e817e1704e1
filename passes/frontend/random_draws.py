"""Random numbers that are drawn while a module is traced: whatever Python makes of them is settled in the graph.

That may be nothing (a number that decides in train mode alone), which no number of runs can show. What the graph draws
itself, anew at every call, is not drawn while it is made.
"""

from __future__ import annotations

import warnings

from torch import fx, nn

from passes.errors import SpecialisedWarning
from passes.graph.annotations import note, specialised_in
from passes.graph.module_copies import modules_of
from passes.process.state import drawn_in_python, generators_of, random_state

_AS_DRAWN = "what its result takes from them, if anything, is fixed in the graph, as when it was captured"
OF_PYTHON = f"random numbers that Python or NumPy draws in forward: {_AS_DRAWN}"
OF_TORCH = f"random numbers that forward draws: {_AS_DRAWN}"
FIXED = frozenset({OF_PYTHON, OF_TORCH})


class DrawsWatched:
    """From here on until `tell`, or `found`: whether a module draws numbers while it is traced."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._generators = model, generators_of(modules_of(model).values())
        self._before = self._states()
        self._found: tuple[str, ...] = ()

    def _states(self) -> tuple[tuple[object, ...], ...]:
        return drawn_in_python(self._generators), random_state(self._generators)

    def stop(self) -> None:
        """The trace ends here: what is drawn later does not count."""
        python, every = (now != before for now, before in zip(self._states(), self._before, strict=True))
        self._found = (OF_PYTHON,) if python else (OF_TORCH,) if every else ()

    def tell(self, gm: fx.GraphModule) -> None:
        """Note in the graph that was traced, and warn, that numbers were drawn."""
        note(gm, specialised=(*specialised_in(gm), *self._found))
        for sentence in self._found:
            warnings.warn(f"{type(self._model).__name__}: {sentence}", SpecialisedWarning, stacklevel=5)
