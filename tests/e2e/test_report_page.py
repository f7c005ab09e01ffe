"""The report of a run that was killed and drained, seen in a real browser."""

from __future__ import annotations

import io
import json
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.support.browser import DESKTOP, PHONE, Visit, visit
from tests.support.command import Workplace, prompts

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.timeout(240)

NAME = "reviews <b>& more</b> <script>alert(1)</script>"
OUR_BLUE = (0x2F, 0x6D, 0xB3)


@dataclass(frozen=True)
class Reported:
    """A finished job, its stored page, and what `report --json` says of it."""

    place: Workplace
    page: Path
    report: dict[str, Any]

    @property
    def url(self) -> str:
        return self.page.as_uri()


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """A worker is killed, then the whole run is drained; run again, it ends, with one reject."""
    place = Workplace(tmp_path_factory.mktemp("reported"))
    place.write([*prompts(60), {"request_id": "empty", "prompt": ""}])
    arguments = place.run_arguments(f"--name={NAME}", "--max-reject-fraction=0.1", slow=True)
    command = place.start(*arguments)
    place.until_generating()
    command.running("shuntserve.job.worker_main")[0].kill()
    place.until("the death to be noticed", lambda seen: any(one.killed for one in seen.workers))
    place.until_generating()
    command.signal(signal.SIGINT)
    assert command.wait().exit_code == 130
    finished = place.call(*place.run_arguments(f"--name={NAME}", "--max-reject-fraction=0.1"))
    assert finished.exit_code == 0, finished.stderr
    job_id = finished.summary["job"]
    printed = place.call("report", job_id, "--json", "--html", place.directory / "written.html")
    assert printed.exit_code == 0, printed.stderr
    return Reported(place, place.directory / f"store/jobs/{job_id}/report.html", json.loads(printed.stdout))


@pytest.fixture
def desk(browser: Browser, reported: Reported) -> Iterator[Visit]:
    with visit(browser, reported.url, size=DESKTOP) as seen:
        yield seen


def test_the_report_says_what_the_run_did(reported: Reported) -> None:
    """Rows, rejects by code, phases, tokens and interruptions of the JSON are those of the run."""
    report = reported.report

    assert report["schema"] == "shuntserve.report/1"
    assert report["job"]["state"] == "COMPLETED_WITH_REJECTS"
    assert (report["rows"]["total"], report["rows"]["ok"], report["rows"]["rejected"]) == (61, 60, 1)
    assert report["rows"]["by_code"] == [{"code": "empty_prompt", "rows": 1}]
    assert [one["phase"] for one in report["time"]["phases"]] == ["ingest", "run", "finalize"]
    assert len(report["time"]["phases"][1]["spans_s"]) == 2
    assert report["tokens"]["kept"] > 0
    assert report["tokens"]["resumed_rows"] > 0
    assert report["interruptions"]["by_kind"] == {"worker_killed": 1}
    assert report["interruptions"]["unseen"] == 0
    assert report["cost"] is None
    assert report["outputs"]["data"][0]["rows"] == 60
    assert sum(lane["rows"] for lane in report["machines"]["lanes"]) == 60


def test_the_page_is_whole_in_itself(desk: Visit, reported: Reported) -> None:
    """Opened from disk it asks for nothing but itself, runs no script and reports no error."""
    assert desk.errors == []
    assert desk.requests == [reported.url]
    assert desk.count("script") == 0


def test_names_are_text_not_markup(desk: Visit) -> None:
    """A job's name with tags in it is shown letter by letter, as heading and as title."""
    assert desk.texts("h1") == [NAME]
    assert desk.page.title() == f"{NAME}: report"


def test_no_prompt_and_no_output_is_in_the_page(reported: Reported) -> None:
    """Of all prompts and outputs, none with more than three words is in the page or in the JSON."""
    text = reported.page.read_text(encoding="utf-8") + json.dumps(reported.report)
    written = [*reported.place.texts().values(), *(row["prompt"] for row in prompts(60))]

    assert [words for words in written if len(words.split()) > 3 and words in text] == []


def test_every_interruption_is_drawn_and_listed(desk: Visit, reported: Reported) -> None:
    """As many lines in each chart over time, symbols above the first and lines of the table as interruptions."""
    total = reported.report["interruptions"]["total"]

    assert total == 1
    charts = desk.count(".chart")
    assert charts == 3
    assert desk.count("svg .interruption") == total * charts
    assert desk.count(".chart .pin.worker_killed") == total
    assert desk.count(".lane .pin.worker_killed") == total
    assert len(desk.texts(".happened tbody tr")) == total
    assert "worker killed: 1" in desk.texts(".keys li")


def test_interruptions_are_drawn_where_they_happened(desk: Visit, reported: Reported) -> None:
    """The symbol's place along the chart is the interruption's share of the whole time, to a hundredth."""
    chart = desk.page.locator(".chart.tall").bounding_box()
    pin = desk.page.locator(".chart.tall .pin").bounding_box()
    assert chart is not None
    assert pin is not None

    drawn = (pin["x"] + pin["width"] / 2 - chart["x"]) / chart["width"]
    happened = reported.report["interruptions"]["listed"][0]["at_s"] / reported.report["time"]["elapsed_s"]
    assert abs(drawn - happened) < 0.01


def test_the_curve_is_visible(desk: Visit) -> None:
    """The picture of the first chart has a line in the first colour from one side of the work to the other."""
    shot = Image.open(io.BytesIO(desk.page.locator(".chart.tall svg").screenshot())).convert("RGB")
    pixels = shot.load()
    assert pixels is not None
    inked = [
        x
        for x in range(shot.width)
        if any(
            all(abs(got - want) < 12 for got, want in zip(pixels[x, y], OUR_BLUE, strict=True))
            for y in range(shot.height)
        )
    ]

    assert len(inked) > shot.width / 4
    assert max(inked) > 0.8 * shot.width


@pytest.mark.parametrize("size", [DESKTOP, PHONE, (320, 640)], ids=["desk", "phone", "small phone"])
def test_the_page_fits_its_window(browser: Browser, reported: Reported, size: tuple[int, int]) -> None:
    """Nothing but a table's own box scrolls sideways, and every text is at least 11 pixels high."""
    with visit(browser, reported.url, size=size) as seen:
        smallest = seen.page.evaluate(
            """() => Math.min(...[...document.querySelectorAll('body *')]
                .filter(one => one.innerText && one.offsetParent)
                .map(one => parseFloat(getComputedStyle(one).fontSize)))"""
        )

        assert not seen.overflows()
        assert smallest >= 11


def test_labels_do_not_cover_each_other(browser: Browser, reported: Reported) -> None:
    """On a phone, no two labels of a chart's axes overlap, and none the title of a chart."""
    with visit(browser, reported.url, size=PHONE) as seen:
        overlaps = seen.page.evaluate(
            """() => { const boxes = [...document.querySelectorAll('.x, .y, .what')].filter(one => one.offsetParent)
                .map(one => [one.textContent, one.getBoundingClientRect()]);
              return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) => p.left < q.right - 1 &&
                q.left < p.right - 1 && p.top < q.bottom - 1 && q.top < p.bottom - 1).map(([b]) => [a, b])); }"""
        )

    assert overlaps == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_stand_out_in_both_modes(browser: Browser, reported: Reported, dark: bool) -> None:
    """Every text has a contrast of at least 4.5 against what is behind it, as WCAG AA asks."""
    with visit(browser, reported.url, dark=dark) as seen:
        found = seen.page.evaluate(
            """() => [...document.querySelectorAll('h1, h2, p, dt, dd, td, th, li, summary, .x, .y, .what, .state')]
                .filter(one => one.offsetParent && one.textContent.trim()).map(one => {
                  let behind = one, paper = 'rgba(0, 0, 0, 0)';
                  for (; behind && paper === 'rgba(0, 0, 0, 0)'; behind = behind.parentElement)
                    paper = getComputedStyle(behind).backgroundColor;
                  return [one.textContent.slice(0, 40), getComputedStyle(one).color, paper]; })"""
        )

    assert len(found) > 40
    assert [one for one in found if _contrast(one[1], one[2]) < 4.5] == []
    assert _luminance(found[0][2]) < 0.1 if dark else _luminance(found[0][2]) > 0.9


def test_those_who_do_not_see_it_are_told(desk: Visit) -> None:
    """Every drawing has words of its own, the curves are there as a table, and the page has language and landmarks."""
    labels = desk.page.eval_on_selector_all("svg", "all => all.map(one => one.getAttribute('aria-label'))")

    assert len(labels) > 8
    assert all(labels)
    assert any(re.match(r"generated tokens a second over .*, at most .*; 1 interruptions", one) for one in labels)
    assert desk.count("details table tbody tr") >= 3
    assert desk.page.get_attribute("html", "lang") == "en"
    assert (desk.count("h1"), desk.count("main")) == (1, 1)
    assert desk.count("section") == desk.count("section[aria-labelledby] h2")
    assert desk.count("th") == desk.count("th[scope]")


def test_links_lead_to_the_output(desk: Visit, reported: Reported) -> None:
    """Every link is one to a file of the output that exists."""
    links = desk.page.eval_on_selector_all("a", "all => all.map(one => one.getAttribute('href'))")

    assert f"{(reported.place.directory / 'out').as_uri()}/data/part-000000.parquet" in links
    assert all(Path(link.removeprefix("file://")).exists() for link in links)


def test_the_command_writes_the_stored_page(reported: Reported) -> None:
    """`report --html FILE` has given the page that finalizing stored; without options it prints the main numbers."""
    told = reported.place.call("report", reported.report["job"]["id"])

    assert (reported.place.directory / "written.html").read_bytes() == reported.page.read_bytes()
    assert "60 of 61 answered, 1 rejected" in told.stdout
    assert "1 worker_killed" in told.stdout


def _channels(css: str) -> list[float]:
    return [float(part) / 255 for part in re.findall(r"[\d.]+", css)[:3]]


def _luminance(css: str) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in _channels(css)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
