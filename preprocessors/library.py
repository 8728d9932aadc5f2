"""Where the weights of networks are: folders, the Hugging Face cache, else a download. And the networks of them, loaded
once.

What is slow to load, loaded once, and kept up to a number of bytes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import one_line
from ..files.hub import WeightsFile
from .backends.torch import Device, Network
from .cache import LRUCache

if TYPE_CHECKING:
    from torch import Tensor, nn


FOLDERS_VARIABLE = "CONTROLNET_EXT_MODELS"  # the environment's variable: folders, separated as in PATH


class Library:
    """Finds weights and loads networks; safe to share between threads.

    `folders` are looked through in order, by default those of the environment's CONTROLNET_EXT_MODELS; each may hold
    a file by its name, in sd-webui-controlnet's folder for it, or as repo/path (controlnet_aux's and ComfyUI's way).
    Then the Hugging Face cache. Then, unless `download` is False, it is downloaded to sd-webui-controlnet's place in
    the first folder (without any: to controlnet-ext in HF_HOME), where it gets its name when size and hash are right.
    `files` gives single files by name, a whole model's by their paths in it, before all folders.

    Networks are shared while somebody holds them. Beyond that, up to `keep` bytes of them stay loaded, the longest
    unused go first, until `free`."""

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
        """Where the file is, after a download if it was nowhere. Raises FileNotFoundError in one line that says which
        file to put where."""
        if file.local_name in self.files:
            return self.files[file.local_name]
        with self._download_lock:
            return self.find_local(file) or self._download(file)

    def find_local(self, file: WeightsFile) -> Path | None:
        """Where the file is, None when it would have to be downloaded."""
        if file.local_name in self.files:
            return self.files[file.local_name]
        for folder in (*self.folders, self._get_default_folder()):
            for place in (file.local_name, f"{file.webui_folder}/{file.name}", f"{file.repo}/{file.path}"):
                if (folder / place).is_file():
                    return folder / place
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(file.repo, file.path)
        return Path(cached) if isinstance(cached, str) else None

    def load_network(
        self,
        file: WeightsFile,
        build: Callable[[dict[str, Tensor]], nn.Module],
        device: str | Device = "cpu",
    ) -> Network:
        """The network that `build` makes of the file's tensors, on the device, in evaluation mode. Many threads that
        ask at once get one. Raises what `path` and `read_weights` do, and what `build` does, after the file's name."""
        where = Device.coerce(device)
        return self.cache.get_or_create((file, build, where), lambda: self._build_network(file, build, where))

    def free(self) -> None:
        """Keep no network loaded; those that somebody holds stay theirs."""
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

    def _download(self, file: WeightsFile) -> Path:
        target = (self.folders[0] if self.folders else self._get_default_folder()) / file.webui_folder / file.name
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
