"""Opening a bucket by its URL: `s3://bucket/prefix`, `file:///dir` or a plain path, `memory://name`."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from obstore.exceptions import BaseError
from obstore.store import LocalStore, MemoryStore, S3Store

from shuntserve.errors import InvalidInput, NotFound, ShuntServeError, Unavailable
from shuntserve.store.key_rules import check_prefix
from shuntserve.store.local_errors import LocalErrors, explain_errno
from shuntserve.store.obstore_bucket import ObstoreBucket, presigner
from shuntserve.store.patience import Pace, Patience
from shuntserve.store.port import Bucket
from shuntserve.store.s3_access import S3Access, S3Options, resolve
from shuntserve.store.s3_errors import Answer, S3Errors, ask
from shuntserve.store.verbs import Call, Verb

if TYPE_CHECKING:
    from obstore.store import S3Config

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_MEMORY: dict[str, MemoryStore] = {}
_MEMORY_LOCK = threading.Lock()


def open_bucket(
    url: str | Path,
    *,
    s3: S3Options | None = None,
    patience: Patience | None = None,
    mkdir: bool = True,
) -> Bucket:
    """The bucket at `url`.

    `mkdir`: make a local directory that is not there yet; otherwise it raises NotFound. Nothing is sent to S3 yet,
    except that the bucket's region is asked for when none is configured; see `check.check_bucket` for a first try.
    Raises InvalidInput when the URL, an option or the credentials are wrong.
    """
    patience = Patience() if patience is None else patience
    text = str(url)
    scheme = _SCHEME.match(text)
    match scheme.group(1).lower() if scheme else "":
        case "":
            return _open_local(Path(url).expanduser(), patience, mkdir=mkdir)
        case "file":
            return _open_local(_file_path(text), patience, mkdir=mkdir)
        case "memory":
            return _open_memory(text, patience)
        case "s3":
            return _open_s3(text, S3Options() if s3 is None else s3, patience)
        case other:
            raise InvalidInput(
                text, f"{other}:// is not supported", "use s3://bucket/prefix, a directory or memory://name"
            )


def _file_path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise InvalidInput(
            url, "not the URL of a directory on this machine", "write file:///directory or just the path"
        )
    return Path(unquote(parts.path))


def _open_local(path: Path, patience: Patience, *, mkdir: bool) -> ObstoreBucket:
    root = path.absolute()
    try:
        if mkdir:
            root.mkdir(parents=True, exist_ok=True)
        root = root.resolve(strict=True)
    except FileNotFoundError as error:
        raise NotFound(str(root), "no such directory", "check the path") from error
    except OSError as error:
        raise explain_errno(str(root), error) from error
    except ValueError as error:
        raise InvalidInput(ascii(str(root)), "not a path", "check the path") from error
    if not root.is_dir():
        raise InvalidInput(str(root), "not a directory", "name a directory")
    try:
        store = LocalStore(root)
    except BaseError as error:
        raise LocalErrors(root.as_uri(), root)(Call(Verb.LIST, ""), error) from error
    url = root.as_uri()
    return ObstoreBucket(
        url=url,
        stores=dict.fromkeys(Pace, store),
        explain=LocalErrors(url, root),
        patience=patience,
        lists_in_order=False,
    )


def _open_memory(url: str, patience: Patience) -> ObstoreBucket:
    name = url.partition("://")[2].strip("/")
    if not re.fullmatch(r"[\w.-]+", name):
        raise InvalidInput(url, "not the name of a bucket in memory", "write memory://name")
    url = f"memory://{name}"
    with _MEMORY_LOCK:
        store = _MEMORY.setdefault(name, MemoryStore())

    def explain(call: Call, error: Exception | None) -> ShuntServeError:
        if isinstance(error, FileNotFoundError):
            return NotFound(f"{url}/{call.key}", "no such object", "check the name")
        return Unavailable(f"{url}/{call.key}", f"{call.verb} failed", "try again")

    return ObstoreBucket(
        url=url, stores=dict.fromkeys(Pace, store), explain=explain, patience=patience, lists_in_order=True
    )


def _open_s3(url: str, options: S3Options, patience: Patience) -> ObstoreBucket:
    bucket, _, prefix = url.partition("://")[2].partition("/")
    prefix = prefix.strip("/")
    if not _BUCKET.fullmatch(bucket):
        raise InvalidInput(url, f"{bucket!r} is not a legal bucket name", "write s3://bucket/prefix")
    check_prefix(f"s3://{bucket}", prefix)
    url = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
    access = resolve(url, bucket, options, probe_s=patience.probe_s)

    def question(where: str) -> Answer | None:
        where = where.partition("?")[0] if access.anonymous else where
        return ask(where, method="GET", timeout_s=patience.probe_s, root_certificate=access.root_certificate)

    presign = presigner(lambda: _s3_store(access, "", patience, Pace.QUICK, signed=True))
    return ObstoreBucket(
        url=url,
        stores={pace: _s3_store(access, prefix, patience, pace) for pace in Pace},
        explain=S3Errors(url, lambda key: presign(f"{prefix}/{key}" if prefix and key else key), question),
        patience=patience,
        lists_in_order=True,
    )


def _s3_store(access: S3Access, prefix: str, patience: Patience, pace: Pace, *, signed: bool = False) -> S3Store:
    # A store that skips signatures cannot presign either; for the error path it signs with a dummy that is cut off.
    config: S3Config = {
        "virtual_hosted_style_request": access.virtual_hosted,
        "conditional_put": "etag",
        "disable_bulk_delete": True,
        "skip_signature": access.anonymous and not signed,
    }
    if access.region is not None:
        config["region"] = access.region
    if access.endpoint_url is not None:
        config["aws_endpoint_url_s3"] = access.endpoint_url.rstrip("/")
    if access.anonymous and signed:
        config["access_key_id"] = config["secret_access_key"] = "anonymous"  # noqa: S105 (a dummy, see above)
    try:
        return S3Store(
            access.bucket,
            prefix=prefix or None,
            config=config,
            client_options=patience.client(
                pace, allow_http=access.allow_http, root_certificate=access.root_certificate
            ),
            retry_config=patience.retry(),
            credential_provider=access.credentials,
        )
    except (BaseError, ValueError) as error:
        raise InvalidInput(
            f"s3://{access.bucket}", "the S3 client refused its options", "check the AWS_… variables and the endpoint"
        ) from error
