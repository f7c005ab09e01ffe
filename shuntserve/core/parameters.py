"""The estimator's fitted numbers: what each means, where it is written, and what physics expects of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Cell = tuple[str, str, str]
"""Table, row and quantity of one number, for instance ("engines", "vllm", "step_us")."""


@dataclass(frozen=True)
class Parameter:
    """One fitted number within [low, high]; `cells` are the places in the tables that hold it."""

    name: str
    prior: float
    low: float
    high: float
    cells: tuple[Cell, ...]
    meaning: str


def cell_values(parameters: Sequence[Parameter], values: Mapping[str, float]) -> dict[Cell, float]:
    """What to write into the tables for these values."""
    return {cell: values[p.name] for p in parameters if p.name in values for cell in p.cells}
