"""What the planner must know of an estimator: stage times, KV room and hops, for a point or for a whole range.

The planner reasons about a pipeline of S stages through two numbers. *Seats* C is how many sequences it holds: every
stage needs KV room for C, and q = in_flight(C) micro-batches are under way. *Period* T is the mean time between
micro-batches leaving the pipeline. Whatever the estimator does inside, this must hold for each pipeline it accepts:

    requests/s ≤ work(C) / T
    T ≥ time of every stage             T ≥ every hop
    q·T ≥ Σ paced stage times + Σ paced hops + round(C)

where a stage's time is at least `fixed + layers × layer_s`, and *paced* times are those of the micro-batch that the
others of a round wait for (never less than the mean ones); and larger batches pay: no time grows faster in C than
work(C) does. Given C and T each kind of stage holds at most so many layers, and a pipeline is a cover of the model's
layers: the whole search rests on that.

A `Regimes` with `low < high` holds for *every* C in between: a pipeline with C seats and period T also meets all
conditions at `high` with the period stretched by work(high)/work(C), which leaves its requests/s as they are, and it
needs KV room for no more than C ≥ `low` seats. So times are taken at `high` and room at `low`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

MIDDLE, FIRST, LAST, ONLY = range(4)
POSITIONS = 4


@dataclass(frozen=True)
class StageKind:
    """`tp` GPUs of one machine type, whatever pool the machine comes from."""

    instance_type: str
    tp: int
    machine_gpus: int


@dataclass(frozen=True)
class Regimes:
    """Numbers for `n` ranges of seats; k runs over the kinds asked for, p over positions.

    `room` is the most layers that leave KV room for `low` seats; 0 where even one layer does not.
    """

    low: np.ndarray  # [n] seats
    high: np.ndarray  # [n] seats
    work: np.ndarray  # [n] requests per period
    in_flight: np.ndarray  # [n] micro-batches
    round_s: np.ndarray  # [n] the host's part of a round
    layer_s: np.ndarray  # [n, k]
    fixed_s: np.ndarray  # [n, p, k]
    room: np.ndarray  # [n, p, k] whole layers
    pace_layer_s: np.ndarray  # [n, k]
    pace_fixed_s: np.ndarray  # [n, p, k]
    remote_hop_s: np.ndarray  # [n, k] to or from another machine, as often as can be kept up
    pace_remote_hop_s: np.ndarray  # [n, k]
    pace_local_hop_s: np.ndarray  # [n, k] within the machine

    def take(self, index: np.ndarray) -> Regimes:
        """The ranges at `index`."""
        return Regimes(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class Seat:
    """One stage of a pipeline on paper: its kind, its layers, and whether the next stage is on the same machine."""

    kind: int
    layers: int
    joined: bool = False


class StageTimes(Protocol):
    """An estimator as the planner sees it."""

    @property
    def layers(self) -> int:
        """Layers of the model."""

    @property
    def kinds(self) -> tuple[StageKind, ...]:
        """The kinds of stage that can run the model at all."""

    @property
    def max_stages(self) -> int:
        """Longest pipeline considered."""

    @property
    def marks(self) -> np.ndarray:
        """Seats per stage, ascending and close, at which `regimes` knows times exactly; the last is the most."""

    def no_slower(self, kind: int, than: int) -> bool:
        """Whether a stage of `kind` does whatever one of `than` does in no more time, hands it over as fast, and takes
        as large a part of its machine.
        """

    def most_seats(self, stages: int) -> float:
        """No pipeline of `stages` stages holds more sequences."""

    def regimes(
        self, stages: int | np.ndarray, low: np.ndarray, high: np.ndarray, kinds: np.ndarray | None = None
    ) -> Regimes:
        """Numbers that hold throughout every range [low, high] of seats, `stages` being one number or one per range.

        Only for `kinds` where they are given.
        """

    def points(self, stages: int, seats: np.ndarray, needed: Sequence[Iterable[int]] | None = None) -> Regimes:
        """The estimator's own numbers at exactly these seats; where `needed` is given, for these kinds at each seats
        only (times of others are nan).
        """

    def seat_levels(self, stages: int, kinds: Sequence[int]) -> np.ndarray:
        """Every number of seats that some split over `kinds` can have, ascending."""

    def rps(self, stages: Sequence[Seat]) -> float:
        """The estimator's requests/s; 0 when the model does not fit so."""
