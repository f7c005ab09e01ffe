"""A published or own measurement, and what the estimator says to it."""

from __future__ import annotations

from dataclasses import dataclass

from shuntserve.core.catalog import Catalog
from shuntserve.core.engine_profile import EngineProfile, Precision
from shuntserve.core.estimate import pipeline_estimate
from shuntserve.core.model_shape import ModelShape
from shuntserve.core.roofline import Step, stage_rates
from shuntserve.core.stage_text import StageText, build_pipeline
from shuntserve.core.workload import Workload

REQUESTS = "requests/s"
LAYER = "s/layer"
KERNEL = "s/kernel"


@dataclass(frozen=True)
class AllReduce:
    """One all-reduce of `message_bytes` over the stage's GPUs."""

    message_bytes: float


@dataclass(frozen=True)
class Matmul:
    """One matrix multiplication of `m` rows by an `n` × `k` weight on one GPU."""

    m: int
    n: int
    k: int


@dataclass(frozen=True)
class Measurement:
    """`value` of `quantity` with `engine` serving `model` on `stages` (equal layers unless they say).

    `source` groups measurements of one origin; `gpu` is the group for leaving GPUs out. A `batch` is a fixed number of
    equal requests; without it requests always wait. For `LAYER`, `step` is what one layer was asked to do; for
    `KERNEL`, `kernel` is what ran alone.
    """

    source: str
    gpu: str
    engine: str
    model: str
    stages: tuple[StageText, ...]
    precision: Precision
    value: float
    quantity: str = REQUESTS
    workload: Workload | None = None
    batch: int | None = None
    step: Step | None = None
    kernel: AllReduce | Matmul | None = None
    label: str = ""


def predict(catalog: Catalog, measurement: Measurement) -> float:
    """The estimate in the measurement's own quantity. Raises what the estimator raises."""
    model = catalog.model(measurement.model)
    engine = catalog.engine(measurement.engine)
    if measurement.step is not None or measurement.kernel is not None:
        return _alone(catalog, measurement, model, engine)
    if measurement.workload is None:
        raise ValueError("a measurement of requests/s needs a workload")
    pipeline = build_pipeline(catalog, even_layers(measurement.stages, model.num_layers), model.num_layers)
    engine = engine.tuned_for(spec.gpu for spec in pipeline.stages)
    return pipeline_estimate(
        model,
        pipeline.stages,
        measurement.workload,
        engine,
        measurement.precision,
        batch=measurement.batch,
        same_machine=pipeline.same_machine,
    ).throughput_rps


def _alone(catalog: Catalog, measurement: Measurement, model: ModelShape, engine: EngineProfile) -> float:
    """Seconds of one layer or one kernel."""
    stage = measurement.stages[0]
    instance = None if stage.is_gpu else catalog.instance(stage.place)
    gpu = instance.gpu if instance else catalog.gpu(stage.place)
    link = instance.link if instance else catalog.link_of(gpu)
    match measurement.kernel:
        case AllReduce(message_bytes):
            return link.all_reduce_s(message_bytes, stage.tp)
        case Matmul(m, n, k):
            return stage_rates(model, gpu, link, 1, engine, measurement.precision).gemm_s(m, n, k)
    rates = stage_rates(model, gpu, link, stage.tp, engine, measurement.precision)
    return rates.layer_s(model.layers[-1], measurement.step or Step())


def even_layers(stages: tuple[StageText, ...], layers: int) -> list[StageText]:
    """Layers shared out evenly where none are given."""
    if any(stage.layers is not None for stage in stages):
        return list(stages)
    share, rest = divmod(layers, len(stages))
    return [
        StageText(stage.place, stage.is_gpu, stage.tp, share + (1 if i < rest else 0), stage.machine)
        for i, stage in enumerate(stages)
    ]
