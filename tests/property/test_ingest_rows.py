"""Whatever the input: every row is exactly once in a chunk or among the rejects."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shuntserve.core.chunking import ChunkPolicy
from tests.support.ingesting import ingest_files, ingest_lines
from tests.support.model_dirs import build_model_dir


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a context of 64 tokens, so that long prompts are easily made."""
    return build_model_dir(tmp_path_factory.mktemp("models") / "small", max_position_embeddings=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written over by every example."""
    return tmp_path_factory.mktemp("input")


CHAT = '{"custom_id": "c", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "x"}]}}'

texts = st.none() | st.text(max_size=30) | st.sampled_from(["the fox", "", "the fox " * 30])
rows = st.fixed_dictionaries(
    {
        "request_id": st.none() | st.sampled_from(["", "a", "b", "c", "d"]) | st.uuids().map(str),
        "prompt": texts,
        "messages": st.none() | st.sampled_from(["[]", "{", '[{"role": "user", "content": "fox"}]', "[1]"]),
        "prompt_token_ids": st.none() | st.lists(st.integers(-2, 600) | st.none(), max_size=4),
        "sampling_params": st.none()
        | st.sampled_from(["{}", '{"n": 2}', '{"x": 1}', "[", '{"seed": 4}', '{"top_p": 2}']),
        "max_tokens": st.none() | st.sampled_from([1.0, 0.0, float("nan"), 2.5]),
        "label": st.none() | st.integers(-(2**31), 2**31),
    }
)
TYPES = {
    "request_id": pa.string(),
    "prompt": pa.string(),
    "messages": pa.string(),
    "prompt_token_ids": pa.list_(pa.int32()),
    "sampling_params": pa.string(),
    "max_tokens": pa.float64(),
    "label": pa.int64(),
}
policies = st.builds(
    ChunkPolicy, st.integers(1, 3), st.integers(1, 3), st.just(1), st.integers(1, 6), st.integers(1, 99)
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    files=st.lists(st.lists(rows, max_size=12), min_size=1, max_size=3).filter(any),
    columns=st.sets(st.sampled_from(sorted(set(TYPES) - {"prompt"}))),
    policy=policies,
    batch_rows=st.integers(1, 5),
    window_rows=st.integers(1, 9),
)
def test_every_parquet_row_is_in_exactly_one_place(
    model: Path,
    folder: Path,
    files: list[list[dict[str, Any]]],
    columns: set[str],
    policy: ChunkPolicy,
    batch_rows: int,
    window_rows: int,
) -> None:
    """Chunks and rejects together hold each (file, row) once; ids in chunks are unique; duplicates are exactly the
    later ones."""
    for old in folder.glob("*"):
        old.unlink()
    names = ["prompt", *sorted(columns)]
    for index, file in enumerate(files):
        table = pa.table({name: pa.array([row[name] for row in file], TYPES[name]) for name in names})
        pq.write_table(table, folder / f"f{index}.parquet")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shuntserve.job.reading.BATCH_ROWS", batch_rows)
        patch.setattr("shuntserve.job.chunks.WINDOW_ROWS", window_rows)
        done = ingest_files(folder, model, policy=policy)

    every = [(f"f{index}.parquet", row) for index, file in enumerate(files) for row in range(len(file))]
    placed = [(row["source_file"], row["source_row"]) for row in [*done.rows, *done.rejects]]
    assert Counter(placed) == Counter(every)
    ids = [row["request_id"] for row in done.rows]
    assert len(set(ids)) == len(ids)
    assert done.manifest.rows_in == len(every)
    assert sum(ref.rows for ref, _ in done.chunks) == len(done.rows) == done.manifest.rows_valid
    for ref, chunk_rows in done.chunks:
        assert 1 <= ref.rows <= policy.max_rows
        assert ref.prompt_tokens == sum(len(row["prompt_token_ids"]) for row in chunk_rows)
    for row in done.rows:
        assert 0 < len(row["prompt_token_ids"]) < 64
        if "label" in columns:
            source = files[int(row["source_file"][1])][row["source_row"]]
            assert row["carried"]["label"] == source["label"]
    if "request_id" in columns:
        seen: set[str] = set()
        expected = set()
        for index, file in enumerate(files):
            for number, row in enumerate(file):
                if row["request_id"] and row["request_id"] in seen:
                    expected.add((f"f{index}.parquet", number))
                seen.add(row["request_id"] or "")
        duplicates = {(r["source_file"], r["source_row"]) for r in done.rejects if r["code"] == "duplicate_id"}
        assert duplicates == expected


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    lines=st.lists(
        st.sampled_from(
            [
                "",
                "{",
                "null",
                '{"custom_id": "a", "body": {}}',
                '{"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "fox"}}',
                '{"custom_id": "b", "url": "/v1/completions", "body": {"prompt": "dog", "nn": 1}}',
                CHAT,
            ]
        )
        | st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20),
        max_size=15,
    )
)
def test_every_line_is_in_exactly_one_place(model: Path, folder: Path, lines: list[str]) -> None:
    """Lines that are not blank, whatever they hold, are rows or rejects under their own line number."""
    good = '{"custom_id": "z", "url": "/v1/completions", "body": {"prompt": "fox"}}'
    lines = [good, *lines]

    done = ingest_lines(folder, model, lines)

    wanted = [number for number, line in enumerate(lines) if line.strip(" \t\n\r\x0b\x0c")]
    assert sorted(row["source_row"] for row in [*done.rows, *done.rejects]) == wanted
    assert len({row["request_id"] for row in done.rows}) == len(done.rows)
