"""Faults on purpose: each strikes where the plan says, and the same plan strikes the same way again."""

from __future__ import annotations

import random
import uuid

import pytest

from shuntserve.errors import InvalidInput, NotFound, Unavailable
from shuntserve.store.faults import Fault, FaultyBucket, Lost, Plan, RandomFaults, ScriptedFaults
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket
from shuntserve.store.verbs import Call, Verb

REQUEST_LOST, REPLY_LOST = Fault(Lost.REQUEST), Fault(Lost.REPLY)


def memory() -> Bucket:
    return open_bucket(f"memory://{uuid.uuid4().hex}")


def faulty(plan: Plan) -> tuple[FaultyBucket, Bucket]:
    inner = memory()
    return FaultyBucket(inner, plan), inner


def test_a_lost_request_changes_nothing() -> None:
    """Unavailable before the effect: the store never heard of it."""
    bucket, inner = faulty(ScriptedFaults([REQUEST_LOST, REQUEST_LOST]))
    inner.put("there", b"1")

    with pytest.raises(Unavailable):
        bucket.put("k", b"1")
    with pytest.raises(Unavailable):
        bucket.delete("there")

    assert [info.key for info in inner.list("")] == ["there"]


def test_a_lost_reply_leaves_the_effect() -> None:
    """Unavailable after the effect: the store did it, the caller cannot know."""
    bucket, inner = faulty(ScriptedFaults([REPLY_LOST, REPLY_LOST]))
    inner.put("there", b"1")

    with pytest.raises(Unavailable):
        bucket.put("k", b"1")
    with pytest.raises(Unavailable):
        bucket.delete("there")

    assert [info.key for info in inner.list("")] == ["k"]


@pytest.mark.parametrize("fault", [REQUEST_LOST, REPLY_LOST], ids=["request", "reply"])
def test_every_verb_can_fail(fault: Fault) -> None:
    """The plan is asked for each verb, and its loss comes back as Unavailable."""
    bucket, inner = faulty(lambda call: fault)
    inner.put("d/k", b"1")

    for use in (
        lambda: bucket.get("d/k"),
        lambda: bucket.get_range("d/k", 0, 1),
        lambda: bucket.head("d/k"),
        lambda: bucket.put("d/k", b"2"),
        lambda: bucket.create("d/new", b"2"),
        lambda: list(bucket.list("d")),
        lambda: bucket.list_dirs(""),
        lambda: bucket.delete("d/k"),
    ):
        with pytest.raises(Unavailable):
            use()


def test_a_listing_can_break_off_in_the_middle() -> None:
    """A lost reply to a listing gives some true names first, as a broken page does."""
    bucket, inner = faulty(ScriptedFaults([REPLY_LOST]))
    for number in range(10):
        inner.put(f"k{number}", b"")

    listing = bucket.list("")

    assert [next(listing).key for _ in range(5)] == [f"k{number}" for number in range(5)]
    with pytest.raises(Unavailable):
        next(listing)


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ([], True),
        ([REPLY_LOST], True),
        ([REQUEST_LOST], True),
        ([REPLY_LOST, REQUEST_LOST, REQUEST_LOST, REQUEST_LOST], True),
        ([REQUEST_LOST, REQUEST_LOST, REPLY_LOST], True),
    ],
)
def test_create_over_faults_is_honest(script: list[Fault], answer: bool) -> None:
    """Losses below a create (of its puts and of its read-backs) are resolved by reading back."""
    bucket, inner = faulty(ScriptedFaults(script))

    assert bucket.create("k", b"mine") is answer
    assert inner.get("k") == b"mine"


def test_create_over_faults_loses_to_another() -> None:
    """With another's object there, every pattern of loss ends in False or Unavailable, and in False once it stops."""
    for seed in range(50):
        bucket, inner = faulty(RandomFaults(random.Random(seed), lose_request=0.3, lose_reply=0.3))
        inner.put("k", b"another's")
        for _ in range(100):
            try:
                assert not bucket.create("k", b"mine")
                break
            except Unavailable:
                continue
        else:
            pytest.fail("never decided")


def test_random_creates_never_lie() -> None:
    """Under dense random losses a True means our bytes and a False another's, for each of many rivals."""
    decided = 0
    for seed in range(100):
        bucket, inner = faulty(RandomFaults(random.Random(seed), lose_request=0.25, lose_reply=0.25))
        for writer in (b"a", b"b", b"c"):
            try:
                answer = bucket.create("k", writer)
            except Unavailable:
                continue
            decided += 1
            assert answer == (inner.get("k") == writer)
    assert decided > 200


def test_the_same_seed_gives_the_same_faults() -> None:
    """A failing run is replayed from its seed."""

    def history(seed: int) -> list[str]:
        bucket, _ = faulty(RandomFaults(random.Random(seed), lose_request=0.3, lose_reply=0.3))
        outcomes = []
        for number in range(60):
            try:
                outcomes.append(str(bucket.create(f"k{number % 7}", f"{number}".encode())))
            except Unavailable:
                outcomes.append("unavailable")
        return outcomes

    assert history(1) == history(1)
    assert history(1) != history(2)


def test_delays_reach_the_clock() -> None:
    """Every request tells its delay before it happens; a simulator moves its clock there."""
    waited_s: list[float] = []
    plan = ScriptedFaults([Fault(delay_s=1.5), Fault(Lost.REQUEST, delay_s=2.0)])
    bucket = FaultyBucket(memory(), plan, pause=waited_s.append)

    bucket.put("k", b"")
    with pytest.raises(Unavailable):
        bucket.put("k", b"")
    bucket.put("k", b"")

    assert waited_s == [1.5, 2.0]


def test_a_script_can_wait_for_its_verbs() -> None:
    """Faults meant for creates let other verbs pass."""
    bucket, inner = faulty(ScriptedFaults([REPLY_LOST], verbs=[Verb.CREATE]))

    bucket.put("a", b"")
    assert bucket.create("k", b"mine")

    assert inner.get("k") == b"mine"


def test_a_plan_may_stop_the_process() -> None:
    """An exception from the plan passes through as it is: a process that dies catches nothing."""

    class Killed(BaseException):
        pass

    def plan(call: Call) -> Fault:
        if call.verb is Verb.GET:
            raise Killed
        return REPLY_LOST

    bucket, inner = faulty(plan)
    with pytest.raises(Killed):
        bucket.create("k", b"mine")

    assert inner.get("k") == b"mine"


def test_errors_of_the_request_itself_are_not_faults() -> None:
    """NotFound and InvalidInput come through, and are not tried again."""
    asked: list[Call] = []

    def plan(call: Call) -> Fault:
        asked.append(call)
        return Fault()

    bucket, _ = faulty(plan)
    with pytest.raises(NotFound):
        bucket.get("absent")
    with pytest.raises(InvalidInput):
        bucket.create("/bad", b"1")

    assert [call.verb for call in asked if call.verb is Verb.CREATE] == [Verb.CREATE]
