"""One segment fitted to its dense outputs: least squares over all of its weights at once.

A network between two cuts is f(theta). Gauss-Newton replaces f by its linear form at theta (for a network of ReLUs: the
gates stay as they are), and the linear least squares problem that remains is solved by conjugate gradients, whose
preconditioner is the Kronecker product of what each weight reads (second moments, all taps) and of what reaches the
output from it. There is no loss of the whole network, no label and no learning rate.

Sources: Martens and Grosse, K-FAC (2015), for the preconditioner; Li et al., BRECQ (2021), for blocks as the unit of
reconstruction; Zhang et al. (2015) for errors behind a ReLU, which only count where they pass it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functional_call, jvp, vjp

from passes.statistics.divergence import tensors_out
from passes.statistics.moments import Moments
from passes.statistics.sites import Site
from passes.statistics.watching import Watcher

_BLOCK = 2048
_READINGS = 8  # of a preconditioner for each column
Parameters = dict[str, Tensor]
Inputs = tuple[object, ...]


@dataclass(frozen=True)
class Target:
    """The dense values of one output on one batch; between `low` and `high` it is compared, beyond only the side."""

    value: Tensor
    low: float = -float("inf")
    high: float = float("inf")
    weight: float = 1.0

    def residual(self, found: Tensor) -> Tensor:
        """What is to be added to `found`."""
        wanted = self.value
        if self.low > -float("inf"):
            wanted = torch.where(wanted <= self.low, found.clamp(max=self.low), wanted)
        if self.high < float("inf"):
            wanted = torch.where(wanted >= self.high, found.clamp(min=self.high), wanted)
        return (wanted - found) * self.weight**0.5

    def error(self, found: Tensor) -> float:
        """The weighted sum of squared differences behind the clamp. Raises RuntimeError where there are others to
        compare: as many as the values say (boxes that are found)."""
        if found.shape != self.value.shape:
            raise RuntimeError(f"it gives {tuple(found.shape)} values, the dense network {tuple(self.value.shape)}")
        a, b = self.value.clamp(self.low, self.high), found.clamp(self.low, self.high)
        return float((a - b).double().square().sum()) * self.weight


Place = tuple[int, int]
"""Which output of a segment, and which of the tensors that it holds (see `tensors_out`)."""


class Problem:
    """A segment's module, the batches that it reads, and the dense values of the outputs at `compared`."""

    def __init__(
        self, module: fx.GraphModule, inputs: Sequence[Inputs], targets: Sequence[Sequence[Target]],
        compared: Sequence[Place],
    ) -> None:  # fmt: skip
        self.module, self.inputs, self.targets, self.compared = module, inputs, targets, tuple(compared)

    def outputs(self, parameters: Parameters, number: int) -> tuple[Tensor, ...]:
        """The compared outputs on one batch."""
        return self.chosen(functional_call(self.module, parameters, self.inputs[number]))

    def chosen(self, given: Sequence[object]) -> tuple[Tensor, ...]:
        """Those of the outputs that are compared."""
        return tuple(tensors_out(given[place])[leaf] for place, leaf in self.compared)

    def moved(self) -> list[int]:
        """Which of the compared outputs the parameters move that require a gradient."""
        with torch.enable_grad():
            found = self.chosen(self.module(*self.inputs[0]))
        return [number for number, output in enumerate(found) if output.requires_grad]

    def only(self, numbers: Sequence[int]) -> Problem:
        """The same where only these of the compared outputs are."""
        targets = [[row[number] for number in numbers] for row in self.targets]
        return Problem(self.module, self.inputs, targets, [self.compared[number] for number in numbers])

    def error(self, parameters: Parameters) -> float:
        """The sum over batches of the squared differences."""
        total = 0.0
        with torch.no_grad():
            for number, targets in enumerate(self.targets):
                found = self.outputs(parameters, number)
                total += sum(t.error(f) for t, f in zip(targets, found, strict=True))
        return total


@dataclass(frozen=True)
class Layer:
    """One fitted weight: where it is used, its parameter, and what takes up constants (scaled by `scale` a row)."""

    site: Site
    weight: str
    bias: str | None
    scale: Tensor | None

    @property
    def names(self) -> list[str]:
        return [self.weight, *([self.bias] if self.bias else [])]


class Preconditioner:
    """(A x B)^-1 of each layer: A of what it reads, B of what its outputs do to the segment's."""

    def __init__(self, layers: Sequence[Layer], reads: dict[str, Tensor], writes: dict[str, Tensor]) -> None:
        self.layers, self.reads, self.writes = layers, reads, writes

    def __call__(self, gradient: Parameters) -> Parameters:
        made = dict(gradient)
        for layer in self.layers:
            site, read = layer.site, self.reads.get(layer.weight)
            if read is None:
                continue
            matrix = site.matrix(gradient[layer.weight])
            if layer.bias:
                shift = gradient[layer.bias].reshape(site.groups, site.rows, 1)
                scale = None if layer.scale is None else layer.scale.reshape(site.groups, site.rows, 1)
                matrix = torch.cat([matrix, shift if scale is None else shift * scale], 2)
            solved = matrix @ read
            if layer.weight in self.writes:
                write = self.writes[layer.weight]
                solved = write @ solved if write.shape[-1] == solved.shape[-2] else write * solved
            if layer.bias:
                shift = solved[..., -1:]
                made[layer.bias] = (shift if scale is None else shift * scale).reshape(gradient[layer.bias].shape)
                solved = solved[..., :-1]
            made[layer.weight] = _put_matrix(site, solved, gradient[layer.weight])
        return made


def _put_matrix(site: Site, matrix: Tensor, like: Tensor) -> Tensor:
    flat = torch.empty_like(like, memory_format=torch.contiguous_format).flatten()
    flat[site.positions().flatten().to(flat.device)] = matrix.reshape(-1)
    return flat.reshape(like.shape)


def inverse(moment: Tensor, damping: float) -> Tensor:
    """The inverse of a damped second moment (..., n, n) in single precision; of a large one, that of its blocks on the
    diagonal, which is a preconditioner as well and does not cost the cube of n."""
    size = moment.shape[-1]
    diagonal = moment.diagonal(dim1=-2, dim2=-1)
    lam = damping * diagonal.mean(-1, keepdim=True) + 1e-12
    made = moment.new_zeros(moment.shape, dtype=torch.float32)
    for at in range(0, size, _BLOCK):
        part = slice(at, min(at + _BLOCK, size))
        block = moment[..., part, part] + torch.diag_embed(lam.expand(diagonal.shape)[..., part])
        factor, failed = torch.linalg.cholesky_ex(block)
        whole = torch.cholesky_inverse(factor) if not bool(failed.any()) else torch.linalg.inv(block)
        made[..., part, part] = whole.float()
    return made


class _Marked(fx.Interpreter):
    """Runs a segment, sets the node that the watcher counts calls to, and keeps the results of some nodes."""

    def __init__(self, module: fx.GraphModule, watcher: Watcher | None = None, keep: Sequence[str] = ()) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.watcher, self.keep, self.kept = watcher, set(keep), dict[str, Tensor]()

    def run_node(self, n: fx.Node) -> object:
        if self.watcher is not None:
            self.watcher.node = n.name
        result = super().run_node(n)
        if n.name in self.keep and isinstance(result, Tensor):
            self.kept[n.name] = result
            return result.clone()  # what follows may change it in place
        return result


def sites_and_reads(
    problem: Problem, rows: int, seed: int, limit: int | None = None
) -> tuple[dict[str, Site], dict[str, Moments]]:
    """The uses of weights in a segment, and the second moments of what they read there."""
    moments: dict[str, Moments] = {}
    generator = torch.Generator().manual_seed(seed)
    count = max(1, len(problem.inputs))

    def seen(site: Site, found: Any) -> None:
        each = max(64, min(rows, max(4096, _READINGS * site.columns)) // count)
        read = found.read(each, generator)
        known = moments.setdefault(site.name, Moments(site.groups, site.columns))
        known.add(read, found.count / max(1, read.shape[1]))

    watcher = Watcher(problem.module, seen)
    with torch.no_grad():
        for inputs in problem.inputs[:limit]:
            with watcher:
                _Marked(problem.module, watcher).run(*inputs)
            watcher.forget()
    return dict(watcher.sites), moments


def writes_of(problem: Problem, layers: Sequence[Layer], seed: int) -> dict[str, Tensor]:
    """The inverse second moments of what random signs at the outputs become at each layer's output, per reading."""
    generator = torch.Generator().manual_seed(seed)
    wanted = {layer.site.node: layer for layer in layers}
    made: dict[str, Tensor] = {}
    run = _Marked(problem.module, keep=list(wanted))
    with torch.enable_grad():
        inputs = tuple(i.detach() if isinstance(i, Tensor) else i for i in problem.inputs[0])
        given = run.run(*inputs)
        outputs = problem.chosen(given)
        kept = {n: t for n, t in run.kept.items() if t.requires_grad}
        signs = [(torch.randint(0, 2, o.shape, generator=generator) * 2 - 1).to(o) for o in outputs]
        found = torch.autograd.grad(outputs, list(kept.values()), signs, allow_unused=True)
    for (name, value), gradient in zip(kept.items(), found, strict=True):
        layer = wanted[name]
        site = layer.site
        dim = 1 if site.form.kind in ("convolution", "transposed") else value.dim() - 1
        if gradient is None or value.shape[dim] != site.groups * site.rows:
            continue
        rows = gradient.movedim(dim, -1).reshape(-1, site.groups, site.rows).transpose(0, 1)
        made[layer.weight] = _inverse_moment(rows, 1e-2)
    return made


def _inverse_moment(rows: Tensor, damping: float) -> Tensor:
    """The inverse of the damped second moment of rows (groups, n, columns): (groups, columns, columns); of many columns
    (the words of a language model) that of its diagonal, (groups, columns, 1)."""
    if rows.shape[-1] <= _BLOCK:
        rows = rows.double()
        return inverse(rows.mT @ rows / rows.shape[1], damping)
    diagonal = rows.square().mean(1)
    return 1.0 / (diagonal + damping * diagonal.mean(-1, keepdim=True) + 1e-12)[..., None]


def fit(
    problem: Problem, layers: Sequence[Layer], moments: dict[str, Moments], parameters: Parameters, *,
    rounds: int = 3, iterations: int = 4, seed: int = 0, enough: float = 0.004,
    progress: Callable[[float], None] | None = None,
) -> tuple[Parameters, list[float]]:  # fmt: skip
    """Parameters of least error that Gauss-Newton finds from `parameters`, and the error before and after each round.

    Never worse than the start: a step that raises the error is halved, then dropped.
    """
    names = [name for layer in layers for name in layer.names]
    current = {n: parameters[n] for n in names}
    errors = [problem.error(current)]
    reads = {}
    for layer in layers:
        m = moments[layer.site.name]
        full = torch.stack([m.matrix(g) for g in range(m.groups)])
        full = full if layer.bias else full[:, :-1, :-1]
        reads[layer.weight] = inverse(full, 1e-3) / max(m.count, 1.0)
    for number in range(rounds):
        writes = writes_of(problem, layers, seed + number)
        step = _linear_step(problem, current, Preconditioner(layers, reads, writes), iterations)
        best = None
        for length in (1.0, 0.5, 0.25):
            tried = {n: (p + length * step[n]).detach() for n, p in current.items()}
            error = problem.error(tried)
            if error < (errors[-1] if best is None else best[0]):
                best = error, tried
            elif best is not None:
                break
        if best is None:
            break
        current = best[1]
        _write(problem, current)
        errors.append(best[0])
        if progress is not None:
            progress(best[0])
        if best[0] > errors[-2] * (1 - enough):
            break
    return current, errors


def _write(problem: Problem, parameters: Parameters) -> None:
    own = dict(problem.module.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in parameters.items():
            own[name].copy_(value)


def _linear_step(problem: Problem, parameters: Parameters, precondition: Preconditioner, iterations: int) -> Parameters:
    """The change of the parameters that brings the linearised outputs to the targets, by conjugate gradients."""
    count = len(problem.inputs)
    residuals: list[list[Tensor]] = []
    with torch.no_grad():
        for number, targets in enumerate(problem.targets):
            found = problem.outputs(parameters, number)
            residuals.append([t.residual(f) for t, f in zip(targets, found, strict=True)])
    roots = [[t.weight**0.5 for t in targets] for targets in problem.targets]

    def transposed() -> Parameters:
        total = {n: torch.zeros_like(p) for n, p in parameters.items()}
        for number in range(count):
            with torch.no_grad():  # nothing is recorded for other parameters, nor for gradients of the gradient
                back = vjp(lambda p, number=number: problem.outputs(p, number), parameters)[1]
                (part,) = back(tuple(r * w for r, w in zip(residuals[number], roots[number], strict=True)))
            del back
            for name in total:
                total[name] += part[name]
        return total

    solution = {n: torch.zeros_like(p) for n, p in parameters.items()}
    gradient = transposed()
    direction = precondition(gradient)
    slope = _dot(gradient, direction)
    for iteration in range(iterations):
        if not slope > 0:
            break
        ahead = []
        for number in range(count):
            with torch.no_grad():
                change = jvp(lambda p, number=number: problem.outputs(p, number), (parameters,), (direction,))[1]
            ahead.append([c * w for c, w in zip(change, roots[number], strict=True)])
        curvature = sum(float(c.detach().double().square().sum()) for parts in ahead for c in parts)
        if not curvature > 0:
            break
        length = slope / curvature
        for name in solution:
            solution[name] += length * direction[name]
        for parts, changes in zip(residuals, ahead, strict=True):
            for part, change in zip(parts, changes, strict=True):
                part -= length * change
        if iteration == iterations - 1:
            break
        gradient = transposed()
        conditioned = precondition(gradient)
        before, slope = slope, _dot(gradient, conditioned)
        direction = {n: conditioned[n] + (slope / before) * direction[n] for n in direction}
    return solution


def _dot(a: Parameters, b: Parameters) -> float:
    return sum(float((a[n].detach().double() * b[n].detach().double()).sum()) for n in a)
