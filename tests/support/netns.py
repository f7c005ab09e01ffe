"""Two or more "hosts" on this machine: network namespaces with addresses of their own on one switch.

Processes are started on a host by starting them `inside` it; a cable can be cut so that packets vanish without a word,
as when a spot machine is taken away.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

_CLONE_NEWNET = 0x40000000
_RUN = Path("/var/run/netns")


class Hosts:
    """Namespaces `names`, all on one switch in a namespace of its own: this machine's network stays as it is."""

    def __init__(self, *names: str) -> None:
        self._tag = f"sv{os.getpid() % 100000}"
        self._names = names
        self.addresses = {name: f"10.213.7.{index}" for index, name in enumerate(names, 1)}

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._remove()

    def _make(self) -> None:
        switch = self._namespace("switch")
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for index, name in enumerate(self._names, 1):
            host = self._namespace(name)
            _ip("netns", "add", host)
            _ip("-n", switch, "link", "add", f"port{index}", "type", "veth", "peer", "name", "eth0", "netns", host)
            _ip("-n", switch, "link", "set", f"port{index}", "master", "bridge")
            _ip("-n", switch, "link", "set", f"port{index}", "up")
            _ip("-n", host, "link", "set", "lo", "up")
            _ip("-n", host, "address", "add", f"{self.addresses[name]}/24", "dev", "eth0")
            _ip("-n", host, "link", "set", "eth0", "up")

    def _remove(self) -> None:
        for name in (*self._names, "switch"):
            if (_RUN / self._namespace(name)).exists():
                _ip("netns", "delete", self._namespace(name))

    def _namespace(self, name: str) -> str:
        return f"{self._tag}-{name}"

    def cut(self, name: str) -> None:
        """Unplug the host's cable at the switch."""
        port = f"port{self._names.index(name) + 1}"
        _ip("-n", self._namespace("switch"), "link", "set", port, "nomaster")

    def mend(self, name: str) -> None:
        """Plug it in again."""
        port = f"port{self._names.index(name) + 1}"
        _ip("-n", self._namespace("switch"), "link", "set", port, "master", "bridge")

    def sent_bytes(self, name: str) -> int:
        """Bytes that this host has put on its cable so far."""
        counters = subprocess.run(
            ["ip", "netns", "exec", self._namespace(name), "cat", "/proc/net/dev"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        line = next(line for line in counters.splitlines() if line.strip().startswith("eth0:"))
        return int(line.split(":")[1].split()[8])

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """What this thread starts or connects meanwhile is on that host."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net", "rb") as before, (_RUN / self._namespace(name)).open("rb") as there:
            _enter(libc, there.fileno())
            try:
                yield
            finally:
                _enter(libc, before.fileno())


def _enter(libc: ctypes.CDLL, descriptor: int) -> None:
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def why_not() -> str | None:
    """What keeps this machine from having hosts in namespaces; None when nothing does."""
    if shutil.which("ip") is None:
        return "the `ip` command is missing (package iproute2)"
    if os.geteuid() != 0:
        return "network namespaces take root"
    try:
        with Hosts("probe"):
            return None
    except (subprocess.CalledProcessError, OSError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        return f"network namespaces cannot be made: {detail.strip()}"


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Two hosts, "a" and "b"."""
    if (cause := why_not()) is not None:
        pytest.skip(cause)
    with Hosts("a", "b") as made:
        yield made
