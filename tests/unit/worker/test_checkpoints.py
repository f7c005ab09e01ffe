"""Encoding of checkpoints and joining of epochs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuntserve.core.ledger import Rules
from shuntserve.errors import Corrupt
from shuntserve.job.checkpoints import Entry, decode, encode, join

tokens = st.lists(st.integers(0, 2**31 - 1), max_size=20)
entries = st.builds(
    Entry,
    row=st.integers(0, 5),
    sample_index=st.integers(0, 2),
    start=st.integers(0, 100),
    token_ids=tokens,
    text=st.text(max_size=20),
    logprobs=st.none(),
    resumed_count=st.integers(0, 9),
    tokens_kept=st.integers(0, 99),
    finish_reason=st.none() | st.sampled_from(["stop", "length"]),
    stop_reason=st.none() | st.text(max_size=5),
    code=st.none() | st.just("engine_crash"),
    message=st.none() | st.text(max_size=10),
)


@given(st.lists(entries, max_size=10))
def test_decode_of_encode_is_the_same(many: list[Entry]) -> None:
    """What a successor reads is what was written."""
    assert decode("key", encode(many, "writer")) == many


def test_the_same_entries_of_the_same_writer_are_the_same_bytes() -> None:
    """A repeated create is recognised by its bytes, so encoding must not vary."""
    one = [Entry(0, 0, 0, [1, 2, 3], "abc", [[{"token_id": 1, "logprob": -0.5, "rank": 1, "token": "a"}]] * 3)]

    assert encode(one, "w") == encode(one, "w")
    assert encode(one, "w") != encode(one, "other")


@pytest.mark.parametrize("cut", [0, 1, 10, 100, -1])
def test_a_torn_object_is_corrupt_and_named(cut: int) -> None:
    """Half an object is never read as a shorter whole one."""
    body = encode([Entry(0, 0, 0, list(range(50)), "text")], "writer")

    with pytest.raises(Corrupt, match="some/key"):
        decode("some/key", body[:cut])


def test_logprobs_and_text_follow_the_chosen_stream() -> None:
    """Everything of a sequence comes from the one epoch whose stream was taken."""
    old = [[Entry(0, 0, 0, [1], "a", [["lp1"]]), Entry(1, 0, 0, [7, 8], "xy")]]
    new = [[Entry(0, 0, 0, [1, 2], "ab", [["lp1"], ["lp2"]], resumed_count=1)], [Entry(0, 0, 2, [3], "c", [["lp3"]])]]

    priors = join({0: old, 1: new}, Rules())

    assert (priors[0, 0].token_ids, priors[0, 0].text, priors[0, 0].resumed_count) == ((1, 2, 3), "abc", 0)
    assert priors[0, 0].logprobs == (["lp1"], ["lp2"], ["lp3"])
    assert (priors[1, 0].token_ids, priors[1, 0].text) == ((7, 8), "xy")


def test_a_gap_ends_what_is_taken_with_its_text() -> None:
    """A missing record takes away what comes after it, tokens and text alike."""
    torn = [[Entry(0, 0, 0, [1, 2], "ab")], [Entry(0, 0, 5, [6], "f")], [Entry(0, 0, 2, [3], "c")]]

    priors = join({0: torn}, Rules())

    assert (priors[0, 0].token_ids, priors[0, 0].text) == ((1, 2), "ab")
