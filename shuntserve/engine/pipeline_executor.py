"""vLLM's executor for a pipeline of unlike stages, on one host or as the leader of several.

Which ranks there are comes from the topology instead of a product of two numbers. Losses on other hosts are not seen
here but by the leader's links (`engine.links`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from vllm.v1.kv_cache_interface import UniformTypeKVCacheSpecs

from shuntserve import telemetry
from shuntserve.core.topology import PipelineTopology
from shuntserve.engine.executor import WatchedExecutor
from shuntserve.engine.membership import topology_of

_KV_TOLERANCE = 0.02
"""Planned and measured KV cache further apart than this are worth telling."""


class PipelineExecutor(WatchedExecutor):
    """Lives in the engine's core process on the leading node."""

    def _init_executor(self) -> None:
        self._topology = topology_of(self.vllm_config)
        super()._init_executor()

    def _get_parallel_sizes(self) -> tuple[int, int, int]:
        self.world_size = self._topology.world
        self.local_world_size = self._topology.node_ranks[0]
        return self.world_size, 1, 1  # only their product is looked at

    def _is_driver_worker(self, rank: int) -> bool:
        return rank in self._topology.first_ranks

    def _get_output_rank(self) -> int:
        return self._topology.first_ranks[-1]

    def determine_available_memory(self) -> list[int]:
        measured: list[int] = super().determine_available_memory()
        telemetry.log_to(sys.stderr, "info")
        report_kv_mismatch(self._topology, measured)
        return measured

    def initialize_from_config(self, kv_cache_configs: Sequence[Any]) -> None:
        """Stages with different numbers of KV heads per rank make vLLM describe all layers one by one. On one rank they
        are alike, so each rank gets the short description, which all of its code understands."""
        for config in kv_cache_configs:
            for group in config.kv_cache_groups:
                spec = group.kv_cache_spec
                if isinstance(spec, UniformTypeKVCacheSpecs):
                    kinds = list(spec.kv_cache_specs.values())
                    if kinds and all(kind == kinds[0] for kind in kinds):
                        group.kv_cache_spec = kinds[0]
        super().initialize_from_config(kv_cache_configs)


def report_kv_mismatch(topology: PipelineTopology, measured_bytes: Sequence[int]) -> None:
    """One event per stage whose smallest rank has another amount of KV cache than the planner counted on."""
    for number, stage in enumerate(topology.stages):
        if stage.kv_bytes is None:
            continue
        measured = min(measured_bytes[rank] for rank in topology.ranks_of(number))
        if abs(measured - stage.kv_bytes) > _KV_TOLERANCE * stage.kv_bytes:
            telemetry.emit(
                telemetry.Event.KV_CACHE_MISMATCH,
                stage=number,
                tp=stage.tp,
                layers=stage.layers,
                planned_kv_bytes=stage.kv_bytes,
                measured_kv_bytes=measured,
            )
