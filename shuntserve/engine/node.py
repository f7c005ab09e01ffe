"""A node process: the ranks of one pipeline that run on this host, for one generation, led from elsewhere.

    python -m shuntserve.engine.node --rendezvous FILE --node N --address IP [--options JSON] [--log FILE]

It joins the leader named in the rendezvous, takes over its options, starts its workers and lives exactly as long as
the generation: the end of the leader, of the network, of one of its workers or of its parent ends it and its workers.
The exit status says which (`Exit`).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import IntEnum
from multiprocessing import connection
from pathlib import Path
from typing import Any

import shuntserve
from shuntserve import telemetry
from shuntserve.core.near_miss import did_you_mean
from shuntserve.core.rendezvous import Rendezvous
from shuntserve.engine import compat, plugin
from shuntserve.engine.formation import use_address, use_connections
from shuntserve.engine.lifeline import die_with_parent
from shuntserve.engine.links import Hello, LinkWatch, Message, Refusal, Running, Trouble, Welcome, Wire
from shuntserve.engine.logtail import shortened, with_cause
from shuntserve.engine.membership import MEMBERSHIP_VARIABLE, Membership
from shuntserve.engine.pipeline_options import JOINING, TIMEOUTS_S, config_sha256
from shuntserve.engine.port import EngineLost, LossKind
from shuntserve.engine.process import loss_by_exit_status
from shuntserve.engine.session import kill_below
from shuntserve.engine.vllm_options import VllmOptions, check_model, prepare_environment, vllm_config
from shuntserve.errors import Conflict, InvalidInput, NotFound, ShuntServeError, Unavailable

LOCAL_ENGINE_OPTIONS = frozenset(
    {"gpu_memory_utilization", "kv_cache_memory_bytes", "cpu_offload_gb", "load_format", "safetensors_load_strategy"}
)
"""What a node may choose by itself; everything else must be the same everywhere and comes from the leader."""
_LOCAL_OPTIONS = ("model", "revision", "tokenizer", "tokenizer_revision", "cpu_threads", "engine")
_KNOCK_S = 0.5
_CONNECT_TIMEOUT_S = 5.0


class Exit(IntEnum):
    """How a node process ended."""

    FAILED = 1
    """By itself: a worker died, or it cannot run its stages; the leader was told."""
    OVER = 10
    """The generation is over: its leader is gone, or cannot be reached any more."""
    REFUSED = 11
    """The leader does not want this node: another generation, another release, another model."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m shuntserve.engine.node", description=__doc__)
    parser.add_argument("--rendezvous", type=Path, required=True, help="file with the leader's rendezvous")
    parser.add_argument("--node", type=int, required=True, help="which node of the topology this is (1 or more)")
    parser.add_argument("--address", required=True, help="private address of this host")
    parser.add_argument("--options", default="{}", help=f"JSON: {', '.join(_LOCAL_OPTIONS)} of this host")
    parser.add_argument("--log", type=Path, default=None, help="where standard error goes, to quote from")
    parser.add_argument("--parent", type=int, default=None, help="process id of whoever starts this")
    parser.add_argument("--join-timeout", type=float, default=TIMEOUTS_S[JOINING], help="seconds")
    arguments = parser.parse_args(argv)
    die_with_parent(arguments.parent)
    with contextlib.suppress(PermissionError):  # we lead one already
        os.setsid()
    telemetry.log_to(sys.stderr, "info")
    return int(Node(arguments.node, arguments.address, arguments.log).run(arguments))


class Node:
    """One life of a node process."""

    def __init__(self, node: int, address: str, log_path: Path | None) -> None:
        self._node = node
        self._address = address
        self._log_path = log_path
        self._wire: Wire | None = None
        self._watch: LinkWatch | None = None

    def run(self, arguments: argparse.Namespace) -> Exit:
        try:
            use_address(self._address)
            rendezvous = read_rendezvous(arguments.rendezvous)
            local = local_options(arguments.options)
            compat.check_version()
            self._wire = knock(rendezvous, self._node, arguments.join_timeout)
            _import_engine(local)  # while the leader is busy
            welcome = _await_welcome(self._wire, arguments.join_timeout)
            self._watch = LinkWatch({0: self._wire}, self._heard, self._lost_link)
            self._watch.start()
            loss = self._work(rendezvous, welcome, local)
        except Conflict as error:
            return self._say(Exit.REFUSED, str(error))
        except Unavailable as error:
            return self._say(Exit.OVER, str(error))
        except InvalidInput as error:
            loss = EngineLost(LossKind.INVALID, str(error))
        except ShuntServeError as error:
            loss = EngineLost(LossKind.CRASHED, str(error))
        except Exception as error:  # the outermost runner of this process: whatever it is, the leader is told
            sys.excepthook(type(error), error, error.__traceback__)
            loss = EngineLost(LossKind.CRASHED, shortened(f"{type(error).__name__}: {error}"))
        self._tell(loss)
        return self._say(Exit.FAILED, loss.detail)

    def _work(self, rendezvous: Rendezvous, welcome: Welcome, local: Mapping[str, Any]) -> EngineLost:
        """Run the workers until one of them dies."""
        options = joined_options(welcome.options, local)
        check_model(options.model)
        check_same_model(options.model, welcome.options.get("config_sha256"))
        prepare_environment(options)
        if options.pipeline is not None:
            use_connections(options.pipeline.flows)
        os.environ[plugin.HOST_PID_VARIABLE] = str(os.getpid())
        os.environ[MEMBERSHIP_VARIABLE] = Membership(
            rendezvous.generation, rendezvous.address, welcome.store_port, self._node
        ).to_environment()
        from shuntserve.engine.node_workers import start_workers

        config = vllm_config(options, self._node)
        compat.check_touch_points(v2_runner=config.use_v2_model_runner)
        handles = start_workers(config, self._node)  # kept: a worker takes the end of its handle for our end
        workers = {handle.proc.sentinel: handle.proc for handle in handles}
        died = connection.wait(list(workers))
        process = workers[died[0]]
        process.join(1.0)
        status = process.exitcode
        return loss_by_exit_status(f"worker {process.name}", status if status is not None else 1)

    # --- on the link's thread

    def _heard(self, leader: int, message: Message) -> None:
        if isinstance(message, Running) and self._watch is not None:
            self._watch.set_running()

    def _lost_link(self, leader: int, cause: str) -> None:
        status = self._say(Exit.OVER, f"the leader is lost: {cause}")
        kill_below()
        os._exit(status)

    # --- the end

    def _tell(self, loss: EngineLost) -> None:
        if self._log_path is not None and loss.kind is LossKind.CRASHED:
            loss = EngineLost(loss.kind, with_cause(loss.detail, self._log_path))
        if self._wire is not None:
            with contextlib.suppress(OSError):
                self._wire.send(Trouble(loss.kind.value, loss.detail))

    def _say(self, status: Exit, cause: str) -> Exit:
        telemetry.emit(telemetry.Event.PIPELINE_NODE_LOST, node=self._node, outcome=status.name.lower(), cause=cause)
        return status


# --- joining


def read_rendezvous(path: Path) -> Rendezvous:
    """Raises NotFound, or Corrupt."""
    try:
        return Rendezvous.from_json(path.read_text())
    except OSError as error:
        raise NotFound(f"rendezvous {path}", error.strerror or str(error), "wait for the leader") from error


def knock(rendezvous: Rendezvous, node: int, timeout_s: float) -> Wire:
    """Connect to the leader and say hello. Raises Unavailable when nobody answers in time."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            wire = Wire(socket.create_connection((rendezvous.address, rendezvous.port), timeout=_CONNECT_TIMEOUT_S))
            wire.settimeout(None)
            wire.send(
                Hello(rendezvous.generation, rendezvous.token, node, shuntserve.__version__, compat.installed_version())
            )
        except OSError as error:
            if time.monotonic() >= deadline_s:
                raise Unavailable(
                    f"leader of generation {rendezvous.generation}",
                    f"connecting to {rendezvous.address}:{rendezvous.port}: {error.strerror or error}",
                    "see whether it still lives, and whether this host reaches it",
                ) from error
            time.sleep(_KNOCK_S)
        else:
            return wire


def _await_welcome(wire: Wire, timeout_s: float) -> Welcome:
    """Raises Conflict when refused, Unavailable when the leader goes or the others do not come."""
    deadline_s = time.monotonic() + timeout_s
    while (left_s := deadline_s - time.monotonic()) > 0:
        wire.settimeout(left_s)
        try:
            messages = wire.read()
        except TimeoutError:
            break
        except (OSError, EOFError) as error:
            raise Unavailable("leader of the pipeline", f"ended while {JOINING}", "wait for the next plan") from error
        for message in messages:
            if isinstance(message, Refusal):
                raise Conflict("this node", f"was refused by the leader: {message.cause}", "wait for the next plan")
            if isinstance(message, Welcome):
                wire.settimeout(None)
                return message
    raise Unavailable("pipeline", f"{JOINING}: still after {timeout_s:g} s", "see the other nodes' logs")


# --- options


def local_options(text: str) -> dict[str, Any]:
    """Raises InvalidInput for what a node may not choose."""
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise InvalidInput("--options", f"is no JSON: {error}", "give an object") from error
    if not isinstance(raw, dict):
        raise InvalidInput("--options", "is no object", f"give {', '.join(_LOCAL_OPTIONS)}")
    for name in raw:
        if name not in _LOCAL_OPTIONS:
            raise InvalidInput(f"option {name!r} of a node", "is unknown", did_you_mean(name, _LOCAL_OPTIONS))
    for name in raw.get("engine") or {}:
        if name not in LOCAL_ENGINE_OPTIONS:
            raise InvalidInput(f"engine option {name!r} of a node", "must be the same on all nodes", "tell the leader")
    return raw


def _import_engine(local: Mapping[str, Any]) -> None:
    """The seconds that importing vLLM takes, with the environment it wants to see."""
    prepare_environment(VllmOptions(model="", cpu_threads=local.get("cpu_threads")))
    importlib.import_module("shuntserve.engine.node_workers")


def joined_options(leader: Mapping[str, Any], local: Mapping[str, Any]) -> VllmOptions:
    """The leader's options with this host's own on top."""
    known = {item.name for item in fields(VllmOptions)}
    merged = {name: value for name, value in leader.items() if name in known}
    merged |= {name: value for name, value in local.items() if name != "engine"}
    merged["engine"] = {**leader["engine"], **(local.get("engine") or {})}
    return VllmOptions.from_mapping(merged)


def check_same_model(model: str, leaders: str | None) -> None:
    """Raises InvalidInput when leader and node have different models under their names."""
    ours = config_sha256(model)
    if ours is not None and leaders is not None and ours != leaders:
        raise InvalidInput(f"model {model}", "has another config.json than the leader's", "fetch the same model here")


if __name__ == "__main__":
    status = main()
    kill_below()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the workers are gone: exit hooks of foreign libraries may hang
