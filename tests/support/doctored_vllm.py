"""A copy of the installed vLLM in which one thing was renamed, as another release might have it."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def doctored_vllm(directory: Path, module: str, old: str, new: str) -> Path:
    """Make `directory` hold a package `vllm` in which `module` says `new` wherever it said `old`; return the directory,
    to be put on PYTHONPATH. All the rest is links to the installed package."""
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.submodule_search_locations is not None
    installed = Path(found.submodule_search_locations[0])
    changed = Path(*module.split(".")[1:]).with_suffix(".py")
    source = (installed / changed).read_text()
    assert old in source
    real, copied = installed, directory / "vllm"
    for part in changed.parts:
        copied.mkdir(parents=True)
        for entry in real.iterdir():
            if entry.name not in ("__pycache__", part):
                (copied / entry.name).symlink_to(entry)
        real, copied = real / part, copied / part
    copied.write_text(source.replace(old, new))
    return directory
