"""The two files that torch.save has written: since 1.6 a zip, before that pickles with the storages behind them."""

from __future__ import annotations

import io
import struct
import sys
from typing import Any, BinaryIO

from .plans import ITEMSIZE, MAX_TENSORS, Place, Storage
from .torch_pickle import unpickled

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # torch @ v2.1, torch/serialization.py
DIRECTORY_LIMIT = 2**23  # bytes, of a zip's directory and of the pickle in it


def zip_contents(file: BinaryIO, size: int) -> tuple[Any, dict[str, Place]]:
    """The value in a zip of torch.save, and the places of its storages by key. ValueError when it is anything else."""
    records = _records(file, size)
    roots = [name[: -len("data.pkl")] for name in records if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"a zip, but not one of torch.save: it has {len(roots)} entries data.pkl, expected one")
    root = roots[0]
    if f"{root}constants.pkl" in records:
        raise ValueError("a TorchScript program, expected tensors only")
    if f"{root}byteorder" in records and _content(file, records[f"{root}byteorder"]) != sys.byteorder.encode():
        raise ValueError("written on a machine of the other byte order")
    value = unpickled(io.BytesIO(_content(file, records[f"{root}data.pkl"])))
    storages = f"{root}data/"
    return value, {name[len(storages) :]: place for name, place in records.items() if name.startswith(storages)}


def _content(file: BinaryIO, place: Place) -> bytes:
    if place.size > DIRECTORY_LIMIT:
        raise ValueError(f"its pickle is {place.size} bytes, over {DIRECTORY_LIMIT}")
    file.seek(place.at)
    return file.read(place.size)


def _records(file: BinaryIO, size: int) -> dict[str, Place]:
    """The entries of a zip by name, each stored as it is and within the file."""
    import zipfile  # 15 ms

    if _directory_size(file, size) > DIRECTORY_LIMIT:  # zipfile reads all of it, however long
        raise ValueError(f"a zip whose directory is over {DIRECTORY_LIMIT} bytes")
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, OverflowError, EOFError, struct.error) as error:
        raise ValueError(f"a zip that is cut short or damaged: {error}") from error
    records: dict[str, Place] = {}
    for entry in entries:
        name = entry.filename
        if name in records or len(records) > 2 * MAX_TENSORS:
            raise ValueError(f"a zip in which {name[:99]!r} is the name of two entries, or entry {2 * MAX_TENSORS}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
            raise ValueError(f"a zip in which {name[:99]!r} is compressed or encrypted: torch.save does neither")
        file.seek(entry.header_offset)
        local = file.read(30)
        if local[:4] != b"PK\3\4" or len(local) < 30:
            raise ValueError(f"a zip that lacks {name[:99]!r}")
        name_size, extra_size = struct.unpack_from("<HH", local, 26)
        at = entry.header_offset + 30 + name_size + extra_size
        records[name] = Place(at, entry.file_size, entry.CRC or None)  # 0: torch was told not to compute it
    if any(place.at + place.size > size for place in records.values()) or sum(p.size for p in records.values()) > size:
        raise ValueError("a zip whose entries are larger than the file")
    return records


def _directory_size(file: BinaryIO, size: int) -> int:
    """Bytes of a zip's directory, as the record at the file's end says (PKWARE's APPNOTE, 4.3.14 to 4.3.16)."""
    file.seek(max(0, size - 22 - 65535))
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        raise ValueError("a zip that is cut short")
    if tail[max(0, end - 20) : end - 16] != b"PK\6\7":
        return struct.unpack_from("<I", tail, end + 12)[0]
    file.seek(struct.unpack_from("<Q", tail, end - 12)[0])  # zip64
    return int.from_bytes(file.read(56)[40:48], "little")


def legacy_contents(file: BinaryIO, size: int) -> tuple[Any, dict[str, Place]]:
    """The same of what torch.save wrote before 1.6: magic number, version, system, value, keys, storages."""
    file.seek(0)
    stream = io.BytesIO(file.read(DIRECTORY_LIMIT))
    if unpickled(stream) != MAGIC_NUMBER:
        raise ValueError("a pickle, but not one of torch.save")
    unpickled(stream)  # the version, 1001
    system = unpickled(stream)
    storages: dict[str, Storage] = {}
    value, keys = unpickled(stream, storages), unpickled(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not (sys.byteorder == "little"):
        raise ValueError("written on a machine of the other byte order")
    if not isinstance(keys, list) or sorted(keys) != sorted(storages):
        raise ValueError("its storages are not those that its tensors need")
    places: dict[str, Place] = {}
    file.seek(stream.tell())
    for key in keys:
        expected = storages[key].elements.to_bytes(8, "little")
        place = Place(file.tell() + 8, storages[key].elements * ITEMSIZE[storages[key].dtype])
        if file.read(8) != expected or place.at + place.size > size:
            raise ValueError("cut short or damaged: a storage is not of the size that its tensors need")
        places[key] = place
        file.seek(place.at + place.size)
    return value, places
