"""A real browser for tests: the machine's own Chromium, headless, and a note of everything that goes wrong in a page.

Tests take the fixture `browser` (`tests/e2e/conftest.py`) and open pages with `visit`. Where there is no Chromium they
are skipped and say so; `infra/dev/setup.sh` installs one where it may.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
DESKTOP = (1280, 900)
PHONE = (390, 844)


def missing() -> str | None:
    """Why no page can be opened here; None when one can."""
    if find_spec("playwright") is None:
        return "playwright is not installed: run `make setup`"
    if _chromium() is None:
        return f"no browser on PATH (looked for {', '.join(_NAMES)}): `apt-get install chromium`"
    return None


def _chromium() -> str | None:
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless browser with a profile of its own that is thrown away."""
    from playwright.sync_api import sync_playwright

    # Its own test builds are not used, so it need not look for them, nor say that this Linux is none of theirs.
    os.environ.setdefault("PLAYWRIGHT_SKIP_VALIDATE_HOST_REQUIREMENTS", "1")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=_chromium(), args=["--disable-dev-shm-usage", "--force-color-profile=srgb"]
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """An open page and what was seen while it was open."""

    page: Page
    errors: list[str] = field(default_factory=list)
    """Console errors, uncaught exceptions, failed requests and answers of 400 and above."""
    requests: list[str] = field(default_factory=list)
    """URLs of everything the page asked for, the page itself first."""

    def texts(self, selector: str) -> list[str]:
        """Visible texts of all elements that match."""
        return self.page.locator(selector).all_inner_texts()

    def count(self, selector: str) -> int:
        """How many elements match."""
        return self.page.locator(selector).count()

    def overflows(self) -> bool:
        """Whether the page as a whole scrolls sideways."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))

    def screenshot(self, path: Path, *, whole: bool = True) -> Path:
        """Save what is seen as PNG; `whole`: down to the page's end."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path, full_page=whole, animations="disabled")
        return path


@contextmanager
def visit(
    browser: Browser, url: str, *, size: tuple[int, int] = DESKTOP, dark: bool = False, scale: float = 1.0
) -> Iterator[Visit]:
    """Open a page in a fresh context, and wait until it has loaded. `scale`: device pixels a CSS pixel."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if dark else "light",
        device_scale_factor=scale,
        locale="en-US",
        timezone_id="UTC",
        reduced_motion="reduce",
    )
    page = context.new_page()
    seen = Visit(page)

    def answered(response: Any) -> None:
        if response.status >= 400:
            seen.errors.append(f"{response.status} {response.url}")

    page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("requestfailed", lambda request: seen.errors.append(f"failed {request.url}"))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("response", answered)
    try:
        page.goto(url, wait_until="load")
        yield seen
    finally:
        context.close()
