"""Create or renew the automations of this directory on the Prefect server that PREFECT_API_URL names.

    python infra/prefect/automations/apply.py [--notify TYPE/NAME]

Each file can also be created as it is: `prefect automation create --from-file FILE`. With `--notify`, the block of that
type and name (for instance `slack-webhook/oncall`) is told, where the file alone would do nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound

DIRECTORY = Path(__file__).parent
NOTHING = "do-nothing"


def with_notification(automation: Mapping[str, Any], block_document_id: str | None) -> dict[str, Any]:
    """The automation, telling the block wherever it would do nothing."""
    if block_document_id is None:
        return dict(automation)
    told = {
        "type": "send-notification",
        "block_document_id": block_document_id,
        "subject": automation["name"],
        "body": "{{ event.resource.name }}: {{ event.payload }}",
    }
    actions = [told if action["type"] == NOTHING else action for action in automation["actions"]]
    return {**automation, "actions": actions}


def apply(client: SyncPrefectClient, automation: Mapping[str, Any]) -> None:
    """Replace all automations of this name by this one."""
    core = AutomationCore.model_validate(automation)
    for existing in client.read_automations_by_name(core.name):
        client.delete_automation(existing.id)
    client.create_automation(core)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--notify", metavar="TYPE/NAME", help="a notification block")
    notify = parser.parse_args(arguments).notify
    with get_client(sync_client=True) as client:
        block_document_id = None
        if notify is not None:
            block_type, _, name = notify.partition("/")
            try:
                block_document_id = str(client.read_block_document_by_name(name, block_type).id)
            except ObjectNotFound:
                print(f"error: block {notify}: there is none — create it in Prefect's UI first", file=sys.stderr)
                return 2
        for path in sorted(DIRECTORY.glob("*.yaml")):
            automation = yaml.safe_load(path.read_text(encoding="utf-8"))
            apply(client, with_notification(automation, block_document_id))
            print(f"{path.name}: {automation['name']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
