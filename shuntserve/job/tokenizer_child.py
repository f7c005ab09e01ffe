"""A process that tokenizes: Arrow record batches of texts on stdin, of token ids on stdout, until stdin ends.

Started by `job.tokenizer_pool` as `python -m shuntserve.job.tokenizer_child DIRECTORY MODE TRUST_REMOTE_CODE`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pyarrow as pa

from shuntserve.job.model_files import ModelFiles
from shuntserve.job.tokenizing import load_tokenizer

REQUEST = pa.schema(
    [pa.field("text", pa.string(), nullable=False), pa.field("special_tokens", pa.bool_(), nullable=False)]
)
REPLY = pa.schema([pa.field("ids", pa.list_(pa.int32()), nullable=False)])


def main(arguments: list[str]) -> None:
    """Answer each batch with one batch of the same length, in order."""
    directory, mode, trust_remote_code = arguments
    if trust_remote_code != "1" and "torch" not in sys.modules:
        # transformers imports torch when it is there, which takes seconds and hundreds of megabytes; no tokenizer of
        # its own needs it.
        sys.modules["torch"] = None  # type: ignore[assignment]
    # Whatever a tokenizer's own code prints must not get between the batches.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    tokenizer = load_tokenizer(
        ModelFiles(directory, None, Path(directory)), trust_remote_code=trust_remote_code == "1", mode=mode
    )
    with pa.ipc.new_stream(pa.PythonFile(replies, "w"), REPLY) as writer:
        replies.flush()
        for batch in pa.ipc.open_stream(pa.PythonFile(sys.stdin.buffer, "r")):
            ids = [
                tokenizer.encode(text.as_py(), add_special_tokens=special.as_py())
                for text, special in zip(batch.column(0), batch.column(1), strict=True)
            ]
            writer.write_batch(pa.record_batch([pa.array(ids, REPLY.field(0).type)], schema=REPLY))
            replies.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
