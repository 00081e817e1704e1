"""Inputs of a size that a network cannot take: sizes written into its program mix the examples of a batch.

``x.view(-1, 64)`` on rows of 128 gives twice as many rows and no error: half of a row is taken for another example.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from passes.equality.draws import Draw
from passes.equality.trees import tensors_of
from passes.nested_values import image_count


@dataclass
class LeadingSizes:
    """The leading dimension of each output on the example, and whether another size of inputs changes it wrongly."""

    on_example: list[int | None] = field(default_factory=list)

    def moved(self, draw: Draw, outputs: object) -> str:
        """Why `outputs`, computed on `draw`, are not of the examples that entered; "" where they are.

        What was computed on the example, the first draw, is remembered.
        """
        if image_count(draw.inputs):  # of each of these a network gives as many results as it finds
            return ""
        leading = [int(t.shape[0]) if t.dim() else None for t in tensors_of(outputs)]
        if not draw.varies:
            self.on_example = self.on_example or leading
            return ""
        batch = draw.before if draw.of_batch else batch_of(draw)
        for old, new in zip(self.on_example, leading, strict=False):
            wanted = draw.after if draw.of_batch and old == batch else old
            if old == batch and new != wanted:
                return f"the leading dimension of an output becomes {new}, expected {wanted}: sizes are written into it"
        return ""


def batch_of(draw: Draw) -> int | None:
    """The leading size of the first input that has one, or how many images a list holds."""
    return image_count(draw.inputs) or next((int(t.shape[0]) for t in tensors_of(draw.inputs) if t.dim()), None)
