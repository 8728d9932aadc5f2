"""What a file says of its tensors: which bytes, read as what. Checked before any of them is read."""

from __future__ import annotations

import math
from typing import NamedTuple

MAX_TENSORS = 20_000
MAX_DIMENSIONS = 64  # torch's

ITEMSIZE = {  # bytes, by torch's name of the dtype
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1,
    "bool": 1, "complex64": 8, "complex128": 16,
}  # fmt: skip


class Place(NamedTuple):
    """Where the bytes of a storage lie in the file, and their CRC-32 where the file has one."""

    at: int
    size: int
    crc: int | None = None


class Storage(NamedTuple):
    """Bytes that the file keeps under `key`: `elements` values of a dtype."""

    key: str
    dtype: str
    elements: int


class Plan(NamedTuple):
    """A dense tensor, as a view of a storage's bytes as `dtype`. Offset and strides are in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def planned(storage: Storage, dtype: str, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Plan:
    """The Plan, if it stays within its storage and has no more values than that. ValueError otherwise."""
    if len(shape) > MAX_DIMENSIONS or math.prod(n or 1 for n in shape) >= 2**63:
        raise ValueError(f"a tensor has a shape that no tensor has, of {len(shape)} dimensions")
    held = storage.elements * ITEMSIZE[storage.dtype] // ITEMSIZE[dtype]
    count, last = math.prod(shape), offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if count and (last >= held or count > held):
        raise ValueError(
            f"a tensor of {shape} with strides {stride} from {offset} reaches over the {held} values it has"
        )
    return Plan(storage, dtype, offset, shape, stride)
