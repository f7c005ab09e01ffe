"""Fits the estimator's few physical parameters to measurements.

Damped Gauss-Newton on the logarithms of the parameters, on the sum over sources of the mean absolute logarithmic
error (so that a source with many rows counts no more than one with few), with a weak pull towards each prior: a
parameter that nothing measured says anything about stays where physics put it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shuntserve.core.parameters import Parameter

PRIOR_SD = 0.7
"""Standard deviation of a prior, in natural logarithms: a factor of two either way is nothing unusual."""
_PRIOR_WEIGHT = 2e-4
_ABSOLUTE_FLOOR = 0.02
_STEP = 0.01
_PROBE = 0.5


Residuals = Callable[[Mapping[str, float], Sequence[int]], Sequence[float]]
"""Logarithmic errors of the measurements at the given indices, for these values of the parameters."""


@dataclass(frozen=True)
class Fit:
    """The parameters' values, the mean absolute logarithmic error by source, and how many rounds it took."""

    values: dict[str, float]
    error: dict[str, float]
    rounds: int


def fit(
    parameters: Sequence[Parameter],
    residuals: Residuals,
    sources: Sequence[str],
    weights: Mapping[str, float] | None = None,
    *,
    start: Mapping[str, float] | None = None,
    rounds: int = 15,
) -> Fit:
    """Values that make the residuals small; `sources[i]` names the origin of residual i.

    `weights` says how much a source counts (default 1 each). Values stay within each parameter's bounds. A parameter's
    derivatives are taken only where a large change of it shows at all: most touch few measurements, and one that
    touches none stays at its prior. `start` only makes the search shorter.
    """
    priors = np.log([p.prior for p in parameters])
    low, high = np.log([p.low for p in parameters]), np.log([p.high for p in parameters])
    at = np.log([(start or {}).get(p.name, p.prior) for p in parameters])
    counts = Counter(sources)
    share = np.array([(weights or {}).get(s, 1.0) / counts[s] for s in sources])

    everywhere = range(len(sources))

    def evaluate(x: np.ndarray, where: Sequence[int] = everywhere) -> np.ndarray:
        return np.asarray(residuals(_named(parameters, x), where), dtype=float)

    def loss(y: np.ndarray, x: np.ndarray) -> float:
        pull = _PRIOR_WEIGHT * float(np.sum(((x - priors) / PRIOR_SD) ** 2))
        return float(np.sum(share * np.hypot(y, _ABSOLUTE_FLOOR))) + pull / 2

    y = evaluate(at)
    touched = [np.flatnonzero(evaluate(_nudged(at, j, _PROBE)) != y).tolist() for j in range(len(parameters))]
    idle = [j for j, where in enumerate(touched) if not where]
    at[idle] = priors[idle]
    best, damping, done = loss(y, at), 1e-2, 0
    for done in range(1, rounds + 1):  # noqa: B007
        jacobian = np.zeros((len(sources), len(parameters)))
        for j, where in enumerate(touched):
            if where:
                jacobian[where, j] = (evaluate(_nudged(at, j, _STEP), where) - y[where]) / _STEP
        weight = share / np.hypot(y, _ABSOLUTE_FLOOR)
        normal = jacobian.T @ (weight[:, None] * jacobian) + np.eye(len(parameters)) * _PRIOR_WEIGHT / PRIOR_SD**2
        gradient = jacobian.T @ (weight * y) + _PRIOR_WEIGHT / PRIOR_SD**2 * (at - priors)
        gain = 0.0
        for _ in range(6):
            move = -np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-9), gradient)
            trial = np.clip(at + np.clip(move, -0.5, 0.5), low, high)
            trial_y = evaluate(trial)
            trial_loss = loss(trial_y, trial)
            if trial_loss < best:
                gain, at, y, best = best - trial_loss, trial, trial_y, trial_loss
                damping = max(damping / 4, 1e-7)
                break
            damping *= 5
        if gain < 1e-5:
            break
    error = {s: float(np.mean([abs(e) for e, name in zip(y, sources, strict=True) if name == s])) for s in counts}
    return Fit(_named(parameters, at), error, done)


def _named(parameters: Sequence[Parameter], x: np.ndarray) -> dict[str, float]:
    return {p.name: math.exp(float(v)) for p, v in zip(parameters, x, strict=True)}


def _nudged(x: np.ndarray, index: int, by: float) -> np.ndarray:
    moved = x.copy()
    moved[index] += by
    return moved
