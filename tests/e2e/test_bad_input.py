"""Everything a user can get wrong ends with exit code 2 and one line: the thing, the cause, what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shuntserve.sim.tiny_model import TinyModel, write_tiny_model

pytestmark = pytest.mark.timeout(120)

_DRIVER = """
import contextlib, io, json, sys
from shuntserve.cli.app import main

for line in sys.stdin:
    sys.argv = ["shuntserve", *json.loads(line)]
    err, code = io.StringIO(), 0
    with contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, err.getvalue()]), flush=True)
"""
"""Runs many commands in one process, since starting each takes seconds and nothing here gets as far as a worker."""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with good and bad things in it."""
    here = tmp_path_factory.mktemp("input")
    write_tiny_model(here / "model", TinyModel())
    shutil.copytree(here / "model", here / "no-weights")
    (here / "no-weights/model.safetensors").unlink()
    (here / "no-config").mkdir()
    good = {"prompt": ["hello", "there"]}
    pq.write_table(pa.table(good), here / "good.parquet")
    pq.write_table(pa.table({**good, "messages": ["x", "y"]}).slice(0, 0), here / "no-rows.parquet")
    pq.write_table(pa.table({"text": ["a"]}), here / "other-columns.parquet")
    pq.write_table(pa.table({"prompt": [1, 2]}), here / "numbers.parquet")
    (here / "empty.parquet").write_bytes(b"")
    (here / "not.parquet").write_bytes(b"these are no columns")
    (here / "not.jsonl").write_text('{"a": 1}\n')
    (here / "bad.yaml").write_text("model: [")
    (here / "unknown.yaml").write_text("modle: x\n")
    (here / "full").mkdir()
    (here / "full/notes.txt").write_text("mine")
    (here / "file").write_text("")
    return here


@pytest.fixture(scope="module")
def answers(here: Path) -> dict[tuple[str, ...], tuple[int, str]]:
    """Exit code and standard error of every command of this module."""
    environment = {
        **os.environ,
        "XDG_DATA_HOME": str(here / "data"),
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
        "COLUMNS": "400",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER],
        input="".join(json.dumps(command) + "\n" for command, _ in CASES),
        capture_output=True,
        text=True,
        cwd=here,
        env=environment,
        check=True,
    )
    found: dict[tuple[str, ...], Any] = {}
    for (command, _), line in zip(CASES, done.stdout.splitlines(), strict=True):
        found[tuple(command)] = json.loads(line)
    return found


def run(*arguments: str, model: str = "model", output: str = "out") -> list[str]:
    return ["run", *arguments, f"--model={model}", f"--output={output}", "--store=store"]


CASES: Sequence[tuple[list[str], Sequence[str]]] = [
    (run("missing.parquet"), ["missing.parquet", "does not exist"]),
    (run("empty.parquet"), ["empty.parquet"]),
    (run("not.parquet"), ["not.parquet"]),
    (run("not.jsonl"), ["not.jsonl"]),
    (run("no-rows.parquet"), ["no-rows.parquet"]),
    (run("other-columns.parquet"), ["prompt", "--column|columns"]),
    (run("numbers.parquet"), ["prompt"]),
    (run(), ["input"]),
    (["run", "good.parquet", "--store=store"], ["model"]),
    (run("good.parquet", model="nowhere/at/all"), ["nowhere/at/all", "no such directory"]),
    (run("good.parquet", model="no-config"), ["no-config", "config.json"]),
    (run("good.parquet", model="no-weights"), ["no-weights", "weights"]),
    (run("good.parquet", model="nobody/such-model"), ["nobody/such-model"]),
    (run("good.parquet", "--column=promt=text"), ["promt", "prompt"]),
    (run("good.parquet", "--column=prompt=question"), ["question"]),
    (run("good.parquet", "--param=temprature=1"), ["temprature", "temperature"]),
    (run("good.parquet", "--temperature=-1"), ["temperature"]),
    (run("good.parquet", "--engine=max_num_seq=4"), ["max_num_seq", "max_num_seqs"]),
    (run("good.parquet", "--engine=dtype"), ["--engine dtype", "NAME=VALUE"]),
    (run("good.parquet", "--response-format={"), ["--response-format", "JSON"]),
    (run("good.parquet", "--prompt-template=Say {nothing}"), ["nothing"]),
    (run("good.parquet", "--deadline=soon"), ["soon", "90m"]),
    (run("good.parquet", "--max-reject-fraction=2"), ["max_reject_fraction"]),
    (run("good.parquet", "--workers=0"), ["--workers"]),
    (run("good.parquet", "--spec=none.yaml"), ["none.yaml", "no such file"]),
    (run("good.parquet", "--spec=bad.yaml"), ["bad.yaml", "YAML"]),
    (run("good.parquet", "--spec=unknown.yaml"), ["modle", "model"]),
    (run("good.parquet", output="full"), ["full", "notes.txt", "--overwrite"]),
    (run("good.parquet", output="file"), ["file", "not a directory"]),
    (run("good.parquet", output="/sys/shuntserve-out"), ["/sys/shuntserve-out"]),
    (run("good.parquet", output="ftp://host/x"), ["ftp://", "s3://"]),
    (["run", "good.parquet", "--model=model", "--store=memory://x"], ["memory"]),
    (["run", "good.parquet", "--model=model", "--store=file"], ["file", "not a directory"]),
    (["status", "no-such-job", "--store=store"], ["no-such-job", "shuntserve list"]),
    (["cancel", "no-such-job", "--store=store"], ["no-such-job"]),
    (["rows", "show", "no-such-job", "x", "--store=store"], ["no-such-job"]),
    (["list", "--store=nowhere"], ["nowhere", "check the path"]),
    (["run", "good.parquet", "--modle=x"], ["--modle", "--model"]),
]


@pytest.mark.parametrize(("command", "words"), CASES, ids=[" ".join(command) for command, _ in CASES])
def test_a_mistake_is_one_clear_line(
    answers: dict[tuple[str, ...], tuple[int, str]], command: list[str], words: Sequence[str]
) -> None:
    """Exit code 2 (1 where only the network is missing); the message names what is wrong and what would help."""
    code, message = answers[tuple(command)]

    assert code == (1 if "cannot be reached" in message else 2), message
    assert "Traceback" not in message
    for word in words:
        assert any(choice in message for choice in word.split("|")), message
    if "error: " in message:
        assert len(message.strip().splitlines()) == 1, message
        assert " — " in message, "no next step"
