"""The drop folder: complete submissions are taken, each once, and become jobs.

    inbox/<submission>/…                      the user's, only read
    submissions/.clock                        written to read the bucket's clock
    submissions/<name>/<n>/record.json        what was taken: exact files, settings; the next number wins       create
    submissions/<name>/<n>/job.json           the job it became                                                 create
    submissions/<name>/<n>/refused.json       why it cannot become one
    submissions/<name>/refused/<print>.json   why an upload cannot even be taken; tried again when it changes
    submissions/<name>/seen/<print>.json      this state of the upload needs nothing more
    identities/<identity>.json                the job of this content and these settings, whatever its name     create

`scan` decides and records; whoever runs jobs then calls `submit_taken` for what it says is to be started. Both may be
cut off anywhere and repeated by anybody, also two at once.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from shuntserve.core.inbox import (
    QUIET_S,
    Changes,
    File,
    Past,
    Step,
    Upload,
    changes,
    completeness,
    job_settings,
    next_step,
    read_listing,
    rerun_salt,
)
from shuntserve.core.specs import JobSpec
from shuntserve.errors import Conflict, InvalidInput, NotFound
from shuntserve.job.adjust import current_job
from shuntserve.job.run import output_place
from shuntserve.job.submission import resolve, submit_resolved
from shuntserve.store import json_objects, keys
from shuntserve.store.port import Bucket

SCHEMA_VERSION = 1
MAX_SETTINGS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """One taken submission: exactly these files, with these settings. `key` is unique to it."""

    submission: str
    number: int
    job_name: str
    files: tuple[File, ...]
    settings: Mapping[str, Any]
    rerun: str | None
    fingerprint: str
    settings_etag: str | None
    key: str = ""


@dataclass(frozen=True, slots=True)
class Waiting:
    """An upload that is not complete yet; `quiet_in_s` until it is if nothing more comes."""

    submission: str
    reason: str
    quiet_in_s: float | None


@dataclass(frozen=True, slots=True)
class Warned:
    """An upload that changed after its job was made."""

    submission: str
    job_id: str
    changes: Changes
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Refused:
    """An upload that cannot become a job as it is."""

    submission: str
    reason: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Scan:
    """What one look at the inbox found.

    `start`: to be handed to `submit_taken`, again and again until it has a job. `warned` and `refused`: for somebody to
    be told, look after look until `mark_told` says that they were.
    """

    start: tuple[Record, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    warned: tuple[Warned, ...] = ()
    refused: tuple[Refused, ...] = ()
    strays: tuple[str, ...] = ()
    known: int = 0


@dataclass(slots=True)
class _Found:
    start: list[Record] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    warned: list[Warned] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    known: int = 0


def scan(
    bucket: Bucket,
    *,
    defaults: Mapping[str, Any] | None = None,
    quiet_s: float = QUIET_S,
    rerun: Mapping[str, str] = {},
) -> Scan:
    """Look at the inbox once, and take what is complete. `defaults` are job settings under each submission's own.

    `rerun` maps names of submissions to a text each: another job is made of them, one for each text. Raises what the
    bucket raises; NotFound when a submission to run again is not in the inbox.
    """
    listing = read_listing(_files(bucket))
    pasts = _pasts(bucket)
    for name in rerun.keys() - {upload.name for upload in listing.uploads}:
        raise NotFound(f"submission {name}", f"is not in {bucket.url}/{keys.INBOX}", "check the name")
    now_unix_s = _bucket_clock(bucket) if listing.uploads else None
    found = _Found()
    for upload in listing.uploads:
        past = pasts.get(upload.name, Past())
        asked = rerun.get(upload.name)
        try:
            _step(bucket, upload, past, now_unix_s, defaults or {}, quiet_s, asked, found)
        except InvalidInput as error:
            found.refused.append(Refused(upload.name, str(error), upload.fingerprint))
    return Scan(
        tuple(found.start), tuple(found.waiting), tuple(found.warned), tuple(found.refused), listing.strays, found.known
    )


def mark_told(bucket: Bucket, found: Scan) -> None:
    """Note that somebody was told of a look's warnings: later looks are silent about them until the upload changes."""
    for warned in found.warned:
        _put(bucket, keys.upload_seen(warned.submission, warned.fingerprint), {"job": warned.job_id})
    for refused in found.refused:
        _put(bucket, keys.upload_refused(refused.submission, refused.fingerprint), {"reason": refused.reason})


def _step(
    bucket: Bucket,
    upload: Upload,
    past: Past,
    now_unix_s: float | None,
    defaults: Mapping[str, Any],
    quiet_s: float,
    asked: str | None,
    found: _Found,
) -> None:
    judged = completeness(upload, now_unix_s, quiet_s)
    if asked is not None and not any(record.rerun == asked for record in _records(bucket, upload.name, past)):
        found.start.append(_take(bucket, upload, past.number, defaults, asked))
        return
    match next_step(past, upload, judged):
        case Step.NOTHING:
            found.known += 1
        case Step.WAIT:
            found.waiting.append(Waiting(upload.name, judged.reason, judged.quiet_in_s))
        case Step.CONTINUE:
            assert past.number is not None
            found.start.append(load_record(bucket, upload.name, past.number))
        case Step.TAKE:
            found.start.append(_take(bucket, upload, past.number, defaults, None))
        case Step.COMPARE:
            assert past.number is not None
            _compare(bucket, upload, past, defaults, found)


def _compare(bucket: Bucket, upload: Upload, past: Past, defaults: Mapping[str, Any], found: _Found) -> None:
    assert past.number is not None
    record = load_record(bucket, upload.name, past.number)
    settings = upload.settings
    if settings is not None and settings.etag != record.settings_etag:
        salt = rerun_salt(_read_settings(bucket, upload), str(settings.version))
        if salt is not None and not any(one.rerun == salt for one in _records(bucket, upload.name, past)):
            found.start.append(_take(bucket, upload, past.number, defaults, None))
            return
    found.known += 1
    difference = changes(record.files, upload)
    if settings is not None and settings.etag != record.settings_etag:
        difference = replace(difference, changed=(*difference.changed, settings.path))
    if difference:
        job_id = job_of(bucket, upload.name, past.number)
        found.warned.append(Warned(upload.name, job_id or "", difference, upload.fingerprint))
        return
    _put(bucket, keys.upload_seen(upload.name, upload.fingerprint), {"number": past.number})


def _take(bucket: Bucket, upload: Upload, last: int | None, defaults: Mapping[str, Any], asked: str | None) -> Record:
    """Fix what was uploaded in the next record. Somebody else's record, if they were first, is as good."""
    if not upload.rows:
        raise InvalidInput(f"submission {upload.name}", "has no files with rows", "put Parquet or JSONL files into it")
    own = _read_settings(bucket, upload)
    version = str(upload.settings.version) if upload.settings is not None else ""
    record = Record(
        submission=upload.name,
        number=0 if last is None else last + 1,
        job_name=upload.job_name,
        files=upload.rows,
        settings=job_settings(defaults, own),
        rerun=asked if asked is not None else rerun_salt(own, version),
        fingerprint=upload.fingerprint,
        settings_etag=None if upload.settings is None else upload.settings.etag,
    )
    job_spec(bucket, record)
    while True:
        body = json_objects.dumps(_to_json(record), schema_version=SCHEMA_VERSION, writer=uuid.uuid4().hex)
        won = bucket.create(keys.submission_record(upload.name, record.number), body)
        stored = load_record(bucket, upload.name, record.number)
        if won or asked is None or stored.rerun == asked:
            return stored
        record = replace(record, number=record.number + 1)


def job_spec(bucket: Bucket, record: Record) -> JobSpec:
    """The job that a record asks for. Raises InvalidInput."""
    settings = {"name": record.job_name, **record.settings}
    rerun = False if record.rerun is None else record.rerun
    return JobSpec(**settings, input=tuple(_url(bucket, file.path) for file in record.files), rerun=rerun)


def submit_taken(bucket: Bucket, name: str, number: int) -> str:
    """Make the job of a taken submission, and give its id. Repeating it gives the same job.

    The same content with the same settings is one job, under whatever name it came first. Raises InvalidInput when it
    cannot be a job, which is then written beside the record.
    """
    known = job_of(bucket, name, number)
    if known is not None:
        return known
    record = load_record(bucket, name, number)
    try:
        _must_be_as_taken(bucket, record)
        job = resolve(job_spec(bucket, record))
        mine = json_objects.dumps(
            {"job": job.job_id, "name": job.name, "submission": name},
            schema_version=SCHEMA_VERSION,
            writer=uuid.uuid4().hex,
        )
        key = keys.submitted_identity(job.identity)
        if not bucket.create(key, mine):
            first = json_objects.loads(key, bucket.get(key), schema_version=SCHEMA_VERSION)
            job = replace(job, job_id=first["job"], name=first["name"])
        submit_resolved(bucket, job)
        job = current_job(bucket, job.job_id)
        output_place(bucket, job).reserve(job.job_id, bucket.url, overwrite=False)
    except (InvalidInput, Conflict) as error:
        _put(bucket, keys.submission_refused(name, number), {"reason": str(error), "fingerprint": record.fingerprint})
        _put(bucket, keys.upload_seen(name, record.fingerprint), {"number": number})
        raise
    done = {"job": job.job_id, "submission": name}
    bucket.create(
        keys.submission_job(name, number),
        json_objects.dumps(done, schema_version=SCHEMA_VERSION, writer=uuid.uuid4().hex),
    )
    _put(bucket, keys.upload_seen(name, record.fingerprint), {"number": number})
    return job.job_id


def job_of(bucket: Bucket, name: str, number: int) -> str | None:
    """The job that a record became; None: none yet."""
    key = keys.submission_job(name, number)
    try:
        body = bucket.get(key)
    except NotFound:
        return None
    return str(json_objects.loads(key, body, schema_version=SCHEMA_VERSION)["job"])


def load_record(bucket: Bucket, name: str, number: int) -> Record:
    """A record as stored. Raises NotFound."""
    key = keys.submission_record(name, number)
    value = json_objects.loads(key, bucket.get(key), schema_version=SCHEMA_VERSION)
    return Record(
        submission=value["submission"],
        number=value["number"],
        job_name=value["job_name"],
        files=tuple(File(**file) for file in value["files"]),
        settings=value["settings"],
        rerun=value["rerun"],
        fingerprint=value["fingerprint"],
        settings_etag=value["settings_etag"],
        key=str(value[json_objects.WRITER]),
    )


def _to_json(record: Record) -> dict[str, Any]:
    value = asdict(record)
    del value["key"]
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"job.yaml of {record.submission}", "holds values that are not JSON", "quote them"
        ) from error
    return value


def _records(bucket: Bucket, name: str, past: Past) -> Iterable[Record]:
    return (load_record(bucket, name, number) for number in range((-1 if past.number is None else past.number) + 1))


def _files(bucket: Bucket) -> Iterator[File]:
    for info in bucket.list(keys.INBOX):
        yield File(info.key.removeprefix(f"{keys.INBOX}/"), info.size_bytes, info.etag, info.modified_unix_s)


def _pasts(bucket: Bucket) -> dict[str, Past]:
    """All records by submission, from one listing."""
    numbers: dict[str, int] = {}
    objects: dict[str, set[str]] = {}
    for info in bucket.list(keys.SUBMISSIONS):
        name, _, rest = info.key.removeprefix(f"{keys.SUBMISSIONS}/").partition("/")
        objects.setdefault(name, set()).add(rest)
        number = rest.removesuffix("/record.json")
        if number != rest:
            numbers[name] = max(numbers.get(name, -1), int(number))
    found: dict[str, Past] = {}
    for name, there in objects.items():
        number_ = numbers.get(name)
        stem = "" if number_ is None else f"{number_:04d}/"
        dealt = {
            path.rpartition("/")[2].removesuffix(".json") for path in there if path.startswith(("seen/", "refused/"))
        }
        found[name] = Past(
            number_,
            has_job=number_ is not None and f"{stem}job.json" in there,
            refused=number_ is not None and f"{stem}refused.json" in there,
            dealt_with=frozenset(dealt),
        )
    return found


def _bucket_clock(bucket: Bucket) -> float | None:
    """Now, by the clock that dates the bucket's objects."""
    bucket.put(keys.SUBMISSIONS_CLOCK, uuid.uuid4().hex.encode())
    probe = bucket.head(keys.SUBMISSIONS_CLOCK)
    return None if probe is None else probe.modified_unix_s


def _read_settings(bucket: Bucket, upload: Upload) -> dict[str, Any]:
    file = upload.settings
    if file is None:
        return {}
    if file.size_bytes > MAX_SETTINGS_BYTES:
        raise InvalidInput(file.path, f"has more than {MAX_SETTINGS_BYTES:,} bytes", "it holds settings, not rows")
    try:
        value = yaml.safe_load(bucket.get(f"{keys.INBOX}/{file.path}"))
    except yaml.YAMLError as error:
        raise InvalidInput(file.path, f"is not YAML: {error}".replace("\n", " "), "correct it") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInput(file.path, "does not hold settings", "write lines like `model: NAME`")
    return {str(name): item for name, item in value.items()}


def _must_be_as_taken(bucket: Bucket, record: Record) -> None:
    for file in record.files:
        info = bucket.head(f"{keys.INBOX}/{file.path}")
        if info is None or (info.size_bytes, info.etag) != file.version:
            what = "is gone" if info is None else "changed"
            raise InvalidInput(
                f"submission {record.submission}: {file.path}", f"{what} after the submission was taken", "upload again"
            )


def _put(bucket: Bucket, key: str, value: Mapping[str, Any]) -> None:
    bucket.put(key, json_objects.dumps(value, schema_version=SCHEMA_VERSION, writer=uuid.uuid4().hex))


def _url(bucket: Bucket, path: str) -> str:
    where = urlsplit(bucket.url)
    if where.scheme == "file":
        return str(Path(unquote(where.path)) / keys.INBOX / path)
    return f"{bucket.url.rstrip('/')}/{keys.INBOX}/{path}"
