"""Answers on the meta device: what the table gives is what torch gives, or the call is left to torch."""

import itertools
import sys

import pytest
import torch

from passes.ops import meta_shapes as meta
from passes.ops import table

aten = torch.ops.aten


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


X, CHANNELS_LAST = empty(2, 6, 5, 7), empty(2, 6, 5, 7).to(memory_format=torch.channels_last)
NARROW, HALF = empty(2, 6, 1, 1), X.to(torch.float16)
MOVED, SCALE = empty(2, 5, 7, 6).permute(0, 3, 1, 2), empty(6, 1, 1)
FEW = torch.empty(3, dtype=torch.int64, device="meta")
ODD = torch.empty_strided((6, 1), (1, 99), device="meta")  # contiguous: nobody goes along a dimension of one
GAPS = empty(2, 5, 3, 6, 7).permute(2, 0, 3, 1, 4)[0]
FAR = sys.maxsize  # the end that torch states for a slice without one
SEEN = (X, CHANNELS_LAST, MOVED, GAPS, NARROW, X[:, ::2], X[:, :1].expand(2, 6, 5, 7))

CALLS = [
    *(
        (aten.mean.dim, (x, dim, keep))
        for x in (X, CHANNELS_LAST, MOVED, GAPS)
        for dim in ([1], [-1, -2])
        for keep in (True, False)
    ),
    (aten.mm.default, (empty(2, 3), empty(5, 3).t())),
    (aten.bmm.default, (empty(4, 2, 3), empty(4, 3, 5))),
    (aten.bmm.default, (empty(4, 3, 2).transpose(1, 2), empty(4, 5, 3).transpose(1, 2))),
    (aten.mm.default, (empty(3, 2).t(), empty(3, 5))),
    *((aten._safe_softmax.default, (x, dim)) for x in (X, MOVED) for dim in (1, -1)),
    (aten._safe_softmax.default, (HALF, 1, torch.float32)),
    *((aten.roll.default, (x, shifts, dims)) for x in (X, MOVED) for shifts, dims in (([1, -2], [2, 3]), ([3], []))),
    *(
        (aten.max_pool2d_with_indices.default, (x, [3, 2], *rest))
        for x in (X, X[0], MOVED)
        for rest in ((), ([2],), ([2, 1], [1, 1]), ([2, 3], [1, 0], [1, 1], True), ([3, 3], [0, 1], [2], True))
    ),
    *((aten.addmm.default, (bias, empty(2, 3), empty(3, 5))) for bias in (empty(5), empty(2, 5), empty(1))),
    *((aten.cat.default, ([x, x], dim)) for x in (X, CHANNELS_LAST, HALF) for dim in (1, -1)),
    *(
        (aten.cat.default, ([a, b], dim))
        for a, b in itertools.product((X, CHANNELS_LAST, MOVED, GAPS, empty(2, 6, 5, 14)[..., ::2]), repeat=2)
        for dim in (1, -1)
    ),
    *((aten.cat.default, ([x[..., ::2], x[..., 1::2]], 0)) for x in (empty(2, 6, 5, 8), empty(3, 4, 6), empty(4, 8))),
    *((aten.cat.default, ([x, x], 1)) for x in (empty(2, 7, 6).mT, empty(1, 6, 9).expand(4, -1, -1), empty(5, 6).t())),
    *((aten.cat.default, ([x, X[:, :, :1, :1]], 0)) for x in (X[:, :, :1, :1].clone(), CHANNELS_LAST[:, :, :1, :1])),
    (aten.cat.default, ([empty(0), X], 1)),
    *(
        (aten.avg_pool2d.default, (x, [3, 2], *rest))
        for x in (X, X[0], MOVED, CHANNELS_LAST)
        for rest in ((), ([2],), ([2, 1], [1, 1]), ([2, 3], [1, 0], True), ([2], [1], False, False))
    ),
    (aten.avg_pool2d.default, (X, [3, 2], [2], [0], True, True, 3)),
    *((aten.add_.Tensor, (a.clone(), b)) for a, b in itertools.product((X, CHANNELS_LAST, MOVED, HALF), repeat=2)),
    *((aten.mul_.Tensor, (a, b)) for a, b in [(X[:, ::2], NARROW[:, ::2].expand(2, 3, 5, 7)), (MOVED, X), (GAPS, X)]),
    *((aten._softmax.default, (X, dim, False)) for dim in (1, -1)),
    *((aten._adaptive_avg_pool2d.default, (x, [2, 3])) for x in (X, X[0], CHANNELS_LAST)),
    (aten.native_batch_norm.default, (X, *[empty(6)] * 4, True, 0.1, 1e-5)),
    *(
        (aten.native_layer_norm.default, (x, shape, None, None, 1e-5))
        for x in (X, CHANNELS_LAST, HALF, MOVED)
        for shape in ([7], [5, 7])
    ),
    *(
        (getattr(aten, name).default, (x,))
        for name in ("relu", "sigmoid", "relu_")
        for x in (*(X, CHANNELS_LAST, MOVED[:1], GAPS), X[:, ::2], NARROW.expand(X.shape))
    ),
    *(
        (func, (a, b))
        for func in (aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor)
        for a, b in [(X, X), (X, NARROW), (NARROW, X), (X, HALF), (X, CHANNELS_LAST), (X, empty(7)), (HALF, X)]
        + [(MOVED, SCALE), (SCALE, MOVED), (SCALE, X), (X, SCALE), (MOVED, NARROW), (empty(5, 1), MOVED)]
        + [(X[:, ::2], SCALE[::2]), (SCALE, GAPS), (MOVED[:1], SCALE), (MOVED, empty(5, 7)), (MOVED, X), (X, MOVED)]
        + [(GAPS, GAPS), (GAPS, MOVED), (GAPS, NARROW.expand(X.shape)), (NARROW.expand(X.shape), GAPS)]
    ),
    *((getattr(aten, name).Scalar, (x, 0)) for name in ("eq", "ne", "lt", "ge") for x in (X, HALF, MOVED, X[:, ::2])),
    *(
        (aten.masked_fill.Scalar, (x, mask, -100.0))
        for x in (X, HALF, MOVED)
        for mask in (empty(2, 6, 5, 7).bool(), empty(5, 7).bool(), MOVED.bool())
    ),
    *(
        (aten.index.Tensor, (x, indices))
        for x in (X, HALF, MOVED, empty(6))
        for indices in ([FEW], [None, FEW], [FEW, FEW], [FEW[None]], [FEW.int()])
        if x.dim() >= len(indices)
    ),
    *(
        (func, (x, sizes))
        for func in (aten._unsafe_view.default, aten.view.default)
        for x, sizes in [
            *((X, sizes) for sizes in ([12, 35], [4, -1, 7], [-1], [2, 6, 1, 5, 1, 7], [1, 2, 6, 5, 7, 1])),
            *((NARROW, sizes) for sizes in ([2, 6], [12, 1, 1], [2, 1, 6])),
            *((empty(6, 1), sizes) for sizes in ([1, 6], [6], [3, 2, 1])),
        ]
    ),
    *((aten.view.default, (ODD, sizes)) for sizes in ([6, 1, 1], [1, 6], [3, 2])),
    *((aten.view.default, (x, [2, 6, 35])) for x in (X, X.half())),
    *((aten.permute.default, (x, dims)) for x in SEEN for dims in ([0, 2, 3, 1], [-1, 0, -3, 2])),
    *((aten.transpose.int, (x, *dims)) for x in SEEN for dims in ((1, 2), (-1, 0), (2, 2))),
    *((aten.t.default, (x,)) for x in (empty(2, 3), empty(3, 2).t(), empty(4), empty())),
    *(
        (aten.expand.default, (x, sizes))
        for x, several in [
            (X, ([2, 6, 5, 7], [-1, 6, 5, -1], [3, 2, 6, 5, 7])),
            (NARROW, ([2, 6, 5, 7], [-1, 6, -1, 7], [2, 6, 1, 7])),
            (SCALE, ([6, 5, 1], [2, 6, 5, 7], [1, 6, 1, 7], [3, 1, 6, 1, 1])),
            (empty(), ([], [4], [1, 3], [3, 1], [1, 1])),
            (empty(6, 4)[::2], ([1, 3, 4], [1, 1, 3, 4], [2, 1, 3, 4])),
            (X[:, :, :1], ([2, 6, 5, 7], [2, 6, 1, 7])),
        ]
        for sizes in several
    ),
    *((aten.unsqueeze.default, (x, dim)) for x in SEEN for dim in (0, 2, 4, -1, -5)),
    *((aten.unsqueeze.default, (empty(), dim)) for dim in (0, -1)),
    *(
        (aten.slice.Tensor, (x, *rest))
        for x in SEEN
        for rest in ((), (1,), (1, 2), (1, None, 4), (-1, -3, -1), (2, 1, 99, 2), (2, -99, 3), (3, 5), (1, 0, FAR, 4))
    ),
    *((aten.select.int, (x, *rest)) for x in SEEN for rest in ((0, 0), (1, -1), (-1, 0))),
    *((func, (x, 2)) for func in (aten.mul.Scalar, aten.add.Tensor) for x in (X, HALF, GAPS, NARROW.chunk(2, 1)[0])),
    *((aten.clamp.default, (x, *limits)) for x in (X, MOVED, GAPS) for limits in ((0, 1.5), (None, 2), (0.5,))),
    *(
        (aten.linalg_vector_norm.default, (x, 2.0, *rest))
        for x in (X, MOVED, GAPS)
        for rest in ((), ([-1], True), ([1], False), ([], True))
    ),
    *(
        (
            aten.convolution.default,
            (
                empty(2, groups * 2, 9, 8), empty(groups * 3, 2, k, 3), bias, [stride, 1], [pad, 1], [2, 1],
                False, [0, 0], groups,
            ),
        )
        for groups, k, stride, pad, bias in itertools.product((1, 2), (1, 3), (1, 2), (0, 2), (None,))
    ),
    (aten.convolution.default, (X, empty(6, 4, 3, 3), empty(4), [2, 2], [1, 1], [1, 1], True, [1, 1], 1)),
    *(
        (aten.convolution.default, (x, empty(4, 6, 3, 3), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1))
        for x in (X, CHANNELS_LAST, CHANNELS_LAST[:1], empty(1, 6, 1, 1))
    ),
    (aten.convolution.default, (CHANNELS_LAST, empty(4, 6, 1, 1), empty(4), [1, 1], [0, 0], [1, 1], False, [0, 0], 1)),
]  # fmt: skip


def described(result) -> list[tuple]:
    results = result if isinstance(result, (tuple, list)) else [result]
    return [(tuple(t.shape), t.stride(), t.dtype, t.device.type) for t in results]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_answers_are_those_of_torch(number):
    func, args = CALLS[number]
    assert described(meta.run_on_meta(func, args, {})) == described(func(*args))


@pytest.mark.parametrize("number", [1, 2.5, True])
@pytest.mark.parametrize("how", [{"dtype": torch.float32}, {"dtype": torch.int64, "layout": torch.strided}, {}])
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_numbers_become_tensors_as_in_torch(number, how, device):
    func, args, kwargs = aten.scalar_tensor.default, (number,), {**how, "device": torch.device(device)}
    made, expected = meta.run_on_meta(func, args, kwargs), func(*args, **kwargs)
    assert described(made) == described(expected) and (made.is_meta or made.item() == expected.item())


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.convolution.default, (X, empty(4, 5, 3, 3), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)),
        (aten.convolution.default, (X, empty(4, 6, 9, 9), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)),
        (aten.mm.default, (empty(2, 3), empty(4, 5))),
        (aten.cat.default, ([X, empty(2, 6, 4, 7)], 1)),
        (aten.add.Tensor, (X, empty(2, 5, 5, 7))),
        (aten.avg_pool2d.default, (X, [9, 9])),
        (aten.avg_pool2d.default, (X, [3, 3], [1], [0], False, True, 0)),
        (aten.cat.default, ([torch.empty((), device="meta")] * 2, 0)),
        (aten.mean.dim, (X, [1, -3])),
        (aten.max_pool2d_with_indices.default, (X, [9, 9])),
        (aten.max_pool2d_with_indices.default, (X, [3, 3], [1], [2])),
        (aten.mul.Tensor, (MOVED, empty(5, 1, 1))),
        (aten.view.default, (X, [2, 7])),
        (aten.view.default, (MOVED, [2, 210])),
        (aten.permute.default, (X, [0, 1, 2, -2])),
        (aten.permute.default, (X, [0, 1, 2, 4])),
        (aten.permute.default, (X, [0, 1, 2])),
        (aten.transpose.int, (X, 0, 4)),
        (aten.t.default, (X,)),
        (aten.expand.default, (X, [2, 6, 5, 8])),
        (aten.expand.default, (NARROW, [2, 6, -2, 1])),
        (aten.unsqueeze.default, (X, 5)),
        (aten.slice.Tensor, (X, 0, 0, 1, 0)),
        (aten.slice.Tensor, (X, 4)),
        (aten.select.int, (X, 1, 6)),
        (aten.select.int, (X, -5, 0)),
    ],
    ids=lambda value: str(value) if callable(value) else "",
)
def test_wrong_calls_are_refused_by_torch(func, args):
    with pytest.raises((RuntimeError, IndexError)):
        meta.run_on_meta(func, args, {})


@pytest.mark.parametrize("x", [X, MOVED, X[:, ::2]])
def test_a_copy_in_order_is_that_of_torch(x):
    kwargs = {"memory_format": torch.contiguous_format}
    assert described(meta.run_on_meta(aten.clone.default, (x,), kwargs)) == described(aten.clone.default(x, **kwargs))


def test_batch_norm_in_eval_mode_is_that_of_the_processor():
    x, channels = torch.randn(2, 6, 5, 7), torch.rand(6)
    real = aten.native_batch_norm.default(x, *[channels] * 4, False, 0.1, 1e-5)
    quick = meta.run_on_meta(aten.native_batch_norm.default, (X, *[empty(6)] * 4, False, 0.1, 1e-5), {})
    assert [t.shape for t in quick] == [t.shape for t in real]


def test_the_table_is_used(monkeypatch):
    monkeypatch.setitem(table._stated, aten.mm.default, {"meta": lambda left, right: empty(9, 9)})
    table._forget()
    try:
        assert meta.run_on_meta(aten.mm.default, (empty(2, 3), empty(3, 5)), {}).shape == (9, 9)
    finally:
        table._forget()


def test_tensors_of_one_form_are_apart():
    first = meta.made(X, (2, 1, 3))
    meta.made(X, (2, 1, 3)).squeeze_(1)
    changed = meta.made(X, (2, 1, 3))
    changed.note, changed.data = "of this one", empty(7)
    later = meta.made(X, (2, 1, 3))
    assert first.shape == later.shape == (2, 1, 3)
    assert not hasattr(later, "note")
    later.add_(1)
    assert first._version == 0
