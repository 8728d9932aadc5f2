"""The one reader of weights. A file is not trusted: not its name, not its sizes, not its pickle."""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import quote_value
from .disk import open_regular_file
from .safetensors import (
    INDEX_PATTERN,
    ITEMSIZE,
    ByteRange,
    TensorView,
    list_parts,
    read_safetensors_contents,
    read_weights_index,
)
from .torch_pickle import read_legacy_contents, read_zip_contents

if TYPE_CHECKING:
    from torch import Tensor

MAX_KEY_LENGTH = 500  # letters of the name of a tensor
POPULATE_MIN_BYTES = 2**18  # bytes of a storage that has memory of its own from the system
HASH_BLOCK_BYTES = 2**24  # bytes that are hashed at once
CHECKSUM_BLOCK_BYTES = 2**20  # bytes that are looked at again while they are in the processor's cache
# What training scripts call the part that holds the weights
STATE_DICT_KEYS = ("state_dict", "model", "params", "params_ema", "depth_model", "controlnet")
# What lies under the name of weights, by its first bytes
OTHER_FORMATS = (
    (b"GGUF", "a GGUF file, of quantized weights"),
    (b"version https://", "a pointer of Git LFS, in place of the file that `git lfs pull` brings"),
    (b"<", "a web page, in place of the file"),
    (b"\x08\x07\x12", "an ONNX network"),
    (b"\x08\x08\x12", "an ONNX network"),
)


@dataclass(frozen=True, eq=False)
class Weights:
    """Tensors by name, on the CPU, in the dtypes of the file, and its metadata as text.

    `format` is "safetensors" or "pickle". The tensors have memory of their own: the file may change or go.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    format: str
    _file_stamp: tuple[int, ...]
    _sha256: str | None = None

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file in hex, computed on first access unless it was taken while the file was read; of weights
        in parts that of their index.

        Raises ValueError when the file has changed since it was read.
        """
        if self._sha256 is not None:
            return self._sha256
        import hashlib  # not at the top, where a canny edge map would pay for it

        digest = hashlib.sha256()
        with open_regular_file(self.path) as file:
            while block := file.read(2**20):
                digest.update(block)
            if _read_file_stamp(file) != self._file_stamp:
                raise ValueError(f"{str(self.path)!r} has changed since it was read")
        return digest.hexdigest()


def _read_parts(path: Path, load_values: bool) -> Weights:
    places = read_weights_index(path)
    with open_regular_file(path) as file:
        stamp = _read_file_stamp(file)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    name, format = repr(str(path)), ""
    for part in list_parts(path):
        if not os.path.lexists(part):
            raise FileNotFoundError(f"{name} names {part.name!r}, which is not beside it")
        weights = read_weights(part, load_values)
        names = {tensor for tensor, file_name in places.items() if file_name == part.name}
        if odd := sorted(weights.tensors.keys() ^ names):
            raise ValueError(f"{name} is not the index of {part.name!r}: {odd[0]!r:.80} is in one of them only")
        tensors |= weights.tensors
        metadata |= weights.metadata
        format = weights.format
    return Weights(path, tensors, metadata, format, stamp)


def read_weights(path: str | os.PathLike[str], load_values: bool = True, with_sha256: bool = False) -> Weights:
    """Read the weights in a file of safetensors or torch.save, whatever its name, or in all parts that an index names.

    Without `load_values` tensors are on the meta device, and only the header of the file is read. A dict of torch.save
    without tensors, but with a dict of tensors under one of STATE_DICT_KEYS, gives the latter; with other dicts of
    tensors, all of these, by both keys with a dot between. Numbers and text beside
    the tensors become metadata; other containers are left out. Keys stay unchanged. `with_sha256` hashes the file while
    its values are read, so that `Weights.sha256` reads nothing again.

    Nothing is executed: a pickle that names anything but tensors, containers and plain scalars is refused. Raises
    FileNotFoundError, or ValueError in one line: cut short, damaged (where the file has checksums), wrong sizes, over
    20,000 tensors. Values are not checked: the loader of the network checks that they are finite.
    """
    if INDEX_PATTERN.fullmatch(os.path.basename(path)):
        return _read_parts(Path(path), load_values)
    name = repr(os.fspath(path))
    with open_regular_file(path) as file:
        stamp = _read_file_stamp(file)
        try:
            format, plans, metadata, places = _read_contents(file, stamp[0])
            _check_keys(plans)
            hasher = _FileHasher(file) if with_sha256 and load_values else None
            tensors = _read_tensors(file, plans, places, load_values, hasher)
            sha256 = None if hasher is None else hasher.finish(stamp[0])
            if hasher is not None and _read_file_stamp(file) != stamp:
                raise ValueError("it changed while it was read")
            return Weights(Path(path), tensors, metadata, format, stamp, sha256)
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{name} is refused: {error}") from error
        except (LookupError, TypeError, struct.error) as error:
            raise ValueError(f"{name} is refused: damaged, or no file of weights") from error


class _FileHasher:
    """The sha256 of a file of which parts are read anyway, in the order of their offsets: only the gaps between them
    are read for the hash."""

    def __init__(self, file: BinaryIO):
        import hashlib  # not at the top, where a canny edge map would pay for it

        self._file, self._digest, self._position = file, hashlib.sha256(), 0

    def add(self, offset: int, content: memoryview) -> None:
        """Hash what lies before `offset`, then the bytes of the file from there, as far as they are not hashed yet."""
        self._skip_to(offset)
        for start in range(self._position - offset, len(content), HASH_BLOCK_BYTES):  # so that Ctrl-C stops it
            self._digest.update(content[start : start + HASH_BLOCK_BYTES])
        self._position = max(self._position, offset + len(content))

    def finish(self, size: int) -> str:
        """Hash the rest of the file, which has `size` bytes, and return the hash in hex."""
        self._skip_to(size)
        return self._digest.hexdigest()

    def _skip_to(self, offset: int) -> None:
        self._file.seek(self._position)
        while self._position < offset:
            block = self._file.read(min(offset - self._position, HASH_BLOCK_BYTES))
            if not block:
                raise ValueError("cut short while it was read")
            self._digest.update(block)
            self._position += len(block)


def _read_file_stamp(file: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns, status.st_ino


def _read_contents(
    file: BinaryIO, size: int
) -> tuple[str, dict[str, TensorView], dict[str, str], dict[str, ByteRange]]:
    head = file.read(16)
    if head[8:9] == b"{":
        return "safetensors", *read_safetensors_contents(file, size)
    if head[:4] == b"PK\3\4":
        value, places = read_zip_contents(file, size)
    elif head[:1] == b"\x80":
        value, places = read_legacy_contents(file, size)
    else:
        other = next((f"it is {words}" for start, words in OTHER_FORMATS if head.startswith(start)), None)
        raise ValueError(f"neither safetensors nor of torch.save: {other or f'it begins with {head!r}'}")
    return "pickle", *_extract_state(value), places


def _extract_state(value: object) -> tuple[dict[str, TensorView], dict[str, str]]:
    """Return the tensor views by name, and numbers and text beside them as metadata."""
    if not isinstance(value, dict):
        content = "tensor" if isinstance(value, TensorView) else type(value).__name__
        raise ValueError(f"it holds a {content}, expected a dict of tensors")
    parts = [value]
    if not _select_tensor_views(value):
        inner = [
            key for key in STATE_DICT_KEYS if isinstance(value.get(key), dict) and _select_tensor_views(value[key])
        ]
        flat = {} if inner else _flatten_views(value)
        if len(inner) != 1 and not flat:
            content = f"weights under each of {', '.join(inner)}" if inner else f"no tensors, but {_join_keys(value)}"
            raise ValueError(
                f"it holds {content}: expected a dict of tensors, or one under {', '.join(STATE_DICT_KEYS)}"
            )
        parts.append(value[inner[0]] if inner else flat)
    metadata = {
        key: str(item)
        for part in parts
        for key, item in part.items()
        if isinstance(key, str) and isinstance(item, (str, int, float))
    }
    return _select_tensor_views(parts[-1]), metadata


def _select_tensor_views(value: dict[Any, Any]) -> dict[str, TensorView]:
    plans = {key: item for key, item in value.items() if isinstance(item, TensorView)}
    if not all(isinstance(key, str) for key in plans):
        raise ValueError("a tensor's key is not text")
    return plans


def _flatten_views(value: dict[Any, Any]) -> dict[str, TensorView]:
    """Return the tensor views in the dicts that a dict holds, and in those of its lists and tuples, by their keys with
    dots between: IP-Adapters have `image_proj` and `ip_adapter`, hypernetworks pairs by width."""
    items = [(str(key), item) for key, item in value.items()]
    items += [
        (f"{key}.{i}", part) for key, item in items if isinstance(item, list | tuple) for i, part in enumerate(item)
    ]
    views = [
        (f"{key}.{name}", view)
        for key, item in items
        if isinstance(item, dict)
        for name, view in item.items()
        if isinstance(view, TensorView)
    ]
    flat = dict(views)
    if len(flat) < len(views):
        raise ValueError("two of its tensors have one name")
    return flat


def _check_keys(keys: Iterable[str]) -> None:
    """Raise ValueError for a key that no network has: every later message can name keys as they are."""
    for key in keys:
        if len(key) > MAX_KEY_LENGTH or not key.isprintable():
            raise ValueError(f"the key {quote_value(key, 80)} of a tensor is not a printable text of up to 500 letters")


def _join_keys(keys: Iterable[Any]) -> str:
    return ", ".join(repr(key)[:40] for key in list(keys)[:8]) or "nothing"


def _read_tensors(
    file: BinaryIO,
    views: dict[str, TensorView],
    byte_ranges: dict[str, ByteRange],
    load_values: bool,
    hasher: _FileHasher | None,
) -> dict[str, Tensor]:
    """Read each storage once, into the memory that its tensors keep."""
    storages = {plan.storage.key: plan.storage for plan in views.values()}
    if missing := storages.keys() - byte_ranges.keys():
        raise ValueError(f"it lacks {len(missing)} of its {len(storages)} storages")
    contents = {}
    for key, storage in sorted(storages.items(), key=lambda item: byte_ranges[item[0]].offset):
        if byte_ranges[key].size != storage.element_count * ITEMSIZE[storage.dtype]:
            raise ValueError(
                f"the storage {key[:99]!r} has {byte_ranges[key].size} bytes, not {storage.element_count} of "
                f"{storage.dtype}"
            )
        contents[key] = _read_range(file, byte_ranges[key]) if load_values else _make_meta_bytes(byte_ranges[key].size)
        if hasher is not None:
            hasher.add(byte_ranges[key].offset, contents[key].numpy().data)
    return {name: _view_as_tensor(contents[plan.storage.key], plan) for name, plan in views.items()}


def _read_range(file: BinaryIO, byte_range: ByteRange) -> Tensor:
    """Read bytes of the file as a tensor (size,) uint8. A mapping would change, or crash, with the file."""
    content = _allocate_bytes(byte_range.size)
    view, checksum = content.numpy().data, 0
    file.seek(byte_range.offset)
    part = byte_range.size if byte_range.crc is None else CHECKSUM_BLOCK_BYTES
    for start in range(0, byte_range.size, max(part, 1)):
        piece = view[start : start + part]
        if file.readinto(piece) != len(piece):  # type: ignore[attr-defined]
            raise ValueError("cut short while it was read")
        if byte_range.crc is not None:
            checksum = zlib.crc32(piece, checksum)
    if byte_range.crc is not None and checksum != byte_range.crc:
        raise ValueError("damaged: a checksum differs")
    return content


def _allocate_bytes(size: int) -> Tensor:
    """Return fresh bytes.

    Linux populates the pages of a large mapping at once in a fraction of the time that it takes one by one, on first
    write.
    """
    import torch

    if size < POPULATE_MIN_BYTES or not hasattr(mmap, "MAP_POPULATE"):
        return torch.empty(size, dtype=torch.uint8)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    return torch.frombuffer(pages, dtype=torch.uint8)


def _make_meta_bytes(size: int) -> Tensor:
    import torch

    return torch.empty(size, dtype=torch.uint8, device="meta")


def _view_as_tensor(content: Tensor, view: TensorView) -> Tensor:
    import torch

    dtype = getattr(torch, view.dtype, None)
    if dtype is None:
        raise ValueError(f"torch {torch.__version__} has no {view.dtype}")
    if view.dtype == "bool" and content.numel() and not content.is_meta and content.max() > 1:
        raise ValueError("damaged: truth values other than 0 and 1")
    if 0 in view.shape:
        return torch.empty(view.shape, dtype=dtype, device=content.device)
    return content.view(dtype).as_strided(view.shape, view.stride, view.offset)
