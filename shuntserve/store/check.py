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
        created_twice = bucket.create(key, second.encode())
        unchanged = bucket.get(key) == first.encode()
        listed = [info.key for info in bucket.list(".shuntserve/check")]
    finally:
        try_to_delete(bucket, key)
    if created_twice or not unchanged:
        raise InvalidInput(
            bucket.url,
            "the store ignores If-None-Match: an object could be created twice",
            "use a store that honours it",
        )
    if key not in listed:
        raise InvalidInput(
            bucket.url, "the store does not list what was just written", "use a strongly consistent store"
        )


def try_to_delete(bucket: Bucket, key: str) -> None:
    """Delete where it is allowed: a job itself never needs s3:DeleteObject."""
    try:
        bucket.delete(key)
    except InvalidInput:
        return
