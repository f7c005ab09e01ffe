"""Stages as a user writes them: `g6.12xlarge:tp=4:layers=20` or `gpu=H100:tp=1:layers=32`, joined by commas.

Also as published placements write them, `g6.12xlarge(half) L=14 TP=2 | g6e.xlarge L=13 TP=1`, and `gpu=l4x2` for two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from shuntserve.core.catalog import Catalog
from shuntserve.core.finite_job import PipelineSpec
from shuntserve.core.stage import StageSpec
from shuntserve.errors import InvalidInput

_MOST_GPUS = 8  # of one machine, where no instance type says
_OPTIONS = {"tp": "tp", "layers": "layers", "l": "layers", "machine": "machine"}
_FORM = "write INSTANCE:tp=N:layers=N or gpu=NAME:tp=N:layers=N"


@dataclass(frozen=True, slots=True)
class StageText:
    """One stage as written. `machine` tells equal machines apart; without it neighbours share one while it has GPUs."""

    place: str
    is_gpu: bool
    tp: int
    layers: int | None
    machine: str | None = None


def parse_stage(text: str) -> StageText:
    """Read one `--stage`; raises `InvalidInput` that names the part that is wrong."""
    head, *options = re.split(r"\s*:\s*|\s+(?=\w+=)", text.strip())
    key, _, value = head.partition("=")
    is_gpu = key == "gpu" and bool(value)
    place = value if is_gpu else head.removesuffix("(half)")
    if not place or ("=" in head and not is_gpu):
        raise InvalidInput(f"stage {text!r}", "it names no instance type or GPU", _FORM)
    read: dict[str, str] = {}
    for option in options:
        written, equals, value = option.partition("=")
        name = _OPTIONS.get(written.lower(), "")
        if not (equals and name) or name in read:
            raise InvalidInput(f"stage {text!r}", f"{option!r} is not understood", _FORM)
        read[name] = value
    several = re.fullmatch(r"(.+\d)x([1-9]\d?)", place) if is_gpu and "tp" not in read else None
    if several:
        place, read["tp"] = several[1], several[2]
    return StageText(
        place,
        is_gpu,
        _count(text, "tp", read.get("tp", "1")),
        _count(text, "layers", read["layers"]) if "layers" in read else None,
        read.get("machine"),
    )


def parse_pipeline(text: str) -> list[StageText]:
    """Read one `--pipeline`: stages separated by commas (or bars)."""
    return [parse_stage(part) for part in re.split(r"[,|]", text)]


def _count(text: str, name: str, value: str) -> int:
    try:
        count = int(value)
    except ValueError:
        raise InvalidInput(f"stage {text!r}", f"{name}={value} is not a whole number", "give 1 or more") from None
    if count < 1:
        raise InvalidInput(f"stage {text!r}", f"{name}={count} is not positive", "give 1 or more")
    return count


def build_pipeline(catalog: Catalog, written: Sequence[StageText], model_layers: int) -> PipelineSpec:
    """Stages with their layer ranges. A single stage may leave its layers out; several must say, and add up."""
    if not written:
        raise InvalidInput("pipeline", "it has no stage", _FORM)
    given = [stage.layers for stage in written]
    if None in given:
        if len(written) > 1:
            raise InvalidInput("pipeline", "a stage does not say its layers", "add layers=N to each stage")
        given = [model_layers]
    counts = [count for count in given if count is not None]
    if sum(counts) != model_layers:
        total = f" = {sum(counts)}" if len(counts) > 1 else ""
        raise InvalidInput(
            "pipeline",
            f"its stages hold {' + '.join(map(str, counts))}{total} layers, the model has {model_layers}",
            "make the layers add up",
        )
    specs, at = [], 0
    for stage, count in zip(written, counts, strict=True):
        specs.append(_spec(catalog, stage, at, at + count))
        at += count
    return PipelineSpec(tuple(specs), tuple(_shared(catalog, written)))


def _spec(catalog: Catalog, stage: StageText, first: int, end: int) -> StageSpec:
    if not stage.is_gpu:
        return StageSpec.on(catalog.instance(stage.place), stage.tp, first, end)
    gpu = catalog.gpu(stage.place)
    if stage.tp > _MOST_GPUS:
        raise InvalidInput(
            f"gpu={stage.place}:tp={stage.tp}", f"no machine carries more than {_MOST_GPUS}", "add stages instead"
        )
    return StageSpec(gpu, catalog.link_of(gpu), stage.tp, first, end)


def _shared(catalog: Catalog, written: Sequence[StageText]) -> list[bool]:
    """Which neighbours share a machine: the same type, the same `machine=` if given, and GPUs left on it."""
    shared, used = [], written[0].tp
    for before, after in pairwise(written):
        limit = _MOST_GPUS if after.is_gpu else catalog.instance(after.place).usable_gpus
        same = (before.place, before.is_gpu) == (after.place, after.is_gpu)
        joined = same and before.machine == after.machine and used + after.tp <= limit
        used = used + after.tp if joined else after.tp
        shared.append(joined)
    return shared
