"""Surfaces: stairs found, interpolation between samples, and an honest doubt."""

from __future__ import annotations

import numpy as np
import pytest

from fxprune.latency.predict import step_of
from fxprune.latency.surface import fit


def up(width, step):
    return np.ceil(width / step) * step


def samples(cost, count=40, seed=0, step=8, most=(160, 240), noise=0.01):
    rng = np.random.default_rng(seed)
    points = np.stack([rng.integers(1, m // step + 1, count) * step for m in most], axis=1)
    ms = cost(*points.T) * np.exp(noise * rng.standard_normal(count))
    return points, ms, np.full(count, noise)


def test_a_product_is_found_from_few_samples() -> None:
    surface = fit(*samples(lambda a, b: 0.01 + 1e-4 * a * b, count=12, noise=0.002))
    points, ms, _ = samples(lambda a, b: 0.01 + 1e-4 * a * b, count=200, seed=1, noise=0)
    assert np.abs(surface.ms(points) / ms - 1).max() < 0.03
    assert surface.steps == (1, 1)


@pytest.mark.parametrize("step", [16, 32, 64])
def test_stairs_are_found(step: int) -> None:
    surface = fit(*samples(lambda a, b: 0.02 + 1e-4 * up(a, step) * b, count=60))
    assert surface.steps == (step, 1)


def test_stairs_that_are_climbed_in_part_are_followed() -> None:
    """The first 8 channels of a tile of 32 cost as much as the next 24, as ONNX Runtime's convolutions do."""

    def cost(a, b):
        return 0.02 + 1e-4 * a * (b + 0.5 * up(b, 32))

    surface = fit(*samples(cost, count=60))
    assert surface.steps == (1, 32)
    widths = np.arange(8, 233, 8)
    rises = np.diff(surface.ms(np.stack([np.full(len(widths), 120), widths], axis=1)))
    first = widths[:-1] % 32 == 0
    assert rises[first].min() > 2 * rises[~first].max()


def test_a_line_has_no_stairs() -> None:
    for seed in range(5):
        assert fit(*samples(lambda a, b: 0.02 + 1e-3 * a + 2e-3 * b, seed=seed)).steps == (1, 1)


def test_a_bend_is_followed() -> None:
    """A cache that overflows: the trend cannot bend, the interpolation must."""

    def cost(a, b):
        return (0.01 + 1e-4 * a * b) * np.where(a * b > 10_000, 1.6, 1.0)

    points, ms, _ = samples(cost, count=300, seed=3, noise=0)
    errors = [np.mean(np.abs(fit(*samples(cost, count=n)).ms(points) / ms - 1)) for n in (10, 120)]
    assert errors[1] < 0.04 and errors[1] < 0.6 * errors[0]


def test_misaligned_widths_may_cost_more() -> None:
    def cost(a, b):
        return (0.01 + 1e-4 * a * b) * np.where((a % 4 == 0) & (b % 4 == 0), 1.0, 2.5)

    surface = fit(*samples(cost, count=150, step=1))
    assert np.isfinite(surface.phase)
    fine, coarse = surface.ms([[97, 121], [96, 120]])
    assert 1.7 < fine / coarse < 3.5


def test_doubt_is_small_at_samples_and_grows_away_from_them() -> None:
    points, ms, noise = samples(lambda a, b: (0.01 + 1e-4 * a * b) * (1 + 0.3 * (a > 64)), most=(160, 160))
    near = points[:, 0] < 60
    surface = fit(points[near], ms[near], noise[near])
    at, away = surface.spread(points[near]).mean(), surface.spread(points[points[:, 0] > 120]).mean()
    assert at < away
    more = surface.with_point(np.array([[160, 160]]), 0.01)
    assert more.spread([[160, 160]])[0] < surface.spread([[160, 160]])[0]
    assert more.ms([[160, 160]]) == pytest.approx(surface.ms([[160, 160]]), rel=0.02)


def test_odd_numbers_of_samples_and_coordinates() -> None:
    single = fit(np.array([[8]]), [0.5], [0.01]).ms([[8], [16]])
    assert single[0] == pytest.approx(0.5) and 0.5 <= single[1] <= 1.0
    constant = fit(np.zeros((3, 0), dtype=int), [1.0, 1.1, 0.9], [0.01] * 3)
    assert constant.ms(np.zeros((2, 0), dtype=int)) == pytest.approx([1.0, 1.0], rel=0.1)
    repeated = fit(np.array([[8, 8]] * 20), np.linspace(0.9, 1.1, 20), [0.05] * 20)
    assert repeated.ms([[8, 8]])[0] == pytest.approx(1.0, rel=0.05)
    rng = np.random.default_rng(0)
    many = fit(rng.integers(1, 99, (30, 6)), rng.random(30) + 0.5, [0.05] * 30)
    assert (many.ms(rng.integers(1, 99, (50, 6))) > 0).all()
    with pytest.raises(ValueError, match="expected as many"):
        fit(np.array([[8]]), [0.5, 0.6], [0.01, 0.01])


def test_stair_of_a_curve() -> None:
    widths = np.arange(4, 257, 4)
    assert step_of(widths, 1 + 0.1 * up(widths, 16)) == 16
    assert step_of(widths, 1 + 0.1 * up(widths, 64) + 0.001 * widths) == 64
    assert step_of(widths, 1 + 0.1 * widths) is None
    assert step_of(widths, np.ones(len(widths))) is None
    assert step_of(np.array([8, 16]), np.array([1.0, 2.0])) is None
