"""The boot script, run by a real shell with programs of ours in place of the machine's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shuntserve.errors import InvalidInput
from shuntserve.fleet.agent_main import _parse
from shuntserve.fleet.local_provider import AgentCommand
from shuntserve.fleet.user_data import agent_options, node_script

HOSTILE = """s3://bucket/it's $HOME "quoted" `id`"""
COMMAND = AgentCommand(HOSTILE, Path("here"), engine="a.b:c", engine_options={"text": "it's $(id) {node}"})


def machine(directory: Path, *, metadata: str = "answers") -> dict[str, str]:
    """A PATH with a curl that plays the metadata endpoint, and programs that write down how they were called."""
    programs = {
        "curl": """
            case "$*" in
              *api/token*) echo token-1 ;;
              *"token: token-1"*shuntserve:launch) echo n0042 ;;
              *) exit 22 ;;
            esac""",
        "systemd-run": f'exec "{sys.executable}" -c "import json, sys; print(json.dumps(sys.argv[1:]))" "$@"',
        "systemctl": 'echo "systemctl $*"',
    }
    if metadata == "is silent":
        programs["curl"] = "exit 7"
    directory.mkdir()
    for name, body in programs.items():
        path = directory / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


def run(script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, timeout=20)


def test_the_script_starts_the_agent_of_the_launch_its_tags_name(tmp_path: Path) -> None:
    """A real shell gives the agent every word as it was meant, the node's id from the metadata endpoint among them, and
    the agent understands them all."""
    script = node_script(COMMAND, "job-1", python="/opt/a b/python", region="eu-west-1")

    done = run(script, machine(tmp_path / "bin"))

    assert done.returncode == 0, done.stderr
    words = json.loads(done.stdout)
    agent = words[words.index("--") + 1 :]
    assert agent[:3] == ["/opt/a b/python", "-m", "shuntserve.fleet.agent_main"]
    told = _parse(agent[3:])
    assert (told.store, told.job, told.node) == (HOSTILE, "job-1", "n0042")
    assert json.loads(told.engine_options) == COMMAND.engine_options
    assert told.metadata == "http://169.254.169.254"
    assert told.on_end == "systemctl poweroff"
    assert told.share == "0/1"
    unit = words[: words.index("--")]
    assert "--property=Restart=on-failure" in unit
    assert "--property=FailureAction=poweroff" in unit
    assert "--setenv=AWS_REGION=eu-west-1" in unit


def test_a_machine_that_cannot_find_out_what_it_is_powers_off(tmp_path: Path) -> None:
    """Without its metadata endpoint there is no agent, and nothing that would cost money for ever."""
    script = node_script(COMMAND, "job-1", python="/opt/python", region="eu-west-1")

    done = run(script, machine(tmp_path / "bin", metadata="is silent"))

    assert done.stdout.strip() == "systemctl poweroff"


def test_the_agents_options_can_be_read_back() -> None:
    """Who only has the script finds the options in it, word for word."""
    options = agent_options(node_script(COMMAND, "job-1", python="/opt/python", region="eu-west-1"))

    assert options["--store"] == HOSTILE
    assert options["--job"] == "job-1"
    assert json.loads(options["--engine-options"]) == COMMAND.engine_options
    assert "--node" not in options


def test_a_script_without_an_agent_is_refused() -> None:
    """An instance that wears our tags and runs something else is not taken for ours."""
    with pytest.raises(InvalidInput):
        agent_options("#!/bin/bash\necho hello\n")
