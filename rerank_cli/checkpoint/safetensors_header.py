"""Reads the header of a safetensors file: 8 bytes of length and a JSON object.

Both are checked against the size of the file, so that a wrong header is refused before the file is mapped.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank_cli.errors import ModelError

_MAX_HEADER_BYTES = 100 * 2**20  # the limit of the safetensors library itself
_MAX_DIMENSIONS = 64  # of a tensor, in torch
_ELEMENT_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint: its place and shape, not its values."""

    file: Path
    dtype: str
    """In the spelling of safetensors: `F32`."""
    shape: tuple[int, ...]
    offset: int
    """Where its bytes begin in the file."""
    size_bytes: int
    stored_name: str = ""
    """Its name in the file, if the checkpoint has another one for it."""


def read_safetensors_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name, after checking that the header agrees with the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ModelError(f"{path}: not a safetensors file: header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not a safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise ModelError(f"{path}: not a safetensors file: the header is not an object")
    header.pop("__metadata__", None)
    tensors = {name: _tensor_info(path, name, entry, begins=8 + length) for name, entry in header.items()}
    # The format demands that tensors fill the data part without gaps or overlaps.
    position, data_bytes = 0, size - 8 - length
    for name, entry in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        begin, end = entry["data_offsets"]
        if begin != position:
            raise ModelError(f"{path}: `{name}` begins at byte {begin} of the data, not at {position}")
        position = end
    if position != data_bytes:
        raise ModelError(f"{path}: the header describes {position} bytes of data, the file has {data_bytes}")
    return tensors


def _tensor_info(path: Path, name: str, entry: Any, *, begins: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        # At most 64 bits each, and not many of them: multiplying huge numbers could take hours.
        whole = len(shape) <= _MAX_DIMENSIONS and all(
            type(number) is int and 0 <= number < 2**63 for number in (*shape, begin, end)
        )
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"{path}: the header's entry of `{name}` is malformed") from None
    if not isinstance(dtype, str) or dtype not in _ELEMENT_BITS:
        raise ModelError(f"{path}: `{name}` has an unknown type: {dtype!r}")
    if not whole or end - begin != math.prod(shape) * _ELEMENT_BITS[dtype] // 8:
        raise ModelError(f"{path}: `{name}` has shape {list(shape)} of {dtype}, but its bytes are {begin}..{end}")
    return TensorInfo(file=path, dtype=dtype, shape=shape, offset=begins + begin, size_bytes=end - begin)
