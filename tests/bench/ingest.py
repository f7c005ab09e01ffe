"""How fast ingest is, how much memory it takes, and what its requests to S3 cost.

    python tests/bench/ingest.py --rows 2000000 --json

An eighth, a quarter, a half and all of the rows are submitted and ingested into a local bucket, each by a fresh
process; then all rows are tokenized plainly: `encode_batch_fast` of the same tokenizer in one loop, ids taken out,
reading excluded. The memory is that of the ingest's whole process tree, sampled ten times a second. On a machine that
is not idle, compare the CPU times. Prompts are made from a seed: words of a synthetic language with Zipf frequencies,
50 to 400 a prompt, 150 on average.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from shuntserve.store.port import Bucket, ObjectInfo

FILES = 8
ROWS_PER_GROUP = 50_000
VOCABULARY_WORDS = 30_000
BPE_TOKENS = 8_000
SEED = 20_260_131

USD_PER_PUT = 0.005 / 1000  # S3 Standard, us-east-1: PUT, COPY, POST and LIST
USD_PER_GET = 0.0004 / 1000  # GET, SELECT and all others
ASSUMED = {
    "output_tokens_per_row": 200,
    "output_tokens_per_s_per_worker": 5_000,
    "checkpoint_interval_s": 10,
    "open_chunks_per_worker": 2,
    "puts_per_chunk": 3,  # claim, result, and a release for one chunk in two, rounded up
    "gets_per_chunk": 4,  # the chunk, its claims, its result's absence, and its result when the job is finalized
}


class CountingBucket:
    """Counts the requests another bucket is asked for, by verb."""

    def __init__(self, inner: Bucket) -> None:
        self._inner = inner
        self.requests: Counter[str] = Counter()
        self.bytes_written = 0

    @property
    def url(self) -> str:
        return self._inner.url

    def get(self, key: str) -> bytes:
        self.requests["get"] += 1
        return self._inner.get(key)

    def get_range(self, key: str, start: int, end: int) -> bytes:
        self.requests["get"] += 1
        return self._inner.get_range(key, start, end)

    def head(self, key: str) -> ObjectInfo | None:
        self.requests["get"] += 1
        return self._inner.head(key)

    def put(self, key: str, body: bytes) -> None:
        self.requests["put"] += 1
        self.bytes_written += len(body)
        self._inner.put(key, body)

    def create(self, key: str, body: bytes) -> bool:
        self.requests["put"] += 1
        self.bytes_written += len(body)
        return self._inner.create(key, body)

    def list_dirs(self, prefix: str) -> Sequence[str]:
        self.requests["put"] += 1
        return self._inner.list_dirs(prefix)

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        self.requests["put"] += 1  # a LIST costs what a PUT costs
        return self._inner.list(prefix, start_after=start_after)

    def delete(self, key: str) -> None:
        self._inner.delete(key)


def make_words() -> np.ndarray[Any, Any]:
    """Distinct words of one to four syllables."""
    rng = random.Random(SEED)
    syllables = [
        c + v + e
        for c in ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "st", "tr", "pl"]
        for v in ["a", "e", "i", "o", "u"]
        for e in ("", "n", "r", "l")
    ]
    words: dict[str, None] = {}
    while len(words) < VOCABULARY_WORDS:
        words["".join(rng.choices(syllables, k=rng.choices((1, 2, 3, 4), (2, 5, 3, 1))[0]))] = None
    return np.array(list(words), dtype=object)


def make_prompts(words: np.ndarray[Any, Any], count: int, rng: np.random.Generator) -> list[str]:
    """Prompts of 50 to 400 words with Zipf frequencies."""
    weights = 1.0 / np.arange(1, len(words) + 1) ** 1.05
    lengths = np.clip(rng.lognormal(np.log(142), 0.35, count), 50, 400).astype(int)
    drawn = words[rng.choice(len(words), size=int(lengths.sum()), p=weights / weights.sum())]
    ends = np.cumsum(lengths)
    return [" ".join(drawn[end - length : end]) + "." for end, length in zip(ends, lengths, strict=True)]


def make_data(folder: Path, rows: int) -> None:
    """Write the model directory and the input files, a row group at a time."""
    from tests.support.model_dirs import build_model_dir

    words, rng = make_words(), np.random.default_rng(SEED)
    corpus = make_prompts(words, 4_000, rng)
    build_model_dir(folder / "model", corpus=corpus, vocab_size=BPE_TOKENS, max_position_embeddings=4096)
    (folder / "input").mkdir()
    schema = pa.schema([("request_id", pa.string()), ("prompt", pa.string()), ("label", pa.int32())])
    done = 0
    for file in range(FILES):
        in_file = (rows - done) // (FILES - file)
        with pq.ParquetWriter(folder / "input" / f"part-{file:05d}.parquet", schema) as writer:
            for begin in range(0, in_file, ROWS_PER_GROUP):
                count = min(ROWS_PER_GROUP, in_file - begin)
                numbers = range(done + begin, done + begin + count)
                prompts = make_prompts(words, count, rng)
                ids = [f"request-{number * 7919 % 10_000_019:08d}-{number}" for number in numbers]
                labels = rng.integers(0, 9, count)
                writer.write_table(pa.table([ids, prompts, pa.array(labels, pa.int32())], schema=schema))
        done += in_file


def files_for(folder: Path, files: int) -> tuple[str, ...]:
    return tuple(str(file) for file in sorted((folder / "input").glob("*.parquet"))[:files])


def measure_plain(folder: Path, files: int, method: str) -> dict[str, Any]:
    """Plain tokenization: one loop, batches of 1,000 texts, ids taken out; reading is not counted."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    encode = getattr(tokenizer, method)
    seconds = cpu_s = 0.0
    rows = tokens = 0
    for file in files_for(folder, files):
        for batch in pq.ParquetFile(file).iter_batches(1000, columns=["prompt"]):
            texts = batch.column(0).to_pylist()
            began, cpu_began = time.perf_counter(), time.process_time()
            ids = [encoding.ids for encoding in encode(texts)]
            seconds += time.perf_counter() - began
            cpu_s += time.process_time() - cpu_began
            rows += len(ids)
            tokens += sum(map(len, ids))
    return {"rows": rows, "tokens": tokens, "rows_per_s": rows / seconds, "cpu_us_per_row": cpu_s / rows * 1e6}


def measure_ingest(folder: Path, files: int) -> dict[str, Any]:
    """Submission and ingest of the first files into a fresh bucket."""
    from shuntserve.core.specs import JobSpec
    from shuntserve.job.ingest import ingest
    from shuntserve.job.submission import submit_spec
    from shuntserve.store.open import open_bucket

    where = folder / "bucket"
    bucket = CountingBucket(open_bucket(where))
    spec = JobSpec(input=files_for(folder, files), model=str(folder / "model"), max_tokens=128)
    began = time.perf_counter()
    job = submit_spec(bucket, spec)
    submitted, cpu_began = time.perf_counter(), time.process_time()
    manifest = ingest(bucket, job)
    seconds, cpu_s = time.perf_counter() - submitted, time.process_time() - cpu_began
    shutil.rmtree(where)
    return {
        "rows": manifest.rows_in,
        "rows_valid": manifest.rows_valid,
        "tokens": manifest.prompt_tokens,
        "chunks": manifest.chunks,
        "submit_s": submitted - began,
        "seconds": seconds,
        "rows_per_s": manifest.rows_in / seconds,
        "cpu_us_per_row": cpu_s / manifest.rows_in * 1e6,
        "requests": dict(bucket.requests),
        "bytes_written": bucket.bytes_written,
        "bytes_read": sum(file.size_bytes for file in job.inputs),
    }


def run_child(folder: Path, what: str, *, rows: int = 0, files: int = 0) -> tuple[dict[str, Any], int]:
    """Run one measurement in a process of its own; its answer and the peak RSS of its process tree in bytes."""
    command = [sys.executable, __file__, "--folder", str(folder), "--measure", what]
    command += ["--rows", str(rows), "--files", str(files)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    peak, tree = 0, psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        try:
            for member in (tree, *tree.children(recursive=True)):
                total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        peak = max(peak, total)
        time.sleep(0.1)
    assert process.stdout is not None
    output = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{what} failed with {process.returncode}")
    return json.loads(output), peak


def request_cost(ingested: dict[str, Any]) -> dict[str, Any]:
    """Requests and dollars for a million rows: counted for ingest, estimated for the rest of the job from `ASSUMED`."""
    scale = 1_000_000 / ingested["rows"]
    chunks = ingested["chunks"] * scale
    worker_s = 1_000_000 * ASSUMED["output_tokens_per_row"] / ASSUMED["output_tokens_per_s_per_worker"]
    checkpoints = worker_s / ASSUMED["checkpoint_interval_s"] * ASSUMED["open_chunks_per_worker"]
    counted = {
        "put": ingested["requests"].get("put", 0) * scale,
        # Input is read three times (hashes, ids, rows) in blocks of 8 MiB when it lies in S3.
        "get": ingested["requests"].get("get", 0) * scale + 3 * ingested["bytes_read"] * scale / (8 << 20),
    }
    estimated = {
        "put": chunks * ASSUMED["puts_per_chunk"] + checkpoints,
        "get": chunks * ASSUMED["gets_per_chunk"],
    }
    usd = (counted["put"] + estimated["put"]) * USD_PER_PUT + (counted["get"] + estimated["get"]) * USD_PER_GET
    return {
        "ingest_requests_counted": {verb: round(count) for verb, count in counted.items()},
        "run_requests_estimated": {verb: round(count) for verb, count in estimated.items()},
        "assumptions": ASSUMED,
        "usd_per_million_rows": round(usd, 4),
        "usd_per_ten_million_rows": round(10 * usd, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--eighths", default="1,2,4,8", help="which eighths of the rows are measured")
    parser.add_argument("--method", default="encode_batch_fast", choices=("encode_batch_fast", "encode_batch"))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--folder", type=Path, help="keep the data here, and use it again")
    parser.add_argument(
        "--measure", choices=("data", "encode_batch_fast", "encode_batch", "ingest"), help=argparse.SUPPRESS
    )
    parser.add_argument("--files", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    match options.measure:
        case "data":
            make_data(options.folder, options.rows)
            print("{}")
            return
        case "encode_batch_fast" | "encode_batch":
            print(json.dumps(measure_plain(options.folder, options.files, options.measure)))
            return
        case "ingest":
            print(json.dumps(measure_ingest(options.folder, options.files)))
            return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="shuntserve-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        report = benchmark(folder, options.rows, [int(files) for files in options.eighths.split(",")], options.method)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        show(report)


def benchmark(folder: Path, rows: int, eighths: list[int], method: str) -> dict[str, Any]:
    if not (folder / "input").exists():
        run_child(folder, "data", rows=rows)
    scales = []
    last: dict[str, Any] = {}
    for files in sorted(eighths):
        last, peak = run_child(folder, "ingest", files=files)
        scales.append(
            {
                "rows": last["rows"],
                "peak_rss_mib": round(peak / (1 << 20)),
                "rows_per_s": round(last["rows_per_s"]),
                "cpu_us_per_row": round(last["cpu_us_per_row"], 1),
                "submit_s": round(last["submit_s"], 1),
                "ingest_s": round(last["seconds"], 1),
            }
        )
        print(json.dumps(scales[-1]), file=sys.stderr, flush=True)
    plain, _ = run_child(folder, method, files=max(eighths))
    return {
        "scales": scales,
        "rows": scales[-1]["rows"],
        "plain_method": method,
        "plain_rows_per_s": round(plain["rows_per_s"]),
        "plain_cpu_us_per_row": round(plain["cpu_us_per_row"], 1),
        "ratio": round(last["rows_per_s"] / plain["rows_per_s"], 3),
        "ratio_of_cpu_time": round(plain["cpu_us_per_row"] / last["cpu_us_per_row"], 3),
        "peak_rss_mib": max(scale["peak_rss_mib"] for scale in scales),
        "rss_growth_first_to_last_mib": scales[-1]["peak_rss_mib"] - scales[0]["peak_rss_mib"],
        "tokens_per_row": round(last["tokens"] / last["rows_valid"], 1),
        "chunk_bytes_per_row": round(last["bytes_written"] / last["rows_valid"], 1),
        "cost": request_cost(last),
        "within": {
            "peak_rss_at_most_1_gib": max(scale["peak_rss_mib"] for scale in scales) <= 1024,
            "ratio_at_least_0.8": last["rows_per_s"] / plain["rows_per_s"] >= 0.8,
        },
    }


def show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="ingest")
    for name in report["scales"][0]:
        table.add_column(name, justify="right")
    for scale in report["scales"]:
        table.add_row(*(f"{value:,}" for value in scale.values()))
    console = Console()
    console.print(table)
    console.print_json(data={name: value for name, value in report.items() if name != "scales"})


if __name__ == "__main__":
    main()
