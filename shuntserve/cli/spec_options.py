"""From command-line words to the settings of a JobSpec."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shuntserve.errors import InvalidInput, NotFound


def read_spec_file(path: Path) -> dict[str, Any]:
    """The settings in a `job.yaml` (or JSON). Relative paths in it are relative to it."""
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(str(path), "there is no such file", "check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(str(path), f"cannot be read: {error}", "name a YAML file") from error
    except yaml.YAMLError as error:
        raise InvalidInput(str(path), f"is not YAML: {error}".replace("\n", " "), "correct it") from error
    if not isinstance(value, dict):
        raise InvalidInput(str(path), "does not hold settings", "write lines like `model: NAME`")
    return {str(name): _relative_to(path.parent, str(name), item) for name, item in value.items()}


def _relative_to(directory: Path, name: str, value: Any) -> Any:
    if name == "input" and isinstance(value, list):
        return [_relative_to(directory, name, item) for item in value]
    if name not in ("input", "output") or not isinstance(value, str) or "://" in value:
        return value
    return str(directory / Path(value).expanduser())


def parse_pairs(option: str, pairs: Sequence[str]) -> dict[str, str]:
    """`["prompt=question"]` → `{"prompt": "question"}`."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise InvalidInput(f"{option} {pair}", "is not NAME=VALUE", f"write it like {option} name=value")
        found[name.strip()] = value
    return found


def parse_values(option: str, pairs: Sequence[str]) -> dict[str, Any]:
    """`["dtype=float32", "max_model_len=4096"]`; values that are JSON (numbers, true, lists …) are taken as such."""
    return {name: _scalar(value) for name, value in parse_pairs(option, pairs).items()}


def _scalar(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse_json(option: str, text: str | None) -> Any:
    """The option's JSON value; a leading `@` names a file that holds it."""
    if text is None:
        return None
    try:
        return json.loads(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
    except OSError as error:
        raise InvalidInput(f"{option} {text}", error.strerror or "cannot be read", "check the path") from error
    except ValueError as error:
        raise InvalidInput(
            option, f"is not JSON: {error}", "write it like '{\"name\": value}', or @file.json"
        ) from error


def merged(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a file with those of the command line over them; what was not given changes nothing.

    Settings that are tables themselves (sampling parameters, engine options, columns) are merged name by name.
    """
    whole = dict(settings)
    for name, value in given.items():
        if value is None or value in ([], {}, ()):
            continue
        before = whole.get(name)
        whole[name] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    return whole
