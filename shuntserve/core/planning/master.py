"""The master problem: how many of each known pipeline to run within the pools, as a linear and as an integer programme.

    maximise   a·R − b·P          R = Σ value_j·x_j  (requests/s)      P = Σ usd_per_h_p·y_p  ($/h)
    subject to Σ_j usage_jr·x_j ≤ slots_r·y_p(r)   for every slot row r of every pool p
               0 ≤ y_p ≤ count_p
               α·R + β·P ≤ γ                        for every fleet line (budgets, least throughput, total cost)
               Σ_p vcpus_p·y_p ≤ quota
               Σ_{j touches p} value_j·x_j ≤ share·R

A slot row counts GPUs in blocks of 2^k: stages take 1, 2, 4, 8 … GPUs, and parts of powers of two pack into equal bins
exactly when, for each k, the blocks of at least 2^k fit. Bins that are themselves a power of two need k = 0 only.

The bound of the linear programme over *all* pipelines, not only the known ones, follows from its duals: if every
pipeline is worth at most θ times what its slots cost at the dual prices, then θ times these prices are feasible in the
dual (Farley, 1990), and `LpDuals.bound` is an upper bound on any plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import highspy
import numpy as np

from shuntserve.core.pools import Pool
from shuntserve.errors import Unavailable

INFINITY = float("inf")


@dataclass(frozen=True)
class SlotRow:
    """GPUs of one pool counted in blocks of `block`; `per_machine` blocks fit on one machine."""

    pool: int
    block: int
    per_machine: int


def slot_rows(gpus_per_machine: Sequence[int]) -> tuple[SlotRow, ...]:
    """The rows that make packing of power-of-two parts exact, for pools of machines with that many GPUs each."""
    rows = []
    for pool, gpus in enumerate(gpus_per_machine):
        rows.append(SlotRow(pool, 1, gpus))
        if gpus & (gpus - 1):
            block = 2
            while block <= gpus:
                rows.append(SlotRow(pool, block, gpus // block))
                block *= 2
    return tuple(rows)


@dataclass(frozen=True)
class FleetLine:
    """One bound on the fleet as a whole: per_rps·R + per_usd·P ≤ limit."""

    name: str
    per_rps: float
    per_usd: float
    limit: float


@dataclass(frozen=True)
class Quota:
    """At most `vcpus` virtual CPUs over all machines of the pools listed."""

    name: str
    vcpus: float
    pools: frozenset[int]


@dataclass(frozen=True)
class Limits:
    """Everything a plan must respect besides the pools themselves; `share` is the cap of correlated loss."""

    lines: tuple[FleetLine, ...] = ()
    quotas: tuple[Quota, ...] = ()
    share: float = 1.0

    def plus(self, *lines: FleetLine) -> Limits:
        return Limits((*self.lines, *lines), self.quotas, self.share)


@dataclass(frozen=True)
class Goal:
    """Maximise per_rps·R − per_usd·P."""

    per_rps: float
    per_usd: float


@dataclass(frozen=True)
class MasterColumn:
    """One pipeline as the master sees it: requests/s, blocks taken per slot row, pools touched."""

    rps: float
    usage: tuple[tuple[int, float], ...]
    pools: frozenset[int]


@dataclass(frozen=True)
class MasterData:
    """The fixed part: pools, their slot rows and virtual CPUs."""

    pools: tuple[Pool, ...]
    rows: tuple[SlotRow, ...]
    vcpus: tuple[float, ...]


@dataclass(frozen=True)
class LpDuals:
    """Duals of the linear programme, all ≥ 0, in units of the goal per unit of the row."""

    slot: np.ndarray  # per slot row
    line: np.ndarray  # per fleet line
    quota: np.ndarray  # per quota
    share: np.ndarray  # per pool (zeros when there is no cap)

    def towards(self, other: LpDuals, step: float) -> LpDuals:
        """Between these (0) and the other ones (1)."""
        mixed = {
            item.name: (1 - step) * getattr(self, item.name) + step * getattr(other, item.name) for item in fields(self)
        }
        return LpDuals(**mixed)

    def lifted(self, least: float) -> LpDuals:
        """The same with no slot for nothing: prices may always be raised, the bound then rises with them."""
        return replace(self, slot=np.maximum(self.slot, least))

    def rps_weight(self, goal: Goal, limits: Limits) -> float:
        """What one request/s is worth before charging the pools a pipeline touches."""
        tilt = sum(-line.per_rps * dual for line, dual in zip(limits.lines, self.line, strict=True))
        return goal.per_rps + float(tilt) + limits.share * float(self.share.sum())

    def machine_margin(self, data: MasterData, goal: Goal, limits: Limits, theta: float = 1.0) -> np.ndarray:
        """Per pool: goal gained by one more machine when slot prices are multiplied by `theta` (never negative)."""
        per_usd = goal.per_usd + sum(line.per_usd * dual for line, dual in zip(limits.lines, self.line, strict=True))
        margin = np.array([-per_usd * pool.usd_per_h for pool in data.pools])
        for row, price in zip(data.rows, self.slot, strict=True):
            margin[row.pool] += theta * price * row.per_machine
        for quota, dual in zip(limits.quotas, self.quota, strict=True):
            for pool in quota.pools:
                margin[pool] -= dual * data.vcpus[pool]
        return np.maximum(margin, 0.0)

    def bound(self, data: MasterData, goal: Goal, limits: Limits, theta: float) -> float:
        """Upper bound of the goal over all plans, given that no pipeline beats `theta` times its slots' price."""
        margin = self.machine_margin(data, goal, limits, theta)
        total = float(sum(pool.count * gain for pool, gain in zip(data.pools, margin, strict=True)))
        total += sum(line.limit * dual for line, dual in zip(limits.lines, self.line, strict=True))
        return total + sum(quota.vcpus * dual for quota, dual in zip(limits.quotas, self.quota, strict=True))


@dataclass(frozen=True)
class LpSolution:
    """`feasible` False means that no mix of the known pipelines respects the limits."""

    feasible: bool
    objective: float
    x: np.ndarray
    duals: LpDuals


@dataclass(frozen=True)
class MipSolution:
    """Whole numbers of pipelines; `bound` is over the known pipelines only. `x` is empty when none was found."""

    objective: float
    bound: float
    x: np.ndarray
    machines: np.ndarray
    proved_infeasible: bool


class Master:
    """One master problem; columns may be added between solves and the linear programme restarts warm."""

    def __init__(self, data: MasterData, goal: Goal, limits: Limits) -> None:
        self.data, self.goal, self.limits = data, goal, limits
        self.columns: list[MasterColumn] = []
        self._capped = limits.share < 1.0
        self._lp = highspy.Highs()
        self._lp.silent()
        self._lp.setOptionValue("threads", 1)
        self._build()

    def _build(self) -> None:
        """Rows in the order slots, lines, quotas, shares; then the machine variables y."""
        data, limits = self.data, self.limits
        upper = [0.0] * len(data.rows)
        upper += [line.limit for line in limits.lines] + [quota.vcpus for quota in limits.quotas]
        upper += [0.0] * (len(data.pools) if self._capped else 0)
        self._rows = len(upper)
        for limit in upper:
            self._lp.addRow(-INFINITY, limit, 0, np.array([], dtype=np.int32), np.array([]))
        lines_at = len(data.rows)
        quotas_at = lines_at + len(limits.lines)
        for number, pool in enumerate(data.pools):
            entries = {r: -float(row.per_machine) for r, row in enumerate(data.rows) if row.pool == number}
            entries |= {lines_at + i: line.per_usd * pool.usd_per_h for i, line in enumerate(limits.lines)}
            entries |= {
                quotas_at + i: data.vcpus[number] for i, quota in enumerate(limits.quotas) if number in quota.pools
            }
            self._add(self._lp, self.goal.per_usd * pool.usd_per_h, float(pool.count), entries)

    @staticmethod
    def _add(model: highspy.Highs, cost: float, upper: float, entries: dict[int, float]) -> None:
        index = np.array([i for i, value in entries.items() if value], dtype=np.int32)
        values = np.array([value for value in entries.values() if value], dtype=np.float64)
        model.addCol(cost, 0.0, upper, len(index), index, values)

    def _entries(self, column: MasterColumn) -> dict[int, float]:
        data, limits = self.data, self.limits
        entries: dict[int, float] = dict(column.usage)
        lines_at = len(data.rows)
        shares_at = lines_at + len(limits.lines) + len(limits.quotas)
        for i, line in enumerate(limits.lines):
            entries[lines_at + i] = line.per_rps * column.rps
        if self._capped:
            for pool in range(len(data.pools)):
                entries[shares_at + pool] = column.rps * ((pool in column.pools) - limits.share)
        return entries

    def add(self, column: MasterColumn) -> None:
        """Make one more pipeline known."""
        self.columns.append(column)
        self._add(self._lp, -self.goal.per_rps * column.rps, INFINITY, self._entries(column))

    def solve_lp(self) -> LpSolution:
        """Optimum over fractional numbers of the known pipelines."""
        self._lp.run()
        status = self._lp.getModelStatus()
        data, limits = self.data, self.limits
        if status == highspy.HighsModelStatus.kInfeasible:
            empty = LpDuals(*(np.zeros(n) for n in (len(data.rows), len(limits.lines), len(limits.quotas), 0)))
            return LpSolution(False, -INFINITY, np.zeros(0), empty)
        if status != highspy.HighsModelStatus.kOptimal:
            raise Unavailable("the plan's linear programme", f"HiGHS stopped with {status.name}", "report this request")
        solution = self._lp.getSolution()
        dual = np.maximum(-np.asarray(solution.row_dual), 0.0)
        cuts = np.cumsum([len(data.rows), len(limits.lines), len(limits.quotas)])
        slot, line, quota, share = np.split(dual, cuts)
        if not self._capped:
            share = np.zeros(len(data.pools))
        x = np.asarray(solution.col_value)[len(data.pools) :]
        return LpSolution(True, -self._lp.getInfo().objective_function_value, x, LpDuals(slot, line, quota, share))

    def solve_mip(
        self, time_limit_s: float, gap: float, start: np.ndarray | None = None, upper: np.ndarray | None = None
    ) -> MipSolution:
        """Optimum over whole numbers of the known pipelines, within `gap` (relative) or until time is up.

        `start` is a first solution, `upper` the largest number of each pipeline.
        """
        model = highspy.Highs()
        model.silent()
        model.setOptionValue("threads", 1)
        model.passModel(self._lp.getLp())
        pools, known = len(self.data.pools), len(self.columns)
        whole = self.goal.per_usd != 0 or bool(self.limits.quotas)
        whole = whole or any(line.per_usd for line in self.limits.lines)
        first = 0 if whole else pools
        chosen = np.arange(first, pools + known, dtype=np.int32)
        model.changeColsIntegrality(len(chosen), chosen, np.array([highspy.HighsVarType.kInteger] * len(chosen)))
        if upper is not None:
            index = np.arange(pools, pools + known, dtype=np.int32)
            model.changeColsBounds(known, index, np.zeros(known), upper.astype(np.float64))
        model.setOptionValue("time_limit", float(time_limit_s))
        model.setOptionValue("mip_rel_gap", float(gap))
        model.setOptionValue("mip_abs_gap", 1e-9)
        if start is not None and len(start) == known:
            first_solution = highspy.HighsSolution()
            first_solution.col_value = [*map(float, self.machines_for(start)), *map(float, start)]
            model.setSolution(first_solution)
        model.run()
        status, info = model.getModelStatus(), model.getInfo()
        proved = status in (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible)
        none_found = MipSolution(-INFINITY, -INFINITY if proved else INFINITY, np.zeros(0), np.zeros(0), proved)
        if proved or not math.isfinite(info.objective_function_value) or info.primal_solution_status != 2:
            return none_found
        x = np.round(np.asarray(model.getSolution().col_value)[pools:]).astype(np.int64)
        machines = self.machines_for(x)
        return MipSolution(self.objective(x, machines), -info.mip_dual_bound, x, machines, False)

    def machines_for(self, x: np.ndarray) -> np.ndarray:
        """Fewest machines of each pool that hold `x` pipelines."""
        load = np.zeros(len(self.data.rows))
        for count, column in zip(x, self.columns, strict=True):
            if count:
                for row, amount in column.usage:
                    load[row] += count * amount
        machines = np.zeros(len(self.data.pools))
        for slot, amount in zip(self.data.rows, load, strict=True):
            machines[slot.pool] = max(machines[slot.pool], math.ceil(amount / slot.per_machine - 1e-9))
        return machines

    def objective(self, x: np.ndarray, machines: np.ndarray) -> float:
        """The goal's value of `x` pipelines on `machines`."""
        rps = float(sum(count * column.rps for count, column in zip(x, self.columns, strict=True) if count))
        usd = float(sum(n * pool.usd_per_h for n, pool in zip(machines, self.data.pools, strict=True)))
        return self.goal.per_rps * rps - self.goal.per_usd * usd
