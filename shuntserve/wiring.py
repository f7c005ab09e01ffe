"""The composition root: the only module that names concrete classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shuntserve.core.offers import read_offers
from shuntserve.core.resolved import ResolvedJob
from shuntserve.engine.port import Engine
from shuntserve.engine.process import EngineProcess
from shuntserve.errors import InvalidInput
from shuntserve.fleet.local_provider import AgentCommand, LocalProvider
from shuntserve.fleet.provider import Provider
from shuntserve.job.run import RunRequest
from shuntserve.settings import settings

VLLM_BACKEND = "shuntserve.engine.vllm_backend:VllmBackend"
START_TIMEOUT_S = 1800.0
PIPELINE_START_TIMEOUT_S = 4 * 3600.0
"""Beyond the limits of all phases together, which say what took too long."""
PARALLEL_SIZES = ("tensor_parallel_size", "pipeline_parallel_size")
STANDIN_BACKEND = "shuntserve.sim.standin:StandinBackend"


def standin_engine(job: ResolvedJob, log_dir: Path, options: Mapping[str, Any]) -> Callable[[], Engine]:
    """Makes stand-in engines: real processes without a model, for soaks and tests. `options`: see `sim.standin`."""

    def make() -> Engine:
        return EngineProcess(STANDIN_BACKEND, options, log_dir / "engine.log")

    return make


def vllm_engine(job: ResolvedJob, log_dir: Path, options: Mapping[str, Any]) -> Callable[[], Engine]:
    """Makes vLLM engines for a job; `options` of this machine (see `VllmOptions`) join the job's own. A machine that
    leads a pipeline knows its stages; how many GPUs the job would take elsewhere does not count there."""
    leads = options.get("pipeline") is not None
    of_job = {name: value for name, value in job.engine.items() if not (leads and name in PARALLEL_SIZES)}

    def make() -> Engine:
        merged = {
            "model": job.model,
            "revision": job.revision,
            "tokenizer": job.tokenizer,
            "tokenizer_revision": job.tokenizer_revision,
            "fingerprint": {"model_sha256": job.model_sha256, "tokenizer_sha256": job.tokenizer_sha256},
            **options,
            "engine": {**of_job, **options.get("engine", {})},
        }
        start_timeout_s = PIPELINE_START_TIMEOUT_S if leads else START_TIMEOUT_S
        return EngineProcess(VLLM_BACKEND, merged, log_dir / "engine.log", start_timeout_s=start_timeout_s)

    return make


def no_engine(job: ResolvedJob, log_dir: Path, options: Mapping[str, Any]) -> None:
    """No engine at all: for a worker that only commits what is left of a stopped job."""


def provider_of(request: RunRequest, job: ResolvedJob) -> Provider:
    """Who provides the machines of a job's fleet."""
    command = AgentCommand(
        store_url=request.store_url,
        data_dir=request.data_dir,
        log_level=request.log_level,
        engine=request.engine,
        engine_options=request.engine_options,
    )
    if job.operations.fleet == "local":
        return LocalProvider(command)
    return _ec2_provider(command)


def check_fleet(request: RunRequest, job: ResolvedJob) -> None:
    """Say now what the job's controller could only log: raises InvalidInput for a fleet that can never be launched."""
    provider = provider_of(request, job)
    operations = job.operations
    for want in read_offers(operations.fleet, operations.pools, operations.market):  # type: ignore[arg-type]
        for offer in want.offers:
            provider.price(offer)


def _ec2_provider(command: AgentCommand) -> Provider:
    if not command.store_url.startswith("s3://"):
        raise InvalidInput(f"store {command.store_url}", "cannot be reached from EC2", "choose an s3:// URL")
    try:
        from shuntserve.fleet import ec2
    except ImportError as error:
        raise InvalidInput("fleet ec2", f"needs {error.name}", "pip install 'shuntserve[aws]'") from error
    from shuntserve.catalog import load_catalog, user_directory
    from shuntserve.fleet.ec2_settings import read_ec2_settings

    account = read_ec2_settings(settings().ec2_file)
    return ec2.Ec2Provider(ec2.connect(account.region), account, command, load_catalog(user_directory()))
