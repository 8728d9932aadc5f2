"""Weights of networks, from folders, the Hugging Face cache or a download; and the loaded networks."""

from __future__ import annotations

import hashlib
import os
import shlex
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import one_line
from ..files.disk import open_regular_file
from ..files.hub import WeightsFile
from .backends.torch import Device, Network
from .cache import LRUCache

if TYPE_CHECKING:
    from torch import Tensor, nn


_verified_stamps: set[tuple[object, ...]] = set()  # of files that had their pinned sha256 in this process

FOLDERS_VARIABLE = "CONTROLNET_EXT_MODELS"  # the environment's variable: folders, separated as in PATH


class Library:
    """Finder of weights and loader of networks, safe for several threads.

    `folders` are searched in order, by default those of the variable CONTROLNET_EXT_MODELS; each may hold a file by its
    name, in the folder of sd-webui-controlnet, or as repo/path (the layout of controlnet_aux and ComfyUI). Then the
    Hugging Face cache is searched. Then, with `download`, the file is downloaded to the place of sd-webui-controlnet in
    the first folder (without any: controlnet-ext in HF_HOME), where it gets its name when size and hash are right.
    `files` are single files by name, parts of a whole model by their paths in it; they precede all folders.

    Networks in use are shared. Up to `cache_bytes` of others stay loaded, until `free`; the least recently used go
    first.
    """

    def __init__(
        self,
        folders: Iterable[str | os.PathLike[str]] | None = None,
        download: bool = True,
        cache_bytes: int = 0,
        files: Mapping[str, str | os.PathLike[str]] | None = None,
    ):
        if isinstance(folders, (str, os.PathLike)):
            raise TypeError(f"folders {os.fspath(folders)!r} is one path, expected a list of them")
        if folders is None:
            folders = [part for part in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if part]
        self.folders = tuple(Path(folder) for folder in folders)
        for folder in self.folders:
            if not folder.is_dir():
                raise FileNotFoundError(f"the folder of weights {str(folder)!r} does not exist")
        self.files = {name: Path(path) for name, path in (files or {}).items()}
        self.download = download
        self.cache: LRUCache[Any] = LRUCache(cache_bytes, size_of=_size_in_bytes)
        self._download_lock = threading.Lock()

    def fetch(self, file: WeightsFile) -> Path:
        """Return the path of the file, after a download if it is missing.

        Raises FileNotFoundError in one line that names the file and the place to put it.
        """
        if file.local_name in self.files:
            return self.files[file.local_name]
        with self._download_lock:
            return self.find_local(file) or self._download(file)

    def read_verified(self, file: WeightsFile) -> tuple[Path, bytes]:
        """Return the path and the bytes of a file for a reader that is not safe against others: of onnxruntime, OpenCV,
        TorchScript. Such a reader gets bytes only, which cannot change after the check.

        Raises what `fetch` raises, and ValueError unless the bytes have the pinned sha256; a file without one is not
        checked. A file is hashed once in a process, until its size, time or inode change.
        """
        path = self.fetch(file)
        with open_regular_file(path) as source:
            status = os.fstat(source.fileno())
            content = source.read()
        stamp = (str(path), file.sha256, status.st_size, status.st_mtime_ns, status.st_ino, len(content))
        if file.sha256 and stamp not in _verified_stamps:
            if (digest := hashlib.sha256(content).hexdigest()) != file.sha256:
                raise ValueError(
                    f"{str(path)!r} is refused: its sha256 is {digest}, expected {file.sha256}, of {file.path} of "
                    f"{file.repo}; remove it, and it is downloaded again"
                )
            _verified_stamps.add(stamp)
        return path, content

    def find_local(self, file: WeightsFile) -> Path | None:
        """Return the path of the file, None when it would have to be downloaded."""
        if file.local_name in self.files:
            return self.files[file.local_name]
        for folder in (*self.folders, self._get_default_folder()):
            for place in (file.local_name, f"{file.webui_folder}/{file.name}", f"{file.repo}/{file.path}"):
                if (folder / place).is_file():
                    return folder / place
        from huggingface_hub import try_to_load_from_cache

        cache_path = try_to_load_from_cache(file.repo, file.path)
        return Path(cache_path) if isinstance(cache_path, str) else None

    def describe_missing(self, files: Iterable[WeightsFile]) -> str:
        """Return how many of several files are missing and the command that brings them; "" for one or none."""
        missing = [file for file in files if self.find_local(file) is None]
        if len(missing) < 2:
            return ""
        by_repo: dict[str, list[str]] = {}
        for file in missing:
            if not file.url:
                by_repo.setdefault(file.repo, []).append(shlex.quote(file.path))
        commands = [" ".join(("hf download", repo, *paths)) for repo, paths in by_repo.items()]
        others = [file.describe_manual_download(self._get_target(file)) for file in missing if file.url]
        ways = [" && ".join(commands), *others] if commands else others
        return f"{len(missing)} files are missing in all; this brings them: {'; '.join(ways)}"

    def load_network(
        self,
        file: WeightsFile,
        build: Callable[[dict[str, Tensor]], nn.Module],
        device: str | Device = "cpu",
    ) -> Network:
        """Load the network that `build` makes of the tensors in the file, on the device, in evaluation mode.

        Threads that ask at once get the same one. Raises what `fetch` and `read_weights` raise, and ValueError with the
        name of the file for what `build` raises.
        """
        where = Device.coerce(device)
        return self.cache.get_or_create((file, build, where), lambda: self._build_network(file, build, where))

    def free(self) -> None:
        """Drop all loaded networks; those in use stay with their users."""
        self.cache.clear()

    def _build_network(self, file: WeightsFile, build: Callable[[dict[str, Tensor]], nn.Module], device: Device) -> Any:
        from ..files.weights import read_weights

        path = self.fetch(file)
        tensors = read_weights(path).tensors
        try:
            module = build(tensors)
        except (ValueError, RuntimeError) as error:  # RuntimeError: load_state_dict's
            raise ValueError(f"{str(path)!r} is refused: {one_line(error, 400)}") from error
        return Network.from_module(module, device)

    def _get_default_folder(self) -> Path:
        from huggingface_hub.constants import HF_HOME

        return Path(HF_HOME) / "controlnet-ext"

    def _get_target(self, file: WeightsFile) -> Path:
        """Return the path that a download gives the file."""
        return (self.folders[0] if self.folders else self._get_default_folder()) / file.webui_folder / file.name

    def _download(self, file: WeightsFile) -> Path:
        target = self._get_target(file)
        if not self.download:
            raise FileNotFoundError(
                f"{file.name} is not there and downloads are off: {file.describe_manual_download(target)}"
            )
        from ..files.hub import download

        try:
            download(file, target)
        except (OSError, ValueError) as error:
            reason = one_line(error, 300)
            raise FileNotFoundError(
                f"{file.name} could not be downloaded ({reason}): {file.describe_manual_download(target)}"
            ) from error
        return target


def _size_in_bytes(network: Any) -> int:
    return int(network.bytes)
