"""One picture: its maps are made and written one after the other, and nothing is kept beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..files.disk import write_atomically
from ..files.image_reader import read_image
from ..files.image_writer import encoded_image
from ..preprocessors.registry import Ready
from .inputs import File
from .request import STDOUT, Order, check, target
from .stages import picture, pose_text


def paths(order: Order, file: File) -> list[str]:
    """For each preprocessor where its map goes, a path or STDOUT, checked as `targets.check` does."""
    single = order.single(len(order.entries))
    if single == STDOUT:
        return [single]
    maps = [single] if single else [target(order.out, file.key, f"{entry.name}.png") for entry in order.entries]
    texts = [str(Path(path).with_suffix(".json")) for path in maps if order.json]
    check([(file.path, [*maps, *texts], order.overwrite)], own=True)
    return maps


def work(
    order: Order,
    file: File,
    ready: Sequence[Ready],
    paths: Sequence[str],
    say: Callable[[str], None],
) -> int:
    """Writes the maps to these paths, says which, and gives the exit code. Raises what the first raises when nothing is
    written yet and a picture is to blame."""
    written = 0
    try:
        pixels = read_image(file.path)
        for make, values, path in zip(ready, order.values, paths, strict=True):
            made = make(pixels, file.mask if make.entry.masked else None, **values)
            if order.json:
                _write(str(Path(path).with_suffix(".json")), pose_text(made), order.overwrite, say)
            _write(path, encoded_image(_named(path), picture(made, order.sixteen_bit)), order.overwrite, say)
            written += 1
    except (ValueError, OSError) as error:
        if not written and isinstance(error, (ValueError, FileNotFoundError)):
            raise
        say(f"controlnet-ext: {error}")
        return 1
    return 0


def _named(path: str) -> str:
    return "stdout.png" if path == STDOUT else path


def _write(path: str, content: bytes, overwrite: bool, say: Callable[[str], None]) -> None:
    if path == STDOUT:
        with open(1, "wb", closefd=False) as stdout:
            stdout.write(content)
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content, overwrite)
    say(path)
