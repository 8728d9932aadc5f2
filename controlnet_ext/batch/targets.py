"""Where the results of files go, checked before any work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache

from .inputs import File


def target(folder: str, key: str, ending: str) -> str:
    """Where a map goes: `<folder>/<key>_<ending>`."""
    return os.path.join(folder, f"{key}_{ending}")


def check(targets: Iterable[tuple[str, Sequence[str], bool]], own: bool) -> None:
    """Looks at pictures, the files that will be made of each, and whether these may exist. ValueError when two results
    have one name, or one would replace another's picture; FileExistsError when one exists that may not.
    With `own` a result may replace the picture it is made of."""
    targets = list(targets)
    place = _places()
    pictures = {place(picture): picture for picture, *_ in targets}
    makers: dict[str, str] = {}
    for picture, paths, may_exist in targets:
        for path in paths:
            here = place(path)
            if here in makers:
                raise ValueError(f"{path!r} would be made twice, of {makers[here]!r} and {picture!r}")
            if here in pictures and not (own and pictures[here] == picture):
                raise ValueError(f"{path!r} would replace a picture that is still to be read")
            if not may_exist and os.path.lexists(path):
                raise FileExistsError(f"{path!r} exists; --overwrite replaces it")
            makers[here] = picture


def originals(files: Sequence[File], ends: Sequence[str], folder: str) -> list[File]:
    """The files that are no results of others: what an earlier run made may lie among its pictures."""
    place = _places()
    results = {place(target(folder, file.key, end)) for file in files for end in ends}
    return [file for file in files if place(file.path) not in results]


def _places() -> Callable[[str], str]:
    """A function that gives a file's place, the same for all its names. Asking the system about each folder once makes
    a million files a matter of seconds."""
    real = cache(os.path.realpath)

    def place(path: str) -> str:
        folder, name = os.path.split(path)
        here = os.path.join(real(folder), name)
        return os.path.normcase(os.path.realpath(here) if os.path.islink(here) else here)

    return place
