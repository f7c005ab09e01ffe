"""A first try of a bucket, so that what is wrong with it is told before any work is done."""

from __future__ import annotations

import uuid

from shuntserve.errors import InvalidInput
from shuntserve.store.port import Bucket


def check_bucket(bucket: Bucket) -> None:
    """Write, read, list and create twice in `bucket`; leaves nothing behind where deleting is allowed.

    Raises what the bucket raises (no such bucket, wrong credentials, permission denied, disk full, …), and
    InvalidInput when the store lets a second create replace the first: some S3 lookalikes ignore the condition, and
    over them nothing could be decided once.
    """
    first, second = uuid.uuid4().hex, uuid.uuid4().hex
    key = f".shuntserve/check/{first}"
    bucket.create(key, first.encode())
    try:
        if bucket.create(key, second.encode()) or bucket.get(key) != first.encode():
            raise InvalidInput(
                bucket.url, "the store ignores If-None-Match: objects could be created twice", "use one that honours it"
            )
        if key not in [info.key for info in bucket.list(".shuntserve/check")]:
            raise InvalidInput(bucket.url, "the store does not list what was just written", "use a consistent store")
    finally:
        _delete_if_allowed(bucket, key)


def _delete_if_allowed(bucket: Bucket, key: str) -> None:
    # A job itself never deletes, so that credentials without s3:DeleteObject are good enough.
    try:
        bucket.delete(key)
    except InvalidInput:
        return
