"""How activations cross from a stage of m ranks to a stage of n ranks: each byte once.

Every rank of the sending stage holds the whole activations, and every rank of the receiving stage needs them. A tensor
is cut into lcm(m, n) equal parts; each sender sends its share of them, each receiver takes its share, and the
receivers' tensor parallel group, which has the fast links, puts them together:

    m = 2 → n = 3, 6 parts       sender 0: 0 1 2    sender 1: 3 4 5
                                 receiver 0: 0 1    receiver 1: 2 3    receiver 2: 4 5

Where one TCP connection is slower than the network, an edge between two ranks uses several, each for a part of every
large part. All sends and receives are asynchronous, so they overlap with computing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from shuntserve.errors import Corrupt

MIN_FLOW_BYTES = 128 * 1024
"""A chunk is spread over several connections only when each gets at least this much: below, latency decides."""
HEADER_BYTES = 512
_LENGTH_BYTES = 4


# --- who sends what to whom


@dataclass(frozen=True, slots=True)
class Chunk:
    """Elements [start, stop) of the flattened tensor, from one rank to another over connection `flow`."""

    sender: int
    receiver: int
    flow: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Crossing:
    """Two neighbouring stages, by their global ranks, and how many connections each pair of ranks may use."""

    senders: tuple[int, ...]
    receivers: tuple[int, ...]
    flows: int = 1

    @property
    def parts(self) -> int:
        return math.lcm(len(self.senders), len(self.receivers))

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """Pairs of ranks that talk, each once."""
        return tuple(dict.fromkeys(self._pair(part) for part in range(self.parts)))

    def _pair(self, part: int) -> tuple[int, int]:
        sender = self.senders[part * len(self.senders) // self.parts]
        return sender, self.receivers[part * len(self.receivers) // self.parts]

    def header_sender(self, receiver: int) -> int:
        """The one rank that tells `receiver` what is coming."""
        return next(sender for sender, other in self.edges if other == receiver)

    def part_elements(self, elements: int) -> int:
        """Elements of one part; the last parts of a tensor that does not divide are shorter, or empty."""
        return -(-elements // self.parts)

    def share_of(self, receiver: int, elements: int) -> tuple[int, int]:
        """Elements [start, stop) of the padded tensor that `receiver` contributes to the gathering."""
        size = self.part_elements(elements) * (self.parts // len(self.receivers))
        index = self.receivers.index(receiver)
        return index * size, (index + 1) * size

    def chunks(self, elements: int, element_bytes: int) -> Iterator[Chunk]:
        """Every element exactly once, in an order that both ends agree on."""
        size = self.part_elements(elements)
        flows = max(1, min(self.flows, size * element_bytes // MIN_FLOW_BYTES))
        for part in range(self.parts):
            sender, receiver = self._pair(part)
            begin, end = min(part * size, elements), min((part + 1) * size, elements)
            step = -(-(end - begin) // flows) if end > begin else 1
            for flow, start in enumerate(range(begin, end, step)):
                yield Chunk(sender, receiver, flow, start, min(start + step, end))


# --- what is coming


class TensorHead(msgspec.Struct, frozen=True, array_like=True):
    """Name, element type and shape of one tensor, and whether it lives on the CPU."""

    name: str
    dtype: str
    shape: list[int]
    on_cpu: bool


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[TensorHead])


def encode_heads(tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A first message of HEADER_BYTES, and a second with the rest when that is not enough."""
    body = _encoder.encode(
        [
            TensorHead(name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), tensor.is_cpu)
            for name, tensor in tensors.items()
        ]
    )
    room = HEADER_BYTES - _LENGTH_BYTES
    first = len(body).to_bytes(_LENGTH_BYTES, "little") + body[:room]
    header = torch.frombuffer(bytearray(first.ljust(HEADER_BYTES, b"\0")), dtype=torch.uint8)
    rest = torch.frombuffer(bytearray(body[room:]), dtype=torch.uint8) if len(body) > room else None
    return header, rest


def header_rest_bytes(header: torch.Tensor) -> int:
    """How long the second message is, 0 when there is none."""
    length = int.from_bytes(header[:_LENGTH_BYTES].numpy().tobytes(), "little")
    return max(0, length - (HEADER_BYTES - _LENGTH_BYTES))


def decode_heads(header: torch.Tensor, rest: torch.Tensor | None) -> list[TensorHead]:
    raw = header.numpy().tobytes()
    length = int.from_bytes(raw[:_LENGTH_BYTES], "little")
    body = raw[_LENGTH_BYTES:] + (rest.numpy().tobytes() if rest is not None else b"")
    try:
        return _decoder.decode(body[:length])
    except msgspec.DecodeError as error:
        raise Corrupt("message between stages", f"does not decode: {error}", "start a new generation") from error


# --- moving it


class Sent:
    """One asynchronous operation and what it needs alive. `wait` may be called again: gloo's own may not."""

    __slots__ = ("_kept", "_work")

    def __init__(self, work: Any, kept: torch.Tensor) -> None:
        self._work = work
        self._kept: torch.Tensor | None = kept

    def is_completed(self) -> bool:
        return self._work is None or bool(self._work.is_completed())

    def wait(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work.wait()
        self._kept = None


@dataclass(slots=True)
class Counters:
    """What one rank has sent so far. `activation_bytes` counts each tensor once per stage: its first rank counts."""

    steps: int = 0
    tensor_bytes: int = 0
    header_bytes: int = 0
    activation_bytes: int = 0


Gather = Callable[[torch.Tensor], torch.Tensor]


class Lines:
    """The process groups of two ranks each over which activations come and go. Made by every rank of the world in the
    same order; keeps those this rank takes part in."""

    def __init__(self, crossings: Sequence[Crossing], rank: int, backend: str, device: torch.device) -> None:
        self._headers: dict[tuple[int, int], Any] = {}
        self._flows: dict[tuple[int, int], list[Any]] = {}
        self._host_flows: dict[tuple[int, int], list[Any]] = {}
        for crossing in crossings:
            for edge in crossing.edges:
                header = dist.new_group(list(edge), backend="gloo")
                flows = [dist.new_group(list(edge), backend=backend) for _ in range(crossing.flows)]
                if rank in edge:
                    _greet(edge, rank, [header], torch.device("cpu"))
                    _greet(edge, rank, flows, device)
                    self._headers[edge] = header
                    self._flows[edge] = flows
                    self._host_flows[edge] = flows if backend == "gloo" else [header] * crossing.flows

    def header(self, sender: int, receiver: int) -> Any:
        return self._headers[sender, receiver]

    def flow(self, chunk: Chunk, on_cpu: bool) -> Any:
        """The group for one chunk; tensors in host memory do not go over a device's groups."""
        lines = self._host_flows if on_cpu else self._flows
        return lines[chunk.sender, chunk.receiver][chunk.flow]


def _greet(edge: tuple[int, int], rank: int, groups: Sequence[Any], device: torch.device) -> None:
    """One byte over each connection: what keeps two hosts apart shows now and not in the first step, and what the
    connections of a device take of its memory is taken before that is measured."""
    for group in groups:
        byte = torch.zeros(1, dtype=torch.uint8, device=device)
        if rank == edge[0]:
            dist.send(byte, edge[1], group=group)
        else:
            dist.recv(byte, edge[0], group=group)


class Sender:
    """This rank's side of the crossing to the next stage."""

    def __init__(self, crossing: Crossing, lines: Lines, rank: int) -> None:
        self._crossing = crossing
        self._lines = lines
        self._rank = rank
        self._counts_activations = rank == crossing.senders[0]
        self._headers: list[Sent] = []
        self.counters = Counters()

    def send(self, tensors: Mapping[str, torch.Tensor]) -> list[Sent]:
        """Begin sending this rank's share. The handles of the tensors must be waited for before the next call, and
        before the tensors are written to."""
        for sent in self._headers:  # of the step before: whoever received its tensors has its header
            sent.wait()
        self._headers = self._send_headers(tensors)
        handles: list[Sent] = []
        for tensor in tensors.values():
            flat = tensor.contiguous().view(-1)
            for chunk in self._crossing.chunks(flat.numel(), flat.element_size()):
                if chunk.sender == self._rank:
                    part = flat[chunk.start : chunk.stop]
                    work = dist.isend(part, chunk.receiver, group=self._lines.flow(chunk, tensor.is_cpu))
                    handles.append(Sent(work, part))
                    self.counters.tensor_bytes += part.nbytes
            if flat.is_cuda:
                flat.record_stream(torch.cuda.current_stream(flat.device))
        self.counters.steps += 1
        if self._counts_activations:
            self.counters.activation_bytes += sum(tensor.nbytes for tensor in tensors.values())
        return handles

    def _send_headers(self, tensors: Mapping[str, torch.Tensor]) -> list[Sent]:
        header, rest = encode_heads(tensors)
        sent: list[Sent] = []
        for receiver in dict.fromkeys(other for sender, other in self._crossing.edges if sender == self._rank):
            if self._crossing.header_sender(receiver) == self._rank:
                group = self._lines.header(self._rank, receiver)
                for message in (header, rest) if rest is not None else (header,):
                    sent.append(Sent(dist.isend(message, receiver, group=group), message))
                    self.counters.header_bytes += message.nbytes
        return sent


class Receiver:
    """This rank's side of the crossing from the stage before."""

    def __init__(self, crossing: Crossing, lines: Lines, rank: int, device: torch.device, gather: Gather) -> None:
        """`gather` concatenates what each rank of this stage gives, in the order of `crossing.receivers`."""
        self._crossing = crossing
        self._lines = lines
        self._rank = rank
        self._device = device
        self._gather = gather

    def receive(self) -> tuple[dict[str, torch.Tensor], list[Sent], list[Callable[[], None]]]:
        """Waits for the header, begins to receive the tensors. They are whole once all handles were waited for and then
        all the functions called, in order."""
        tensors: dict[str, torch.Tensor] = {}
        handles: list[Sent] = []
        finishing: list[Callable[[], None]] = []
        for head in self._heads():
            elements = math.prod(head.shape)
            dtype: torch.dtype = getattr(torch, head.dtype)
            device = torch.device("cpu") if head.on_cpu else self._device
            padded = torch.empty(
                self._crossing.part_elements(elements) * self._crossing.parts, dtype=dtype, device=device
            )
            for chunk in self._crossing.chunks(elements, padded.element_size()):
                if chunk.receiver == self._rank:
                    part = padded[chunk.start : chunk.stop]
                    work = dist.irecv(part, chunk.sender, group=self._lines.flow(chunk, head.on_cpu))
                    handles.append(Sent(work, part))
            tensors[head.name] = padded[:elements].view(head.shape)
            if len(self._crossing.receivers) > 1 and elements:
                finishing.append(self._gathering(tensors, head, padded, elements))
        return tensors, handles, finishing

    def _gathering(
        self, tensors: dict[str, torch.Tensor], head: TensorHead, padded: torch.Tensor, elements: int
    ) -> Callable[[], None]:
        start, stop = self._crossing.share_of(self._rank, elements)

        def gather() -> None:
            tensors[head.name] = self._gather(padded[start:stop])[:elements].view(head.shape)

        return gather

    def _heads(self) -> list[TensorHead]:
        sender = self._crossing.header_sender(self._rank)
        group = self._lines.header(sender, self._rank)
        header = torch.empty(HEADER_BYTES, dtype=torch.uint8)
        dist.recv(header, sender, group=group)
        rest = None
        if (length := header_rest_bytes(header)) > 0:
            rest = torch.empty(length, dtype=torch.uint8)
            dist.recv(rest, sender, group=group)
        return decode_heads(header, rest)
