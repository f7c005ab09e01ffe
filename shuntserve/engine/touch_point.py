"""One thing inside vLLM that we rely on, and how a release is checked for it without running anything."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shuntserve.engine.releases import SUPPORTED_NAMES, installed_version
from shuntserve.errors import InvalidInput

Check = Callable[[Any], bool]
"""Whether something found in vLLM is as we need it."""


@dataclass(frozen=True, slots=True)
class TouchPoint:
    """Where it is, which module of `shuntserve.engine` relies on it, why, and how it is checked."""

    where: str
    """"module:Qualified.name"."""
    used_by: str
    reason: str
    holds: Check
    v2_runner_only: bool = False

    @property
    def file(self) -> str:
        """The file of vLLM's that holds it; of a package its directory."""
        return self.where.partition(":")[0].replace(".", "/")

    def check(self) -> None:
        """Raises InvalidInput, naming the place, when vLLM no longer keeps it."""
        try:
            held = self.holds(self._resolve())
        except (ImportError, AttributeError, TypeError, OSError):
            held = False
        if not held:
            raise InvalidInput(
                f"vLLM {installed_version()}",
                f"{self.where} is not as {self.used_by} needs it ({self.reason})",
                f"install vLLM {SUPPORTED_NAMES}",
            )

    def _resolve(self) -> Any:
        module, _, name = self.where.partition(":")
        value: Any = importlib.import_module(module)
        for part in name.split(".") if name else ():
            value = getattr(value, part)
        return value


def takes(*names: str) -> Check:
    """A callable whose first parameters have these names."""

    def holds(value: Any) -> bool:
        return tuple(inspect.signature(value).parameters)[: len(names)] == names

    return holds


def accepts(*names: str) -> Check:
    """A callable that has these parameters, anywhere."""

    def holds(value: Any) -> bool:
        return set(names) <= set(inspect.signature(value).parameters)

    return holds


def fields(*names: str) -> Check:
    """A msgspec struct or dataclass with these fields."""

    def holds(value: Any) -> bool:
        known = getattr(value, "__struct_fields__", None) or [item.name for item in dataclasses.fields(value)]
        return set(names) <= set(known)

    return holds


def mentions(*patterns: str) -> Check:
    """A function or class whose source has these expressions: for attributes that only exist at run time."""

    def holds(value: Any) -> bool:
        source = inspect.getsource(value)
        return all(re.search(pattern, source) for pattern in patterns)

    return holds


def has(*names: str) -> Check:
    """A class or module with these attributes."""

    def holds(value: Any) -> bool:
        return all(hasattr(value, name) for name in names)

    return holds


def both(*checks: Check) -> Check:
    def holds(value: Any) -> bool:
        return all(check(value) for check in checks)

    return holds
