"""What the environment says, read once into a frozen value; nothing else reads the environment.

(Credentials and regions of S3 are read by the client library under AWS's own names.)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shuntserve.errors import InvalidInput

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Settings:
    """`store_url` is the bucket used when a command names none; `data_dir` holds logs of processes on this machine."""

    data_dir: Path
    store_url: str
    log_level: str
    cuda_visible_devices: str | None = None
    vllm_cpu_kvcache_space: str | None = None
    worker_engine: str | None = None
    worker_engine_options: str = "{}"
    ec2_file: Path = Path("ec2.yaml")
    """Where the facts of the AWS account are (`fleet.ec2_settings`)."""
    metrics_port: int | None = None
    """Where processes answer Prometheus (`shuntserve.metrics`); None: nowhere."""
    metrics_address: str = "127.0.0.1"
    otlp_endpoint: str | None = None
    """Where traces go (`shuntserve.tracing`); None: nowhere."""
    otlp_protocol: str = "http/protobuf"

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> Settings:
        """SHUNTSERVE_STORE (bucket URL), SHUNTSERVE_LOG (level), XDG_DATA_HOME (where per-user data goes);
        SHUNTSERVE_WORKER_ENGINE (`module:function`) and SHUNTSERVE_WORKER_ENGINE_OPTIONS (JSON) for another engine than
        vLLM; SHUNTSERVE_EC2 (default: `shuntserve/ec2.yaml` in XDG_CONFIG_HOME, which is ~/.config): the facts of the
        AWS account; SHUNTSERVE_METRICS_PORT (0: any free one) and SHUNTSERVE_METRICS_ADDRESS (default: loopback);
        OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_PROTOCOL, as everywhere.

        Raises InvalidInput when the level is none, or the port.
        """
        home = Path(environment.get("HOME") or "~").expanduser()
        data_dir = Path(environment.get("XDG_DATA_HOME") or home / ".local/share") / "shuntserve"
        config_dir = Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "shuntserve"
        level = environment.get("SHUNTSERVE_LOG", "info").lower()
        if level not in LOG_LEVELS:
            raise InvalidInput("SHUNTSERVE_LOG", f"{level!r} is not a log level", f"use one of {', '.join(LOG_LEVELS)}")
        return Settings(
            data_dir=data_dir,
            store_url=environment.get("SHUNTSERVE_STORE") or (data_dir / "store").as_uri(),
            log_level=level,
            cuda_visible_devices=environment.get("CUDA_VISIBLE_DEVICES"),
            vllm_cpu_kvcache_space=environment.get("VLLM_CPU_KVCACHE_SPACE"),
            worker_engine=environment.get("SHUNTSERVE_WORKER_ENGINE") or None,
            worker_engine_options=environment.get("SHUNTSERVE_WORKER_ENGINE_OPTIONS") or "{}",
            ec2_file=Path(environment.get("SHUNTSERVE_EC2") or config_dir / "ec2.yaml"),
            metrics_port=_port(environment.get("SHUNTSERVE_METRICS_PORT")),
            metrics_address=environment.get("SHUNTSERVE_METRICS_ADDRESS") or "127.0.0.1",
            otlp_endpoint=environment.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None,
            otlp_protocol=environment.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf",
        )


def _port(text: str | None) -> int | None:
    if not text:
        return None
    if not text.isdecimal() or int(text) > 65535:
        raise InvalidInput("SHUNTSERVE_METRICS_PORT", f"{text!r} is not a port", "use 0 (any free one) to 65535")
    return int(text)


def settings() -> Settings:
    """The settings of this process."""
    return Settings.from_environment(os.environ)
