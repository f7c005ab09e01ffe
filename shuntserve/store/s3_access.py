"""Where an S3 bucket is and with whose credentials it is opened: what the AWS command line would find.

Credentials, region and endpoint come, in this order, from explicit options, the environment, the profile in
`~/.aws`, single sign-on, web identity, container and instance role. botocore knows all of these and is asked when
it is installed; without it obstore's own chain is left (environment, web identity, container, instance role). The
variables read here are AWS's, not ShuntServe's, and mean what AWS says they mean.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from shuntserve.errors import InvalidInput
from shuntserve.store.s3_errors import Answer, ask

if TYPE_CHECKING:
    import botocore.session
    from obstore.store import S3Credential

CREDENTIAL_REUSE = timedelta(minutes=5)
"""botocore renews temporary credentials ten minutes before they end, so what it hands out lives longer than this."""

_LOOPBACK = re.compile(r"localhost|127(\.[0-9]{1,3}){3}|\[?::1\]?")
_DNS_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")

Ask = Callable[[str], Answer | None]


@dataclass(frozen=True, slots=True)
class S3Access:
    """How to reach one bucket. `credentials` is None when obstore is to find them by itself."""

    bucket: str
    region: str | None
    endpoint_url: str | None
    allow_http: bool
    anonymous: bool
    credentials: Callable[[], S3Credential] | None = field(repr=False)
    root_certificate: bytes | None = field(repr=False)

    @property
    def virtual_hosted(self) -> bool:
        """AWS gets the bucket's own host name where TLS allows it; other endpoints get it in the path."""
        return self.endpoint_url is None and _DNS_BUCKET.fullmatch(self.bucket) is not None


@dataclass(frozen=True, slots=True)
class S3Options:
    """What a caller may say explicitly about an S3 bucket; everything else comes from the AWS configuration."""

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    anonymous: bool = False
    allow_http: bool = False


def resolve(url: str, bucket: str, options: S3Options, *, probe_s: float = 3.0) -> S3Access:
    """Find out how to reach `bucket`. Raises InvalidInput when an option is wrong or no credentials are found."""
    session = _session(url, options.profile)
    credentials = None if options.anonymous else _credentials(url, options, session)
    endpoint_url = options.endpoint_url or _configured_endpoint(session)
    root_certificate = _root_certificate(url)
    region = options.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and session is not None:
        region = session.get_config_variable("region")
    if region is None and endpoint_url is None:
        region = region_of(
            bucket, lambda where: ask(where, method="HEAD", timeout_s=probe_s, root_certificate=root_certificate)
        )
    return S3Access(
        bucket=bucket,
        region=region,
        endpoint_url=endpoint_url,
        allow_http=_http_allowed(url, endpoint_url, options.allow_http),
        anonymous=options.anonymous,
        credentials=credentials,
        root_certificate=root_certificate,
    )


def region_of(bucket: str, ask: Ask, *, endpoint_url: str = "https://s3.amazonaws.com") -> str | None:
    """The bucket's region, which S3 tells anyone who asks, whatever the answer itself is; None when it did not say."""
    answer = ask(f"{endpoint_url}/{bucket}")
    return None if answer is None else answer.region


def _session(url: str, profile: str | None) -> botocore.session.Session | None:
    try:
        import botocore.exceptions
        import botocore.session
    except ImportError:
        profile = profile or os.environ.get("AWS_PROFILE")
        if profile is None:
            return None
        raise InvalidInput(
            url, f"the profile {profile!r} needs botocore, which is not installed", "install boto3"
        ) from None
    session = botocore.session.Session(profile=profile)
    try:
        session.get_scoped_config()
    except botocore.exceptions.ProfileNotFound as error:
        raise InvalidInput(
            url, "there is no such AWS profile", "correct AWS_PROFILE, or see `aws configure list-profiles`"
        ) from error
    except botocore.exceptions.BotoCoreError as error:
        raise InvalidInput(url, "the AWS configuration file cannot be read", "correct ~/.aws/config") from error
    return session


def _configured_endpoint(session: botocore.session.Session | None) -> str | None:
    if session is None:
        return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    from botocore.configprovider import ConfiguredEndpointProvider

    provider = ConfiguredEndpointProvider(
        full_config=session.full_config, scoped_config=session.get_scoped_config(), client_name="s3"
    )
    found: str | None = provider.provide()
    return found


def _http_allowed(url: str, endpoint_url: str | None, asked: bool) -> bool:
    if endpoint_url is None:
        return False
    parts = urlsplit(endpoint_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(url, f"the endpoint {endpoint_url!r} is not an http(s) URL", "correct the endpoint URL")
    if parts.scheme == "https":
        return False
    if asked or _LOOPBACK.fullmatch(parts.hostname):
        return True
    raise InvalidInput(
        url,
        f"the endpoint {endpoint_url} is not encrypted",
        "use https, or allow http explicitly on a network you trust",
    )


def _root_certificate(url: str) -> bytes | None:
    path = os.environ.get("AWS_CA_BUNDLE")
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise InvalidInput(url, f"cannot read the certificates in {path}", "correct AWS_CA_BUNDLE") from error


def _credentials(
    url: str, options: S3Options, session: botocore.session.Session | None
) -> Callable[[], S3Credential] | None:
    if options.access_key_id is not None and options.secret_access_key is not None:
        return _fixed(options.access_key_id, options.secret_access_key, options.session_token)
    if options.access_key_id is not None or options.secret_access_key is not None:
        raise InvalidInput(url, "only one half of an access key was given", "give both the key id and the secret key")
    if session is None:
        return None
    return _from_botocore(url, session)


def _fixed(access_key_id: str, secret_access_key: str, session_token: str | None) -> Callable[[], S3Credential]:
    def credentials() -> S3Credential:
        return {
            "access_key_id": access_key_id,
            "secret_access_key": secret_access_key,
            "token": session_token,
            "expires_at": None,
        }

    return credentials


def _from_botocore(url: str, session: botocore.session.Session) -> Callable[[], S3Credential]:
    import botocore.exceptions

    try:
        found = session.get_credentials()
        if found is not None:
            found.get_frozen_credentials()
    except botocore.exceptions.BotoCoreError as error:
        raise InvalidInput(
            url,
            f"the AWS credentials cannot be used ({type(error).__name__})",
            "sign in again (for example `aws sso login`)",
        ) from error
    if found is None:
        raise InvalidInput(
            url,
            "no AWS credentials were found",
            "set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, run `aws sso login`, or attach a role",
        )

    def credentials() -> S3Credential:
        frozen = found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key or "",
            "secret_access_key": frozen.secret_key or "",
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + CREDENTIAL_REUSE,
        }

    return credentials
