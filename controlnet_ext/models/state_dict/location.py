"""Which file a path or the name of a repository means, and the config that belongs to it. Nothing is downloaded."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ...files.disk import read_json

DIFFUSERS_STEM = "diffusion_pytorch_model"
DIFFUSERS_FILE_NAMES = [
    f"{DIFFUSERS_STEM}{variant}.{suffix}" for suffix in ("safetensors", "bin") for variant in ("", ".fp16")
]
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")


def locate_weights(path_or_repo: str | os.PathLike[str]) -> Path:
    """The weights file meant by a file, a folder, or a Hub repository `owner/name` in the local Hugging Face cache.

    A folder means the file under diffusers' name, else its only weights file. FileNotFoundError or ValueError says
    what is missing or ambiguous.
    """
    name = os.fspath(path_or_repo)
    path = Path(name)
    if path.is_dir() and name:
        return _find_in_folder(path)
    if os.path.lexists(path) and name:
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _find_in_folder(_find_in_hub_cache(name))
    raise FileNotFoundError(f"{name!r} does not exist; expected a weights file, a folder that holds one, or owner/name")


def read_config(path: Path) -> dict[str, Any]:
    """The config.json beside a weights file, if it can only be about that file: the file bears diffusers' name or is
    alone."""
    config = path.parent / "config.json"
    if config.exists() and (path.name.startswith(DIFFUSERS_STEM) or _list_weights(path.parent) == [path]):
        return read_json(config)
    return {}


def _find_in_folder(folder: Path) -> Path:
    found = next((folder / name for name in DIFFUSERS_FILE_NAMES if (folder / name).exists()), None)
    if found:
        return found
    if (folder / "model_index.json").exists():
        raise ValueError(f"{str(folder)!r} is a whole pipeline; give the folder of the control model")
    files = _list_weights(folder)
    if any("-of-" in file.name for file in files):
        raise ValueError(f"{str(folder)!r} holds weights in several parts; save them as one (max_shard_size='10GB')")
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


def _find_in_hub_cache(repo: str) -> Path:
    import huggingface_hub  # only here: it is slow to import, and most models are given as files

    try:
        return Path(huggingface_hub.snapshot_download(repo, local_files_only=True))
    except (FileNotFoundError, ValueError) as error:  # not in the cache; not a valid name
        raise FileNotFoundError(
            f"{repo!r} is neither a file or folder nor a repository in the Hugging Face cache; download it there first "
            f"(hf download {repo})"
        ) from error
