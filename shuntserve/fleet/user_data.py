"""What an instance is told to do when it boots: start its node agent, and power off when that has ended.

The script holds no secret: whoever may describe the instance may read it. It is the same for all machines of a job;
the launch each one came from is read from its own tags. systemd starts an agent that died again, five times within a
minute at most, and powers the machine off when that does not help. So does the script when it fails itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shuntserve.core.offers import Offer
from shuntserve.errors import InvalidInput
from shuntserve.fleet.imds import EC2_ENDPOINT, TOKEN_PATH
from shuntserve.fleet.local_provider import AgentCommand
from shuntserve.fleet.provider import Launch

JOB_TAG = "shuntserve:job"
LAUNCH_TAG = "shuntserve:launch"
NODE_DATA_DIR = Path("/var/lib/shuntserve")
NOTICE_INTERVAL_S = 5.0
"""How often EC2 asks to look for a notice."""

_AGENT_MODULE = "shuntserve.fleet.agent_main"
_NODE = "{node}"
_UNIT = (
    "Restart=on-failure",
    "RestartSec=1",
    "StartLimitIntervalSec=60",
    "StartLimitBurst=5",
    "FailureAction=poweroff",
    "KillMode=mixed",  # the agent drains its workers itself
    "TimeoutStopSec=60",
)
_SCRIPT = """\
#!/bin/bash
# A ShuntServe node. Holds no secret: whoever may describe the instance can read this.
set -euo pipefail
trap 'systemctl poweroff' ERR
ask() {{ curl --silent --show-error --fail --retry 10 --retry-connrefused --max-time 5 "$@"; }}
token=$(ask -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 300' {token_url})
node=$(ask -H "X-aws-ec2-metadata-token: $token" {tag_url})
systemd-run --unit=shuntserve-agent {unit} -- {agent}
"""


def node_script(command: AgentCommand, job_id: str, *, python: str, region: str) -> str:
    """The user data of a job's machines."""
    on_node = replace(command, data_dir=NODE_DATA_DIR, notice_interval_s=NOTICE_INTERVAL_S)
    argv = on_node.argv(Launch(_NODE, job_id, "", Offer("", "", "spot", None)))
    argv = [python, *argv[1:], "--metadata", EC2_ENDPOINT, "--on-end", "systemctl poweroff"]
    words = ['"$node"' if word == _NODE else shlex.quote(word) for word in argv]
    unit = [f"--property={text}" for text in _UNIT] + [f"--setenv=AWS_REGION={shlex.quote(region)}"]
    return _SCRIPT.format(
        token_url=EC2_ENDPOINT + TOKEN_PATH,
        tag_url=f"{EC2_ENDPOINT}/latest/meta-data/tags/instance/{LAUNCH_TAG}",
        unit=" ".join(unit),
        agent=" ".join(words),
    )


def agent_options(script: str) -> dict[str, str]:
    """The agent's options that a `node_script` gives it, by name (`--store` …), its node's id left out."""
    for line in script.splitlines():
        words: Sequence[str] = shlex.split(line) if _AGENT_MODULE in line else ()
        if _AGENT_MODULE in words:
            rest = words[words.index(_AGENT_MODULE) + 1 :]
            options = dict(zip(rest[::2], rest[1::2], strict=True))
            options.pop("--node")
            return options
    raise InvalidInput("user data", "starts no ShuntServe agent", "look at other instances")
