"""The preprocessors by name. A family of them is one file in this package: `registered` imports every file here, and
their decorator `preprocessor` enters them, with the parameters that their signatures declare."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np

from preprocessors.image_in import read_image  # not from files, which brings the readers of weights: 10 ms
from preprocessors.maps import KINDS, ControlMap
from preprocessors.parameters import Parameter, Range, nearest, parameters
from preprocessors.resolution import resized

if TYPE_CHECKING:
    from preprocessors.library import Library
    from preprocessors.network import Device

RESOLUTION = Parameter("resolution", int, None, Range(64, 2048))

Make = TypeVar("Make", bound=Callable[..., Any])
_by_name: dict[str, Preprocessor] = {}  # by name and by label, casefolded


@dataclass(frozen=True, eq=False)
class Preprocessor:
    """One entry: `make` is a function of the image, or a class of (device, library) whose calls take the image; both
    give uint8 pixels (H, W) or (H, W, 3). `parameters` in the order of the signature: threshold_a, threshold_b where
    they can be given by position. `resolution` is everyone's and not among them."""

    name: str
    makes: str
    label: str
    make: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    weights: Any = None

    def check(self, given: dict[str, Any]) -> dict[str, Any]:
        """The values of the parameters given by name, as their declared types. Raises ValueError or TypeError in one
        line: an unknown name with the nearest ones, a value outside its range, another type."""
        return {name: self._one(name, Parameter.check, value) for name, value in given.items()}

    def parse(self, given: dict[str, str]) -> dict[str, Any]:
        """`check` for values written as text."""
        return {name: self._one(name, Parameter.parse, text) for name, text in given.items()}

    def _one(self, name: str, read: Callable[[Parameter, Any], Any], value: Any) -> Any:
        known = {p.name: p for p in (*self.parameters, RESOLUTION)}
        if name not in known:
            raise ValueError(f"{self.name} has no parameter {name!r:.80}, the nearest are: {nearest(name, known)}")
        try:
            return read(known[name], value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.name}: {error}") from None

    def ready(self, device: str | Device = "cpu", library: Library | None = None) -> Callable[..., ControlMap]:
        """`preprocess` of this entry, its weights loaded: a function of (image, **parameters). They stay loaded while
        the caller keeps it. Without a library they come from the environment's folders, or are downloaded."""
        if not isinstance(self.make, type):
            return partial(self._map, self.make)
        if library is None:
            from preprocessors.library import Library  # 10 ms

            library = Library()
        return partial(self._map, self.make(device, library))

    def _map(self, run: Callable[..., np.ndarray], /, image: Any, **given: Any) -> ControlMap:
        values = self.check(given)
        resolution = values.pop("resolution", None)
        pixels = read_image(image)
        if resolution is None:
            result = run(pixels, **values)
        else:
            padded, height, width = resized(pixels, resolution)
            result = run(padded, **values)[:height, :width]
        if result.ndim == 2:
            result = cv2.cvtColor(result, cv2.COLOR_GRAY2RGB)
        return ControlMap(np.ascontiguousarray(result), self.makes)


def preprocessor(name: str, *, makes: str, label: str | None = None, weights: Any = None) -> Callable[[Make], Make]:
    """Enters the function or class below it under `name` (canonical) and `label` (sd-webui-controlnet's display
    name). `makes` is the kind of its maps, `weights` the files it loads. Raises ValueError when a name is taken or a
    kind unknown, TypeError when the signature cannot be read; the registry is then unchanged."""

    def enter(make: Make) -> Make:
        if makes not in KINDS:
            raise ValueError(f"{name} makes {makes!r}, which is none of: {', '.join(KINDS)}")
        declared = parameters(make.__call__, skip=2) if isinstance(make, type) else parameters(make, skip=1)
        entry = Preprocessor(name, makes, label or name, make, declared, weights)
        keys = {entry.name.casefold(), entry.label.casefold()}
        if taken := sorted(keys & _by_name.keys()):
            raise ValueError(f"preprocessor {taken[0]!r} is entered already, by {_by_name[taken[0]].make.__module__}")
        _by_name.update(dict.fromkeys(keys, entry))
        return make

    return enter


@cache
def _files() -> frozenset[str]:
    return frozenset(module.name for module in pkgutil.iter_modules([os.path.dirname(__file__)]))


def registered() -> tuple[Preprocessor, ...]:
    """Every preprocessor, by name."""
    for file in sorted(_files()):
        importlib.import_module(f"{__package__}.{file}")
    return tuple(sorted(set(_by_name.values()), key=lambda entry: entry.name))


def find(name: str) -> Preprocessor:
    """The preprocessor of that name or label, in any case. Raises ValueError with the nearest names."""
    if not isinstance(name, str):
        raise TypeError(f"a preprocessor's name is text, not {type(name).__name__}")
    key = name.casefold()
    if key not in _by_name and key in _files():  # most are in the file of their name: the others need not be read
        importlib.import_module(f"{__package__}.{key}")
    if key not in _by_name:
        names = [entry.name for entry in registered()]
        if key not in _by_name:
            raise ValueError(f"unknown preprocessor {name!r:.80}, the nearest are: {nearest(name, names)}")
    return _by_name[key]


def preprocess(
    name: str, image: Any, *, device: str | Device = "cpu", library: Library | None = None, **parameters: Any
) -> ControlMap:
    """The map that the preprocessor `name` (or label, any case) makes of an image: anything `read_image` takes.

    What needs weights loads them anew in each call, on `device`, unless the `library` keeps them.

    `resolution` (64..2048) is the short side in pixels to work at, which is also the map's size; by default the
    picture keeps its own size and is worked on as it is, without the edge pixels that `resized` adds. All other
    parameters are those of the preprocessor's signature. Raises ValueError or TypeError in one line: unknown names
    with the nearest ones, values outside their range, an unreadable image."""
    return find(name).ready(device, library)(image, **parameters)
