"""Control models: loading by the content of a file. Each kind is one module of `kinds/`, found by being there.

A module of a kind defines `KIND`, a `ModelKind`, or None if no file is recognized as of its kind. The members of a
model are those of `controlnet_ext.guidance.contract.ControlModel`.

`locate_weights` finds the file that a path or the name of a cached repository means, `read_config` the config that
belongs to it. Nothing is downloaded.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.disk import convert_whole_numbers, parse_object, read_json
from ..files.safetensors import INDEX_PATTERN, PART_PATTERN, list_parts
from ..maps.control_map import MODEL_NAME_WORDS, OLD_KINDS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..files.weights import Weights
    from ..guidance.contract import ControlModel


DIFFUSERS_STEM = "diffusion_pytorch_model"
WEIGHTS_FILE = f"{DIFFUSERS_STEM}.safetensors"  # that diffusers writes
DIFFUSERS_FILE_NAMES = [
    f"{DIFFUSERS_STEM}{variant}.{suffix}" for suffix in ("safetensors", "bin") for variant in ("", ".fp16")
]
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")


def locate_weights(path_or_repo: str | os.PathLike[str]) -> Path:
    """The weights file meant by a file, a folder, or a Hub repository `owner/name` in the local Hugging Face cache.

    A folder means the file under diffusers' name, else the index of its weights in parts, else its only weights file.
    FileNotFoundError or ValueError says what is missing or ambiguous.
    """
    name = os.fspath(path_or_repo)
    path = Path(name)
    if path.is_dir() and name:
        return _find_in_folder(path)
    if os.path.lexists(path) and name:
        if (part := PART_PATTERN.fullmatch(path.name)) and int(part[2]) > 1:
            raise ValueError(f"{name!r} is part {int(part[1])} of {int(part[2])}: give {_suggest_index(path)}")
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        from ..files.hub import find_cached_repository

        return _find_in_folder(find_cached_repository(name, "a file or folder"))
    raise FileNotFoundError(f"{name!r} does not exist; expected a weights file, a folder that holds one, or owner/name")


def is_weights_name(name: str) -> bool:
    """Return True for the name of a weights file, or of the index of several; not for that of one part."""
    part = PART_PATTERN.fullmatch(name)
    return bool(INDEX_PATTERN.fullmatch(name)) or (name.endswith(WEIGHTS_SUFFIXES) and not (part and int(part[2]) > 1))


def read_config(path: Path) -> dict[str, Any]:
    """The config.json beside a weights file, if it can only be about that file: the file bears diffusers' name or is
    alone."""
    config = path.parent / "config.json"
    if config.exists() and (path.name.startswith(DIFFUSERS_STEM) or _list_weights(path.parent) == list_parts(path)):
        return read_json(config)
    return {}


def _find_in_folder(folder: Path) -> Path:
    path = next((folder / name for name in DIFFUSERS_FILE_NAMES if (folder / name).exists()), None)
    if path:
        return path
    if (folder / "model_index.json").exists():
        raise ValueError(f"{str(folder)!r} is a whole pipeline; give the folder of the control model")
    files, indexes = _list_weights(folder), _list_indexes(folder)
    parts = {part for index in indexes for part in list_parts(index)}
    if indexes and parts.issuperset(files) and (len(indexes) == 1 or indexes[0].name.startswith(DIFFUSERS_STEM)):
        return indexes[0]
    if not indexes and any((part := PART_PATTERN.fullmatch(file.name)) and int(part[2]) > 1 for file in files):
        raise FileNotFoundError(f"{str(folder)!r} holds weights in several parts without their index, *.index.json")
    if indexes:
        raise ValueError(f"{str(folder)!r} holds several models; name one, such as {indexes[0].name!r}")
    if len(files) > 1:
        raise ValueError(f"{str(folder)!r} holds {len(files)} weights files; name one, such as {files[0].name!r}")
    if not files:
        raise FileNotFoundError(
            f"{str(folder)!r} holds no weights; expected {DIFFUSERS_FILE_NAMES[0]} or a file "
            f"{', '.join(WEIGHTS_SUFFIXES)}"
        )
    return files[0]


def _list_weights(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS_SUFFIXES)


def _list_indexes(folder: Path) -> list[Path]:
    """Return the indexes of weights in parts: diffusers' first, safetensors before others, variants last."""
    paths = (path for path in folder.iterdir() if INDEX_PATTERN.fullmatch(path.name))
    marks = (DIFFUSERS_STEM, ".safetensors.index.json", ".index.json")
    return sorted(paths, key=lambda path: ([mark not in path.name for mark in marks], path.name))


def _suggest_index(part: Path) -> str:
    """Return what to give instead of one part of weights."""
    for index in _list_indexes(part.parent):
        if part in list_parts(index):
            return f"the index, {str(index)!r}"
    return "the index of all parts, *.index.json, which is not beside it"


MAP_METADATA_KEY = "controlnet_ext.map"  # where safetensors' metadata say which kind of map a control model reads
CONFIG_METADATA_KEY = "controlnet_ext.config"  # where safetensors' metadata hold a config in diffusers' words


@dataclass(frozen=True)
class KeyMarkers:
    """Names of tensors by which files of a kind are recognized, as regular expressions for whole names.

    A file is of the kind if each pattern of one tuple of `any_of` matches some of its names, and `none_of` matches
    none."""

    any_of: tuple[tuple[str, ...], ...]
    none_of: str | None = None

    @classmethod
    def from_prefixes(cls, any_of: Iterable[Sequence[str]], none_of: str | None = None) -> KeyMarkers:
        """Return markers that are beginnings of names, instead of patterns; `none_of` is a whole name."""
        patterns = tuple(tuple(f"{re.escape(prefix)}.*" for prefix in prefixes) for prefixes in any_of)
        return cls(patterns, None if none_of is None else re.escape(none_of))

    def __call__(self, names: Collection[str]) -> bool:
        """Return True if a file with tensors of these names is of the kind."""

        def is_present(pattern: str) -> bool:
            return any(map(re.compile(pattern, re.DOTALL).fullmatch, names))

        if not any(all(map(is_present, patterns)) for patterns in self.any_of):
            return False
        return self.none_of is None or not is_present(self.none_of)


@dataclass(frozen=True, eq=False)
class ModelKind:
    """A kind of control model: how its files are recognized and loaded.

    `name` is for messages. `detect(names)` is True if tensors of these names are of this kind; at most one kind may
    claim a file. `load(tensors, config)` returns the model, which shares the tensors; it raises ValueError on missing
    or unknown ones. `layout(names)` names the layout of a file, as in "diffusers"; None if all files have the same.
    """

    name: str
    detect: Callable[[Collection[str]], bool]
    load: Callable[[Mapping[str, Tensor], Mapping[str, Any]], ControlModel]
    layout: Callable[[Collection[str]], str] | None = None


@dataclass(frozen=True, eq=False)
class ControlFile:
    """A file of weights, with the kind of control model that it holds and the config beside or inside it.

    `kind` is None if the file holds no control model. `prefix` is what all names of tensors begin with in the file, and
    no longer in `weights`: wrappers such as DistributedDataParallel and torch.compile add it.
    """

    path: Path
    weights: Weights
    kind: ModelKind | None
    config: dict[str, Any]
    prefix: str = ""

    @classmethod
    def read(
        cls, path_or_repo: str | os.PathLike[str], with_values: bool = True, with_sha256: bool = False
    ) -> ControlFile:
        """Read a file, a folder or a cached repository.

        With `with_values` False the model that is loaded of it is on torch's meta device. `with_sha256` hashes the file
        while it is read. Raises ValueError or FileNotFoundError in one line that begins with the file.
        """
        from ..files.weights import read_weights  # until here no reader of weights is needed

        path = locate_weights(path_or_repo)
        weights = read_weights(path, with_values, with_sha256)
        name = repr(str(path))
        own_config = parse_object(
            weights.metadata.get(CONFIG_METADATA_KEY, "{}").encode(), f"{name}: {CONFIG_METADATA_KEY}"
        )
        prefix, kind = find_kind(weights.tensors, name)
        if prefix:
            weights = replace(weights, tensors={key[len(prefix) :]: tensor for key, tensor in weights.tensors.items()})
        config = convert_whole_numbers({**own_config, **read_config(path)})  # some programs write 320.0
        return cls(path, weights, kind, config, prefix)

    def describe_foreign(self) -> str:
        """Return words for a file that holds no control model."""
        from .state_dict.foreign import describe_foreign

        tensors = self.weights.tensors
        return describe_foreign(tensors, tuple(iter_common_prefixes(tensors)))

    def load(self) -> ControlModel:
        """Return the model, on the CPU, in the dtype of the file, sharing the tensors of `weights`.

        Raises ValueError if the file holds no control model, or its tensors do not fit the kind.
        """
        name = repr(str(self.path))
        if self.kind is None:
            raise ValueError(f"{name} is not a control model but {self.describe_foreign()}")
        try:
            model = self.kind.load(self.weights.tensors, self.config)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        model.map_type = self._guess_map_type()
        return model

    def _guess_map_type(self) -> str | None:
        """Return the map kind that the file states, else the only one whose words its name holds, or None."""
        text = self.weights.metadata.get(MAP_METADATA_KEY, "")
        kind_in_file = OLD_KINDS.get(text, text)
        if kind_in_file in MODEL_NAME_WORDS:
            return kind_in_file
        stem = (self.path.parent if self.path.name.startswith(DIFFUSERS_STEM) else self.path).name.casefold()
        kinds = [
            kind for kind, words in MODEL_NAME_WORDS.items() if any(re.search(rf"(?<![a-z]){w}", stem) for w in words)
        ]
        return kinds[0] if len(kinds) == 1 else None


MAX_PREFIX_PARTS = 8


def iter_common_prefixes(names: Collection[str]) -> Iterator[str]:
    """Yield "", then what all names begin with: up to the first dot, up to the second and so on, eight at most."""
    yield ""
    if len(names) < 2:
        return
    first, last = (name.split(".", MAX_PREFIX_PARTS) for name in (min(names), max(names)))
    for i in range(1, min(len(first), len(last))):
        if first[i - 1] != last[i - 1]:
            return
        yield ".".join(first[:i]) + "."


def find_kind(names: Collection[str], file: str) -> tuple[str, ModelKind | None]:
    """Return the kind of control model that tensors of these names are, and the shortest prefix of all names without
    which they are.

    The prefix is "" if the names are those of a kind as they stand, or of none. Raises ValueError, beginning with
    `file`, if two kinds claim it.
    """
    for prefix in iter_common_prefixes(names):
        bare = {name[len(prefix) :] for name in names} if prefix else names
        kinds = [kind for kind in iter_kinds() if kind.detect(bare)]
        if len(kinds) > 1:
            both = " and ".join(kind.name for kind in kinds)
            raise ValueError(f"{file} is claimed by two kinds of control model: {both}")
        if kinds:
            return prefix, kinds[0]
    return "", None


def load(
    path_or_repo: str | os.PathLike[str], device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> ControlModel:
    """Load the control model in a file, a folder, or a repository that is in the local Hugging Face cache.

    The kind is recognized by the names of the tensors, never by that of the file. `dtype` None keeps the file's.
    Settings that tensors do not show come from the config.json that belongs to the file, else from its safetensors
    metadata. Raises FileNotFoundError or ValueError in one line that begins with the file and states what it is
    instead, or what is missing.
    """
    net: Any = ControlFile.read(path_or_repo).load()
    model: ControlModel = net.to(device=device, dtype=dtype)
    return model


def iter_kinds() -> Iterator[ModelKind]:
    """Yield all kinds, one of each module of `kinds/` that has one."""
    from . import kinds

    for file in pkgutil.iter_modules(kinds.__path__):
        kind: ModelKind | None = importlib.import_module(f"{kinds.__name__}.{file.name}").KIND
        if kind is not None:
            yield kind
