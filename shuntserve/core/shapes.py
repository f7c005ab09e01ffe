"""The pipelines a job asks for: each a list of stages, each stage on a machine of its own.

Written as the estimator and the planner write them: `g6.12xlarge:tp=4:layers=20,g6e.xlarge:tp=1:layers=12`, one text
for each replica.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shuntserve.core.offers import Want
from shuntserve.core.stage_text import parse_pipeline
from shuntserve.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class StageWanted:
    """One stage: layers [first, end) on `tp` GPUs of a machine of this type."""

    instance_type: str
    tp: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Shape:
    """One replica that is wanted. `id` names it through all its generations."""

    id: str
    stages: tuple[StageWanted, ...]


def read_shapes(pipelines: Sequence[str], wants: Sequence[Want]) -> tuple[Shape, ...]:
    """The replicas, in the order given. Raises InvalidInput when a stage is not of the job's pools, or they have fewer
    machines than the stages need.
    """
    shapes: list[Shape] = []
    needed: dict[str, int] = {}
    for number, text in enumerate(pipelines):
        stages: list[StageWanted] = []
        first = 0
        for stage in parse_pipeline(text):
            if stage.is_gpu or stage.layers is None:
                raise InvalidInput(
                    f"pipeline {text!r}",
                    "every stage needs a machine type and its layers",
                    "write g6.xlarge:tp=1:layers=16,…",
                )
            stages.append(StageWanted(stage.place, stage.tp, first, first + stage.layers))
            first += stage.layers
            needed[stage.place] = needed.get(stage.place, 0) + 1
        shapes.append(Shape(f"p{number:03d}", tuple(stages)))
    for instance_type, count in needed.items():
        have = sum(want.count for want in wants if want.offers[0].instance_type == instance_type)
        if have < count:
            raise InvalidInput(
                f"pipelines on {instance_type}",
                f"need {count} machines, the pools have {have}",
                f"add a pool {instance_type}={count}",
            )
    return tuple(shapes)
