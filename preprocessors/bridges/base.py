"""Detectors of other packages as preprocessors. A package is imported when one of its detectors is called; before that
its source is read for their parameters."""

from __future__ import annotations

import ast
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from importlib.machinery import PathFinder
from inspect import Parameter as Argument
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from ...errors import one_line
from ...files.hub import WeightsFile
from ...maps.resize import resize_map
from ..backends.tensors import pad_to_multiple
from ..backends.torch import Device
from ..parameters import Range
from ..registry import preprocessor

if TYPE_CHECKING:
    from ..library import Library

_SIZE_ARGUMENTS = ("detect_resolution", "image_resolution")
_UNKNOWN_RANGE = Range(0, 2**31 - 1)  # a detector does not say
_DETECTOR_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
)


@dataclass(frozen=True, eq=False)
class Package:
    """A package with detectors; `install` says how to come by it."""

    name: str
    install_hint: str

    @property
    def folder(self) -> Path | None:
        """The folder of the installed package, or None. The package is not imported for that."""
        spec = PathFinder.find_spec(self.name)
        return Path(spec.origin).parent if spec and spec.origin else None

    def import_detector(self, module: str, name: str) -> Any:
        """The class `name` in a module of it. Raises ValueError in one line where the package is missing, too old for
        the class, or does not import."""
        if self.folder is None:
            raise ValueError(f"{self.name}, which has {name}, is not installed: {self.install_hint}")
        try:
            with warnings.catch_warnings(), redirect_stdout(sys.stderr):
                warnings.simplefilter("ignore")  # of parts that nobody asked for
                return getattr(import_module(f"{self.name}.{module}"), name)
        except ModuleNotFoundError as error:
            missing = str(error.name)
            if not missing.startswith(self.name):
                raise ValueError(
                    f"{self.name} needs {missing}, which is not installed: pip install {missing}"
                ) from error
        except AttributeError as error:
            if name not in str(error):
                raise ValueError(f"{self.name} does not import: {_format_error(error)}") from error
        except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: torchvision for another torch
            raise ValueError(f"{self.name} does not import: {_format_error(error)}") from error
        raise ValueError(f"this {self.name} has no {name}: {self.install_hint}")


@dataclass(frozen=True, eq=False)
class Detector:
    """A class of a package's module. What it loads are `files`, which it is given by the arguments `names` of its
    from_pretrained. `given` are further arguments of that, `call_arguments` those of its calls, which then are no
    parameters; `defaults` are those that its calls have none for. `network` is where its module is, for those that
    cannot be moved to a device themselves; `draws` says that it draws random numbers, `part` which of its results
    is the map."""

    package: Package
    module: str
    name: str
    files: tuple[WeightsFile, ...] = ()
    file_arguments: tuple[str, ...] = ("filename",)
    load_arguments: Mapping[str, Any] = field(default_factory=dict)
    call_arguments: Mapping[str, Any] = field(default_factory=dict)
    extra_defaults: Mapping[str, Any] = field(default_factory=dict)
    network_attribute: str = ""
    is_random: bool = False
    map_index: int | None = None

    def list_parameters(self) -> list[Argument]:
        """The numbers and truth values that its calls take, with their defaults, as its source declares them; none
        where the package is not installed."""
        defaults = {**_read_call_defaults(self.package.folder, self.module, self.name), **self.extra_defaults}
        if self.is_random:
            defaults["seed"] = 0
        return [
            Argument(name, Argument.KEYWORD_ONLY, default=value, annotation=_make_annotation(value))
            for name, value in defaults.items()
            if isinstance(value, (bool, int, float)) and name not in (*_SIZE_ARGUMENTS, *self.call_arguments)
        ]


@dataclass(frozen=True, eq=False)
class _LoadedDetector:
    call: Callable[..., Any]
    bytes: int


def bridge_detector(
    name: str, detector: Detector, *, makes: str, label: str | None = None, fidelity: str | None = None
) -> None:
    """Enter the detector under this name, with the name of its measure if that is not its kind's. Calls raise
    ValueError in one line where its package is missing or fails."""

    class Bridged:
        def __init__(self, device: str | Device, library: Library):
            where = Device.coerce(device)
            if where.dtype != "float32":
                raise ValueError(f"{name} computes in float32, not in {where.dtype}")
            self.loaded = library.cache.get_or_create(
                (detector, where), lambda: _load_detector(detector, library, where.name)
            )

        def __call__(self, image: np.ndarray, **options: Any) -> np.ndarray:
            return _call_detector(detector, self.loaded.call, image, options)

    arguments = [
        Argument(word, Argument.POSITIONAL_OR_KEYWORD) for word in ("self", "image")
    ] + detector.list_parameters()
    Bridged.__call__.__signature__ = Signature(arguments)  # type: ignore[attr-defined]
    Bridged.__call__.__annotations__ = {argument.name: argument.annotation for argument in arguments[2:]}
    preprocessor(name, makes=makes, label=label, weights=detector.files, fidelity=fidelity)(Bridged)


def _make_annotation(value: object) -> Any:
    return bool if isinstance(value, bool) else Annotated[type(value), _UNKNOWN_RANGE]


def _read_call_defaults(folder: Path | None, module: str, name: str) -> dict[str, Any]:
    """The defaults of a detector's call, by argument, of those that have one in plain writing."""
    place = folder and folder / module.replace(".", "/")
    sources = [path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()] if place else []
    for node in ast.walk(ast.parse(sources[0].read_text("utf-8"))) if sources else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            calls = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__call__"]
            words, values = calls[0].args.args, calls[0].args.defaults
            pairs = zip(words[len(words) - len(values) :], values, strict=True)
            return {word.arg: value.value for word, value in pairs if isinstance(value, ast.Constant)}
    return {}


def _load_detector(detector: Detector, library: Library, device: str) -> _LoadedDetector:
    from ...files.weights import read_weights

    kind = detector.package.import_detector(detector.module, detector.name)
    if not detector.files:
        return _LoadedDetector(kind(), 0)
    paths = [library.fetch(file) for file in detector.files]
    for path in paths:
        read_weights(path)  # refuses what their reader might execute
    try:
        files = {word: str(path.absolute()) for word, path in zip(detector.file_arguments, paths, strict=True)}
        with redirect_stdout(sys.stderr):
            result = kind.from_pretrained(str(paths[0].parent), **files, **detector.load_arguments)
        module = result
        for part in detector.network_attribute.split(".") if detector.network_attribute else ():
            module = getattr(module, part)
        module.to(device)
    except (*_DETECTOR_ERRORS, ValueError, RuntimeError, ImportError, OSError) as error:
        raise ValueError(f"{detector.package.name}'s {detector.name} does not load: {_format_error(error)}") from error
    return _LoadedDetector(result, sum(path.stat().st_size for path in paths))


def _call_detector(
    detector: Detector, call: Callable[..., Any], image: np.ndarray, arguments: dict[str, Any]
) -> np.ndarray:
    height, width = image.shape[:2]
    parameters = signature(call).parameters
    if "detect_resolution" in parameters:
        image = pad_to_multiple(image[None], 64)[0]  # to whose multiples controlnet_aux would resize
    sizes = {word: min(image.shape[:2]) for word in _SIZE_ARGUMENTS if word in parameters}
    kind = {"output_type": "np"} if "output_type" in parameters else {}
    arguments = {**detector.extra_defaults, **arguments}
    seed = arguments.pop("seed", 0) if detector.is_random else None
    try:
        with _seed_random(seed), redirect_stdout(sys.stderr):  # stdout is for maps
            result = call(image.copy(), **arguments, **sizes, **kind, **detector.call_arguments)
        pixels = np.asarray(result if detector.map_index is None else result[detector.map_index])
    except _DETECTOR_ERRORS as error:
        raise ValueError(f"{detector.package.name}'s {detector.name} fails: {_format_error(error)}") from error
    if pixels.dtype != np.uint8 or pixels.shape[2:] not in ((), (3,)):
        raise ValueError(f"{detector.package.name}'s {detector.name} gives {pixels.shape} of {pixels.dtype}, no image")
    if pixels.shape[:2] != image.shape[:2]:
        pixels = resize_map(pixels if pixels.ndim == 3 else np.dstack([pixels] * 3), *image.shape[:2])
    return pixels[:height, :width]


@contextmanager
def _seed_random(seed: int | None) -> Iterator[None]:
    """Python's and numpy's own random numbers drawn from a seed, and afterwards as if none had been drawn."""
    if seed is None:
        yield
        return
    before, other = np.random.get_state(), random.getstate()  # noqa: NPY002  # detectors draw from these
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
        random.setstate(other)


def _format_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error, 300)}"
