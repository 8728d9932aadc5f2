"""The one weights reader, and the writer. A file of weights is not trusted: not its name, not its sizes, not its
pickle."""

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

from .disk import opened
from .safetensors import ITEMSIZE, Place, Plan, safetensors_contents
from .torch_pickle import legacy_contents, zip_contents

if TYPE_CHECKING:
    from torch import Tensor

LARGE = 2**18  # bytes of a storage that has memory of its own from the system
PART = 2**20  # bytes that are looked at again while they are in the processor's cache
# What training scripts call the part that holds the weights
NESTED = ("state_dict", "model", "params", "params_ema", "depth_model", "controlnet")


@dataclass(frozen=True, eq=False)
class Weights:
    """Tensors by name, on the CPU, as dense as the file has them, and what else the file says as text. `format` is
    "safetensors" or "pickle". The tensors are the process's own: the file may change or go."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    format: str
    _stamp: tuple[int, ...]

    @cached_property
    def sha256(self) -> str:
        """The file's hash, in hex, computed when first asked for. ValueError when the file has changed since it was
        read."""
        import hashlib  # not at the top, where a canny edge map would pay for it

        digest = hashlib.sha256()
        with opened(self.path) as file:
            while block := file.read(2**20):
                digest.update(block)
            if _stamp(file) != self._stamp:
                raise ValueError(f"{str(self.path)!r} has changed since it was read")
        return digest.hexdigest()


def read_weights(path: str | os.PathLike[str], values: bool = True) -> Weights:
    """The weights in a file of safetensors, or of torch.save, whatever it is called; without `values` only what they
    are, as tensors on torch's meta device, for which a file's header is read.

    A dict of torch.save that has no tensors itself, but a dict of them under one of the names that training scripts
    use (`NESTED`), gives those. Numbers and text beside the tensors become metadata; other containers are left out.
    Keys stay as they are.

    Nothing is executed: a pickle that names anything but tensors, containers and plain scalars is refused. Raises
    FileNotFoundError, or ValueError in one line: cut short, damaged (where the file has checksums), sizes that lie,
    over 20,000 tensors. Values are not looked at: that they are finite is for the network's loader."""
    name = repr(os.fspath(path))
    with opened(path) as file:
        stamp = _stamp(file)
        try:
            format, plans, metadata, places = _contents(file, stamp[0])
            return Weights(Path(path), _tensors(file, plans, places, values), metadata, format, stamp)
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{name} is refused: {error}") from error
        except (LookupError, TypeError, struct.error) as error:
            raise ValueError(f"{name} is refused: damaged, or no file of weights") from error


def _stamp(file: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns, status.st_ino


def _contents(file: BinaryIO, size: int) -> tuple[str, dict[str, Plan], dict[str, str], dict[str, Place]]:
    head = file.read(16)
    if head[8:9] == b"{":
        return "safetensors", *safetensors_contents(file, size)
    if head[:4] == b"PK\3\4":
        value, places = zip_contents(file, size)
    elif head[:1] == b"\x80":
        value, places = legacy_contents(file, size)
    else:
        raise ValueError(f"neither safetensors nor of torch.save: it begins with {head!r}")
    return "pickle", *_state(value), places


def _state(value: Any) -> tuple[dict[str, Plan], dict[str, str]]:
    if not isinstance(value, dict):
        found = "tensor" if isinstance(value, Plan) else type(value).__name__
        raise ValueError(f"it holds a {found}, expected a dict of tensors")
    parts = [value]
    if not _plans(value):
        inner = [key for key in NESTED if isinstance(value.get(key), dict) and _plans(value[key])]
        if len(inner) != 1:
            found = f"weights under each of {', '.join(inner)}" if inner else f"no tensors, but {_listed(value)}"
            raise ValueError(f"it holds {found}: expected a dict of tensors, or one under {', '.join(NESTED)}")
        parts.append(value[inner[0]])
    metadata = {
        key: str(item)
        for part in parts
        for key, item in part.items()
        if isinstance(key, str) and isinstance(item, (str, int, float))
    }
    return _plans(parts[-1]), metadata


def _plans(value: dict[Any, Any]) -> dict[str, Plan]:
    plans = {key: item for key, item in value.items() if isinstance(item, Plan)}
    if not all(isinstance(key, str) for key in plans):
        raise ValueError("a tensor's key is not text")
    return plans


def _listed(keys: Iterable[Any]) -> str:
    return ", ".join(repr(key)[:40] for key in list(keys)[:8]) or "nothing"


def _tensors(file: BinaryIO, plans: dict[str, Plan], places: dict[str, Place], values: bool) -> dict[str, Tensor]:
    """Each storage is read once, into the memory that its tensors keep."""
    storages = {plan.storage.key: plan.storage for plan in plans.values()}
    if missing := storages.keys() - places.keys():
        raise ValueError(f"it lacks {len(missing)} of its {len(storages)} storages")
    contents = {}
    for key, storage in sorted(storages.items(), key=lambda item: places[item[0]].at):
        if places[key].size != storage.elements * ITEMSIZE[storage.dtype]:
            raise ValueError(
                f"the storage {key[:99]!r} has {places[key].size} bytes, not {storage.elements} of {storage.dtype}"
            )
        contents[key] = _read(file, places[key]) if values else _nothing(places[key].size)
    return {name: _view(contents[plan.storage.key], plan) for name, plan in plans.items()}


def _read(file: BinaryIO, place: Place) -> Tensor:
    """Bytes of the file as a tensor (size,) uint8. Not mapped: a file that changes would change the tensors, or kill
    us."""
    content = _memory(place.size)
    view, checksum = content.numpy().data, 0
    file.seek(place.at)
    part = place.size if place.crc is None else PART
    for start in range(0, place.size, max(part, 1)):
        piece = view[start : start + part]
        if file.readinto(piece) != len(piece):  # type: ignore[attr-defined]
            raise ValueError("cut short while it was read")
        if place.crc is not None:
            checksum = zlib.crc32(piece, checksum)
    if place.crc is not None and checksum != place.crc:
        raise ValueError("damaged: a checksum differs")
    return content


def _memory(size: int) -> Tensor:
    """Fresh bytes. Where Linux gives the pages of a large piece at once, it does so in a fraction of the time that it
    takes for one after the other, when each is first written to."""
    import torch

    if size < LARGE or not hasattr(mmap, "MAP_POPULATE"):
        return torch.empty(size, dtype=torch.uint8)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    return torch.frombuffer(pages, dtype=torch.uint8)


def _nothing(size: int) -> Tensor:
    import torch

    return torch.empty(size, dtype=torch.uint8, device="meta")


def _view(content: Tensor, plan: Plan) -> Tensor:
    import torch

    dtype = getattr(torch, plan.dtype, None)
    if dtype is None:
        raise ValueError(f"torch {torch.__version__} has no {plan.dtype}")
    if plan.dtype == "bool" and content.numel() and not content.is_meta and content.max() > 1:
        raise ValueError("damaged: truth values other than 0 and 1")
    if 0 in plan.shape:
        return torch.empty(plan.shape, dtype=dtype, device=content.device)
    return content.view(dtype).as_strided(plan.shape, plan.stride, plan.offset)
