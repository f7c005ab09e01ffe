"""Makes the README's pictures: runs the demonstration, and photographs its report and Prefect's page of its run.

    python infra/dev/screenshots.py [DIRECTORY]        default: docs/

Needs Chromium (`infra/dev/setup.sh` installs one where it may).
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

from tests.support.browser import missing, open_browser, visit  # noqa: E402

REPORT = (1280, 1620)
"""Down to its machines; below are tables, and paths of whoever runs this."""


def photograph(demo: Path, run_url: str, into: Path) -> None:
    """Both pages, as PNG."""
    with open_browser() as browser:
        with visit(browser, (demo / "report.html").as_uri(), size=REPORT) as report:
            report.screenshot(into / "report.png", whole=False)
        with visit(browser, run_url) as run:
            run.page.wait_for_load_state("networkidle")
            run.page.wait_for_timeout(3000)  # its graph is drawn a little later
            run.screenshot(into / "prefect-run.png", whole=False)


def main() -> int:
    """Exit code 0 when the pictures are made and the demonstration kept its promises."""
    if why := missing():
        print(why, file=sys.stderr)
        return 1
    into = Path(sys.argv[1] if len(sys.argv) > 1 else CHECKOUT / "docs")
    with tempfile.TemporaryDirectory() as directory:
        demo = Path(directory) / "demo"
        command = [sys.executable, "-m", "shuntserve.cli.demo", f"--directory={demo}", "--keep"]
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert child.stderr is not None
        for line in child.stderr:
            print(line, end="", file=sys.stderr)
            if "kept up until" in line and (found := re.search(r"http://\S+", line)):
                photograph(demo, found[0], into)
                child.send_signal(signal.SIGINT)
    return child.wait()


if __name__ == "__main__":
    sys.exit(main())
