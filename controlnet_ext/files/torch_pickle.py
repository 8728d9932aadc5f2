"""Files of torch.save, read without executing anything.

A pickle is a small program. Python's unpickler calls whatever the file names, and the `weights_only` mode of torch was
exploitable (CVE-2025-32434, CVE-2026-24747). The machine here can only put tensors into containers: no name is looked
up, a few have a meaning, any other is refused. Tensors become `TensorView`s within the bounds of the storages that the
file has.

torch.save has written two kinds of files: since 1.6 a zip, before that pickles followed by the storages.
"""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from .safetensors import ITEMSIZE, MAX_TENSORS, ByteRange, Storage, TensorView, create_tensor_view

MAX_STEPS = 1_000_000  # a tensor takes 40
FREE_STEPS, BYTES_PER_STEP = 10_000, 2  # of any pickle; beyond them, one for so many bytes: torch.save takes 2.6 to 4

_STORAGE_DTYPES = {
    "torch.DoubleStorage": "float64", "torch.FloatStorage": "float32", "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16", "torch.LongStorage": "int64", "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16", "torch.CharStorage": "int8", "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool", "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128", "torch.storage.UntypedStorage": "uint8",
}  # fmt: skip
_SCALAR_TYPES = (str, int, float, bool, type(None))
T = TypeVar("T")


class _GlobalName(NamedTuple):
    """A global by the name in the file, without the object."""

    name: str


def load_restricted_pickle(stream: BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """Return the value of one pickle (protocols 2 to 5), and leave the stream behind it.

    The value is made of dicts, lists, tuples, text, numbers, bytes and TensorViews; its storages are added to
    `storages`. Raises ValueError for a global, an opcode or a size that weights do not need; LookupError or TypeError
    where the program is broken.
    """
    import pickletools  # not at the top, where a canny edge map would pay for it

    machine = _PickleMachine({} if storages is None else storages)
    place = stream.tell()
    limit = min(MAX_STEPS, FREE_STEPS + (stream.seek(0, io.SEEK_END) - place) // BYTES_PER_STEP)
    stream.seek(place)
    for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name not in _OPCODES:
            raise ValueError(f"its pickle has a step {opcode.name}, which no weights need")
        if step > limit:
            raise ValueError(f"its pickle has over {limit} steps")
        _OPCODES[opcode.name](machine, argument)
    return machine.stack.pop()


class _PickleMachine:
    def __init__(self, storages: dict[str, Storage]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.outer_stacks: list[list[Any]] = []  # the stacks under the marks
        self.memo: dict[int, Any] = {}
        self.tensor_count = 0

    def push_mark(self, _: None) -> None:
        self.outer_stacks.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer_stacks.pop()
        return items

    def push(self, value: object) -> None:
        self.stack.append(value)

    def memoize(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def pack_tuple(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def extend_list(self, items: list[Any]) -> None:
        _expect_type(self.stack[-1], list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        _update_dict(_expect_type(self.stack[-1], dict), zip(items[::2], items[1::2], strict=True))

    def set_item(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def push_global(self, name: str) -> None:
        if name not in _ALLOWED_CALLS and name not in _STORAGE_DTYPES and _dtype_from_global(name) is None:
            raise ValueError(f"its pickle names {name[:99]!r}: only tensors, containers and plain scalars are read")
        self.push(_GlobalName(name))

    def push_stack_global(self, _: None) -> None:
        name, module = _expect_type(self.stack.pop(), str), _expect_type(self.stack.pop(), str)
        self.push_global(f"{module}.{name}")

    def push_storage(self, _: None) -> None:
        """Push a storage from ("storage", type, key, device, size), in old files followed by a view, which is None."""
        kind, type_, key, _device, count, *view = _expect_type(self.stack.pop(), tuple)
        dtype = _STORAGE_DTYPES.get(_expect_type(type_, _GlobalName).name)
        if kind != "storage" or dtype is None or view not in ([], [None]):
            raise ValueError("its pickle names a storage of a kind that is not read")
        storage = Storage(_expect_type(key, str), dtype, _expect_size(count))
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"its pickle gives two sizes to the storage {key[:99]!r}")
        self.push(storage)

    def reduce(self, _: None) -> None:
        arguments, name = _expect_type(self.stack.pop(), tuple), _expect_type(self.stack.pop(), _GlobalName).name
        if name not in _ALLOWED_CALLS:
            raise ValueError(f"its pickle calls {name!r}, which is no function")
        result = _ALLOWED_CALLS[name](*arguments)
        self.tensor_count += isinstance(result, TensorView)
        if self.tensor_count > MAX_TENSORS:
            raise ValueError(f"it holds over {MAX_TENSORS} tensors")
        self.push(result)

    def drop_state(self, _: None) -> None:
        """Drop the attributes of an OrderedDict (a state dict has `_metadata`)."""
        self.stack.pop()
        _expect_type(self.stack[-1], dict)


def _expect_type(value: object, type_: type[T]) -> T:
    if type(value) is not type_:
        raise ValueError(f"its pickle has a {type(value).__name__} where a {type_.__name__.lstrip('_')} is needed")
    return cast(T, value)


def _update_dict(target: dict[Any, Any], pairs: Iterable[Any]) -> None:
    for key, value in pairs:
        if type(key) not in _SCALAR_TYPES:  # to hash tuples within tuples takes time exponential in their depth
            raise ValueError(f"its pickle has a {type(key).__name__} as the key of a dict")
        target[key] = value


def _expect_size(value: object) -> int:
    size = _expect_type(value, int)
    if not 0 <= size < 2**63:
        raise ValueError(f"its pickle has a size of {size}")
    return size


def _dtype_from_global(name: str) -> str | None:
    package, _, dtype = name.partition(".")
    return dtype if package == "torch" and dtype in ITEMSIZE else None


def _rebuild_tensor(storage: object, offset: object, shape: object, stride: object, *_rest: object) -> TensorView:
    """Build a view with the arguments of torch._utils._rebuild_tensor_v2; the rest is about gradients and hooks."""
    storage, shape, stride = _expect_type(storage, Storage), _expect_type(shape, tuple), _expect_type(stride, tuple)
    return create_tensor_view(
        storage, storage.dtype, _expect_size(offset), tuple(map(_expect_size, shape)), tuple(map(_expect_size, stride))
    )


def _rebuild_tensor_v3(
    storage: object,
    offset: object,
    shape: object,
    stride: object,
    _grad: object,
    _hooks: object,
    dtype: object,
    *_: object,
) -> TensorView:
    """Build a view with the arguments of torch._utils._rebuild_tensor_v3, for dtypes without a storage type."""
    storage, shape, stride = _expect_type(storage, Storage), _expect_type(shape, tuple), _expect_type(stride, tuple)
    name = _dtype_from_global(_expect_type(dtype, _GlobalName).name)
    if name is None:
        raise ValueError("its pickle has a tensor of no dtype")
    return create_tensor_view(
        storage, name, _expect_size(offset), tuple(map(_expect_size, shape)), tuple(map(_expect_size, stride))
    )


def _rebuild_parameter(tensor: object, *_rest: object) -> TensorView:
    return _expect_type(tensor, TensorView)


def _rebuild_ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    """Build an OrderedDict as a dict; Python 2 wrote its items as the argument."""
    result: dict[Any, Any] = {}
    _update_dict(result, pairs)
    return result


_ALLOWED_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _rebuild_ordered_dict,
    "torch.Size": lambda sizes: _expect_type(sizes, tuple),
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}
_OPCODES: dict[str, Callable[[_PickleMachine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, _: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _PickleMachine.push),
    **dict.fromkeys(
        ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"), _PickleMachine.push
    ),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES"), _PickleMachine.push),
    "NONE": _PickleMachine.push,
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.pack_tuple(0),
    "TUPLE1": lambda m, _: m.pack_tuple(1),
    "TUPLE2": lambda m, _: m.pack_tuple(2),
    "TUPLE3": lambda m, _: m.pack_tuple(3),
    "MARK": _PickleMachine.push_mark,
    "TUPLE": lambda m, _: m.push(tuple(m.pop_to_mark())),
    "APPEND": lambda m, _: m.extend_list([m.stack.pop()]),
    "APPENDS": lambda m, _: m.extend_list(m.pop_to_mark()),
    "SETITEM": _PickleMachine.set_item,
    "SETITEMS": lambda m, _: m.set_items(m.pop_to_mark()),
    "BINPUT": _PickleMachine.memoize,
    "LONG_BINPUT": _PickleMachine.memoize,
    "MEMOIZE": lambda m, _: m.memoize(len(m.memo)),
    "BINGET": lambda m, place: m.push(m.memo[place]),
    "LONG_BINGET": lambda m, place: m.push(m.memo[place]),
    "GLOBAL": lambda m, name: m.push_global(name.replace(" ", ".", 1)),
    "STACK_GLOBAL": _PickleMachine.push_stack_global,
    "BINPERSID": _PickleMachine.push_storage,
    "REDUCE": _PickleMachine.reduce,
    "BUILD": _PickleMachine.drop_state,
}


TORCH_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # torch @ v2.1, torch/serialization.py
ZIP_DIRECTORY_LIMIT = 2**23  # bytes, of a zip's directory and of the pickle in it


def read_zip_contents(file: BinaryIO, size: int) -> tuple[Any, dict[str, ByteRange]]:
    """Return the value in a zip of torch.save, and the byte ranges of its storages by key.

    Raises ValueError for any other zip.
    """
    records = _list_entries(file, size)
    roots = [name[: -len("data.pkl")] for name in records if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"a zip, but not one of torch.save: it has {len(roots)} entries data.pkl, expected one")
    root = roots[0]
    if f"{root}constants.pkl" in records:
        raise ValueError("a TorchScript program, expected tensors only")
    if f"{root}byteorder" in records and _read_entry(file, records[f"{root}byteorder"]) != sys.byteorder.encode():
        raise ValueError("written on a machine of the other byte order")
    value = load_restricted_pickle(io.BytesIO(_read_entry(file, records[f"{root}data.pkl"])))
    storages = f"{root}data/"
    return value, {name[len(storages) :]: place for name, place in records.items() if name.startswith(storages)}


def _read_entry(file: BinaryIO, byte_range: ByteRange) -> bytes:
    if byte_range.size > ZIP_DIRECTORY_LIMIT:
        raise ValueError(f"its pickle is {byte_range.size} bytes, over {ZIP_DIRECTORY_LIMIT}")
    file.seek(byte_range.offset)
    return file.read(byte_range.size)


def _list_entries(file: BinaryIO, size: int) -> dict[str, ByteRange]:
    """Return the byte ranges of the entries of a zip by name, all uncompressed and within the file."""
    import zipfile  # 15 ms

    if _read_directory_size(file, size) > ZIP_DIRECTORY_LIMIT:  # zipfile reads all of it, however long
        raise ValueError(f"a zip whose directory is over {ZIP_DIRECTORY_LIMIT} bytes")
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, OverflowError, EOFError, struct.error) as error:
        raise ValueError(f"a zip that is cut short or damaged: {error}") from error
    records: dict[str, ByteRange] = {}
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
        records[name] = ByteRange(at, entry.file_size, entry.CRC or None)  # 0: torch was told not to compute it
    if (
        any(place.offset + place.size > size for place in records.values())
        or sum(p.size for p in records.values()) > size
    ):
        raise ValueError("a zip whose entries are larger than the file")
    return records


def _read_directory_size(file: BinaryIO, size: int) -> int:
    """Return the size of the directory of a zip, from the record at its end (PKWARE's APPNOTE, 4.3.14 to 4.3.16)."""
    file.seek(max(0, size - 22 - 65535))
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        raise ValueError("a zip that is cut short")
    if tail[max(0, end - 20) : end - 16] != b"PK\6\7":
        return struct.unpack_from("<I", tail, end + 12)[0]
    file.seek(struct.unpack_from("<Q", tail, end - 12)[0])  # zip64
    return int.from_bytes(file.read(56)[40:48], "little")


def read_legacy_contents(file: BinaryIO, size: int) -> tuple[Any, dict[str, ByteRange]]:
    """Return the value in a file of torch.save before 1.6, and the byte ranges of its storages by key.

    The file holds magic number, version, system, value, keys and storages. Raises ValueError for any other file.
    """
    file.seek(0)
    stream = io.BytesIO(file.read(ZIP_DIRECTORY_LIMIT))
    if load_restricted_pickle(stream) != TORCH_MAGIC_NUMBER:
        raise ValueError("a pickle, but not one of torch.save")
    load_restricted_pickle(stream)  # the version, 1001
    system = load_restricted_pickle(stream)
    storages: dict[str, Storage] = {}
    value, keys = load_restricted_pickle(stream, storages), load_restricted_pickle(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not (sys.byteorder == "little"):
        raise ValueError("written on a machine of the other byte order")
    if not isinstance(keys, list) or sorted(keys) != sorted(storages):
        raise ValueError("its storages are not those that its tensors need")
    places: dict[str, ByteRange] = {}
    file.seek(stream.tell())
    for key in keys:
        expected = storages[key].element_count.to_bytes(8, "little")
        place = ByteRange(file.tell() + 8, storages[key].element_count * ITEMSIZE[storages[key].dtype])
        if file.read(8) != expected or place.offset + place.size > size:
            raise ValueError("cut short or damaged: a storage is not of the size that its tensors need")
        places[key] = place
        file.seek(place.offset + place.size)
    return value, places
