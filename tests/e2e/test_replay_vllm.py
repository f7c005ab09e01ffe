"""A row run again in a real engine, alone, gives what it gave in a batch of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import Workplace, prompts

pytestmark = [pytest.mark.vllm, pytest.mark.soak, pytest.mark.timeout(1500)]

ENGINE = (
    "max_model_len=256",
    "max_num_seqs=8",
    "dtype=float32",
    "enforce_eager=true",
    "kv_cache_memory_bytes=134217728",
)


def test_replay_equals_what_a_batch_gave(tmp_path: Path) -> None:
    """Twelve rows in one vLLM engine, two run again by themselves, one greedy, one sampled: the same tokens."""
    place = Workplace(tmp_path)
    place.write(prompts(12, max_tokens=30))
    settings = [f"--engine={option}" for option in ENGINE]
    run = place.start(
        *("run", "prompts.parquet", f"--model={place.model}", "--output=out", "--max-length-finish-fraction=1"),
        *("--json", *settings),
    ).wait(timeout_s=600)
    assert run.exit_code == 0, run.stderr

    for row in ("row-004", "row-003"):
        again = place.start("rows", "show", run.summary["job"], row, "--replay", "--json").wait(timeout_s=600)

        assert again.exit_code == 0, again.stderr
        (sample,) = again.summary["replay"]["samples"]
        assert sample["token_ids"] == again.summary["samples"][0]["token_ids"]
        assert sample["text"] == place.texts()[row]
        assert again.summary["replay"]["fingerprint"]["engine"].startswith("vllm ")
    assert place.processes() == []
