"""Links between nodes: each way in which the other end can be gone, and who may join."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import shuntserve
from shuntserve.core.rendezvous import Rendezvous
from shuntserve.core.topology import PipelineTopology
from shuntserve.engine import compat, formation, links
from shuntserve.engine.links import Beat, Hello, LinkWatch, Refusal, Running, Trouble, Welcome, Wire
from shuntserve.engine.pipeline_options import JOINING, PipelineOptions
from shuntserve.engine.port import EngineLost, LossKind
from shuntserve.errors import Corrupt, InvalidInput, Unavailable


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
        with near, far:
            yield near, far


class Watched:
    """A link watch that notes what it tells."""

    def __init__(self, near: socket.socket) -> None:
        self.heard: queue.Queue[links.Message] = queue.Queue()
        self.lost: queue.Queue[str] = queue.Queue()
        self.watch = LinkWatch(
            {1: Wire(near)}, lambda node, message: self.heard.put(message), lambda node, cause: self.lost.put(cause)
        )
        self.watch.start()


def test_messages_arrive_whole_and_beats_stay_below(pair: tuple[socket.socket, socket.socket]) -> None:
    """Both ends hear what the other says; beats keep the link alive and bother nobody."""
    watched = Watched(pair[0])
    far = Wire(pair[1])

    far.send(Beat())
    far.send(Trouble("crashed", "a long story " * 500))

    assert watched.heard.get(timeout=5) == Trouble("crashed", "a long story " * 500)
    assert far.read() == [Beat()]
    watched.watch.close()


def test_the_end_of_the_other_process_is_told_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    """End of stream: the loss is known well before any timeout."""
    watched = Watched(pair[0])
    began_s = time.monotonic()

    pair[1].close()

    assert watched.lost.get(timeout=5) in ("its process has ended", "the connection broke: Connection reset by peer")
    assert time.monotonic() - began_s < links.LINK_TIMEOUT_S


def test_silence_is_a_loss_while_running_and_not_before(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that imports modules for long may be deaf; one that runs may not."""
    monkeypatch.setattr(links, "RUN_SILENCE_S", 0.5)
    monkeypatch.setattr(links, "BEAT_S", 0.1)
    watched = Watched(pair[0])
    time.sleep(1.0)
    assert watched.lost.empty()

    watched.watch.set_running()

    assert watched.lost.get(timeout=5).startswith("silent for")


def test_noise_on_a_link_is_a_loss(pair: tuple[socket.socket, socket.socket]) -> None:
    """What no node of ours would say ends the link, and nothing is decoded from it."""
    watched = Watched(pair[0])

    pair[1].sendall(b"\x02\x00\x00\x00\xc1\xc1")

    assert "does not decode" in watched.lost.get(timeout=5)


def test_a_length_out_of_all_proportion_is_corrupt(pair: tuple[socket.socket, socket.socket]) -> None:
    """A stranger cannot make us wait for a gigabyte."""
    pair[1].sendall(b"\xff\xff\xff\x7f")

    with pytest.raises(Corrupt, match="bytes announced"):
        Wire(pair[0]).read()


def test_a_forked_child_does_not_keep_a_link_open(pair: tuple[socket.socket, socket.socket]) -> None:
    """A process with a link forks a child and dies: the other end sees that at once, although the child lives on."""
    near, far = pair
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        far.close()
        watch = LinkWatch({1: Wire(near)}, lambda node, message: None, lambda node, cause: None)
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        watch.start()
        os.write(writing, child.to_bytes(4, "little"))
        os._exit(0)
    near.close()
    child = int.from_bytes(os.read(reading, 4), "little")
    os.waitpid(parent, 0)
    try:
        far.settimeout(5.0)
        with contextlib.suppress(ConnectionResetError):
            while far.recv(4096):
                pass
        assert Path(f"/proc/{child}").exists()
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(reading)
        os.close(writing)


# --- forming a generation, without an engine

TWO_NODES = PipelineTopology.of([1, 1], [4, 4], node_ranks=[1, 1])


def options_for(tmp_path: Path, **more: object) -> PipelineOptions:
    return PipelineOptions.from_mapping(
        {
            "topology": TWO_NODES.to_json(),
            "generation": "g",
            "rendezvous_path": str(tmp_path / "rendezvous.json"),
            **more,
        }
    )


def hello(rendezvous: Rendezvous, **changes: object) -> Hello:
    values = {
        "generation": rendezvous.generation,
        "token": rendezvous.token,
        "node": 1,
        "package": shuntserve.__version__,
        "engine": compat.installed_version(),
    }
    return Hello(**{**values, **changes})  # type: ignore[arg-type]


def knock(rendezvous: Rendezvous, message: Hello) -> Wire:
    wire = Wire(socket.create_connection((rendezvous.address, rendezvous.port), timeout=30))
    wire.send(message)
    return wire


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"generation": "g-of-before"}, "generation g-of-before is not g-"),
        ({"token": "guessed"}, "its token is wrong"),
        ({"node": 0}, "there is no node 0"),
        ({"node": 2}, "there is no node 2"),
        ({"engine": "0.1"}, "it runs shuntserve"),
    ],
)
def test_who_does_not_belong_is_refused_and_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], cause: str
) -> None:
    """Another generation, a stranger, another release: refused, while the right node still joins."""
    for name in ("VLLM_HOST_IP", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "SHUNTSERVE_PIPELINE_MEMBERSHIP"):
        monkeypatch.setenv(name, "")
    forming = formation.Formation(options_for(tmp_path))
    rendezvous = forming.open()
    assert Rendezvous.from_json((tmp_path / "rendezvous.json").read_text()) == rendezvous
    admitting = threading.Thread(target=forming.admit, args=({"model": "m"},))
    admitting.start()

    (refusal,) = knock(rendezvous, hello(rendezvous, **changes)).read()
    joined = knock(rendezvous, hello(rendezvous))
    welcome = joined.read()[0]
    admitting.join(30)
    forming.close()

    assert isinstance(refusal, Refusal)
    assert cause in refusal.cause
    assert isinstance(welcome, Welcome)
    assert welcome.options == {"model": "m"}


def test_a_node_that_died_while_others_were_awaited_may_join_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first connection is over: the second one counts. While the first lives, a second is refused."""
    for name in ("VLLM_HOST_IP", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "SHUNTSERVE_PIPELINE_MEMBERSHIP"):
        monkeypatch.setenv(name, "")
    three = PipelineTopology.of([1, 1, 1], [3, 3, 2], node_ranks=[1, 1, 1])
    forming = formation.Formation(options_for(tmp_path, topology=three.to_json()))
    rendezvous = forming.open()
    admitting = threading.Thread(target=forming.admit, args=({"model": "m"},))
    admitting.start()

    first = knock(rendezvous, hello(rendezvous))
    (refusal,) = knock(rendezvous, hello(rendezvous)).read()
    first.close()
    again = knock(rendezvous, hello(rendezvous))
    other = knock(rendezvous, hello(rendezvous, node=2))
    welcomes = [wire.first() for wire in (again, other)]
    admitting.join(30)
    forming.close()

    assert isinstance(refusal, Refusal)
    assert "node 1 has joined already" in refusal.cause
    assert all(isinstance(welcome, Welcome) for welcome in welcomes)


def test_nodes_that_do_not_come_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The phase, the node and the limit are in the error; a stranger who says nothing delays nobody."""
    for name in ("VLLM_HOST_IP", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "SHUNTSERVE_PIPELINE_MEMBERSHIP"):
        monkeypatch.setenv(name, "")
    forming = formation.Formation(options_for(tmp_path, timeouts_s={JOINING: 0.5}))
    forming.open()

    with pytest.raises(Unavailable, match=rf"{JOINING}: node 1 did not join within 0\.5 s"):
        forming.admit({})
    forming.close()


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    """The error lists the addresses that there are."""
    with pytest.raises(InvalidInput, match=r"203\.0\.113\.9: is not one of this machine — use one of .*127\.0\.0\.1"):
        formation.Formation(options_for(tmp_path, address="203.0.113.9")).open()


KILLED = EngineLost(LossKind.KILLED, "killed")
CRASHED = EngineLost(LossKind.CRASHED, "crashed")


@pytest.mark.parametrize(
    ("remote", "local", "local_died_first", "verdict"),
    [
        ([CRASHED], None, False, CRASHED),
        ([CRASHED, KILLED], None, False, KILLED),
        ([CRASHED], KILLED, True, KILLED),
        ([CRASHED], KILLED, False, CRASHED),
        ([], CRASHED, True, CRASHED),
        ([], None, False, None),
    ],
)
def test_a_kill_explains_crashes_and_our_own_kills_explain_nothing(
    tmp_path: Path,
    remote: list[EngineLost],
    local: EngineLost | None,
    local_died_first: bool,
    verdict: EngineLost | None,
) -> None:
    """Rows are blamed only when nothing was killed, here or there; that we ended the engine ourselves is no kill."""
    forming = formation.Formation(options_for(tmp_path))
    forming._local_death = lambda: local_died_first
    for loss in remote:
        forming._lose(1, loss)

    assert forming.verdict(local) == verdict


def test_a_node_process_without_its_parent_or_leader_ends(tmp_path: Path) -> None:
    """Nobody answers at the rendezvous: the node says so and ends as `OVER`. Its parent is killed: it is gone too."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        silent = Rendezvous("g", "127.0.0.1", listener.getsockname()[1], "token")
    (tmp_path / "rendezvous.json").write_text(silent.to_json())
    command = [
        *(sys.executable, "-m", "shuntserve.engine.node", f"--rendezvous={tmp_path / 'rendezvous.json'}"),
        *("--node=1", "--address=127.0.0.1"),
    ]

    alone = subprocess.run([*command, "--join-timeout=1"], capture_output=True, text=True, timeout=60, check=False)
    program = f"import subprocess, time; print(subprocess.Popen({command!r}).pid, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        node = int(parent.stdout.readline())
        time.sleep(2.0)
        assert Path(f"/proc/{node}").exists()
        parent.kill()
    deadline_s = time.monotonic() + 5
    while Path(f"/proc/{node}").exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)

    assert alone.returncode == 10, alone.stderr
    assert "see whether it still lives" in alone.stderr
    assert not Path(f"/proc/{node}").exists()


def test_running_is_a_message_of_its_own(pair: tuple[socket.socket, socket.socket]) -> None:
    """The leader's word that the engine is up reaches every node."""
    watched = Watched(pair[0])
    watched.watch.tell(Running())

    assert Running() in Wire(pair[1]).read()
    watched.watch.close()
