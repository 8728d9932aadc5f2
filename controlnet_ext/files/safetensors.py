"""The safetensors format (github.com/huggingface/safetensors, README "Format"): a JSON header, then the bytes of
tensors. And the index of weights that are stored in several files.

The header is checked before any bytes of tensors are read.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from .disk import open_regular_file, parse_object, write_atomically

if TYPE_CHECKING:
    from torch import Tensor


MAX_TENSORS = 20_000
MAX_DIMENSIONS = 64  # torch's

ITEMSIZE = {  # bytes, by torch's name of the dtype
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1,
    "bool": 1, "complex64": 8, "complex128": 16,
}  # fmt: skip


class ByteRange(NamedTuple):
    """Position of the bytes of a storage in the file, and their CRC-32 where the file states one."""

    offset: int
    size: int
    crc: int | None = None


class Storage(NamedTuple):
    """A storage in the file under `key`: `element_count` values of a dtype."""

    key: str
    dtype: str
    element_count: int


class TensorView(NamedTuple):
    """A dense tensor: a view of the bytes of a storage as `dtype`. Offset and stride are in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def create_tensor_view(
    storage: Storage, dtype: str, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> TensorView:
    """Return the view. Raises ValueError where it exceeds its storage or has more values than it."""
    if len(shape) > MAX_DIMENSIONS or math.prod(n or 1 for n in shape) >= 2**63:
        raise ValueError(f"a tensor has a shape that no tensor has, of {len(shape)} dimensions")
    element_count = storage.element_count * ITEMSIZE[storage.dtype] // ITEMSIZE[dtype]
    count, last = math.prod(shape), offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if count and (last >= element_count or count > element_count):
        raise ValueError(
            f"a tensor of {shape} with strides {stride} from {offset} reaches over the {element_count} values it has"
        )
    return TensorView(storage, dtype, offset, shape, stride)


SAFETENSORS_HEADER_LIMIT = 2**23  # bytes; 20,000 tensors with names of 300
_DTYPE_BY_CODE = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
_CODE_BY_DTYPE = {dtype: code for code, dtype in _DTYPE_BY_CODE.items()}


def read_safetensors_contents(
    file: BinaryIO, size: int
) -> tuple[dict[str, TensorView], dict[str, str], dict[str, ByteRange]]:
    """Return the tensor views, the metadata, and the byte ranges, all by name.

    Raises ValueError when the header is over 8 MiB, or the tensors do not cover the rest of the file exactly.
    """
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > SAFETENSORS_HEADER_LIMIT or 8 + length > size:
        raise ValueError(
            f"a header of {length} bytes in a file of {size}: cut short, over {SAFETENSORS_HEADER_LIMIT}, or "
            "no safetensors"
        )
    header = parse_object(file.read(length), "its header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata is not text by key")
    if len(header) > MAX_TENSORS:
        raise ValueError(f"it holds over {MAX_TENSORS} tensors")
    plans, places = {}, {}
    for name, entry in header.items():
        plans[name], places[name] = _parse_entry(name, entry, 8 + length)
    at = 8 + length
    for place in sorted(places.values()):
        if place.offset != at:
            raise ValueError("its tensors overlap or leave a hole")
        at += place.size
    if at != size:
        raise ValueError(f"its tensors end at byte {at} and the file at {size}: cut short, or longer than it says")
    return plans, metadata, places


def _parse_entry(name: str, entry: object, start: int) -> tuple[TensorView, ByteRange]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name[:99]!r} is not of dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPE_BY_CODE:
        raise ValueError(f"the dtype {code!r:.40} of {name[:99]!r} is not read here")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise ValueError(f"the shape or the offsets of {name[:99]!r} are not lists of sizes")
    if len(shape) > MAX_DIMENSIONS:  # before products of them, which take quadratic time
        raise ValueError(f"{name[:99]!r} has a shape that no tensor has, of {len(shape)} dimensions")
    count, dtype = math.prod(shape), _DTYPE_BY_CODE[code]
    if len(offsets) != 2 or offsets[1] - offsets[0] != count * ITEMSIZE[dtype]:
        raise ValueError(f"the offsets of {name[:99]!r} do not hold its shape")
    stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    plan = create_tensor_view(Storage(name, dtype, count), dtype, 0, tuple(shape), stride)
    return plan, ByteRange(start + offsets[0], offsets[1] - offsets[0])


INDEX_PATTERN = re.compile(r".+\.index(\.[\w-]+)?\.json")  # names of indexes, as diffusers and transformers write them
PART_PATTERN = re.compile(r".+-(\d{1,6})-of-(\d{1,6})(\.[^.]+)+")  # of the files that they name


def list_parts(path: Path) -> list[Path]:
    """Return the files that hold the tensors of a weights file: those that an index names, else the file itself.

    Raises FileNotFoundError or ValueError where the index cannot be read.
    """
    if not INDEX_PATTERN.fullmatch(path.name):
        return [path]
    return [path.parent / name for name in sorted(set(read_weights_index(path).values()))]


def read_weights_index(path: Path) -> dict[str, str]:
    """Return the file name of each tensor. Raises ValueError for another content, and for files in other folders."""
    with open_regular_file(path) as file:
        content = file.read(SAFETENSORS_HEADER_LIMIT + 1)
    name = repr(str(path))
    if len(content) > SAFETENSORS_HEADER_LIMIT:
        raise ValueError(f"{name} is over {SAFETENSORS_HEADER_LIMIT} bytes, too large for an index of weights")
    files = parse_object(content, name).get("weight_map")
    if not isinstance(files, dict) or not files or len(files) > MAX_TENSORS:
        raise ValueError(f"{name} is no index of weights: expected up to {MAX_TENSORS} tensors in its weight_map")
    for file_name in set(map(str, files.values())):
        if file_name in ("", ".", "..") or any(mark in file_name for mark in "/\\:\0") or len(file_name) > 255:
            raise ValueError(f"{name} names {file_name!r:.80}, which is no file beside it")
    return {tensor: str(file_name) for tensor, file_name in files.items()}


def write_weights(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    temp_prefix: str = "",
) -> None:
    """Write tensors of any shape by name as safetensors, complete or not at all, copying one tensor at a time.

    `temp_prefix` is that of `write_atomically`. Raises ValueError as `serialize_weights` does.
    """
    write_atomically(path, serialize_weights(tensors, metadata), overwrite, temp_prefix)


def serialize_weights(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """Return the bytes of a safetensors file, in parts, copying one tensor of any shape at a time.

    Tensors are dense and on any device but meta; metadata is text. Raises ValueError for any other input.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    if not all(isinstance(text, str) for item in (metadata or {}).items() for text in item):
        raise ValueError("metadata of weights is text by key")
    if "__metadata__" in tensors or len(tensors) > MAX_TENSORS:
        raise ValueError(f"weights are up to {MAX_TENSORS} tensors, none of them called __metadata__")
    at = 0
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # aligned, as safetensors does it
    for name in order:
        tensor = tensors[name]
        code = _CODE_BY_DTYPE.get(str(tensor.dtype).removeprefix("torch."))
        if code is None or str(tensor.layout) != "torch.strided" or tensor.is_meta:
            raise ValueError(f"{name!r} cannot be written: {tensor.dtype}, {tensor.layout}, on {tensor.device}")
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > SAFETENSORS_HEADER_LIMIT:
        raise ValueError(f"names and metadata of the weights take {len(text)} bytes, over {SAFETENSORS_HEADER_LIMIT}")
    return itertools.chain([len(text).to_bytes(8, "little"), text], map(_to_bytes, (tensors[name] for name in order)))


def _to_bytes(tensor: Tensor) -> bytes | memoryview:
    import torch

    values = tensor.detach().cpu().resolve_conj().contiguous().flatten().view(torch.uint8)
    return values.numpy().data if values.numel() else b""  # an empty view cannot be cast
