"""Create is honest over S3, whatever happens to its requests: True exactly when the stored bytes are the caller's.

The same scenarios then convict every weaker rule, the naive one ("already exists" means lost) first of all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, GenericError
from obstore.store import S3Store

from shuntserve.core.create import Found, Put, Settle, Verdict, settle
from shuntserve.errors import InvalidInput, Unavailable
from shuntserve.store.obstore_bucket import ObstoreBucket
from shuntserve.store.open import open_bucket
from shuntserve.store.patience import Patience
from tests.conformance.scripted_s3 import (
    BUCKET,
    GOOD,
    LOST_REPLY,
    LOST_REQUEST,
    SILENT_AFTER,
    SILENT_BEFORE,
    Act,
    Reply,
    ScriptedS3,
    after_effect,
    beaten,
    instead,
)

MINE, RIVAL = b"writer 2f1c", b"writer 9e77"

PATIENCE = Patience(
    connect_s=0.5,
    quick_request_s=0.25,
    slow_request_s=0.5,
    retries=2,
    retry_within_s=2.0,
    backoff_first_s=0.01,
    backoff_most_s=0.02,
    create_tries=3,
    create_within_s=6.0,
    probe_s=0.5,
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens to the requests of one create, and what the create must answer (None: that it cannot know)."""

    name: str
    answer: bool | None
    put: Sequence[Act] = ()
    get: Sequence[Act] = ()
    always_put: Act = GOOD


RETRIED_AWAY = [instead(500)] * (1 + PATIENCE.retries)

SCENARIOS = [
    Scenario("nothing goes wrong", True),
    Scenario("another was first", False, put=[beaten(GOOD, RIVAL)]),
    Scenario("reply lost", True, put=[LOST_REPLY]),
    Scenario("request lost", True, put=[LOST_REQUEST]),
    Scenario("409 before any effect", True, put=[instead(409, "ConditionalRequestConflict")]),
    Scenario("409 after success", True, put=[after_effect(409, "ConditionalRequestConflict")]),
    Scenario("412 after success", True, put=[after_effect(412, "PreconditionFailed")]),
    Scenario("500 after success", True, put=[after_effect(500)]),
    Scenario("503 after success", True, put=[after_effect(503, "SlowDown")]),
    Scenario("500 after success, and then a lost reply", True, put=[after_effect(500), LOST_REPLY]),
    Scenario("503 twice before any effect", True, put=[instead(503, "SlowDown")] * 2),
    Scenario("500 until the client gives up, then good", True, put=RETRIED_AWAY),
    Scenario("timeout after success", True, put=[SILENT_AFTER]),
    Scenario("timeout before any effect", True, put=[SILENT_BEFORE]),
    Scenario("403 after success", True, put=[after_effect(500), instead(403, "AccessDenied")]),
    Scenario("success, unreadable at first", True, put=[after_effect(500)], get=RETRIED_AWAY),
    Scenario("success, reply lost, unreadable at first", True, put=[LOST_REPLY], get=RETRIED_AWAY),
    Scenario("beaten, 409", False, put=[beaten(instead(409, "ConditionalRequestConflict"), RIVAL)]),
    Scenario("beaten, reply lost", False, put=[beaten(LOST_REPLY, RIVAL)]),
    Scenario("beaten, 500", False, put=[beaten(instead(500), RIVAL)]),
    Scenario("beaten, timeout", False, put=[beaten(SILENT_BEFORE, RIVAL)]),
    Scenario("beaten, unreadable at first", False, put=[beaten(GOOD, RIVAL)], get=RETRIED_AWAY),
    Scenario("timeout, beaten before the next try", False, put=[SILENT_BEFORE, beaten(GOOD, RIVAL)]),
    Scenario("effect comes after the read-back", True, put=[Act(reply=Reply.SILENCE, late=2)]),
    Scenario("another comes before a late effect", False, put=[Act(reply=Reply.SILENCE, late=3), beaten(GOOD, RIVAL)]),
    Scenario("every request lost", None, always_put=LOST_REQUEST),
    Scenario("always 500", None, always_put=instead(500)),
    Scenario("always silent", None, always_put=SILENT_BEFORE),
    Scenario("always 409, never stored", None, always_put=instead(409, "ConditionalRequestConflict")),
]

by_name = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)


def bucket_on(server: ScriptedS3, rule: Settle = settle) -> ObstoreBucket:
    bucket = open_bucket(f"s3://{BUCKET}/prefix", s3=server.options, patience=PATIENCE)
    assert isinstance(bucket, ObstoreBucket)
    bucket._rule = rule
    return bucket


def play(scenario: Scenario, rule: Settle = settle) -> tuple[bool | None, ScriptedS3]:
    """The create's answer under this scenario (None: Unavailable) and the server afterwards."""
    with ScriptedS3(put=scenario.put, get=scenario.get, always_put=scenario.always_put) as server:
        try:
            return bucket_on(server, rule).create("claims/1", MINE), server
        except Unavailable:
            return None, server


@by_name
def test_create_is_true_exactly_when_the_stored_bytes_are_ours(scenario: Scenario) -> None:
    """Lost requests and replies, late effects, rivals, timeouts and S3's own errors: the answer fits what is stored."""
    answer, server = play(scenario)

    assert answer is scenario.answer
    stored = server.objects.get("prefix/claims/1")
    if answer is not None:
        assert answer == (stored == MINE)
        assert stored in (MINE, RIVAL)


def trusts_conflicts(put: Put, found: Found | None, *, tries_left: int) -> Verdict:
    """Naive: 'already exists' means that another was first."""
    return Verdict.LOST if put is Put.EXISTS else settle(put, found, tries_left=tries_left)


def never_reads_back(put: Put, found: Found | None, *, tries_left: int) -> Verdict:
    """Naive: after an error just put again, until the store says yes or no."""
    match put:
        case Put.STORED:
            return Verdict.WON
        case Put.EXISTS:
            return Verdict.LOST
        case _:
            return Verdict.TRY_AGAIN if tries_left else Verdict.UNKNOWN


def gives_up_on_failure(put: Put, found: Found | None, *, tries_left: int) -> Verdict:
    """Naive: a failed put did not happen."""
    return Verdict.LOST if put is Put.FAILED else settle(put, found, tries_left=tries_left)


def takes_failure_for_success(put: Put, found: Found | None, *, tries_left: int) -> Verdict:
    """Naive: a put without an answer probably happened."""
    return Verdict.WON if put is Put.FAILED else settle(put, found, tries_left=tries_left)


def takes_absent_for_lost(put: Put, found: Found | None, *, tries_left: int) -> Verdict:
    """Naive: not there after a put means that it never will be ours."""
    return Verdict.LOST if found is Found.ABSENT else settle(put, found, tries_left=tries_left)


def takes_unreadable_for_lost(put: Put, found: Found | None, *, tries_left: int) -> Verdict:
    """Naive: what cannot be read back is not ours."""
    return Verdict.LOST if found is Found.UNREADABLE else settle(put, found, tries_left=tries_left)


def takes_any_object_for_its_own(put: Put, found: Found | None, *, tries_left: int) -> Verdict:
    """Naive: there is an object now, so the put has worked."""
    return Verdict.WON if found is Found.ANOTHERS else settle(put, found, tries_left=tries_left)


def believes_a_refusal(put: Put, found: Found | None, *, tries_left: int) -> Verdict:
    """Naive: a store that says 403 holds nothing of ours."""
    return Verdict.REFUSED if put is Put.REFUSED else settle(put, found, tries_left=tries_left)


WEAKER_RULES: list[tuple[Settle, set[str]]] = [
    (trusts_conflicts, {"500 after success", "503 after success", "409 after success", "412 after success"}),
    (never_reads_back, {"reply lost", "500 after success", "timeout after success", "409 before any effect"}),
    (gives_up_on_failure, {"timeout after success", "timeout before any effect", "always 500"}),
    (takes_failure_for_success, {"beaten, timeout", "timeout before any effect", "every request lost"}),
    (takes_absent_for_lost, {"409 before any effect", "effect comes after the read-back"}),
    (takes_unreadable_for_lost, {"success, reply lost, unreadable at first"}),
    (takes_any_object_for_its_own, {"another was first", "beaten, 409", "timeout, beaten before the next try"}),
    (believes_a_refusal, {"403 after success"}),
]


@pytest.mark.parametrize(("rule", "betrayed_by"), WEAKER_RULES, ids=lambda value: getattr(value, "__name__", ""))
def test_scenarios_convict_every_weaker_rule(rule: Settle, betrayed_by: set[str]) -> None:
    """Remove any part of honest create and scenarios fail: those named here answer wrongly under the weaker rule."""
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in betrayed_by]
    assert len(scenarios) == len(betrayed_by)

    for scenario in scenarios:
        try:
            answer, server = play(scenario, rule)
        except InvalidInput:
            continue
        honest = answer is None or answer == (server.objects.get("prefix/claims/1") == MINE)
        assert not honest or answer is not scenario.answer, scenario.name


def test_success_costs_one_request() -> None:
    """Honesty is paid for only after an error: a plain success is one PUT and no read."""
    with ScriptedS3() as server:
        assert bucket_on(server).create("k", MINE)

    assert server.seen == ["PUT"]


@pytest.mark.parametrize("always", [LOST_REQUEST, instead(500), SILENT_BEFORE], ids=["lost", "500", "silent"])
def test_a_store_that_is_down_ends_in_unavailable_in_bounded_time(always: Act) -> None:
    """Tries are counted, and a create over a dead store ends within the time that `Patience` states."""
    one_verb_s = PATIENCE.retry_within_s + PATIENCE.backoff_most_s + PATIENCE.quick_request_s
    with ScriptedS3(always_put=always) as server:
        begun_s = time.monotonic()
        with pytest.raises(Unavailable, match=f"s3://{BUCKET}/prefix/k"):
            bucket_on(server).create("k", MINE)
        took_s = time.monotonic() - begun_s

        assert PATIENCE.create_tries <= server.count("PUT") <= PATIENCE.create_tries * (1 + PATIENCE.retries)
        assert took_s < PATIENCE.create_within_s + 2 * one_verb_s + PATIENCE.probe_s


def test_a_create_out_of_time_begins_no_further_try() -> None:
    """After `create_within_s` the next failure is the last."""
    now_s = iter([0.0, 1.0, PATIENCE.create_within_s + 1.0])
    with ScriptedS3(always_put=SILENT_BEFORE) as server:
        bucket = bucket_on(server)
        bucket._clock = lambda: next(now_s)
        with pytest.raises(Unavailable):
            bucket.create("k", MINE)

        assert server.count("PUT") == 2


def test_refused_connections_are_waited_out_within_the_bound() -> None:
    """A store that comes back while the client still retries costs nothing but time."""
    with ScriptedS3(listening=False) as server:
        patient = Patience(backoff_first_s=0.05, backoff_most_s=0.1, retries=50, retry_within_s=20.0)
        bucket = open_bucket(f"s3://{BUCKET}", s3=server.options, patience=patient)
        back = threading.Timer(0.4, server.listen)
        back.start()

        assert bucket.create("k", MINE)
        back.join()
        assert server.objects == {"k": MINE}


def test_refused_connections_for_good_are_unavailable() -> None:
    """Nobody listens at all: Unavailable for every verb, never NotFound or a lost create."""
    with ScriptedS3(listening=False) as server:
        bucket = bucket_on(server)
        for use in (
            lambda: bucket.create("k", MINE),
            lambda: bucket.put("k", MINE),
            lambda: bucket.get("k"),
            lambda: bucket.get_range("k", 0, 1),
            lambda: bucket.head("k"),
            lambda: list(bucket.list("")),
            lambda: bucket.list_dirs(""),
            lambda: bucket.delete("k"),
        ):
            with pytest.raises(Unavailable, match="did not answer"):
                use()


def test_a_silent_store_is_noticed_in_a_read_long_before_a_large_read_would_end() -> None:
    """A read may take long while bytes come, but silence counts as failure after the quick timeout."""
    patient = Patience(quick_request_s=0.2, slow_request_s=600.0, retries=1, backoff_first_s=0.01, probe_s=0.2)
    with ScriptedS3(always_get=SILENT_BEFORE) as server:
        bucket = open_bucket(f"s3://{BUCKET}", s3=server.options, patience=patient)
        with pytest.raises(Unavailable):
            bucket.get("k")

        assert server.count("GET") == 3  # one, one more, and the question what was wrong


def test_after_unavailable_the_same_create_may_be_repeated() -> None:
    """Unknown is not lost: once the store is back, repeating the create finds its own object."""
    acts = [LOST_REPLY] + [instead(500)] * ((PATIENCE.create_tries - 1) * (1 + PATIENCE.retries))
    unreadable = [instead(500)] * (PATIENCE.create_tries * (1 + PATIENCE.retries))
    with ScriptedS3(put=acts, get=unreadable) as server:
        bucket = bucket_on(server)
        with pytest.raises(Unavailable):
            bucket.create("k", MINE)
        assert server.objects == {"prefix/k": MINE}

        assert bucket.create("k", MINE)
        assert not bucket.create("k", RIVAL)


class TestWhatTheClientDoesByItself:
    """The reason behind the rule: what obstore retries, without telling, below a single put."""

    RETRIES = 2

    def store(self, server: ScriptedS3) -> S3Store:
        return S3Store(
            BUCKET,
            config={
                "aws_endpoint_url_s3": server.endpoint_url,
                "region": "us-east-1",
                "access_key_id": "test",
                "secret_access_key": "test",
            },
            client_options={"allow_http": True, "timeout": timedelta(seconds=0.3)},
            retry_config={
                "max_retries": self.RETRIES,
                "retry_timeout": timedelta(seconds=5),
                "backoff": {"init_backoff": timedelta(milliseconds=5), "max_backoff": timedelta(milliseconds=10)},
            },
        )

    def test_its_own_success_comes_back_as_already_exists(self) -> None:
        """A 500 after success is retried by the client, meets the client's own object, and looks like a lost race."""
        with ScriptedS3(put=[after_effect(500)]) as server:
            with pytest.raises(AlreadyExistsError):
                obstore.put(self.store(server), "k", MINE, mode="create")

            assert server.objects == {"k": MINE}
            assert server.count("PUT") == 2

    def test_a_conflict_without_any_winner_comes_back_as_already_exists(self) -> None:
        """A 409 ('try again', and nothing is stored) has the same error class as a lost race."""
        with ScriptedS3(put=[instead(409, "ConditionalRequestConflict")]) as server:
            with pytest.raises(AlreadyExistsError):
                obstore.put(self.store(server), "k", MINE, mode="create")

            assert server.objects == {}
            assert server.count("PUT") == 1

    @pytest.mark.parametrize(
        ("act", "creates_sent", "overwrites_sent"),
        [
            (instead(500), 1 + RETRIES, 1 + RETRIES),
            (instead(503, "SlowDown"), 1 + RETRIES, 1 + RETRIES),
            (instead(429, "TooManyRequests"), 1 + RETRIES, 1 + RETRIES),
            (LOST_REPLY, 1 + RETRIES, 1 + RETRIES),
            (SILENT_AFTER, 1, 1 + RETRIES),
        ],
        ids=["500", "503", "429", "connection closed", "timeout"],
    )
    def test_it_sends_a_create_again_after_all_but_a_timeout(
        self, act: Act, creates_sent: int, overwrites_sent: int
    ) -> None:
        """5xx, 429 and a closed connection are tried again even for creates, which may have taken effect."""
        with ScriptedS3(always_put=act) as server:
            with pytest.raises(GenericError):
                obstore.put(self.store(server), "created", MINE, mode="create")
            assert server.count("PUT") == creates_sent

            with pytest.raises(GenericError):
                obstore.put(self.store(server), "overwritten", MINE)
            assert server.count("PUT") == creates_sent + overwrites_sent
