"""Activations between stages of m and n ranks: every byte once, for any sizes; and real processes that do it."""

from __future__ import annotations

import itertools
import multiprocessing
import socket
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from shuntserve.engine import transport
from shuntserve.engine.transport import Crossing
from shuntserve.errors import Corrupt

SIZES = st.integers(1, 8)


def crossing(senders: int, receivers: int, flows: int = 1) -> Crossing:
    return Crossing(tuple(range(senders)), tuple(range(senders, senders + receivers)), flows)


@given(SIZES, SIZES, st.integers(1, 8), st.integers(0, 3_000_000), st.sampled_from([1, 2, 4]))
def test_every_element_crosses_exactly_once(m: int, n: int, flows: int, elements: int, element_bytes: int) -> None:
    """Chunks partition the tensor, whether or not it divides: nothing is sent twice and nothing is forgotten."""
    chunks = sorted(crossing(m, n, flows).chunks(elements, element_bytes), key=lambda chunk: chunk.start)

    position = 0
    for chunk in chunks:
        assert chunk.start == position
        assert chunk.start < chunk.stop
        position = chunk.stop
    assert position == elements


@given(SIZES, SIZES, st.integers(1, 100_000))
def test_what_receivers_get_is_what_they_contribute(m: int, n: int, elements: int) -> None:
    """A receiver's chunks lie in its share, and the shares in order are the padded tensor."""
    both = crossing(m, n)
    shares = [both.share_of(receiver, elements) for receiver in both.receivers]

    assert shares[0][0] == 0
    assert all(left[1] == right[0] for left, right in itertools.pairwise(shares))
    assert len({stop - start for start, stop in shares}) == 1
    assert shares[-1][1] == both.part_elements(elements) * both.parts >= elements
    for chunk in both.chunks(elements, 4):
        start, stop = both.share_of(chunk.receiver, elements)
        assert start <= chunk.start < chunk.stop <= stop


@given(SIZES, SIZES, st.integers(8, 64))
def test_senders_share_the_work(m: int, n: int, tokens: int) -> None:
    """Each of m senders sends 1/m of a tensor that divides."""
    both = crossing(m, n)
    elements = tokens * both.parts
    sent = dict.fromkeys(both.senders, 0)
    for chunk in both.chunks(elements, 2):
        sent[chunk.sender] += chunk.stop - chunk.start

    assert set(sent.values()) == {elements // m}


def test_large_parts_use_several_connections_and_small_ones_do_not() -> None:
    """Below the least size a connection is worth, a second one would only add latency."""
    both = crossing(1, 1, flows=4)
    small, large = transport.MIN_FLOW_BYTES - 1, 4 * transport.MIN_FLOW_BYTES

    assert {chunk.flow for chunk in both.chunks(small, 1)} == {0}
    assert {chunk.flow for chunk in both.chunks(large, 1)} == {0, 1, 2, 3}


@pytest.mark.parametrize("names", [2, 40])
def test_heads_of_any_number_of_tensors_arrive(names: int) -> None:
    """A first message of fixed size holds the usual two tensors; many need a second."""
    tensors = {f"tensor {i}": torch.zeros(3, i + 1, dtype=torch.bfloat16) for i in range(names)}

    header, rest = transport.encode_heads(tensors)

    assert header.numel() == transport.HEADER_BYTES
    assert transport.header_rest_bytes(header) == (0 if rest is None else rest.numel())
    heads = transport.decode_heads(header, rest)
    assert [(head.name, head.shape, head.dtype) for head in heads] == [
        (name, list(tensor.shape), "bfloat16") for name, tensor in tensors.items()
    ]


def test_noise_instead_of_a_header_is_corrupt() -> None:
    """A stream out of step is told, not decoded into something."""
    with pytest.raises(Corrupt):
        transport.decode_heads(torch.full((transport.HEADER_BYTES,), 0xC1, dtype=torch.uint8), None)


# --- real processes

STEPS = 5


def tensors_of(step: int) -> dict[str, torch.Tensor]:
    """Of a different size in each step; one that divides, one that does not, one empty."""
    generator = torch.Generator().manual_seed(step)
    return {
        "hidden_states": torch.rand(step + 1, 48, generator=generator),
        "residual": torch.rand(step + 1, 7, generator=generator).bfloat16(),
        "nothing": torch.empty(0, 5),
    }


def run_rank(rank: int, m: int, n: int, flows: int, port: int, results: Any) -> None:
    """One rank of two stages; the receivers compare what they got."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=m + n)
    both = crossing(m, n, flows)
    group = dist.new_group(list(both.receivers), backend="gloo")
    lines = transport.Lines([both], rank, "gloo", torch.device("cpu"))
    transport.MIN_FLOW_BYTES = 16
    if rank in both.senders:
        sender = transport.Sender(both, lines, rank)
        for step in range(STEPS):
            for handle in sender.send(tensors_of(step)):
                handle.wait()
                handle.wait()
        dist.barrier()
        results.put((rank, sender.counters))
    else:

        def gather(part: torch.Tensor) -> torch.Tensor:
            whole = torch.empty(part.numel() * n, dtype=part.dtype)
            dist.all_gather_into_tensor(whole, part.contiguous(), group=group)
            return whole

        receiver = transport.Receiver(both, lines, rank, torch.device("cpu"), gather)
        equal = 0
        for step in range(STEPS):
            got, handles, finishing = receiver.receive()
            for handle in handles:
                handle.wait()
            for finish in finishing:
                finish()
            expected = tensors_of(step)
            equal += list(got) == list(expected) and all(torch.equal(got[name], expected[name]) for name in expected)
        dist.barrier()
        results.put((rank, equal))


@pytest.mark.parametrize(("m", "n", "flows"), [(1, 1, 3), (2, 1, 1), (1, 2, 2), (3, 2, 1)])
def test_tensors_cross_whole_and_once_between_processes(m: int, n: int, flows: int) -> None:
    """Over real connections each receiver has each tensor bit by bit, and the senders together have sent no more than
    the tensors' own bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        store = dist.TCPStore(  # noqa: F841 -- serves while it lives
            "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=run_rank, args=(rank, m, n, flows, port, results)) for rank in range(m + n)]
    for process in ranks:
        process.start()
    answers = dict(results.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join(30)

    assert [answers[rank] for rank in range(m, m + n)] == [STEPS] * n
    activations = sum(tensor.nbytes for step in range(STEPS) for tensor in tensors_of(step).values())
    counters = [answers[rank] for rank in range(m)]
    assert sum(counter.tensor_bytes for counter in counters) == activations
    assert sum(counter.activation_bytes for counter in counters) == activations
