"""What a job on a fleet of EC2 types would take and cost at most, before a machine is launched.

One pipeline per group of GPUs on each machine, as the agents will run them; throughput from the estimator, in steady
state and with the interruptions the catalogue expects left out. How long answers will be nobody knows before: every
row is taken to use up its max_tokens, as read from the first chunks, so that time and cost are upper ends.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from shuntserve.core.catalog import Catalog
from shuntserve.core.estimate import pipeline_estimate
from shuntserve.core.hf_config import shape_from_hf_config
from shuntserve.core.manifest import Manifest
from shuntserve.core.offers import Want
from shuntserve.core.resolved import ResolvedJob
from shuntserve.core.stage_text import build_pipeline, parse_stage
from shuntserve.core.workload import Workload
from shuntserve.errors import InvalidInput
from shuntserve.fleet_plan import precision_for, read_pools
from shuntserve.job.manifests import load_chunk, load_page
from shuntserve.job.model_files import find_model
from shuntserve.store.port import Bucket

_CHUNKS_READ = 4


@dataclass(frozen=True, slots=True)
class Prediction:
    """Upper ends for the whole job, or in `problem` why there are none."""

    rows_per_s: float | None = None
    hours_at_most: float | None = None
    usd_at_most: float | None = None
    prompt_tokens_mean: float | None = None
    max_tokens_mean: float | None = None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def predict(
    bucket: Bucket, job: ResolvedJob, manifest: Manifest, wants: Sequence[Want], catalog: Catalog
) -> Prediction | None:
    """The prediction; None for a local fleet, of whose machines nobody knows anything."""
    if job.operations.fleet == "local" or not manifest.rows_valid:
        return None
    try:
        return _predict(bucket, job, manifest, wants, catalog)
    except InvalidInput as error:
        return Prediction(problem=str(error))


def _predict(
    bucket: Bucket, job: ResolvedJob, manifest: Manifest, wants: Sequence[Want], catalog: Catalog
) -> Prediction:
    files = find_model("model", job.model, job.revision)
    config = json.loads((files.directory / "config.json").read_text(encoding="utf-8"))
    shape = shape_from_hf_config(config, files.directory.name)
    prompt_mean = manifest.prompt_tokens / manifest.rows_valid
    output_mean = _max_tokens_mean(bucket, job, manifest)
    load = Workload.fixed(max(1.0, prompt_mean), max(1.0, output_mean))
    pools = read_pools(catalog, [f"{want.offers[0].instance_type}={want.count}@1" for want in wants])
    tp = int(job.engine.get("tensor_parallel_size", 1))
    rows_per_s = usd_per_h = 0.0
    for want in wants:
        instance = catalog.instance(want.offers[0].instance_type)
        stage = parse_stage(f"{instance.name}:tp={tp}")
        spec = build_pipeline(catalog, [stage], shape.num_layers)
        engine = catalog.engine("vllm").tuned_for(one.gpu for one in spec.stages)
        dtype, kv_dtype = (str(job.engine.get(name, "auto")) for name in ("quantization", "kv_cache_dtype"))
        precision = precision_for(catalog, pools, shape, engine, dtype, kv_dtype)
        found = pipeline_estimate(shape, spec.stages, load, engine, precision)
        rows_per_s += want.count * (instance.usable_gpus // tp) * found.throughput_rps
        usd_per_h += want.count * max(offer.usd_per_h or 0.0 for offer in want.offers)
    if rows_per_s <= 0:
        raise InvalidInput("the fleet", "would generate nothing", "name machines with enough memory")
    hours = manifest.rows_valid / rows_per_s / 3600
    return Prediction(rows_per_s, hours, hours * usd_per_h, prompt_mean, output_mean)


def _max_tokens_mean(bucket: Bucket, job: ResolvedJob, manifest: Manifest) -> float:
    """The mean of what rows may generate, over the first chunks; samples of one row count each."""
    total = rows = 0
    refs = (ref for page in manifest.pages for ref in load_page(bucket, page))
    for ref in islice(refs, _CHUNKS_READ):
        table = load_chunk(bucket, ref).select(["params", "n", "prompt_token_ids"])
        for row in table.to_pylist():
            room = job.max_model_len - len(row["prompt_token_ids"])
            total += row["n"] * min(room, int(json.loads(row["params"]).get("max_tokens") or room))
            rows += 1
    return total / rows if rows else 1.0
