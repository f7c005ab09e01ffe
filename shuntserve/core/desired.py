"""The desired state of a job's fleet: what each newest entry of the plan log says, complete in itself.

A pipeline is an ordered list of stages; each names a node and how many of its GPUs, its tensor-parallel degree and
its layers. `generation` counts the formations of one pipeline: any change of its stages makes a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shuntserve.errors import Corrupt


@dataclass(frozen=True, slots=True)
class StagePlace:
    """One stage on one node. `gpus` 0: whatever the node has; `layers` None: all of the model's."""

    node: str
    gpus: int = 0
    tp: int = 0
    layers: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One replica of the model."""

    id: str
    generation: int
    stages: tuple[StagePlace, ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes it stands on, in stage order."""
        return tuple(dict.fromkeys(stage.node for stage in self.stages))


@dataclass(frozen=True, slots=True)
class Desired:
    """Which pipelines shall run, and which nodes shall drain, leave and shut down. A node in neither waits."""

    pipelines: tuple[Pipeline, ...] = ()
    leave: tuple[str, ...] = ()

    def of_node(self, node: str) -> tuple[Pipeline, ...]:
        """The pipelines a node takes part in."""
        return tuple(pipeline for pipeline in self.pipelines if node in pipeline.nodes)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Desired:
        """Raises Corrupt when it is none."""
        try:
            return Desired(
                tuple(
                    Pipeline(
                        item["id"],
                        item["generation"],
                        tuple(
                            StagePlace(
                                stage["node"],
                                stage["gpus"],
                                stage["tp"],
                                None if stage["layers"] is None else (stage["layers"][0], stage["layers"][1]),
                            )
                            for stage in item["stages"]
                        ),
                    )
                    for item in value["pipelines"]
                ),
                tuple(value["leave"]),
            )
        except (KeyError, TypeError, IndexError) as error:
            raise Corrupt("plan", f"is not a desired state: {error}", "stop and keep the bucket as it is") from error
