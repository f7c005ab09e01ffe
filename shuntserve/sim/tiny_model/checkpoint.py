"""A safetensors file: little-endian u64 header length, JSON header with byte ranges, then the tensors' bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

_DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16"}


def write_safetensors(
    path: Path, tensors: Mapping[str, npt.NDArray[np.float32]], dtype: Literal["float32", "bfloat16"]
) -> None:
    """Write the tensors, in their order, as `dtype`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs: list[bytes] = []
    offset = 0
    for name, tensor in tensors.items():
        blob = _to_bytes(tensor, dtype)
        end = offset + len(blob)
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": tensor.shape, "data_offsets": [offset, end]}
        blobs.append(blob)
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for blob in blobs:
            file.write(blob)


def _to_bytes(tensor: npt.NDArray[np.float32], dtype: str) -> bytes:
    if dtype == "float32":
        return np.ascontiguousarray(tensor).tobytes()
    bits = np.ascontiguousarray(tensor).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest even, as torch does
    return rounded.astype(np.uint16).tobytes()
