"""The cost of a unit between the widths that were measured: a staircase of products, and kriging of what is left.

The trend is `c0 + sum ci xi + sum cij xi xj` with no negative coefficient, where beside a width xi also stands xi
rounded up to a step, if that explains the samples better. Vector registers and tiles make costs grow in steps, in
part: the 8 channels that 40 has beyond a tile of 32 cost less than a tile and more than their share. The logarithm of
measured over trend is interpolated by kriging (a Gaussian process: Krige, 1951; Rasmussen and Williams, 2006, chapter
2), which passes near every sample and knows how far it may be off: the sampler measures next where that is most.
Length scale and likeness by alignment are those that predict each sample best from the others (leave-one-out, in
closed form: Rasmussen and Williams, section 5.4.2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product

import numpy as np

STEPS = (1, 2, 4, 8, 16, 32, 64)
_LENGTHS = (0.35, 0.7, 1.4, 2.8)  # in doublings of a width
_PHASES = (np.inf, 1.0)  # how far a width's alignment (trailing zero bits) sets it apart; inf: not at all
_LEAST_NOISE = 0.01  # no clock is better
_PRIOR, _PRIOR_SAMPLES = 0.1, 2  # how far off a trend is (a share) before there are samples to tell, and their weight
_BETTER = 0.9  # a finer explanation must cut the error by this factor


@dataclass(frozen=True)
class Surface:
    """Milliseconds over widths; `steps` are those found on each axis (1: none).

    error: root mean square of the leave-one-out errors, relative.
    """

    points: np.ndarray  # (n, d) widths
    steps: tuple[int, ...]
    coefficients: np.ndarray
    length: float
    phase: float
    variance: float
    noise: np.ndarray  # (n,) relative
    residual: np.ndarray  # (n,) log(measured / trend)
    error: float

    def ms(self, points: np.ndarray) -> np.ndarray:
        """Predicted milliseconds at integer widths of shape (m, d)."""
        points = np.asarray(points)
        trend = _features(points, self.steps) @ self.coefficients
        return trend * np.exp(self._cross(points) @ self._weights)

    def spread(self, points: np.ndarray) -> np.ndarray:
        """How far off `ms` may be, as a share (one standard deviation)."""
        cross = self._cross(np.asarray(points))
        explained = np.einsum("ij,jk,ik->i", cross, self._inverse, cross)
        return np.sqrt(np.maximum(self.variance - explained, 0.0))

    def with_point(self, point: np.ndarray, noise: float) -> Surface:
        """The surface that knows one more point, (1, d), which turned out as predicted: its `spread` shrinks there."""
        expected = self._cross(point) @ self._weights
        return replace(
            self,
            points=np.concatenate([self.points, point]),
            noise=np.append(self.noise, noise),
            residual=np.concatenate([self.residual, expected]),
        )

    def _cross(self, points: np.ndarray) -> np.ndarray:
        return self.variance * _kernel(points, self.points, self.length, self.phase)

    @cached_property
    def _inverse(self) -> np.ndarray:
        return np.linalg.inv(self._cross(self.points) + np.diag(self.noise**2))

    @cached_property
    def _weights(self) -> np.ndarray:
        return self._inverse @ self.residual


def fit(points: np.ndarray, ms: np.ndarray, noise: np.ndarray) -> Surface:
    """The surface through samples: points (n, d), ms (n,) > 0, noise (n,) relative. Points may repeat."""
    points = np.atleast_2d(np.asarray(points, dtype=np.int64))
    ms = np.maximum(np.asarray(ms, dtype=float), 1e-6)
    noise = np.maximum(np.asarray(noise, dtype=float), _LEAST_NOISE)
    if len(points) != len(ms) or not len(ms):
        raise ValueError(f"surface: {len(points)} points and {len(ms)} measurements; expected as many, at least one")
    steps = _stairs(points, ms)
    coefficients, residual = _trend(points, ms, steps)
    variance = _variance(residual, noise, int(np.count_nonzero(coefficients)))
    best = (np.inf, _LENGTHS[-1], np.inf)
    for phase, length in product(_PHASES, _LENGTHS):
        score = _leave_one_out(points, residual, noise, variance, length, phase)
        if score < best[0] * (_BETTER if phase != best[2] else 1.0):
            best = (score, length, phase)
    score, length, phase = best
    return Surface(points, steps, coefficients, length, phase, variance, noise, residual, score)


def _features(points: np.ndarray, steps: tuple[int, ...]) -> np.ndarray:
    """One, each width, each width rounded up to its step, and the products of those of different axes."""
    terms = []
    for axis, step in enumerate(steps):
        widths = points[:, axis]
        terms += [(axis, widths.astype(float))]
        terms += [(axis, (-(-widths // step) * step).astype(float))] if step > 1 else []
    columns = [np.ones(len(points)), *(term for _, term in terms)]
    if len(steps) <= 4:
        columns += [one * other for (a, one), (b, other) in combinations(terms, 2) if a != b]
    return np.stack(columns, axis=1)


def _trend(points: np.ndarray, ms: np.ndarray, steps: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients that fit best in relative terms, none negative, and the log residuals."""
    features = _features(points, steps)
    scale = np.abs(features).max(axis=0)
    coefficients = _non_negative((features / scale) / ms[:, None], np.ones(len(ms))) / scale
    return coefficients, np.log(ms / (features @ coefficients))


def _non_negative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """argmin |a x - b| over x >= 0 (Lawson and Hanson, 1974, chapter 23), for columns and a `b` without negatives."""
    norms = np.sqrt((a**2).sum(axis=0))
    a = a / norms
    columns = a.shape[1]
    x = np.zeros(columns)
    active = np.zeros(columns, dtype=bool)
    # A little ridge: samples on one line leave coefficients undetermined.
    normal, right = a.T @ a + 1e-9 * np.eye(columns), a.T @ b
    enough = 1e-9 * np.abs(right).max()
    for _ in range(3 * columns):
        gain = np.where(active, -np.inf, right - normal @ x)
        if gain.max() <= enough:
            break
        active[int(np.argmax(gain))] = True
        while True:
            z = np.zeros(columns)
            z[active] = np.linalg.solve(normal[np.ix_(active, active)], right[active])
            if (z[active] > 0).all():
                x = z
                break
            falling = active & (z <= 0)
            share = np.min(x[falling] / np.maximum(x[falling] - z[falling], 1e-300))
            x = x + share * (z - x)
            active &= x > 1e-12 * np.abs(x).max()
            x[~active] = 0.0
    return x / norms


def _stairs(points: np.ndarray, ms: np.ndarray) -> tuple[int, ...]:
    """For each axis the step that explains the samples best; 1 where none is clearly better than a line."""
    axes = points.shape[1]
    steps = [1] * axes
    if len(points) < 4 * axes + 4:
        return tuple(steps)
    for _ in range(2):  # the axes one after the other, and once more since they are fitted together
        before = list(steps)
        for axis in range(axes):
            if len(np.unique(points[:, axis])) < 4:
                continue
            tried = {}
            for step in STEPS:
                if step > points[:, axis].max():
                    break
                tried[step] = _misfit(points, ms, (*steps[:axis], step, *steps[axis + 1 :]))
            plain = tried[1]
            step = min(tried, key=lambda s: (tried[s], s))
            steps[axis] = step if tried[step] < _BETTER * plain else 1
        if steps == before:
            break
    return tuple(steps)


def _misfit(points: np.ndarray, ms: np.ndarray, steps: tuple[int, ...]) -> float:
    _, residual = _trend(points, ms, steps)
    return float(np.sqrt(np.mean(residual**2)))


def _kernel(a: np.ndarray, b: np.ndarray, length: float, phase: float) -> np.ndarray:
    """Matérn 3/2 over the logarithms of the widths, times the likeness of their alignments."""
    x, y = np.log2(np.maximum(a, 1)), np.log2(np.maximum(b, 1))
    distance = np.sqrt(3 * ((x[:, None] - y[None]) ** 2).sum(-1)) / length
    value = (1 + distance) * np.exp(-distance)
    if np.isfinite(phase):
        apart = ((_alignment(a)[:, None] - _alignment(b)[None]) / phase) ** 2
        value = value * np.exp(-0.5 * apart.sum(-1))
    return value


def _alignment(points: np.ndarray) -> np.ndarray:
    """Trailing zero bits of each width, at most 4: 16 and 48 are alike, 24 is not."""
    return np.log2(np.gcd(np.maximum(points, 1), 16))


def _variance(residual: np.ndarray, noise: np.ndarray, coefficients: int) -> float:
    """How far (squared) the truth strays from the trend: what the samples say, and a prior while they are few."""
    freedom = max(len(residual) - coefficients, 0)
    strayed = max(float(np.sum(residual**2) - np.sum(noise**2)), 0.0) + _PRIOR_SAMPLES * _PRIOR**2
    return strayed / (freedom + _PRIOR_SAMPLES)


def _leave_one_out(
    points: np.ndarray, residual: np.ndarray, noise: np.ndarray, variance: float, length: float, phase: float
) -> float:
    """The error of each residual predicted from the others, root mean square (relative)."""
    kernel = _kernel(points, points, length, phase)
    inverse = np.linalg.inv(variance * kernel + np.diag(noise**2))
    missed = (inverse @ residual) / np.diag(inverse)
    return float(np.sqrt(np.mean(missed**2)))
