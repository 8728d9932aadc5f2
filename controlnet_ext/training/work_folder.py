"""The folder that a training works in: the arguments that it was begun with, its log and lock, and what a kill left."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..files.disk import LOCK_FILE, list_temporary_files, lock_folder, read_json, write_atomically

MAP_FOLDER, CACHE_FOLDER = "maps", "cache"  # of the data; what lies in them may be removed at any time
ARGUMENTS_FILE = "arguments.json"
LOG_FILE = "log.jsonl"
FACTS_FILE = "run.json"  # what the report states beside arguments and figures
IMAGES_FOLDER = "images"  # generated held-out images, in strips: images side by side
MAPS_STRIP, SOURCES_STRIP, UNGUIDED_STRIP = "maps.png", "sources.png", "unguided.png"
BOUNDS_FILE = "fidelity.json"  # in the images' folder: floor and ceiling of the fidelity
STEPS = "steps"  # the argument that may grow


def check_work_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise ValueError unless a training with these settings can begin in the folder, or go on there.

    It can go on with more steps than it was begun with. A folder that holds nothing but its own temporary files and its
    lock counts as new: a training was killed as it began. Also raises ValueError when another process works there.
    """
    _check_content(folder, settings)
    if (folder / LOCK_FILE).exists():
        with lock_folder(folder, "training"):
            pass


@contextmanager
def open_work_folder(folder: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Make the folder, write the arguments, and keep other processes from it within the context.

    Temporary files of a killed training are removed. Raises ValueError as `check_work_folder` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder, "training"):
        _check_content(folder, settings)  # again: another process may have begun since
        for path in list_temporary_files(folder):
            path.unlink(missing_ok=True)
        content = (json.dumps(settings, indent=2) + "\n").encode()
        if not (folder / ARGUMENTS_FILE).exists() or (folder / ARGUMENTS_FILE).read_bytes() != content:
            write_atomically(folder / ARGUMENTS_FILE, content, overwrite=True)
        yield


def remove_output_leftovers(folder: Path, output: Path, temp_prefix: str) -> None:
    """Remove what a killed training in this folder left of `output` under temporary names, unless one works there."""
    if (folder / LOCK_FILE).exists():
        with suppress(ValueError), lock_folder(folder, "training"):
            folders = (output.parent, output) if output.is_dir() else (output.parent,)
            for path in [path for folder in folders for path in list_temporary_files(folder, temp_prefix)]:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def write_run_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write what the report states of a training beside its arguments and figures: the command, counts of images."""
    content = (json.dumps(facts, indent=2) + "\n").encode()
    if not (folder / FACTS_FILE).exists() or (folder / FACTS_FILE).read_bytes() != content:
        write_atomically(folder / FACTS_FILE, content, overwrite=True)


def name_step_strip(step: int) -> str:
    """Return the name of the strip of the images that were generated after a step."""
    return f"step_{step:08}.png"


def read_log(log: Path) -> list[dict[str, float]]:
    """Return the rows of a log in order of their steps, each step once; a last one that was cut short is left out."""
    rows: dict[float, dict[str, float]] = {}
    for line in log.read_text().splitlines(keepends=True) if log.exists() else []:
        with suppress(ValueError):
            row = json.loads(line) if line.endswith("\n") else {}
            rows |= {row["step"]: row} if "step" in row else {}
    return [rows[step] for step in sorted(rows)]


def _name(setting: object) -> object:
    return "the default" if setting is None else setting


def _check_content(folder: Path, settings: Mapping[str, Any]) -> None:
    if (folder / ARGUMENTS_FILE).exists():
        old_arguments = read_json(folder / ARGUMENTS_FILE)
        for name, value in {
            **dict.fromkeys(old_arguments),
            **settings,
        }.items():  # a setting that is left out is the default
            old_value = old_arguments.get(name)
            if old_value != value and not (name == STEPS and isinstance(old_value, int) and old_value < value):
                raise ValueError(
                    f"{str(folder)!r} holds a training with another {name} ({_name(old_value)}, now {_name(value)}): "
                    "give the same arguments to go on, or another --work"
                )
    elif os.path.lexists(folder):
        own = {LOCK_FILE, MAP_FOLDER, CACHE_FOLDER, *(path.name for path in list_temporary_files(folder))}
        if not folder.is_dir() or {path.name for path in folder.iterdir()} - own:
            raise ValueError(f"{str(folder)!r} exists and is no folder of a training: name another with --work")
