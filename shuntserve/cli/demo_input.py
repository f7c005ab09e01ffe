"""What the demonstration works on: a tiny random model, and a submission of prompts with some bad ones among them."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from shuntserve.sim.tiny_model import TinyModel, write_tiny_model

GOOD_ROWS = 240
MACHINES = 2
POOL = f"g6.xlarge={MACHINES}"
MODEL = TinyModel(hidden_size=256, layers=6, heads=8, kv_heads=4, intermediate_size=768, mean_output_tokens=120.0)
MAX_MODEL_LEN = 512
ENGINE = {
    "max_model_len": MAX_MODEL_LEN,
    "max_num_seqs": 16,
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 268435456,
}
_WORDS = (
    "river",
    "stone",
    "window",
    "garden",
    "letter",
    "winter",
    "paper",
    "music",
    "bridge",
    "table",
    "forest",
    "light",
)


def prompts(rng: random.Random) -> list[dict[str, Any]]:
    """Prompts of all lengths, half of them greedy and half sampled, and six rows nobody can answer, all numbered."""
    rows: list[dict[str, Any]] = [
        {
            "request_id": f"row-{index:03d}",
            "prompt": "Tell me about the " + " ".join(rng.choices(_WORDS, k=rng.randint(1, 40))),
            "sampling_params": json.dumps({"temperature": 0.0 if index % 2 else 0.8}),
            "topic": rng.choice(_WORDS),
        }
        for index in range(GOOD_ROWS)
    ]
    bad: list[dict[str, Any]] = [
        {"request_id": "bad-empty", "prompt": ""},
        {"request_id": "bad-null", "prompt": None},
        {"request_id": "bad-long", "prompt": "river " * 2 * MAX_MODEL_LEN},
        {"request_id": "bad-name", "prompt": "hello", "sampling_params": '{"temprature": 1}'},
        {"request_id": "bad-value", "prompt": "hello", "sampling_params": '{"top_p": 7}'},
        {"request_id": "row-007", "prompt": "the id of another row"},
    ]
    for row in bad:
        rows.insert(rng.randrange(20, len(rows)), {"sampling_params": None, "topic": "none", **row})
    return [{**row, "number": number} for number, row in enumerate(rows)]


def settings(model: Path) -> dict[str, Any]:
    """The submission's `job.yaml`: also what the undisturbed run is made with."""
    return {
        "model": str(model),
        "fleet": "ec2",
        "pools": [POOL],
        "max_cost_usd": 1,
        "max_tokens": 160,
        "seed": 7,
        "checkpoint_interval_s": 1,
        "lease_s": 5,
        "spending_lease_s": 60,
        "max_reject_fraction": 0.05,
        "max_length_finish_fraction": 1,
        "engine": ENGINE,
    }


def submission(model: Path, rows: list[dict[str, Any]]) -> Mapping[str, bytes]:
    """Its files in the order in which they are uploaded: what says that it is complete comes last."""
    half = len(rows) // 2
    files = {"part-0.parquet": _parquet(rows[:half]), "part-1.parquet": _parquet(rows[half:])}
    return {**files, "job.yaml": yaml.safe_dump(settings(model), sort_keys=False).encode()}


def number(source_file: str, source_row: int, rows: int) -> int:
    """The number of the row that is there in a submission of so many rows."""
    return source_row + (rows // 2 if source_file.endswith("part-1.parquet") else 0)


def write_model(directory: Path) -> Path:
    """The model, with random weights; its directory."""
    return write_tiny_model(directory / "model", MODEL)


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()
