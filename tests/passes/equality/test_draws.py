"""Inputs of a proof: like the example, at other sizes, the same for one seed, drawn from nobody's random state."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from passes.equality.draws import Draw, draws, smaller_example
from passes.equality.trees import leaves_of, map_tensors, tensors_of


@dataclasses.dataclass
class Answer:
    """A result as libraries give it, which torch's trees do not know."""

    logits: Tensor
    parts: Any = None


EXAMPLES: dict[str, Any] = {
    "an image": (torch.rand(2, 3, 8, 8),),
    "tokens and lengths": (torch.randint(5, 9, (4, 6)), torch.tensor([1, 2, 3, 2])),
    "negative numbers": (-torch.rand(3, 7) - 1,),
    "a dictionary": ({"x": torch.rand(2, 5), "flag": True, "none": None, "number": 3},),
    "half precision and complex": (torch.rand(2, 4).half(), torch.rand(2, 4, dtype=torch.complex64)),
    "a data class": (Answer(torch.rand(2, 4), [torch.ones(2, dtype=torch.bool)]),),
    "no dimensions": (torch.tensor(2.0), 3),
    "no elements": (torch.rand(0, 4),),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_draws_have_the_type_range_and_sign_of_the_example(name: str) -> None:
    example = EXAMPLES[name]
    for draw in draws(example, runs=3):
        assert type(draw.inputs) is type(example)
        for given, made in zip(tensors_of(example), tensors_of(draw.inputs), strict=True):
            assert made.dim() == given.dim()
            if not (given.is_floating_point() or given.is_complex()):
                assert made.dtype == given.dtype and set(made.flatten().tolist()) <= set(given.flatten().tolist())
            elif given.is_floating_point():
                assert made.dtype == torch.float64
                if not draw.random and made.numel():
                    assert given.min() <= made.min() and made.max() <= given.max()
            else:
                assert made.dtype == torch.complex128
        if not draw.varies:
            assert [t.shape for t in tensors_of(draw.inputs)] == [t.shape for t in tensors_of(example)]


def test_the_first_draw_is_the_example_itself_and_must_run() -> None:
    example = (torch.rand(2, 3), torch.tensor([3, 1]))
    first, *others = draws(example)
    assert first.required and not any(draw.required for draw in others)
    assert all(torch.equal(a.to(b.dtype), b) for a, b in zip(example, tensors_of(first.inputs), strict=True))
    tensors_of(first.inputs)[0].zero_()
    assert example[0].any(), "the example itself is nobody's to write to"


def test_every_size_is_tried_and_the_values_that_belong_together_stay_together() -> None:
    x, lengths = torch.arange(24.0).reshape(4, 6), torch.arange(4)
    sizes = {draw.varies: draw for draw in draws((x, lengths)) if draw.varies}
    assert set(sizes) == {"batch", "length 6", "length below 6", "batch of one"}
    assert len(tensors_of(sizes["batch of one"].inputs)[0]) == 1
    rows, numbers = tensors_of(sizes["batch"].inputs)
    assert len(rows) == len(numbers) == sizes["batch"].after != 4
    assert all(int(row[0]) == 6 * int(number) for row, number in zip(rows, numbers, strict=True))


def test_an_image_is_tried_as_a_rectangle_and_smaller_where_it_is_large() -> None:
    shapes = {tuple(tensors_of(d.inputs)[0].shape[2:]) for d in draws((torch.rand(1, 3, 64, 64),)) if d.varies}
    assert (64, 32) in shapes and (32, 32) in shapes


def test_draws_repeat_for_a_seed_and_move_no_random_state() -> None:
    example = (torch.rand(2, 3, 5),)
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    first, second, other = ([tensors_of(d.inputs)[0] for d in draws(example, seed)] for seed in (1, 1, 2))
    assert torch.equal(torch.rand(2), wanted)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[1], other[1])


def test_without_values_numbers_are_random() -> None:
    example = (torch.empty(2, 3, device="meta"), torch.empty(2, dtype=torch.int64, device="meta"))
    for draw in draws(example, device="cpu"):
        floats, integers = tensors_of(draw.inputs)
        assert floats.device.type == "cpu" and floats.std() > 0 and (integers == 1).all()


def test_no_run_is_an_error() -> None:
    for runs in (0, -1):
        with pytest.raises(ValueError, match="at least one run"):
            list(draws((torch.rand(2),), runs=runs))


def test_tensors_are_found_and_replaced_wherever_they_are() -> None:
    tensor = torch.ones(2)
    tree = [tensor, (tensor, {"a": Answer(torch.zeros(1), collections.UserDict(b=torch.ones(3)))}), None, "text", 4]
    assert [len(t) for t in tensors_of(tree)] == [2, 1, 3], "one that is given twice is one"
    assert len(leaves_of(tree)) == 7
    twice = map_tensors(lambda t: t * 2, tree)
    assert twice[0] is twice[1][0] and twice[1][1]["a"].parts["b"].sum() == 6
    assert tree[1][1]["a"].parts["b"].sum() == 3 and twice[2:] == [None, "text", 4]


@pytest.mark.parametrize("batch", [1, 2, 4, 6])
def test_of_sizes_that_meet_in_one_dimension_one_holds(batch: int) -> None:
    """A network that takes every size: what follows is smaller, and a batch of one is one of the example's own."""
    example, taken = (torch.rand(batch, 3, 64, 64), torch.rand(batch, 64)), list[Draw]()
    for draw in draws(example, taken=taken):
        images, rows = tensors_of(draw.inputs)
        assert len(images) == len(rows)
        if draw.varies:
            taken.append(draw)
            place = min(draw.places)
            assert tensors_of(draw.inputs)[place[0]].shape[place[1]] == draw.after
    small = smaller_example(example, 0, None, taken)
    assert small is not None
    images, rows = tensors_of(small.inputs)
    assert images.shape[3] == rows.shape[1] == 16 and len(images) == len(rows) == min(batch, 3)


def test_all_kinds_of_values_may_come_in_one_batch() -> None:
    example, taken = (torch.rand(2, 3, 4) + 5, torch.tensor([3, 1]), torch.rand(3)), list[Draw]()
    labels = []
    for draw in draws(example, taken=taken, at_once=True):
        labels.append(draw.label)
        taken += [draw] if draw.varies == "batch" else []
    assert "batch of 3 instead of 2: like the example, and normal random numbers" in labels
    assert "like the example" not in labels and "normal random numbers" not in labels
    values, numbers, other = tensors_of(taken[0].inputs)
    assert values[:2].min() > 4 and values[2].min() < 4, "two samples like the example, and a normal random one"
    assert numbers.tolist() != [] and set(numbers.tolist()) <= {1, 3} and other.shape == (3,) and other.min() >= 0
    refused = [draw.label for draw in draws(example, at_once=True)]
    assert refused[-2:] == ["like the example", "normal random numbers"], "where a network takes no other batch"


def test_an_image_that_differs_from_the_example_in_all_dimensions_is_varied_in_one() -> None:
    example = (torch.rand(1, 3, 8, 8),)
    every = frozenset({(0, 2), (0, 3)})
    assert any("other dimensions" in draw.label for draw in draws(example))
    assert not any("other dimensions" in draw.label for draw in draws(example, varied=every))
    assert any("in one dimension" in draw.label for draw in draws(example, varied=every))
