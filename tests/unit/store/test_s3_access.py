"""An S3 bucket is reached the way the AWS command line would reach it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from shuntserve.errors import InvalidInput
from shuntserve.store.s3_access import S3Access, S3Options, region_of, resolve
from shuntserve.store.s3_errors import Answer


def access(options: S3Options | None = None, *, bucket: str = "bkt") -> S3Access:
    return resolve(f"s3://{bucket}", bucket, options or S3Options(region="us-east-1"))


def key_of(found: S3Access) -> str:
    assert found.credentials is not None
    return found.credentials()["access_key_id"]


def test_no_credentials_anywhere_is_said_at_once() -> None:
    """Without credentials the user learns where they could come from, before any request."""
    with pytest.raises(InvalidInput, match=r"no AWS credentials were found .*AWS_PROFILE"):
        access()


def test_environment_profile_and_explicit_keys_in_aws_order(aws_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared file is found; the environment wins over it; explicit keys win over all."""
    (aws_home / "credentials").write_text("[default]\naws_access_key_id=FILE\naws_secret_access_key=s\n")
    assert key_of(access()) == "FILE"

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    assert key_of(access()) == "ENV"

    explicit = S3Options(region="us-east-1", access_key_id="ME", secret_access_key="s", session_token="t")
    found = access(explicit)
    assert key_of(found) == "ME"
    assert found.credentials is not None
    assert found.credentials()["token"] == "t"


def test_a_profile_brings_keys_region_and_endpoint(aws_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named profile counts whole, by option or by AWS_PROFILE."""
    (aws_home / "config").write_text(
        "[profile work]\nregion=eu-north-1\nendpoint_url=https://s3.example.org\n"
        "aws_access_key_id=WORK\naws_secret_access_key=s\n"
    )
    by_option = access(S3Options(profile="work"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    by_variable = access(S3Options())

    for found in (by_option, by_variable):
        assert (key_of(found), found.region, found.endpoint_url) == ("WORK", "eu-north-1", "https://s3.example.org")


def test_credentials_are_asked_for_again_before_they_end(aws_home: Path) -> None:
    """Found credentials carry an end, so that rotated ones are picked up; explicit ones do not."""
    (aws_home / "credentials").write_text("[default]\naws_access_key_id=FILE\naws_secret_access_key=s\n")
    found, explicit = access(), access(S3Options(region="r", access_key_id="a", secret_access_key="b"))

    assert found.credentials is not None
    assert found.credentials()["expires_at"] is not None
    assert explicit.credentials is not None
    assert explicit.credentials()["expires_at"] is None


def test_unknown_profile_and_broken_files_are_named(aws_home: Path) -> None:
    """A wrong profile name and an unreadable configuration are the user's to correct."""
    with pytest.raises(InvalidInput, match="no such AWS profile"):
        access(S3Options(profile="absent"))
    (aws_home / "config").write_text("[default\nregion")
    with pytest.raises(InvalidInput, match="configuration file cannot be read"):
        access()


def test_expired_sign_in_is_said_at_once(aws_home: Path) -> None:
    """A single-sign-on profile without a valid token asks the user to sign in, before any request."""
    (aws_home / "config").write_text(
        "[default]\nsso_session=s\nsso_account_id=111122223333\nsso_role_name=r\n"
        "[sso-session s]\nsso_region=us-east-1\nsso_start_url=https://example.awsapps.com/start\n"
    )
    with pytest.raises(InvalidInput, match="sign in again"):
        access()


@pytest.mark.parametrize("variable", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_region_comes_from_either_variable(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Both names that AWS's tools know are read."""
    monkeypatch.setenv(variable, "ap-south-1")

    assert access(S3Options(access_key_id="a", secret_access_key="b")).region == "ap-south-1"


def test_endpoint_comes_from_the_variables_and_the_narrower_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS_ENDPOINT_URL_S3 before AWS_ENDPOINT_URL, an explicit one before both."""
    keys = S3Options(access_key_id="a", secret_access_key="b")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://general")
    assert access(keys).endpoint_url == "https://general"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://narrow")
    assert access(keys).endpoint_url == "https://narrow"
    explicit = S3Options(access_key_id="a", secret_access_key="b", endpoint_url="https://explicit")
    assert access(explicit).endpoint_url == "https://explicit"


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1:9000", "127.1.2.3", "[::1]:9000"])
def test_plain_http_is_fine_on_the_loopback(host: str) -> None:
    """A test server on this machine needs no permission."""
    assert access(S3Options(endpoint_url=f"http://{host}", access_key_id="a", secret_access_key="b")).allow_http


@pytest.mark.parametrize("host", ["minio.example.org", "10.0.0.1", "127.0.0.1.example.org", "localhost.example.org"])
def test_plain_http_elsewhere_must_be_asked_for(host: str) -> None:
    """Credentials and data do not travel unencrypted by accident."""
    where = f"http://{host}"
    with pytest.raises(InvalidInput, match="not encrypted"):
        access(S3Options(endpoint_url=where, access_key_id="a", secret_access_key="b"))

    assert access(S3Options(endpoint_url=where, access_key_id="a", secret_access_key="b", allow_http=True)).allow_http


@pytest.mark.parametrize("endpoint", ["minio:9000", "ftp://x", "http://", "/dir"])
def test_an_endpoint_that_is_no_url_is_named(endpoint: str) -> None:
    """A missing scheme is the common slip."""
    with pytest.raises(InvalidInput, match="is not an http"):
        access(S3Options(endpoint_url=endpoint, access_key_id="a", secret_access_key="b"))


def test_half_an_access_key_is_refused() -> None:
    """A key id without its secret would silently fall back to other credentials."""
    with pytest.raises(InvalidInput, match="half"):
        access(S3Options(region="r", access_key_id="a"))
    with pytest.raises(InvalidInput, match="half"):
        access(S3Options(region="r", secret_access_key="b"))


def test_secrets_are_not_in_the_repr() -> None:
    """Options and access may be logged."""
    options = S3Options(region="r", access_key_id="KEYID", secret_access_key="SECRET", session_token="TOKEN")

    for text in (repr(options), repr(access(options))):
        assert "SECRET" not in text
        assert "TOKEN" not in text


def test_anonymous_needs_no_credentials() -> None:
    """A public bucket can be read by anyone."""
    found = access(S3Options(region="us-east-1", anonymous=True))

    assert found.anonymous
    assert found.credentials is None


def test_own_host_name_only_where_tls_allows_it() -> None:
    """AWS buckets get their own host name, unless dots in the name would break its certificate or it is not AWS."""
    keys = S3Options(region="us-east-1", access_key_id="a", secret_access_key="b")

    assert access(keys).virtual_hosted
    assert not access(keys, bucket="with.dots").virtual_hosted
    assert not access(keys, bucket="UPPER").virtual_hosted
    elsewhere = S3Options(endpoint_url="https://x", access_key_id="a", secret_access_key="b")
    assert not access(elsewhere).virtual_hosted


@pytest.mark.parametrize("status", [200, 301, 403])
def test_region_is_what_s3_tells_anyone(status: int) -> None:
    """The header counts, whether or not the asker may see the bucket; without an answer there is no region."""
    asked: list[str] = []

    def ask(url: str) -> Answer:
        asked.append(url)
        return Answer(status, region="eu-west-3")

    assert region_of("bkt", ask) == "eu-west-3"
    assert asked == ["https://s3.amazonaws.com/bkt"]
    assert region_of("bkt", lambda url: None) is None


def test_a_certificate_bundle_is_read(aws_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS_CA_BUNDLE is honoured, and a wrong path is said to be wrong."""
    bundle = aws_home / "ca.pem"
    bundle.write_bytes(b"-----BEGIN CERTIFICATE-----")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    keys = S3Options(region="us-east-1", access_key_id="a", secret_access_key="b")
    assert access(keys).root_certificate == b"-----BEGIN CERTIFICATE-----"

    monkeypatch.setenv("AWS_CA_BUNDLE", str(aws_home / "absent"))
    with pytest.raises(InvalidInput, match="AWS_CA_BUNDLE"):
        access(keys)


class TestWithoutBotocore:
    """A machine without botocore still opens buckets, with what obstore knows by itself."""

    @pytest.fixture(autouse=True)
    def no_botocore(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "botocore.session", None)
        monkeypatch.setitem(sys.modules, "botocore", None)

    def test_obstore_finds_the_credentials(self) -> None:
        """None means: leave it to obstore's own chain."""
        assert access().credentials is None

    def test_endpoint_variables_still_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """They decide whether plain http is allowed, so they must be known."""
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9000")
        found = access()
        assert (found.endpoint_url, found.allow_http) == ("http://127.0.0.1:9000", True)

    def test_a_profile_cannot_be_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Silently ignoring the profile would use the wrong account."""
        with pytest.raises(InvalidInput, match="needs botocore"):
            access(S3Options(profile="work"))
        monkeypatch.setenv("AWS_PROFILE", "work")
        with pytest.raises(InvalidInput, match="needs botocore"):
            access()
