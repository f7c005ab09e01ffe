"""What goes wrong in S3 is told apart, by S3's own codes, as a user needs it told."""

from __future__ import annotations

import pytest

from shuntserve.errors import InvalidInput, NotFound, ShuntServeError, Unavailable
from shuntserve.store.check import check_bucket
from shuntserve.store.open import open_bucket
from shuntserve.store.patience import Patience
from shuntserve.store.port import Bucket
from shuntserve.store.s3_access import S3Options
from tests.conformance.s3_server import S3Server
from tests.conformance.scripted_s3 import BUCKET, LOST_REQUEST, Act, ScriptedS3, instead

HASTY = Patience(
    quick_request_s=0.5, slow_request_s=0.5, retries=1, backoff_first_s=0.01, backoff_most_s=0.02, probe_s=0.5
)

VERBS = {
    "get": lambda bucket: bucket.get("k"),
    "get_range": lambda bucket: bucket.get_range("k", 0, 1),
    "head": lambda bucket: bucket.head("k"),
    "put": lambda bucket: bucket.put("k", b"1"),
    "create": lambda bucket: bucket.create("k", b"1"),
    "list": lambda bucket: list(bucket.list("")),
    "list_dirs": lambda bucket: bucket.list_dirs(""),
    "delete": lambda bucket: bucket.delete("k"),
}
all_verbs = pytest.mark.parametrize("verb", VERBS)


def error_of(verb: str, act: Act) -> ShuntServeError:
    """What a verb raises when every request is answered with `act`."""
    with ScriptedS3(always_put=act, always_get=act) as server, pytest.raises(ShuntServeError) as caught:
        VERBS[verb](open_bucket(f"s3://{BUCKET}/root", s3=server.options, patience=HASTY))
    return caught.value


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (404, "NoSuchBucket", "no such bucket"),
        (403, "InvalidAccessKeyId", "wrong credentials: this access key"),
        (403, "SignatureDoesNotMatch", "wrong credentials: the secret key"),
        (400, "ExpiredToken", "credentials have expired"),
        (400, "InvalidToken", "session token is not valid"),
        (403, "RequestTimeTooSkewed", "clock is wrong"),
        (400, "AuthorizationHeaderMalformed", "in another region"),
        (301, "PermanentRedirect", "in another region"),
    ],
)
@pytest.mark.parametrize("verb", ["create", "get", "list"])
def test_what_the_user_must_mend_is_named(verb: str, status: int, code: str, says: str) -> None:
    """A wrong bucket, credential, region or clock is InvalidInput with its own words and a next step."""
    error = error_of(verb, instead(status, code))

    assert type(error) is InvalidInput
    assert says in error.cause
    assert error.thing == f"s3://{BUCKET}/root"
    assert error.next_step


@all_verbs
def test_expired_credentials_are_named_for_every_verb(verb: str) -> None:
    """Credentials end in the middle of a job, so every verb can meet it; the client itself shows only a 400."""
    assert "credentials have expired" in error_of(verb, instead(400, "ExpiredToken")).cause


@pytest.mark.parametrize(
    ("verb", "permission"),
    [
        ("get", "s3:GetObject"),
        ("head", "s3:ListBucket"),
        ("put", "s3:PutObject"),
        ("create", "s3:PutObject"),
        ("list", "s3:ListBucket"),
        ("list_dirs", "s3:ListBucket"),
        ("delete", "s3:DeleteObject"),
    ],
)
def test_a_missing_permission_is_named(verb: str, permission: str) -> None:
    """403 AccessDenied says which permission the call needs."""
    error = error_of(verb, instead(403, "AccessDenied"))

    assert type(error) is InvalidInput
    assert f"permission denied to {verb}" in error.cause
    assert permission in error.next_step


@pytest.mark.parametrize("act", [instead(503, "SlowDown"), LOST_REQUEST], ids=["busy", "lost"])
@all_verbs
def test_what_may_pass_is_unavailable(verb: str, act: Act) -> None:
    """A busy, broken or unreachable service is Unavailable, never a wrong request and never an absent object."""
    assert type(error_of(verb, act)) is Unavailable


def test_an_absent_object_in_a_good_bucket_is_not_found() -> None:
    """404 NoSuchKey is the object's absence; the bucket is looked at once, not with every miss."""
    with ScriptedS3() as server:
        bucket = open_bucket(f"s3://{BUCKET}", s3=server.options, patience=HASTY)
        with pytest.raises(NotFound, match=f"s3://{BUCKET}/k: no such object"):
            bucket.get("k")
        after_first = server.count("GET")
        for _ in range(3):
            with pytest.raises(NotFound):
                bucket.get("k")
            assert bucket.head("k") is None

        assert after_first == 2
        assert server.count("GET") == after_first + 3


def test_a_listing_that_breaks_off_raises_instead_of_ending(s3_server: S3Server) -> None:
    """Names already given are true; the end of a listing is never made up."""
    s3_server.make_bucket("pages")
    bucket = open_bucket("s3://pages", s3=s3_server.options)
    bucket.put("a", b"")
    listing = bucket.list("")
    gone = open_bucket("s3://never-made", s3=s3_server.options)

    assert next(listing).key == "a"
    with pytest.raises(InvalidInput, match="no such bucket"):
        next(gone.list(""))


@all_verbs
def test_no_such_bucket_over_a_whole_s3(s3_server: S3Server, verb: str) -> None:
    """A bucket that does not exist is said not to, by moto's answers as by the scripted ones."""
    bucket = open_bucket("s3://never-made/root", s3=s3_server.options, patience=HASTY)

    with pytest.raises(InvalidInput, match="s3://never-made/root: no such bucket") as caught:
        VERBS[verb](bucket)
    assert type(caught.value) is InvalidInput


def test_no_such_bucket_for_anyone() -> None:
    """The error path works without credentials too."""
    with ScriptedS3(always_get=instead(404, "NoSuchBucket")) as server:
        public = S3Options(endpoint_url=server.endpoint_url, anonymous=True)
        with pytest.raises(InvalidInput, match="no such bucket"):
            open_bucket(f"s3://{BUCKET}", s3=public, patience=HASTY).get("k")


def test_a_public_bucket_is_read_without_credentials() -> None:
    """Anonymous requests are not signed and need no AWS settings."""
    with ScriptedS3() as server:
        server.objects["k"] = b"for everyone"
        public = S3Options(endpoint_url=server.endpoint_url, anonymous=True)

        assert open_bucket(f"s3://{BUCKET}", s3=public, patience=HASTY).get("k") == b"for everyone"


def test_check_bucket_convicts_a_store_that_ignores_conditions() -> None:
    """Over a lookalike without If-None-Match nothing could happen once: it is refused before any work, cleaned up."""
    with ScriptedS3(honours_conditions=False) as server:
        with pytest.raises(InvalidInput, match="ignores If-None-Match"):
            check_bucket(open_bucket(f"s3://{BUCKET}", s3=server.options, patience=HASTY))

        assert server.objects == {}


def test_check_bucket_names_what_is_wrong(s3_server: S3Server) -> None:
    """The first try meets the clear error that the job would have met."""
    bucket: Bucket = open_bucket("s3://never-made", s3=s3_server.options, patience=HASTY)

    with pytest.raises(InvalidInput, match="no such bucket"):
        check_bucket(bucket)


def test_a_job_may_run_without_the_right_to_delete() -> None:
    """403 on DELETE does not fail the check: a live job never deletes."""
    with ScriptedS3(put=[Act(), Act(), instead(403, "AccessDenied")]) as server:
        check_bucket(open_bucket(f"s3://{BUCKET}", s3=server.options, patience=HASTY))

        assert server.count("DELETE") == 1
        assert len(server.objects) == 1
