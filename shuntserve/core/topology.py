"""The shape of one pipeline: which ranks hold which layers, and which process on which host runs which ranks.

Ranks are numbered through the stages in order, so each stage holds a contiguous range of them and so does each node
process (one per host and stage group). Three stages of TP 2, 1, 1 on two hosts:

    stage        0       1   2
    rank        0 1      2   3
    node         0       ── 1 ──
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from shuntserve.core.near_miss import did_you_mean
from shuntserve.errors import InvalidInput

_STAGE_KEYS = ("tp", "layers", "kv_bytes")
_KEYS = ("stages", "node_ranks")


@dataclass(frozen=True, slots=True)
class StageShape:
    """Layers [first, end) on `tp` ranks. `kv_bytes` is the KV cache per rank that the planner counted on, if it did."""

    tp: int
    first: int
    end: int
    kv_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.tp < 1:
            raise InvalidInput("stage", f"tensor parallel size {self.tp} is not positive", "give 1 or more GPUs")
        if not 0 <= self.first < self.end:
            raise InvalidInput("stage", f"layers [{self.first}, {self.end}) are none", "give each stage a layer")
        if self.kv_bytes is not None and self.kv_bytes < 1:
            raise InvalidInput("stage", f"{self.kv_bytes} bytes of KV cache", "give a positive number or none")

    @property
    def layers(self) -> int:
        return self.end - self.first


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What decides whether a model can be cut into given stages."""

    name: str
    layers: int
    attention_heads: int
    kv_heads: int
    mixed_attention: bool = False
    """Layers differ in how far they attend, so their caches are grouped across the whole model."""


@dataclass(frozen=True, slots=True)
class PipelineTopology:
    """Stages in order, and how many consecutive ranks each node process runs; node 0 leads."""

    stages: tuple[StageShape, ...]
    node_ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise InvalidInput("pipeline", "has no stages", "give at least one")
        if self.stages[0].first != 0:
            raise InvalidInput("pipeline", f"begins with layer {self.stages[0].first}", "begin with layer 0")
        for left, right in pairwise(self.stages):
            if left.end != right.first:
                raise InvalidInput("pipeline", f"layers jump from {left.end} to {right.first}", "cover each layer once")
        if any(ranks < 1 for ranks in self.node_ranks) or sum(self.node_ranks) != self.world:
            raise InvalidInput(
                "pipeline",
                f"nodes run {list(self.node_ranks)} ranks, its stages have {self.world}",
                "make node_ranks add up to the sum of the stages' tp",
            )

    @classmethod
    def of(cls, tps: Sequence[int], layers: Sequence[int], node_ranks: Sequence[int] | None = None) -> PipelineTopology:
        """From sizes: `layers[i]` layers on `tps[i]` ranks; on one node unless told otherwise."""
        ends = tuple(accumulate(layers))
        stages = tuple(StageShape(tp, end - count, end) for tp, count, end in zip(tps, layers, ends, strict=True))
        return cls(stages, tuple(node_ranks) if node_ranks is not None else (sum(tps),))

    # --- ranks

    @property
    def world(self) -> int:
        return sum(stage.tp for stage in self.stages)

    def ranks_of(self, stage: int) -> range:
        start = sum(shape.tp for shape in self.stages[:stage])
        return range(start, start + self.stages[stage].tp)

    def stage_of(self, rank: int) -> int:
        return next(stage for stage in range(len(self.stages)) if rank in self.ranks_of(stage))

    def node_span(self, node: int) -> range:
        """The ranks that node process `node` runs."""
        start = sum(self.node_ranks[:node])
        return range(start, start + self.node_ranks[node])

    def node_of(self, rank: int) -> int:
        return next(node for node in range(len(self.node_ranks)) if rank in self.node_span(node))

    @property
    def first_ranks(self) -> tuple[int, ...]:
        """The first rank of each stage, which speaks for it."""
        return tuple(self.ranks_of(stage)[0] for stage in range(len(self.stages)))

    # --- kinds

    @property
    def uniform_tp(self) -> int | None:
        """The tensor parallel size that all stages share, if they do."""
        sizes = {stage.tp for stage in self.stages}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def layer_counts(self) -> tuple[int, ...]:
        return tuple(stage.layers for stage in self.stages)

    def describe(self) -> str:
        """Short and readable: `tp2[0,5) + tp1[5,8)`."""
        return " + ".join(f"tp{stage.tp}[{stage.first},{stage.end})" for stage in self.stages)

    def check(self, model: ModelFacts) -> None:
        """Raises InvalidInput when the model cannot be cut like this."""
        held = self.stages[-1].end
        if held != model.layers:
            raise InvalidInput(
                f"pipeline {self.describe()}",
                f"holds {held} layers, {model.name} has {model.layers}",
                "make the layers add up",
            )
        for number, stage in enumerate(self.stages):
            thing = f"stage {number} of the pipeline ({stage.tp} GPUs)"
            if model.attention_heads % stage.tp:
                cause = f"{model.name} has {model.attention_heads} attention heads, no multiple of {stage.tp}"
                raise InvalidInput(thing, cause, "give the stage a tensor parallel size that divides them")
            if max(model.kv_heads, stage.tp) % min(model.kv_heads, stage.tp):
                cause = f"{model.name} has {model.kv_heads} KV heads, which {stage.tp} GPUs neither share nor repeat"
                raise InvalidInput(thing, cause, "give the stage a tensor parallel size that divides them")
        if model.mixed_attention and self.uniform_tp is None:
            raise InvalidInput(
                f"pipeline {self.describe()}",
                f"{model.name} mixes kinds of attention, whose caches cannot be shared out over unlike stages",
                "give all stages the same tensor parallel size",
            )

    # --- JSON

    def to_json(self) -> dict[str, Any]:
        stages: list[dict[str, Any]] = []
        for stage in self.stages:
            entry: dict[str, Any] = {"tp": stage.tp, "layers": [stage.first, stage.end]}
            if stage.kv_bytes is not None:
                entry["kv_bytes"] = stage.kv_bytes
            stages.append(entry)
        return {"stages": stages, "node_ranks": list(self.node_ranks)}

    @classmethod
    def from_json(cls, raw: Any) -> PipelineTopology:
        """Raises InvalidInput for anything that `to_json` would not give; `node_ranks` may be left out."""
        _check_keys("pipeline topology", raw, _KEYS)
        stages = raw.get("stages")
        if not isinstance(stages, list):
            raise InvalidInput("pipeline topology", "has no list of stages", 'give "stages": [{"tp", "layers"}, …]')
        shapes = tuple(_stage(entry) for entry in stages)
        nodes = raw.get("node_ranks", [sum(shape.tp for shape in shapes)])
        if not isinstance(nodes, list) or not all(_is_count(ranks) for ranks in nodes):
            raise InvalidInput("node_ranks", f"{nodes!r} is no list of counts", "give one number of ranks per node")
        return cls(shapes, tuple(nodes))


def _stage(raw: Any) -> StageShape:
    _check_keys("stage", raw, _STAGE_KEYS)
    tp, layers, kv_bytes = raw.get("tp"), raw.get("layers"), raw.get("kv_bytes")
    if not _is_count(tp):
        raise InvalidInput("stage", f"tp is {tp!r}", "give a whole number of GPUs")
    if not (isinstance(layers, list) and len(layers) == 2 and all(_is_count(edge) for edge in layers)):
        raise InvalidInput("stage", f"layers is {layers!r}", "give [first, end)")
    if kv_bytes is not None and not _is_count(kv_bytes):
        raise InvalidInput("stage", f"kv_bytes is {kv_bytes!r}", "give bytes per GPU, or leave it out")
    return StageShape(tp, layers[0], layers[1], kv_bytes)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_keys(thing: str, raw: Any, known: Sequence[str]) -> None:
    if not isinstance(raw, Mapping):
        raise InvalidInput(thing, f"{raw!r} is no object", f"give an object with {', '.join(known)}")
    for name in raw:
        if name not in known:
            raise InvalidInput(f"{thing}: {name!r}", "is unknown", did_you_mean(str(name), known))
