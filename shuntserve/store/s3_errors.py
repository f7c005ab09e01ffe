"""What went wrong in S3, told by S3's own error code.

The store's error classes say only the HTTP status, and for listings not even that: a missing bucket, an expired token
and a broken cable look alike. So the error path asks once more with one small presigned GET, and the `Code` of the
answer decides. No answer, or an answer that finds nothing wrong, means `Unavailable`.
"""

from __future__ import annotations

import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

from shuntserve.errors import InvalidInput, NotFound, ShuntServeError, Unavailable
from shuntserve.store.verbs import Call, Verb

_PERMISSIONS = {
    Verb.GET: "s3:GetObject and s3:ListBucket",
    Verb.GET_RANGE: "s3:GetObject and s3:ListBucket",
    Verb.HEAD: "s3:GetObject and s3:ListBucket",
    Verb.PUT: "s3:PutObject",
    Verb.CREATE: "s3:PutObject",
    Verb.LIST: "s3:ListBucket",
    Verb.LIST_DIRS: "s3:ListBucket",
    Verb.DELETE: "s3:DeleteObject",
}
"""Without s3:ListBucket, S3 answers 403 instead of 404 for an object that does not exist."""

_SIGN_IN = "set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws sso login`"

_CAUSES: dict[str, tuple[str, str]] = {
    "NoSuchBucket": ("no such bucket", "create it or correct the URL"),
    "InvalidBucketName": ("not a legal bucket name", "correct the URL"),
    "InvalidAccessKeyId": ("wrong credentials: this access key does not exist", _SIGN_IN),
    "SignatureDoesNotMatch": ("wrong credentials: the secret key does not fit the access key", _SIGN_IN),
    "InvalidToken": ("wrong credentials: the session token is not valid", _SIGN_IN),
    "InvalidClientTokenId": ("wrong credentials: this access key does not exist", _SIGN_IN),
    "ExpiredToken": ("the credentials have expired", "sign in again (for example `aws sso login`)"),
    "TokenRefreshRequired": ("the credentials have expired", "sign in again (for example `aws sso login`)"),
    "RequestTimeTooSkewed": ("this machine's clock is wrong", "set the clock (for example by NTP)"),
    "AllAccessDisabled": ("all access to this bucket is disabled", "ask the bucket's owner"),
    "AccountProblem": ("the AWS account has a problem", "look at the account in the AWS console"),
    "PermanentRedirect": ("the bucket is in another region", "set AWS_REGION to the bucket's region"),
    "TemporaryRedirect": ("the bucket is in another region", "set AWS_REGION to the bucket's region"),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", "set AWS_REGION to the bucket's region"),
    "AuthorizationQueryParametersError": ("the bucket is in another region", "set AWS_REGION to the bucket's region"),
}
"""S3's codes for what stays until someone acts
(https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html)."""

_REDIRECTS = {301: "PermanentRedirect", 307: "TemporaryRedirect"}
"""S3 may redirect without a body to say why."""

_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")
_READ_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What one small request was answered: HTTP status, S3's error code if any, the bucket's region if told."""

    status: int
    code: str | None = None
    region: str | None = None


def ask(url: str, *, method: str, timeout_s: float, root_certificate: bytes | None = None) -> Answer | None:
    """Send one request without a body and read the answer's code; None when there was no answer in time."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _https(root_certificate) if url.startswith("https:") else urllib.request.HTTPHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)  # no redirect handler: following S3 to another region would lose its code
    headers = {"Range": "bytes=0-0"} if method == "GET" else {}
    request = urllib.request.Request(url, method=method, headers=headers)  # noqa: S310 (the opener knows http(s) only)
    try:
        with opener.open(request, timeout=timeout_s) as response:
            return Answer(response.status, region=response.headers.get("x-amz-bucket-region"))
    except urllib.error.HTTPError as answer:
        with answer:
            try:
                code = _CODE.search(answer.read(_READ_BYTES))
            except OSError:
                code = None
            return Answer(
                answer.code, code.group(1).decode() if code else None, answer.headers.get("x-amz-bucket-region")
            )
    except (OSError, ValueError):
        return None


def _https(root_certificate: bytes | None) -> urllib.request.HTTPSHandler:
    context = ssl.create_default_context()
    if root_certificate is not None:
        context.load_verify_locations(cadata=root_certificate.decode("ascii", "ignore"))
    return urllib.request.HTTPSHandler(context=context)


class S3Errors:
    """Translates the errors of one S3 bucket.

    `presign` makes the URL of a signed GET of a key, or of the bucket's own listing for the empty key (None: it cannot
    sign); `ask` sends it.
    """

    def __init__(self, url: str, presign: Callable[[str], str | None], ask: Callable[[str], Answer | None]) -> None:
        self._url = url
        self._presign = presign
        self._ask = ask
        self._bucket_seen = False

    def __call__(self, call: Call, error: Exception | None) -> ShuntServeError:
        """The error to raise for `error`, which ended `call`."""
        thing = f"{self._url}/{call.key}" if call.key else self._url
        absent = isinstance(error, FileNotFoundError) and not call.verb.writes
        if absent and self._bucket_seen:
            return NotFound(thing, "no such object", "check the name")
        answer = self._probe(call)
        if answer is not None and (known := _CAUSES.get(answer.code or _REDIRECTS.get(answer.status, ""))):
            cause, next_step = known
            region = f" ({answer.region})" if answer.region and "region" in cause else ""
            return InvalidInput(self._url, cause + region, next_step)
        if absent:
            self._bucket_seen = answer is not None and answer.status in (200, 206, 404, 416)
            return NotFound(thing, "no such object", "check the name")
        if isinstance(error, FileNotFoundError):
            cause, next_step = _CAUSES["NoSuchBucket"]
            return InvalidInput(self._url, cause, next_step)
        denied = isinstance(error, PermissionDeniedError | UnauthenticatedError)
        if denied or (call.verb.lists and answer is not None and answer.code == "AccessDenied"):
            needed = _PERMISSIONS[call.verb]
            return InvalidInput(thing, f"permission denied to {call.verb}", f"use credentials that allow {needed}")
        cause = "the store did not answer" if answer is None else f"{call.verb} failed or was not answered in time"
        return Unavailable(thing, cause, "try again later; check the network and the endpoint")

    def _probe(self, call: Call) -> Answer | None:
        url = self._presign("" if call.verb.lists else call.key)
        return None if url is None else self._ask(url)
