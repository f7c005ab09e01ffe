"""The bucket over obstore: one adapter for S3, a local directory and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError

from shuntserve.core.create import Found, Put, Settle, settle
from shuntserve.errors import InvalidInput, NotFound, ShuntServeError
from shuntserve.store.honest import Attempt, create_honestly
from shuntserve.store.key_rules import check_key, check_prefix
from shuntserve.store.patience import QUICK_BYTES, Pace, Patience
from shuntserve.store.port import ObjectInfo
from shuntserve.store.verbs import Call, Verb

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import LocalStore, MemoryStore, S3Store

    Store = S3Store | LocalStore | MemoryStore

SINGLE_PUT_BYTES = 64 * 1024 * 1024
"""Larger overwrites go up in parts. Creates never do: only a single put can be conditional."""
PART_BYTES = 16 * 1024 * 1024
LIST_PAGE = 1000
"""Objects handed over at a time; S3's own pages have as many."""

ERRORS = (BaseError, OSError, ValueError)
"""All that obstore raises for a request that failed: its own tree, FileNotFoundError, and ValueError for bad paths."""

Explain = Callable[[Call, Exception | None], ShuntServeError]


class ObstoreBucket:
    """Keeps the promises of `port.Bucket` over obstore stores that differ only in their timeouts, one for each pace.

    `explain` turns whatever a call ended with into the error to raise; it knows the kind of store. `lists_in_order`
    says whether the store lists in key order by itself (a local directory does not, and is sorted here).
    """

    def __init__(
        self,
        *,
        url: str,
        stores: Mapping[Pace, Store],
        explain: Explain,
        patience: Patience,
        lists_in_order: bool,
        clock: Callable[[], float] = time.monotonic,
        rule: Settle = settle,
    ) -> None:
        self._url = url
        self._stores = stores
        self._explain = explain
        self._patience = patience
        self._lists_in_order = lists_in_order
        self._clock = clock
        self._rule = rule

    @property
    def url(self) -> str:
        return self._url

    def __repr__(self) -> str:
        return f"ObstoreBucket({self._url!r})"

    def get(self, key: str) -> bytes:
        check_key(self._url, key)
        try:
            return bytes(obstore.get(self._stores[Pace.READ], key).bytes())
        except ERRORS as error:
            raise self._explain(Call(Verb.GET, key), error) from error

    def get_range(self, key: str, start: int, end: int) -> bytes:
        check_key(self._url, key)
        if not 0 <= start <= end:
            raise self._out_of_range(key, start, end, None)
        if start == end:
            self._check_range(key, start, end)
            return b""
        try:
            body = bytes(obstore.get_range(self._stores[Pace.READ], key, start=start, end=end))
        except ERRORS as error:
            # A start beyond the object comes back as the class without a code; the object's size tells.
            if isinstance(error, GenericError):
                self._check_range(key, start, end)
            raise self._explain(Call(Verb.GET_RANGE, key), error) from error
        if len(body) != end - start:
            raise self._out_of_range(key, start, end, start + len(body))
        return body

    def head(self, key: str) -> ObjectInfo | None:
        check_key(self._url, key)
        try:
            return _info(obstore.head(self._stores[Pace.QUICK], key))
        except ERRORS as error:
            explained = self._explain(Call(Verb.HEAD, key), error)
            if isinstance(explained, NotFound):
                return None
            raise explained from error

    def put(self, key: str, body: bytes) -> None:
        check_key(self._url, key)
        in_parts = len(body) > SINGLE_PUT_BYTES
        try:
            obstore.put(self._upload(len(body)), key, body, use_multipart=in_parts, chunk_size=PART_BYTES)
        except ERRORS as error:
            raise self._explain(Call(Verb.PUT, key, len(body)), error) from error

    def create(self, key: str, body: bytes) -> bool:
        check_key(self._url, key)
        upload = self._upload(len(body))
        give_up_at_s = self._clock() + self._patience.create_within_s

        def attempt() -> Attempt:
            try:
                obstore.put(upload, key, body, mode="create")
            except AlreadyExistsError as error:
                return Attempt(Put.EXISTS, error)
            except GenericError as error:
                return Attempt(Put.FAILED, error)
            except ERRORS as error:
                return Attempt(Put.REFUSED, error)
            return Attempt(Put.STORED)

        def read_back() -> Found:
            try:
                found = obstore.get(self._stores[Pace.READ], key).bytes()
            except FileNotFoundError:
                return Found.ABSENT
            except ERRORS:
                return Found.UNREADABLE
            return Found.MINE if bytes(found) == body else Found.ANOTHERS

        return create_honestly(
            attempt,
            read_back,
            lambda error: self._explain(Call(Verb.CREATE, key, len(body)), error),
            tries=self._patience.create_tries,
            in_time=lambda: self._clock() < give_up_at_s,
            rule=self._rule,
        )

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        prefix = prefix.removesuffix("/")
        check_prefix(self._url, prefix)
        listing = self._list(prefix, start_after)
        return listing if self._lists_in_order else iter(sorted(listing, key=lambda info: info.key))

    def list_dirs(self, prefix: str) -> Sequence[str]:
        prefix = prefix.removesuffix("/")
        check_prefix(self._url, prefix)
        try:
            found = obstore.list_with_delimiter(self._stores[Pace.QUICK], prefix or None)["common_prefixes"]
        except ERRORS as error:
            raise self._explain(Call(Verb.LIST_DIRS, prefix), error) from error
        # A local directory may be left without any object in it; in the bucket's terms it does not exist.
        dirs = found if self._lists_in_order else [path for path in found if self._has_objects(path)]
        return sorted(path.rpartition("/")[2] for path in dirs)

    def delete(self, key: str) -> None:
        check_key(self._url, key)
        try:
            obstore.delete(self._stores[Pace.QUICK], key)
        except ERRORS as error:
            explained = self._explain(Call(Verb.DELETE, key), error)
            if not isinstance(explained, NotFound):
                raise explained from error

    def _list(self, prefix: str, start_after: str | None, page_objects: int = LIST_PAGE) -> Iterator[ObjectInfo]:
        under = f"{prefix}/" if prefix else ""
        try:
            pages = obstore.list(self._stores[Pace.QUICK], prefix or None, offset=start_after, chunk_size=page_objects)
            for page in pages:
                for meta in page:
                    # An S3 console "folder" (a key that ends in a slash) comes back as the prefix itself.
                    if meta["path"].startswith(under) and (start_after is None or meta["path"] > start_after):
                        yield _info(meta)
        except ERRORS as error:
            raise self._explain(Call(Verb.LIST, prefix), error) from error

    def _has_objects(self, prefix: str) -> bool:
        return next(self._list(prefix, None, 1), None) is not None

    def _upload(self, size_bytes: int) -> Store:
        return self._stores[Pace.QUICK if size_bytes <= QUICK_BYTES else Pace.UPLOAD]

    def _check_range(self, key: str, start: int, end: int) -> None:
        info = self.head(key)
        if info is None:
            raise NotFound(f"{self._url}/{key}", "no such object", "check the name")
        if end > info.size_bytes:
            raise self._out_of_range(key, start, end, info.size_bytes)

    def _out_of_range(self, key: str, start: int, end: int, size_bytes: int | None) -> InvalidInput:
        size = "" if size_bytes is None else f", which has {size_bytes:,} bytes"
        return InvalidInput(
            f"{self._url}/{key}", f"bytes [{start}, {end}) are not in the object{size}", "ask for others"
        )


def presigner(make_store: Callable[[], S3Store]) -> Callable[[str], str | None]:
    """A function from key to the URL of a signed GET, for the error path; None when it cannot sign."""

    def presign(key: str) -> str | None:
        try:
            return obstore.sign(make_store(), "GET", key, timedelta(minutes=1))
        except ERRORS:
            return None

    return presign


def _info(meta: ObjectMeta) -> ObjectInfo:
    return ObjectInfo(
        key=meta["path"],
        size_bytes=meta["size"],
        etag=meta["e_tag"],
        modified_unix_s=meta["last_modified"].timestamp(),
    )
