"""The wire format between worker and engine process."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuntserve.engine import frames
from shuntserve.engine.port import Delta, EngineLost, EngineReady, LossKind, Refused, SequenceRequest
from shuntserve.errors import Corrupt

TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
REQUESTS = st.builds(
    SequenceRequest,
    st.text(min_size=1, max_size=12),
    TOKENS,
    st.dictionaries(st.text(max_size=6), JSON, max_size=4),
    TOKENS,
    st.integers(-5, 5),
)
LOGPROBS = st.none() | st.lists(
    st.lists(
        st.tuples(
            st.integers(0, 9), st.floats(-9, 0), st.none() | st.integers(1, 9), st.none() | st.text(max_size=3)
        ).map(list),
        max_size=2,
    ),
    max_size=2,
)
DELTAS = st.builds(
    Delta,
    st.text(max_size=12),
    TOKENS,
    st.text(max_size=12),
    LOGPROBS,
    st.none() | st.sampled_from(["stop", "length"]),
    st.none() | st.integers(0, 9) | st.text(max_size=4),
)
TO_HOST = (
    st.builds(frames.Start, st.text(max_size=9), st.dictionaries(st.text(max_size=6), JSON, max_size=4))
    | st.builds(frames.Submit, st.lists(REQUESTS, max_size=3))
    | st.builds(frames.Abort, st.lists(st.text(max_size=9), max_size=3))
    | st.just(frames.Stop())
)
FROM_HOST = (
    st.builds(
        frames.Ready,
        st.builds(
            EngineReady,
            st.integers(1, 9),
            st.integers(1, 9),
            st.lists(st.integers(0, 9), max_size=3).map(tuple),
            st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3),
        ),
    )
    | st.builds(
        frames.Events,
        st.lists(DELTAS, max_size=3),
        st.lists(st.builds(Refused, st.text(max_size=4), st.text(max_size=4), st.text(max_size=9)), max_size=2),
    )
    | st.builds(frames.Pulse, st.integers(0, 2**60), st.floats(0, 1e6))
    | st.builds(frames.Lost, st.builds(EngineLost, st.sampled_from(LossKind), st.text(max_size=9)))
)


@given(st.lists(TO_HOST, max_size=5), st.integers(1, 40))
def test_frames_to_the_host_survive_any_cut_of_the_stream(sent: list[frames.ToHost], piece_bytes: int) -> None:
    """Whatever is sent is received, in order, however the bytes are cut."""
    stream = b"".join(frames.encode(frame) for frame in sent)
    splitter = frames.FrameSplitter()

    pieces = [stream[i : i + piece_bytes] for i in range(0, len(stream), piece_bytes)]
    received = [frames.decode_to_host(body) for piece in pieces for body in splitter.feed(piece)]

    assert received == sent


@given(st.lists(FROM_HOST, max_size=5), st.integers(1, 40))
def test_frames_from_the_host_survive_any_cut_of_the_stream(sent: list[frames.FromHost], piece_bytes: int) -> None:
    """The same in the other direction."""
    stream = b"".join(frames.encode(frame) for frame in sent)
    splitter = frames.FrameSplitter()

    pieces = [stream[i : i + piece_bytes] for i in range(0, len(stream), piece_bytes)]
    received = [frames.decode_from_host(body) for piece in pieces for body in splitter.feed(piece)]

    assert received == sent


def test_an_absurd_length_is_corrupt() -> None:
    """A stream out of step is noticed instead of waiting for gigabytes."""
    with pytest.raises(Corrupt):
        list(frames.FrameSplitter().feed(struct.pack("<I", frames.MAX_FRAME_BYTES + 1)))


@given(st.binary(max_size=64))
def test_bytes_that_are_no_frame_are_corrupt_or_a_frame(body: bytes) -> None:
    """Decoding raises Corrupt and nothing else."""
    for decode in (frames.decode_to_host, frames.decode_from_host):
        try:
            decode(body)
        except Corrupt:
            continue
