"""What we rely on inside vLLM still holds, and when it does not, an engine refuses to start and says so."""

from __future__ import annotations

import ast
import importlib
import types
from pathlib import Path
from typing import Any

import pytest

import shuntserve.engine
from shuntserve.engine import compat
from shuntserve.engine.port import LossKind
from shuntserve.engine.process import EngineProcess
from shuntserve.engine.touch_point import TouchPoint
from shuntserve.errors import InvalidInput
from tests.support import vllm_driver
from tests.support.doctored_vllm import doctored_vllm

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


def name_of(point: TouchPoint) -> str:
    return f"{point.where.removeprefix('vllm.')} for {point.used_by}"


PUBLIC = (
    "vllm",
    "vllm.config",
    "vllm.exceptions",
    "vllm.inputs",
    "vllm.outputs",
    "vllm.platforms",
    "vllm.sampling_params",
    "vllm.usage.usage_lib",
)
"""Modules of vLLM's for its users."""


def imported_from_vllm() -> list[tuple[str, str]]:
    """(our module, "their.module:Name") of every import from vLLM in the engine package."""
    return [
        (path.stem, f"{node.module}:{alias.name}")
        for path in sorted(Path(shuntserve.engine.__path__[0]).glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm"
        for alias in node.names
    ]


def test_whatever_is_imported_from_inside_vllm_is_a_touch_point() -> None:
    """No module of ours reaches into vLLM unlisted: what it imports from there is named, itself or something of it."""
    listed = [point.where for point in compat.TOUCH_POINTS]

    unlisted = [
        (ours, theirs)
        for ours, theirs in imported_from_vllm()
        if theirs.partition(":")[0] not in PUBLIC
        and not any(where == theirs or where.startswith(f"{theirs}.") for where in listed)
        and not any(where.startswith(theirs.replace(":", ".")) for where in listed)  # a module, imported as a name
    ]

    assert unlisted == []


def test_every_touch_point_is_used_by_a_module_of_ours() -> None:
    """No entry outlives the code that needed it; each has its reason."""
    ours = {path.stem for path in Path(shuntserve.engine.__path__[0]).glob("*.py")}

    assert {point.used_by for point in compat.TOUCH_POINTS} <= ours
    assert all(point.reason and point.file.startswith("vllm") for point in compat.TOUCH_POINTS)
    assert len({(point.where, point.used_by) for point in compat.TOUCH_POINTS}) == len(compat.TOUCH_POINTS)


@pytest.mark.parametrize("point", compat.TOUCH_POINTS, ids=name_of)
def test_touch_point_holds(point: TouchPoint) -> None:
    """The installed vLLM has what this module of ours needs of it."""
    point.check()


@pytest.mark.parametrize("point", compat.TOUCH_POINTS, ids=name_of)
def test_a_doctored_touch_point_is_noticed(point: TouchPoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """When vLLM changes this place, the check fails and names the place, the user and the supported releases."""
    module_name, _, qualified = point.where.partition(":")
    if qualified:
        owner: Any = importlib.import_module(module_name)
        *path, last = qualified.split(".")
        for part in path:
            owner = getattr(owner, part)
        monkeypatch.setattr(owner, last, _changed)
    else:
        monkeypatch.setitem(__import__("sys").modules, module_name, types.ModuleType(module_name))

    with pytest.raises(InvalidInput) as refused:
        point.check()

    assert point.where in str(refused.value)
    assert point.used_by in str(refused.value)
    assert refused.value.next_step == "install vLLM 0.32 or 0.31"


def _changed(anything: object) -> None:
    """What a later release might have instead."""


def test_a_removed_touch_point_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A renamed method is reported like a changed one, not as an AttributeError."""
    from vllm.v1.core.sched.scheduler import Scheduler

    monkeypatch.delattr(Scheduler, "_handle_blocked_waiting_request")

    with pytest.raises(InvalidInput, match="_handle_blocked_waiting_request"):
        compat.check_touch_points(v2_runner=False)


@pytest.mark.parametrize("version", ["0.33.0", "0.30.2", "0.320.0", "0.3", "1.0", ""])
def test_other_releases_are_refused_by_name(version: str) -> None:
    """The message names the version found and those supported."""
    with pytest.raises(InvalidInput, match=r"is not supported — install vLLM 0\.32 or 0\.31"):
        compat.check_version(version)


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1", "0.32.0.dev1+cpu", "0.32", "0.31.0", "0.31.2"])
def test_supported_releases_are_taken(version: str) -> None:
    """The current release and the one before, their patch releases and builds."""
    compat.check_version(version)


def test_an_engine_on_an_unsupported_vllm_is_invalid(qwen: Path, tmp_path: Path) -> None:
    """The refusal reaches the worker before vLLM is even imported, and is not retried."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata as metadata\n"
        "real = metadata.version\n"
        "metadata.version = lambda name: '0.99.0' if name.startswith('vllm') else real(name)\n"
    )
    engine = EngineProcess(
        vllm_driver.BACKEND,
        vllm_driver.options(qwen),
        tmp_path / "engine.log",
        environment={"PYTHONPATH": str(tmp_path)},
    )
    engine.start()

    lost, _ = vllm_driver.until_lost(engine, within_s=60)

    assert lost.kind is LossKind.INVALID
    assert "vLLM 0.99.0: is not supported — install vLLM 0.32" in lost.detail


def test_an_engine_on_a_vllm_that_lacks_a_touch_point_is_invalid(qwen: Path, tmp_path: Path) -> None:
    """A release with the right number in which a private method has another name: the engine says which, before it
    loads a model, and is not retried."""
    doctored = doctored_vllm(
        tmp_path, "vllm.v1.core.sched.scheduler", "_handle_blocked_waiting_request", "_handle_waiting_request"
    )
    engine = EngineProcess(
        vllm_driver.BACKEND,
        vllm_driver.options(qwen),
        tmp_path / "engine.log",
        environment={"PYTHONPATH": str(doctored), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    engine.start()

    lost, _ = vllm_driver.until_lost(engine, within_s=vllm_driver.START_TIMEOUT_S)

    assert lost.kind is LossKind.INVALID, lost
    assert (
        "vllm.v1.core.sched.scheduler:Scheduler._handle_blocked_waiting_request is not as scheduler needs it"
        in lost.detail
    )
    assert "install vLLM 0.32 or 0.31" in lost.detail
