"""Stages as users write them."""

from __future__ import annotations

import pytest

from shuntserve.core.catalog import Catalog
from shuntserve.core.stage_text import StageText, build_pipeline, parse_pipeline, parse_stage
from shuntserve.errors import InvalidInput


def test_an_instance_and_a_bare_gpu_are_read() -> None:
    """Both forms of a stage, with defaults."""
    assert parse_stage("g6.12xlarge:tp=4:layers=20") == StageText("g6.12xlarge", False, 4, 20)
    assert parse_stage("gpu=H100:tp=2:layers=32:machine=a") == StageText("H100", True, 2, 32, "a")
    assert parse_stage("g6.xlarge") == StageText("g6.xlarge", False, 1, None)


@pytest.mark.parametrize(
    "text",
    [
        "", ":tp=1", "gpu=:tp=1", "tp=4:layers=2", "g6.xlarge:tp", "g6.xlarge:tp=x", "g6.xlarge:tp=0",
        "g6.xlarge:tp=-1", "g6.xlarge:layers=nan", "g6.xlarge:layers=1.5", "g6.xlarge:color=red", "g6.xlarge:tp=1:tp=2",
    ],
)  # fmt: skip
def test_a_stage_that_cannot_be_read_is_refused(text: str) -> None:
    """The error repeats what was written and shows the form."""
    with pytest.raises(InvalidInput, match="stage"):
        parse_stage(text)


def test_a_published_placement_is_read_as_it_is_written(catalog: Catalog) -> None:
    """`TYPE(half) L=… TP=… | …`, and several GPUs in one word."""
    written = parse_pipeline("g6.12xlarge(half) L=19 TP=2 | g6e.xlarge L=13 TP=1|gpu=RTX PRO 6000 TP=2 L=48")

    assert written == [
        StageText("g6.12xlarge", False, 2, 19),
        StageText("g6e.xlarge", False, 1, 13),
        StageText("RTX PRO 6000", True, 2, 48),
    ]
    assert len(build_pipeline(catalog, written, 80).stages) == 3
    assert parse_stage("gpu=l4x2") == StageText("l4", True, 2, None)


def test_no_bare_stage_is_wider_than_a_machine(catalog: Catalog) -> None:
    """Sixteen GPUs in one tensor-parallel group would be priced as if one link joined them."""
    with pytest.raises(InvalidInput, match="more than 8"):
        build_pipeline(catalog, parse_pipeline("gpu=H100:tp=16"), 80)


def test_layers_are_numbered_through_the_pipeline(catalog: Catalog) -> None:
    """Each stage begins where the one before ended; a single stage holds all layers unasked."""
    two = build_pipeline(catalog, parse_pipeline("g6.12xlarge:tp=4:layers=50,g6.12xlarge:tp=4:layers=30"), 80)
    one = build_pipeline(catalog, parse_pipeline("g6.48xlarge:tp=8"), 80)

    assert [(s.first, s.end) for s in two.stages] == [(0, 50), (50, 80)]
    assert [(s.first, s.end) for s in one.stages] == [(0, 80)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("g6.12xlarge:tp=4:layers=40,g6.12xlarge:tp=4:layers=39", "79 layers"),
        ("g6.12xlarge:tp=4,g6.12xlarge:tp=4:layers=39", "does not say"),
        ("", "names no instance"),
        ("g6.12xlarge:tp=4:layers=80,", "names no instance"),
    ],
)
def test_layers_that_do_not_add_up_are_refused(catalog: Catalog, text: str, says: str) -> None:
    """The sum is shown."""
    with pytest.raises(InvalidInput, match=says):
        build_pipeline(catalog, parse_pipeline(text), 80)


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        ("g6.48xlarge:tp=4:layers=40,g6.48xlarge:tp=4:layers=40", [True]),
        ("g6.12xlarge:tp=4:layers=40,g6.12xlarge:tp=4:layers=40", [False]),
        ("g6.12xlarge:tp=2:layers=40,g6.12xlarge:tp=2:layers=20,g6.12xlarge:tp=2:layers=20", [True, False]),
        ("g6.48xlarge:tp=4:layers=40:machine=a,g6.48xlarge:tp=4:layers=40:machine=b", [False]),
        ("g6.12xlarge:tp=2:layers=40,g5.12xlarge:tp=2:layers=40", [False]),
        ("gpu=H100:tp=4:layers=40,gpu=H100:tp=4:layers=40", [True]),
    ],
)
def test_neighbours_share_a_machine_while_it_has_gpus(catalog: Catalog, text: str, shared: list[bool]) -> None:
    """The same type, no other machine named, GPUs left."""
    assert list(build_pipeline(catalog, parse_pipeline(text), 80).same_machine) == shared
