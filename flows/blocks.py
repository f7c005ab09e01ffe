"""The block `ShuntServeStore`: where jobs live, and the secrets that reaching it and the models takes.

    prefect block register --file flows/blocks.py

A flow's `store` may be a URL, a directory, or `block:NAME`.
"""

from __future__ import annotations

import os
from typing import ClassVar

from prefect.blocks.core import Block
from prefect.types import SecretDict
from pydantic import Field

PREFIX = "block:"


class ShuntServeStore(Block):
    """A bucket for jobs, with what its users need in their environment."""

    _block_type_name: ClassVar[str] = "ShuntServe store"
    _block_type_slug: ClassVar[str] = "shuntserve-store"
    _description: ClassVar[str] = "Where ShuntServe keeps its jobs, and the secrets to reach it."

    url: str = Field(description="s3://bucket/prefix, or a directory", examples=["s3://my-bucket/shuntserve"])
    environment: SecretDict = Field(
        default_factory=lambda: SecretDict({}),
        description="Environment variables of the job's processes: AWS_…, HF_TOKEN. Stored encrypted.",
    )


def open_store(store: str | None) -> str | None:
    """The URL that a flow's `store` means. A block's secrets become this process's environment, which the job's
    controller inherits."""
    if store is None or not store.startswith(PREFIX):
        return store
    block = ShuntServeStore.load(store.removeprefix(PREFIX))
    assert isinstance(block, ShuntServeStore)
    os.environ.update({name: str(value) for name, value in block.environment.get_secret_value().items()})
    return block.url
