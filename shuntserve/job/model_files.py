"""What the job needs to know of a model without loading it: limits, defaults, end-of-sequence ids and a hash."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shuntserve.core.context_length import derive_max_model_len, longest_model_len
from shuntserve.errors import InvalidInput, NotFound, Unavailable
from shuntserve.job.hf import auto_config

SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")
"""What is fetched of a hub model: configuration and tokenizer, no weights."""

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_MAX_HEADER_BYTES = 100 << 20
_EDGE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model found. `name` is what an engine is given; `directory` holds at least configuration and tokenizer."""

    name: str
    revision: str | None
    directory: Path


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What its configuration says of a model. The lengths are None when it says nothing about them."""

    vocab_size: int
    max_model_len: int | None
    longest_model_len: int | None
    eos_token_ids: tuple[int, ...]
    generation_config: Mapping[str, Any]


def find_model(label: str, name: str, revision: str | None) -> ModelFiles:
    """The directory named, or the small files of the hub model named. `label` is the setting to blame.

    Raises NotFound, InvalidInput, or Unavailable when the hub cannot be reached and nothing of the model is cached.
    """
    if name.startswith(("s3://", "s3a://")):
        raise InvalidInput(f"{label} {name}", "is in S3", "copy it to a directory and name that")
    directory = Path(name).expanduser()
    if directory.is_dir():
        if revision is not None:
            raise InvalidInput(f"{label} {name}", "is a directory, which has no revisions", "leave out revision")
        return ModelFiles(str(directory.resolve()), None, directory.resolve())
    if directory.exists():
        raise InvalidInput(f"{label} {name}", "is a file", "name the directory that holds config.json")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not _HUB_NAME.fullmatch(name):
        raise NotFound(f"{label} {name}", "there is no such directory", "check the path, or name a model of the hub")
    return _fetch(label, name, revision)


def model_facts(model: ModelFiles, *, trust_remote_code: bool = False) -> ModelFacts:
    """Read config.json (with its class's defaults) and generation_config.json. Raises InvalidInput."""
    config = _read_json(model.directory / "config.json")
    if config is None:
        raise InvalidInput(f"model {model.name}", "has no config.json", "name a directory made by save_pretrained")
    text = _with_class_defaults(model, config, trust_remote_code)
    vocab_size = text.get("vocab_size")
    if not isinstance(vocab_size, int) or vocab_size < 1:
        raise InvalidInput(f"model {model.name}", "its config.json states no vocab_size", "use a text generation model")
    generation = _read_json(model.directory / "generation_config.json")
    # Without a generation_config.json, vLLM derives one from the model's configuration.
    eos = (generation if generation is not None else config).get("eos_token_id")
    if eos is None:
        eos = text.get("eos_token_id") if generation is None else None
    ids = eos if isinstance(eos, list) else [eos]
    return ModelFacts(
        vocab_size=vocab_size,
        max_model_len=derive_max_model_len(text),
        longest_model_len=longest_model_len(text),
        eos_token_ids=tuple(sorted({item for item in ids if isinstance(item, int)})),
        generation_config=generation or {},
    )


def has_weights(model: ModelFiles) -> bool:
    """Whether the weights can be had: a hub model's are fetched by the engine, a directory must hold its own."""
    return model.revision is not None or any(
        next(model.directory.glob(pattern), None) is not None for pattern in _WEIGHTS
    )


def hash_model(model: ModelFiles) -> str:
    """SHA-256 that changes with the configuration or the weights.

    A hub model's commit stands for its weights. Of a directory's, size and header (for other formats size and edges)
    are hashed: all their bytes would take minutes, and weights that change keep neither for long.
    """
    digest = hashlib.sha256()
    for path in sorted(model.directory.glob("*.json")):
        if path.name == "config.json" or path.name.endswith(".index.json"):
            digest.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    if model.revision is not None:
        digest.update(f"{model.name}@{model.revision}\n".encode())
        return digest.hexdigest()
    for path in sorted({path for pattern in _WEIGHTS for path in model.directory.glob(pattern)}):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(hashlib.sha256(_telling_bytes(path)).digest())
    return digest.hexdigest()


def hash_files(paths: list[Path]) -> str:
    """SHA-256 over names and contents."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _fetch(label: str, name: str, revision: str | None) -> ModelFiles:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    thing = f"{label} {name}"
    try:
        directory = Path(snapshot_download(name, revision=revision, allow_patterns=list(SMALL_FILES)))
    except GatedRepoError as error:
        raise InvalidInput(thing, "is gated", "accept its licence on the hub and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise NotFound(
            thing, "is neither a directory here nor a model on the hub", "check the name; private models need HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise NotFound(thing, f"has no revision {revision}", "check branch, tag or commit") from error
    except LocalEntryNotFoundError as error:
        raise Unavailable(
            thing,
            "is no directory here, is not in the local hub cache, and the hub cannot be reached",
            "name a directory, or try again with a network",
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise Unavailable(thing, f"the hub did not answer usefully ({type(error).__name__})", "try again") from error
    return ModelFiles(name, directory.name, directory)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise InvalidInput(str(path), f"cannot be read: {error}", "copy the model again") from error
    if not isinstance(value, dict):
        raise InvalidInput(str(path), "is not a JSON object", "copy the model again")
    return value


def _with_class_defaults(model: ModelFiles, config: Mapping[str, Any], trust_remote_code: bool) -> Mapping[str, Any]:
    """The text model's configuration with the defaults of its class; the file alone when its class is not known."""
    nested = config.get("text_config")
    plain = {**config, **nested} if isinstance(nested, Mapping) else config
    try:
        known = auto_config().from_pretrained(model.directory, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError, ImportError):
        return plain
    defaults: dict[str, Any] = known.get_text_config().to_dict()
    return {**plain, **defaults}


def _telling_bytes(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            header = file.read(min(length, _MAX_HEADER_BYTES))
            _check_whole(path, size, len(prefix) + length, header)
            return prefix + header
        head = file.read(_EDGE_BYTES)
        file.seek(max(0, size - _EDGE_BYTES))
        return head + file.read()


def _check_whole(path: Path, size: int, header_end: int, header: bytes) -> None:
    """A safetensors file that holds all the tensors its header names. Raises InvalidInput: a broken-off copy is common,
    and an engine would take minutes to find out, on every machine."""
    try:
        tensors = json.loads(header)
        ends = [tensors[name]["data_offsets"][1] for name in tensors if name != "__metadata__"]
        needed = header_end + max(ends, default=0)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InvalidInput(str(path), "is no safetensors file, or broken off", "copy the model again") from error
    if size < needed:
        raise InvalidInput(str(path), f"is broken off: {size:,} of {needed:,} bytes", "copy the model again")
