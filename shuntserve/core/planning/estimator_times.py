"""The estimator as the planner sees it: tables of stage times and KV room, each entry asked of the estimator itself.

Times are tabulated over micro-batch sizes on a geometric grid and looked up at the next size *below*: no stage gets
faster with a larger micro-batch, so the table is optimistic and the bound built on it holds. `points` asks at the exact
sizes instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from shuntserve.core.catalog import Catalog
from shuntserve.core.engine_profile import EngineProfile, Precision
from shuntserve.core.estimate import PipelineEstimate, pace_step, pipeline_estimate, seat_tokens, steady_step
from shuntserve.core.hardware import Instance
from shuntserve.core.model_shape import ModelShape
from shuntserve.core.planning.stage_times import FIRST, LAST, MIDDLE, ONLY, POSITIONS, Regimes, Seat, StageKind
from shuntserve.core.roofline import StageRates, Step, stage_rates
from shuntserve.core.stage import StageSpec
from shuntserve.core.workload import Workload
from shuntserve.errors import InvalidInput

GRID_RATIO = 1.01
BELOW_ONE = 24
"""Marks for fewer seats than stages."""
PACE_EVERY = 3
"""Paced times are tabulated at every third size, and for these numbers of micro-batches; less is optimistic."""
PACE_IN_FLIGHT = np.array([1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128])


class EstimatorTimes:
    """`StageTimes` over `core.estimate`: one model, workload, engine and precision on the given instance types."""

    def __init__(
        self,
        model: ModelShape,
        workload: Workload,
        engine: EngineProfile,
        precision: Precision,
        instances: Sequence[Instance],
        max_stages: int | None = None,
    ) -> None:
        self.model, self.workload, self.engine, self.precision = model, workload, engine, precision
        self.instances = tuple(dict.fromkeys(instances))
        self._layers = model.num_layers
        self._max_stages = min(self._layers, max_stages or self._layers)
        self.unusable: dict[str, str] = {}
        self._kinds: list[StageKind] = []
        self._rates: list[StageRates] = []
        self._instance_of: list[Instance] = []
        for instance in self.instances:
            self._admit(instance)
        self._rows = list(dict.fromkeys(self._rates))  # kinds on equal GPUs and links share one row
        self._row = np.array([self._rows.index(rates) for rates in self._rates], dtype=np.intp)
        self._seats = self._seat_tables()  # [row, p, layers]
        self._falling = np.maximum.accumulate(self._seats[:, :, :0:-1], axis=2)  # ascending, for layers L … 1
        self._host_s = engine.host_s(1.0, 0.0)  # of one micro-batch, and what each sequence and further one adds
        self._seq_s = engine.host_s(1.0, 1.0) - self._host_s
        self._further_s = engine.host_s(2.0, 0.0) - 2 * self._host_s
        largest = float(engine.max_seqs)
        steps = max(1, math.ceil(math.log(max(largest, 1.0)) / math.log(GRID_RATIO)))
        self._grid = np.geomspace(1.0, max(largest, 1.0 + 1e-9), steps + 1)
        self._grid_times = (
            np.stack([self._times_at(row, self._grid) for row in range(len(self._rows))])
            if (self._rows)
            else np.zeros((0, len(self._grid), 1 + POSITIONS))
        )
        self._memo: dict[tuple[int, Step], np.ndarray] = {}
        self._pace_tables: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._alike = workload.output_cv == 0
        self._flow = np.array([instance.flow_bytes_per_s for instance in self._instance_of])
        self._sustained = np.array([instance.network_bytes_per_s for instance in self._instance_of])
        self._bus = np.array([r.link.bus(max(r.tp, 2)) for r in self._rates])

    # --- what can run at all ---

    def _admit(self, instance: Instance) -> None:
        gpu, precision = instance.gpu, self.precision
        if precision.weights not in gpu.weight_dtypes:
            self.unusable[instance.name] = f"the engine runs no {precision.weights} weights on {gpu.name}"
            return
        if precision.kv not in gpu.kv_dtypes:
            self.unusable[instance.name] = f"the engine keeps no {precision.kv} KV cache on {gpu.name}"
            return
        tp = 1
        while tp <= instance.usable_gpus:
            try:
                self.model.check_tp(tp)
            except InvalidInput as error:
                self.unusable.setdefault(instance.name, error.cause)
            else:
                self._kinds.append(StageKind(instance.name, tp, instance.usable_gpus))
                self._rates.append(stage_rates(self.model, gpu, instance.link, tp, self.engine, precision))
                self._instance_of.append(instance)
            tp *= 2

    @property
    def layers(self) -> int:
        return self._layers

    @property
    def kinds(self) -> tuple[StageKind, ...]:
        return tuple(self._kinds)

    @property
    def max_stages(self) -> int:
        return self._max_stages

    @property
    def marks(self) -> np.ndarray:
        return np.concatenate((np.geomspace(1.0 / self._max_stages, 1.0, BELOW_ONE, endpoint=False), self._grid))

    def no_slower(self, kind: int, than: int) -> bool:
        return bool(
            self._row[kind] == self._row[than]
            and self._flow[kind] >= self._flow[than]
            and self._sustained[kind] >= self._sustained[than]
            and self._kinds[kind].machine_gpus == self._kinds[than].machine_gpus
        )

    def most_seats(self, stages: int) -> float:
        return float(self.engine.max_seqs * stages)

    # --- memory ---

    def _seat_tables(self) -> np.ndarray:
        """Seats that a stage of a row leaves room for, by position and layers; the best range where layers differ."""
        total = self._layers
        table = np.zeros((len(self._rows), POSITIONS, total + 1))
        need = self.workload.mean_input + self.workload.mean_output
        block, per_seat = self.engine.block_tokens, seat_tokens(self.workload, self.engine)
        for row, rates in enumerate(self._rows):
            weights = np.array([rates.weight_bytes_of_layers(i, i + 1) for i in range(total)])
            kv = np.array([rates.kv_bytes_per_token(i, i + 1) for i in range(total)])
            budget = rates.kv_budget_bytes()
            whole = rates.weight_bytes(0, total) - rates.weight_bytes_of_layers(0, total)
            head = (
                rates.weight_bytes(total - 1, total) - rates.weight_bytes_of_layers(total - 1, total)
                if total > 1
                else whole
            )
            tail = rates.weight_bytes(0, 1) - rates.weight_bytes_of_layers(0, 1) if total > 1 else whole
            for layers in range(1, total + 1):
                windows_w, windows_kv = _windows(weights, layers), _windows(kv, layers)
                for position, ends, pick in (
                    (MIDDLE, 0.0, slice(None)),
                    (FIRST, tail, slice(0, 1)),
                    (LAST, head, slice(-1, None)),
                    (ONLY, whole, slice(0, 1)),
                ):
                    room = budget - ends - windows_w[pick]
                    tokens = np.where(room > 0, np.floor(room / (windows_kv[pick] * block)) * block, 0.0)
                    best = float(tokens.max())
                    table[row, position, layers] = max(1.0, best / per_seat) if best >= need else 0.0
        return table

    def _room(self, seats: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Most layers that leave room for `seats`, [n, p, row], for some rows."""
        room = np.empty((len(seats), POSITIONS, len(rows)), dtype=np.int64)
        for number, row in enumerate(rows):
            for position in range(POSITIONS):
                falling = self._falling[row, position]
                room[:, position, number] = len(falling) - np.searchsorted(falling, seats, side="left")
        return room

    def seat_levels(self, stages: int, kinds: Sequence[int]) -> np.ndarray:
        rows = sorted({int(self._row[kind]) for kind in kinds})
        positions = [ONLY] if stages == 1 else [MIDDLE, FIRST, LAST]
        levels = np.unique(self._seats[np.ix_(rows, positions)])
        ceiling = self.most_seats(stages)
        levels = levels[(levels > 0) & (levels < ceiling)]
        return np.append(levels, ceiling)

    # --- time ---

    def _times_at(self, row: int, sizes: np.ndarray) -> np.ndarray:
        """[size, 1 + p]: seconds per layer, then fixed seconds by position."""
        return np.stack([self._time(row, steady_step(self.workload, float(size))) for size in sizes])

    def _time(self, row: int, step: Step) -> np.ndarray:
        """[1 + p] of a step; where prompts have steps of their own, theirs come on top of the decoding."""
        if self.engine.mixes_prefill or not (step.prefill_tokens and step.decode_seqs):
            return self._kernel_time(row, step)
        prompt_tokens = self.workload.mean_input
        prompt = self._kernel_time(row, Step.prefill(prompt_tokens, step.prefill_context))
        decode = self._kernel_time(row, Step.decode(step.decode_seqs, step.context_tokens))
        return decode + step.prefill_tokens / prompt_tokens * prompt

    def _kernel_time(self, row: int, step: Step) -> np.ndarray:
        rates = self._rows[row]
        parts = rates.time(step)
        fixed, first, last = parts.fixed_s, parts.first_s, parts.last_s
        low = (0.0, 0.0, 0.0)
        if len(self.model.kinds()) > 1:
            by_shape = {shape: rates.layer_s(shape, step) for shape, _ in self.model.kinds()}
            low = _lowest_offsets(np.array([by_shape[shape] for shape in self.model.layers]), parts.per_layer_s)
        return np.array(
            [
                parts.per_layer_s,
                fixed + low[0],
                fixed + first + low[1],
                fixed + last + low[2],
                fixed + first + last,
            ]
        )

    def _pace_table(self, level: int) -> tuple[np.ndarray, np.ndarray]:
        """[size, row, 1 + p] paced times and [size] tokens of the paced step, `level` micro-batches being in flight."""
        if level not in self._pace_tables:
            sizes = self._grid[::PACE_EVERY]
            steps = [pace_step(self.workload, float(size), float(level), self.engine) for size in sizes]
            rows = range(len(self._rows))
            times = np.array([[self._time(row, step) for row in rows] for step in steps])
            shape = (len(steps), len(self._rows), 1 + POSITIONS)
            self._pace_tables[level] = times.reshape(shape), np.array([step.tokens for step in steps])
        return self._pace_tables[level]

    def _paced(self, stages: int | np.ndarray, low: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Optimistic paced times and tokens of ranges whose times stand at index `at` of the grid."""
        levels = PACE_IN_FLIGHT[np.searchsorted(PACE_IN_FLIGHT, np.minimum(stages, np.maximum(low, 1.0)), "right") - 1]
        times = np.empty((len(at), len(self._rows), 1 + POSITIONS))
        tokens = np.empty(len(at))
        for level in np.unique(levels):
            here = np.flatnonzero(levels == level)
            table, sent = self._pace_table(int(level))
            times[here], tokens[here] = table[at[here] // PACE_EVERY], sent[at[here] // PACE_EVERY]
        return times, tokens

    def _regimes(
        self,
        stages: int | np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        times: np.ndarray,
        paced: tuple[np.ndarray, np.ndarray],
        kinds: np.ndarray | None = None,
    ) -> Regimes:
        """`times` and paced times are [n, row, 1 + p], at `high`."""
        chosen: Any = slice(None) if kinds is None else kinds
        rows, row_of = np.unique(self._row[chosen], return_inverse=True)
        per_micro = np.maximum(high / stages, 1.0)
        admitted = self.workload.mean_input / self.workload.mean_output
        per_token = 2.0 * self.model.hidden * self.precision.activation_bytes
        mean_size = per_micro * (1.0 + admitted) * per_token
        size = np.maximum(mean_size, paced[1] * per_token)
        remote = self.engine.remote_stage_s * self.engine.version_factor
        least = np.minimum(stages, low)
        round_s = least * (self._host_s + self._seq_s * per_micro) + (least - 1.0) * self._further_s
        by_kind, pace = times[:, rows][:, row_of], np.maximum(times[:, rows], paced[0][:, rows])[:, row_of]
        flow, bus = self._flow[chosen], self._bus[chosen]
        return Regimes(
            low=low,
            high=high,
            work=per_micro / self.workload.mean_output,
            in_flight=np.minimum(stages, high),
            round_s=round_s,
            layer_s=by_kind[:, :, 0],
            fixed_s=np.moveaxis(by_kind[:, :, 1:], 2, 1),
            room=self._room(low, rows)[:, :, row_of],
            pace_layer_s=pace[:, :, 0],
            pace_fixed_s=np.moveaxis(pace[:, :, 1:], 2, 1),
            remote_hop_s=np.maximum(mean_size[:, None] / flow + remote, mean_size[:, None] / self._sustained[chosen]),
            pace_remote_hop_s=size[:, None] / flow + remote,
            pace_local_hop_s=size[:, None] / bus,
        )

    def regimes(
        self, stages: int | np.ndarray, low: np.ndarray, high: np.ndarray, kinds: np.ndarray | None = None
    ) -> Regimes:
        per_micro = np.maximum(high / stages, 1.0)
        index = np.clip(np.searchsorted(self._grid, per_micro * (1 + 1e-12), side="right") - 1, 0, None)
        times = np.moveaxis(self._grid_times[:, index], 0, 1)
        paced = (times, np.zeros(len(low))) if self._alike else self._paced(stages, low, index)
        return self._regimes(stages, low, high, times, paced, kinds)

    def points(self, stages: int, seats: np.ndarray, needed: Sequence[Iterable[int]] | None = None) -> Regimes:
        times = np.full((len(seats), len(self._rows), 1 + POSITIONS), np.nan)
        pace, tokens = times.copy(), np.empty(len(seats))
        every = range(len(self._rows))
        for i, (per_micro, all_seats) in enumerate(zip(np.maximum(seats / stages, 1.0), seats, strict=True)):
            step = steady_step(self.workload, float(per_micro))
            paced = pace_step(self.workload, float(per_micro), float(min(stages, all_seats)), self.engine)
            tokens[i] = paced.tokens
            for row in every if needed is None else {int(self._row[kind]) for kind in needed[i]}:
                times[i, row] = self._remembered(row, step)
                pace[i, row] = times[i, row] if paced == step else self._remembered(row, paced)
        return self._regimes(stages, seats, seats, times, (pace, tokens))

    def _remembered(self, row: int, step: Step) -> np.ndarray:
        key = (row, step)
        if key not in self._memo:
            self._memo[key] = self._time(row, step)
        return self._memo[key]

    # --- the truth ---

    def specs(self, stages: Sequence[Seat]) -> list[StageSpec]:
        """The stages as the estimator names them."""
        specs, at = [], 0
        for seat in stages:
            specs.append(StageSpec.on(self._instance_of[seat.kind], self._kinds[seat.kind].tp, at, at + seat.layers))
            at += seat.layers
        return specs

    def estimate(self, stages: Sequence[Seat]) -> PipelineEstimate:
        """The estimator's full answer; raises InvalidInput when the model does not fit so."""
        joined = [seat.joined for seat in stages[:-1]]
        return pipeline_estimate(
            self.model, self.specs(stages), self.workload, self.engine, self.precision, same_machine=joined
        )

    def rps(self, stages: Sequence[Seat]) -> float:
        try:
            return self.estimate(stages).throughput_rps
        except InvalidInput:
            return 0.0


def _windows(values: np.ndarray, width: int) -> np.ndarray:
    """Sums over every run of `width` neighbours."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    return sums[width:] - sums[:-width]


def _lowest_offsets(values: np.ndarray, mean: float) -> tuple[float, float, float]:
    """How far runs of layers anywhere, at the start and at the end fall short of `mean` times their length at most."""
    anywhere = at_start = at_end = 0.0
    for width in range(1, len(values) + 1):
        windows = _windows(values, width) - mean * width
        anywhere = min(anywhere, float(windows.min()))
        at_start, at_end = min(at_start, float(windows[0])), min(at_end, float(windows[-1]))
    return anywhere, at_start, at_end


def estimator_times(
    catalog: Catalog,
    model: ModelShape,
    workload: Workload,
    engine: EngineProfile,
    precision: Precision,
    instance_types: Sequence[str],
    max_stages: int | None = None,
) -> EstimatorTimes:
    """The estimator over the named instance types; raises NotFound for one that the catalogue lacks."""
    return EstimatorTimes(
        model, workload, engine, precision, [catalog.instance(name) for name in instance_types], max_stages
    )
