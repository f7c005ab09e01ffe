"""The node agent as a process.

    python -m shuntserve.fleet.agent_main --store URL --job ID --node ID --metadata URL

SIGTERM and SIGINT drain. Exit code 0 says that it has left in order and the machine is to shut down; `--on-end` names
a command that does so. Log events go to standard error as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from shuntserve import telemetry
from shuntserve.core.desired import Pipeline
from shuntserve.core.rendezvous import Rendezvous
from shuntserve.engine.launch import NodeProcess, leader_options
from shuntserve.engine.lifeline import die_with_parent
from shuntserve.errors import ShuntServeError, Unavailable
from shuntserve.fleet import imds
from shuntserve.fleet.agent import AgentConfig, AgentLoop, Workers
from shuntserve.fleet.spending_memory import SpendingMemory
from shuntserve.fleet.stage_workers import FollowingNode, LeadingWorkers, topology_of
from shuntserve.job import machine
from shuntserve.job.adjust import current_job
from shuntserve.job.local import LocalWorkers, WorkerPlan
from shuntserve.job.run import RunRequest, worker_plan
from shuntserve.job.threads import ThreadSpawner
from shuntserve.job.worker_main import monotonic_s
from shuntserve.metrics import Metrics, serve_if_asked, tell_agent
from shuntserve.settings import settings
from shuntserve.store import keys
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket
from shuntserve.tracing import traced

EXIT_FAILED = 1


class NoticeWatch:
    """Asks the metadata endpoint again and again on a thread of its own; `newest` is what it said last."""

    def __init__(self, client: imds.MetadataClient, interval_s: float) -> None:
        self._client = client
        self._interval_s = interval_s
        self._newest = imds.Warnings()
        threading.Thread(target=self._run, name="notices", daemon=True).start()

    def newest(self) -> imds.Warnings:
        """The newest answer. One that came once stays, also when the endpoint no longer answers."""
        return self._newest

    def _run(self) -> None:
        silent = False
        while True:
            try:
                self._newest = self._client.warnings()
                silent = False
            except Unavailable as error:
                if not silent:
                    telemetry.emit(telemetry.Event.METADATA_UNAVAILABLE, error=str(error))
                silent = True
            time.sleep(self._interval_s)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one agent to its end."""
    arguments = _parse(argv)
    if arguments.parent is not None:
        die_with_parent(arguments.parent)
    place = {"job": arguments.job, "node": arguments.node}
    telemetry.log_to(sys.stderr, arguments.log_level, **place)
    here = settings()
    with traced(here.otlp_endpoint, here.otlp_protocol, "shuntserve-agent", **place):
        try:
            _work(arguments)
        except ShuntServeError as error:
            telemetry.emit(telemetry.Event.AGENT_EXITED, node=arguments.node, outcome="failed", error=str(error))
            return EXIT_FAILED
        telemetry.emit(telemetry.Event.AGENT_EXITED, node=arguments.node, outcome="left")
    if arguments.on_end:
        subprocess.run(shlex.split(arguments.on_end), check=False)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="shuntserve-agent", description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--node", required=True, help="the id of the launch this machine came from")
    parser.add_argument("--metadata", default=imds.EC2_ENDPOINT, help="the instance metadata endpoint")
    parser.add_argument("--notice-interval", type=float, default=5.0, help="seconds between looks at it")
    parser.add_argument("--share", default="0/1", help="I/N: this agent's share of the machine, of N agents on it")
    parser.add_argument("--data-dir", type=Path, required=True, help="where logs go")
    parser.add_argument("--memory", type=Path, default=None, help="a file that outlives the agent, not the machine")
    parser.add_argument("--engine", default=None, help="module:function, when it is not vLLM")
    parser.add_argument("--engine-options", default="{}", help="JSON, on top of the job's own engine options")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--parent", type=int, default=None, help="end at once when this process does")
    parser.add_argument("--on-end", default="", help="a command that shuts the machine down")
    return parser.parse_args(argv)


def _work(arguments: argparse.Namespace) -> None:
    memory = SpendingMemory(
        arguments.memory or arguments.data_dir / "agents" / f"{arguments.job}.{arguments.node}.json",
        arguments.store,
        machine.place(),
    )
    spending = memory.recall(monotonic_s())
    if spending.ended(monotonic_s()):  # in an outage, agents die one after the other; no lease begins anew for that
        return
    bucket = open_bucket(arguments.store, mkdir=False)
    job = current_job(bucket, arguments.job)
    here = settings()
    index, of = (int(part) for part in arguments.share.split("/"))
    request = RunRequest(
        store_url=arguments.store,
        data_dir=arguments.data_dir,
        workers=of if of > 1 else None,
        cuda_visible_devices=here.cuda_visible_devices,
        size_kv_cache=here.vllm_cpu_kvcache_space is None,
        log_level=arguments.log_level,
        engine=arguments.engine,
        engine_options=json.loads(arguments.engine_options),
    )

    metadata = imds.MetadataClient(arguments.metadata)

    def start_workers(pipeline: Pipeline) -> Workers:
        plan = worker_plan(request, bucket, job)
        environments = plan.environments if of == 1 else plan.environments[index : index + 1]
        log_dir = request.log_dir(job.job_id) / arguments.node
        plan = replace(plan, environments=environments, log_dir=log_dir, node=arguments.node)
        if pipeline.stages[0].layers is None:
            return LocalWorkers(bucket, plan)
        return _stages(bucket, pipeline, plan, metadata.address())

    incarnation = secrets.token_hex(16)
    facts = {
        "host": socket.gethostname(),
        "place": machine.place(),
        "pid": os.getpid(),
        "started_unix_s": time.time(),
        "incarnation": incarnation,
    }
    metrics = Metrics(job_id=job.job_id, node=arguments.node)
    serving = serve_if_asked(metrics, here.metrics_port, here.metrics_address)
    if serving is not None:
        facts["metrics"] = serving.target
    lease_s = job.operations.lease_s
    config = AgentConfig(
        job.job_id,
        arguments.node,
        incarnation,
        job.operations.spending_lease_s,
        report_interval_s=lease_s / 5,
        look_interval_s=min(1.0, lease_s / 5),
    )
    watch = NoticeWatch(metadata, arguments.notice_interval)
    spawner = ThreadSpawner(bucket, threads=4)
    loop = AgentLoop(config, spawner, start_workers, watch.newest, facts, spending, memory.keep)
    _listen(loop.leave)
    telemetry.emit(telemetry.Event.AGENT_STARTED, node=arguments.node, job=job.job_id, pid=os.getpid())
    try:
        while not loop.over:
            delay_s = loop.tick(monotonic_s(), time.time())
            tell_agent(metrics, **loop.vitals())
            time.sleep(delay_s)
    finally:
        loop.end()
        spawner.close()


def _stages(bucket: Bucket, pipeline: Pipeline, plan: WorkerPlan, address: str) -> Workers:
    """This node's part of a pipeline of several stages: the leader's worker, or ranks that follow it."""
    assert plan.node is not None
    topology = topology_of(pipeline)
    place = pipeline.nodes.index(plan.node)
    key = keys.rendezvous(plan.job_id, pipeline.id, pipeline.generation)
    directory = plan.log_dir / f"{pipeline.id}-{pipeline.generation:06d}"
    gpus = machine.gpus(settings().cuda_visible_devices)[: topology.node_ranks[place]]
    environment = {**plan.environments[0], **({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})}
    if place == 0:
        path = directory / "rendezvous.json"
        directory.mkdir(parents=True, exist_ok=True)
        formation = leader_options(topology, f"{pipeline.id}-{pipeline.generation}", address, path)
        options = {**plan.engine_options, "pipeline": formation}
        leading = replace(plan, environments=[environment], engine_options=options)
        return LeadingWorkers(bucket, leading).publish_from(path, bucket, key)
    options = {name: value for name, value in plan.engine_options.items() if name == "cpu_threads"}

    def start(meeting: Rendezvous) -> NodeProcess:
        return NodeProcess(meeting, place, address, directory, options=options, environment=environment)

    return FollowingNode(bucket, key, start)


def _listen(leave: Callable[[str], None]) -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: leave("SIGTERM"))
    signal.signal(signal.SIGINT, lambda number, frame: leave("SIGINT"))


if __name__ == "__main__":
    sys.exit(main())
