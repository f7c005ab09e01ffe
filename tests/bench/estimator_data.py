"""Reads a data pack's published measurements as `Measurement`s; what the catalogue does not know is listed."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shuntserve.core.catalog import Catalog
from shuntserve.core.engine_profile import Precision
from shuntserve.core.measurement import KERNEL, LAYER, AllReduce, Matmul, Measurement
from shuntserve.core.roofline import Step
from shuntserve.core.stage_text import StageText
from shuntserve.core.workload import Workload
from shuntserve.errors import NotFound

SWEEP = {"vllm": "vLLM sweeps", "trtllm": "TRT-LLM sweeps"}
MAX_LOAD = "TRT-LLM tables, max load"
STATIC = "TRT-LLM tables, static batch"
LAYERS = "layer profiles"
OTHER = "other vLLM rows (grade B)"
KERNELS = "kernels alone"
TGI = "TGI 1.0.3 rows (grade B)"

# The layer profiles do not state their lengths. They were taken for the Azure conversation trace, whose means these are
# (workload_stats.csv, azure2023_conv[in<=2048]): a resident sequence holds 763 + 232/2 tokens, a prompt token attends
# to E[n^2] / 2 E[n] = 511 others.
PROFILE_CONTEXT = 879.0
PROFILE_ATTENDED = 511.0


@dataclass(frozen=True)
class Pack:
    """What was read, and what was left out with the reason."""

    measurements: tuple[Measurement, ...]
    skipped: tuple[str, ...]


def rows(path: Path) -> list[dict[str, str]]:
    """A CSV's rows; none when the pack lacks the file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def read_pack(data: Path, catalog: Catalog) -> Pack:
    """All measurements of the pack that state their load."""
    found: list[Measurement] = []
    skipped: list[str] = []
    for reader in (_sweeps, _benchmarks, _layers, _kernels, _tgi):
        for item in reader(data):
            if isinstance(item, str):
                skipped.append(item)
                continue
            try:
                catalog.model(item.model)
                for stage in item.stages:
                    (catalog.gpu if stage.is_gpu else catalog.instance)(stage.place)
            except NotFound as error:
                skipped.append(f"{item.label}: {error}")
                continue
            found.append(item)
    return Pack(tuple(found), tuple(skipped))


def _sweeps(data: Path) -> Iterator[Measurement | str]:
    for row in rows(data / "paper" / "estimator_accuracy.csv"):
        lengths = re.search(r"(\d+)\s*in\s*/\s*(\d+)\s*out", row["workload"])
        label = f"{row['framework']} {row['model']} {row['instance']} TP{row['tp']}xPP{row['pp']} batch {row['batch']}"
        if not row["measured_rps"] or row["framework"] not in SWEEP or lengths is None:
            yield f"{label}: no measured rate, or an engine without a profile"
            continue
        stage = StageText(row["instance"], False, int(row["tp"]), None)
        yield Measurement(
            source=SWEEP[row["framework"]],
            gpu=row["gpu"],
            engine=row["framework"],
            model=row["model"],
            stages=(stage,) * int(row["pp"]),
            precision=Precision(),
            value=float(row["measured_rps"]),
            workload=Workload.fixed(int(lengths[1]), int(lengths[2])),
            batch=int(row["batch"]),
            label=label,
        )


def _benchmarks(data: Path) -> Iterator[Measurement | str]:
    for row in rows(data / "benchmarks.csv"):
        if row["engine"] == "TGI":
            continue
        engine = (
            "trtllm" if row["engine"].startswith("TensorRT") else "vllm" if row["engine"].startswith("vLLM") else ""
        )
        grade, unit = row["trust"][:1], row["unit"]
        label = (
            f"{row['engine']} {row['version']} {row['model']} {row['dtype']} {row['count']}x{row['gpu']}"
            f" TP{row['tp']}xPP{row['pp']} {row['isl']}:{row['osl']}"
            + (f" batch {row['batch']}" if row["batch"] else "")
        )
        known = engine and unit in ("tok/s total", "tok/s/GPU") and row["isl"] and row["tp"]
        loaded = row["batch"] or "max load" in row["metric"]
        if not known or not loaded or (grade != "A" and not (grade == "B" and engine == "vllm")):
            yield f"{label}: grade {grade}, {row['metric']}: load or engine not usable"
            continue
        workload = Workload.fixed(int(row["isl"]), int(row["osl"]))
        per_gpu = int(float(row["count"])) if unit == "tok/s/GPU" else 1
        stage = StageText(row["instance"] or row["gpu"], not row["instance"], int(float(row["tp"])), None)
        yield Measurement(
            source=OTHER if grade == "B" else STATIC if row["batch"] else MAX_LOAD,
            gpu=row["gpu"],
            engine=engine,
            model=row["model"],
            stages=(stage,) * int(float(row["pp"])),
            precision=_precision(row["dtype"]),
            value=float(row["value"]) * per_gpu / workload.mean_output,
            workload=workload,
            batch=int(float(row["batch"])) if row["batch"] else None,
            label=label,
        )


def _precision(dtype: str) -> Precision:
    """The tables' FP8 and FP4 rows keep the KV cache in FP8 (stated in the trust column)."""
    weights = "int4" if "int4" in dtype else dtype if dtype in ("fp16", "fp8", "fp4", "int8") else "bf16"
    return Precision(weights, "fp8" if weights in ("fp8", "fp4") else "bf16")


def _layers(data: Path) -> Iterator[Measurement | str]:
    for row in rows(data / "layer_profiles_helix.csv"):
        size, milliseconds = float(row["batch_tokens_or_seqs"]), float(row["ms_per_layer"])
        if size <= 0 or milliseconds <= 0:
            continue
        gpu, _, count = row["gpu_config"].partition("x")
        if row["phase"] == "decode":
            step = Step.decode(size, size * PROFILE_CONTEXT)
        else:
            step = Step(prefill_tokens=size, prefill_context=PROFILE_ATTENDED)
        yield Measurement(
            source=LAYERS,
            gpu=gpu.upper(),
            engine="vllm",
            model=row["model"],
            stages=(StageText(gpu, True, int(count or 1), None),),
            precision=Precision("fp16", "fp16"),
            value=milliseconds / 1e3,
            quantity=LAYER,
            step=step,
            label=f"{row['model']} {row['gpu_config']} {row['phase']} {size:g}",
        )


# An all-reduce timed from Python has a floor of about 0.13 ms of launch and synchronisation, which an engine that
# replays a CUDA graph does not pay; below these sizes the floor is all that was measured.
_ALL_REDUCE_FROM_BYTES = {"L4": 262144, "L40S": 262144, "A100-SXM4-40": 1048576}
_SIZE = {"B": 1, "KiB": 1024, "MiB": 1048576, "MB": 1e6}


def _kernels(data: Path) -> Iterator[Measurement | str]:
    for row in rows(data / "hw_microbench.csv"):
        label = f"{row['gpu']} {row['test']} {row['param']}"
        gpu, value = row["gpu"], float(row["value"])
        kernel: AllReduce | Matmul
        if row["test"].startswith("allreduce"):
            amount = re.fullmatch(r"([\d.]+)\s*([A-Za-z]+)", row["param"])
            size = float(amount[1]) * _SIZE[amount[2]] if amount else 0.0
            if size < _ALL_REDUCE_FROM_BYTES.get(gpu, math.inf):
                continue
            kernel, seconds, place, tp = AllReduce(size), value / 1e3, row["instance"], 8
        elif row["test"].startswith("gemm"):
            dims = [int(x) for x in re.findall(r"\d+", row["param"])]
            m, n, k = (dims[0], 28672, 8192) if len(dims) == 1 else (dims[0], dims[2], dims[1])
            kernel, seconds, place, tp = Matmul(m, n, k), 2 * m * n * k / (value * 1e12), gpu, 1
        else:
            continue
        stage = StageText(place, kernel.__class__ is Matmul, tp, None)
        yield Measurement(
            KERNELS, gpu, "vllm", "Llama-3.1-70B", (stage,), Precision(), seconds, KERNEL, kernel=kernel, label=label
        )


def _tgi(data: Path) -> Iterator[Measurement | str]:
    """TGI at low load, 16-bit weights: the only published serving rows on g5.12xlarge."""
    for row in rows(data / "benchmarks.csv"):
        if row["engine"] != "TGI" or row["unit"] != "tok/s total" or row["dtype"] != "fp16":
            continue
        workload = Workload.fixed(int(row["isl"]), int(row["osl"]))
        place = row["instance"].removeprefix("ml.")
        yield Measurement(
            source=TGI,
            gpu=row["gpu"],
            engine="tgi",
            model=row["model"],
            stages=(StageText(place, False, int(float(row["tp"])), None),),
            precision=Precision(),
            value=float(row["value"]) / workload.mean_output,
            workload=workload,
            batch=int(float(row["concurrency"])),
            label=f"TGI {row['model']} {place} concurrency {row['concurrency']}",
        )
