"""The place a job's output goes to: whose it is, what may be replaced, and when it is complete.

    _job.json        written first: the job this place belongs to
    data/, rejects/  parts (or output*.jsonl, errors*.jsonl)
    _manifest.json   written last: state, rows, schema, and every part with its hash

Without `_manifest.json` the output is not complete. With it, the parts it names are exactly the parts that are there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from shuntserve.errors import Conflict, Corrupt, InvalidInput, NotFound
from shuntserve.store.port import Bucket

SCHEMA_VERSION = 1
MARKER = "_job.json"
MANIFEST = "_manifest.json"
_PART = re.compile(r"(data|rejects)/part-\d{6}\.parquet|(output|errors)(-\d{6})?\.jsonl")
_OWN_FOLDERS = ("data", "rejects")


class OutputPlace:
    """One output directory or URL prefix, as a bucket of its own."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    @property
    def url(self) -> str:
        """Where it is."""
        return self._bucket.url

    def reserve(self, job_id: str, store_url: str, *, overwrite: bool) -> None:
        """Make this place the job's, before any work is done for it. Also shows that it can be written to.

        Raises InvalidInput when it belongs to something else and `overwrite` is not given, or when replacing it would
        delete files that are not ShuntServe's.
        """
        owner = self.owner()
        if owner == job_id:
            return
        if not overwrite and self._is_taken(owner):
            if self.owner() == job_id:
                return  # reserved for this very job by somebody else, since we looked
            self._refuse_foreign(owner)
        self._refuse_strangers_among_parts()
        marker = json.dumps({"schema_version": SCHEMA_VERSION, "job": job_id, "store": store_url}, indent=1).encode()
        if owner is None and self._read(MANIFEST) is None and not self._parts():
            if not self._bucket.create(MARKER, marker):
                self._lost_race(job_id)
            return
        self._bucket.delete(MANIFEST)
        self._delete_parts_except(())
        self._bucket.put(MARKER, marker)

    def owner(self) -> str | None:
        """The job this place was reserved for."""
        marker = self._read(MARKER)
        return None if marker is None else str(marker["job"])

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, when the output is complete."""
        return self._read(MANIFEST)

    def holds(self, manifest: Mapping[str, Any], sizes: Mapping[str, int]) -> bool:
        """Whether exactly this output is here, complete."""
        published = self._read(MANIFEST)
        if published is None or any(published.get(name) != value for name, value in manifest.items()):
            return False
        here = {info.key: info.size_bytes for info in self._bucket.list("") if _PART.fullmatch(info.key)}
        return here == dict(sizes)

    def put(self, path: str, body: bytes) -> None:
        """Write one part."""
        self._bucket.put(path, body)

    def publish(self, manifest: dict[str, Any], paths: Collection[str]) -> None:
        """Declare the output complete: remove parts a crashed or older run left behind, then write the manifest."""
        self._delete_parts_except(paths)
        body = json.dumps({"schema_version": SCHEMA_VERSION, **manifest}, indent=1).encode()
        self._bucket.put(MANIFEST, body)

    # -- what is there ---------------------------------------------------------------------------------------------

    def _read(self, key: str) -> dict[str, Any] | None:
        try:
            body = self._bucket.get(key)
        except NotFound:
            return None
        try:
            value = json.loads(body)
            version = value["schema_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"{self.url}/{key}", "is not ShuntServe's", "choose another --output") from error
        if version > SCHEMA_VERSION:
            raise Corrupt(f"{self.url}/{key}", f"has schema version {version}", "upgrade shuntserve")
        return dict(value)

    def _parts(self) -> list[str]:
        return [info.key for info in self._bucket.list("") if _PART.fullmatch(info.key)]

    def _delete_parts_except(self, kept: Collection[str]) -> None:
        for key in self._parts():
            if key not in kept:
                self._bucket.delete(key)

    def _is_taken(self, owner: str | None) -> bool:
        return owner is not None or next(iter(self._bucket.list("")), None) is not None

    def _refuse_foreign(self, owner: str | None) -> None:
        if owner is not None:
            raise InvalidInput(
                f"output {self.url}", f"holds the output of job {owner}", "choose another --output, or give --overwrite"
            )
        first = next(iter(self._bucket.list("")), None)
        if first is not None:
            raise InvalidInput(
                f"output {self.url}",
                f"exists and is not empty (it has {first.key})",
                "choose another --output, or give --overwrite",
            )

    def _refuse_strangers_among_parts(self) -> None:
        for folder in _OWN_FOLDERS:
            for info in self._bucket.list(folder):
                if not _PART.fullmatch(info.key):
                    raise InvalidInput(
                        f"output {self.url}",
                        f"{info.key} is not ShuntServe's, and --overwrite deletes nothing of yours",
                        "move it away or choose another --output",
                    )

    def _lost_race(self, job_id: str) -> None:
        owner = self.owner()
        if owner != job_id:
            raise Conflict(f"output {self.url}", f"was just taken by job {owner}", "choose another --output")
