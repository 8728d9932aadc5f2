"""The registry of preprocessors by name.

A family of preprocessors is one file in this package. `list_preprocessors` imports all of them, and their decorator
`preprocessor` registers them with the parameters that their signatures declare.
"""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import re
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import cv2
import numpy as np

from ..errors import check_choice, error_prefix, one_line, quote_value, suggest_names
from ..files.image_reader import (  # not from files, which brings the readers of weights: 10 ms
    is_tensor,
    read_image,
    read_mask,
)
from ..maps.control_map import MAP_KINDS, ControlMap
from ..maps.mirror import Mirroring, get_mirroring_of_kind
from ..maps.resize import resize_for_detection
from .parameters import Parameter, Range, read_parameters

if TYPE_CHECKING:
    from ..files.hub import WeightsFile
    from ..maps.fidelity import Measure, NoMeasure
    from .backends.torch import Device
    from .library import Library

NO_PREPROCESSOR = "none"  # the word for it where a name may stand: the image is a map already
RESOLUTION_PARAMETER = Parameter("resolution", int, None, Range(64, 2048))

logger = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])
_specs_by_name: dict[str, Preprocessor] = {}  # by name and by label, casefolded


@dataclass(frozen=True)
class Traits:
    """Roles of a preprocessor beyond its map, which hosts and front ends read instead of its name.

    restores_unmasked: where the unit's inpaint mask is black, the latents after each step and the finished image stay
        the original's.
    variant_without_restore: name of the preprocessor that replaces this one where the host itself restores what lies
        outside the mask (img2img with a mask).
    fixes_colors: after each step the latents take the low frequencies of the image, over boxes set by the parameters
        `variation` and `sharpness`.
    starts_from_map: the first pass starts from noise that contains the map.
    recolors: channel of the finished image that the map replaces: "lightness" is L of CIE Lab, "value" is V of HSV.
    has_resolution_slider: False where sd-webui-controlnet runs it at the image's own size.
    has_threshold_sliders: False where sd-webui-controlnet shows no slider for its parameters.
    is_default_for_kind: the preprocessor that front ends choose first for its kind of map.
    mirroring: how its map of a mirrored image follows from its map of the image, where that is not as for the other
        maps of the kind, see `maps.mirror`.
    """

    restores_unmasked: bool = False
    variant_without_restore: str | None = None
    fixes_colors: bool = False
    starts_from_map: bool = False
    recolors: Literal["lightness", "value"] | None = None
    has_resolution_slider: bool = True
    has_threshold_sliders: bool = True
    is_default_for_kind: bool = False
    mirroring: Mirroring | None = None

    @property
    def acts_after_step(self) -> bool:
        """True if its units change the latents after each step."""
        return self.restores_unmasked or self.fixes_colors

    @property
    def changes_finished_image(self) -> bool:
        """True if its units process finished images."""
        return self.restores_unmasked or self.recolors is not None


@dataclass(frozen=True, eq=False)
class Preprocessor:
    """A registered preprocessor.

    `factory` is a function of the image (H, W, 3), or a class of (device, library) whose calls take the image. Both
    return uint8 pixels (H, W) or (H, W, 3), or uint16 (H, W); a pair of these and the map's values; or a function that
    renders either at the height and width that are kept of the image. With `batched` calls take images (B, H, W, 3)
    and return a result for each; with `needs_mask` the mask is the image's fourth channel. `makes` is the kind of its
    maps. `parameters` are in the order of the signature, which is that of threshold_a and threshold_b; `resolution`
    belongs to every preprocessor and is not among them. `own_fidelity` is what says how well an image obeys its maps,
    or the name of one of `maps.fidelity.MEASURES`, where that is not the measure of the kind.
    """

    name: str
    makes: str
    label: str
    factory: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    weights: tuple[WeightsFile, ...] = ()
    batched: bool = False
    needs_mask: bool = False
    aliases: tuple[str, ...] = ()
    traits: Traits = Traits()
    own_fidelity: Measure | NoMeasure | str | None = None

    @property
    def fidelity(self) -> Measure | NoMeasure:
        """The measure of how well an image obeys its maps, or why there is none."""
        from ..maps.fidelity import get_measure, get_measure_of_kind  # not needed to make maps

        own = self.own_fidelity
        if own is None:
            return get_measure_of_kind(self.makes)
        return get_measure(own) if isinstance(own, str) else own

    @property
    def mirroring(self) -> Mirroring:
        """The rule by which its map of a mirrored image follows from its map of the image."""
        return self.traits.mirroring or get_mirroring_of_kind(self.makes)

    @property
    def takes_mask(self) -> bool:
        """True if the mask of a run is the inpaint mask of its units: the map leads an inpainting model."""
        return self.makes == "inpaint"

    @property
    def makes_depth(self) -> bool:
        """True if its maps are depth, which is the one kind with 16 bits."""
        return self.makes == "depth"

    def check(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values of parameters by name as their declared types. Raises ValueError or TypeError in one line:
        an unknown name with the closest ones, a value outside its range, another type, a `low` above its `high`."""
        return self._check_order({name: self._read_value(name, Parameter.check, v) for name, v in values.items()})

    def parse(self, texts: dict[str, str]) -> dict[str, Any]:
        """Return the values of parameters that are written as text, by name. Raises ValueError as `check` does."""
        return self._check_order({name: self._read_value(name, Parameter.parse, text) for name, text in texts.items()})

    def _check_order(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return `values`. Raises ValueError where a parameter `low…` is above the one that is called `high…`."""
        everything = {parameter.name: parameter.default for parameter in self.parameters} | values
        for name, low in everything.items():
            high = everything.get(f"high{name[3:]}") if name.startswith("low") else None
            if low is not None and high is not None and low > high:
                raise ValueError(f"{self.name}: {name} {low:g} is above high{name[3:]} {high:g}, expected at most that")
        return values

    def _read_value(self, name: str, read: Callable[[Parameter, Any], Any], value: object) -> Any:
        parameters = {p.name: p for p in (*self.parameters, RESOLUTION_PARAMETER)}
        if name not in parameters:
            raise ValueError(self.suggest_parameter(f"{self.name} has no parameter {name!r:.80}", name))
        try:
            return read(parameters[name], value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.name}: {error}") from None

    def suggest_parameter(self, message: str, name: str, more_names: Sequence[str] = ()) -> str:
        """Return `message` with the parameters that `name` may mean, or others of `more_names`; sd-webui-controlnet's
        threshold_a and threshold_b are the first and the second."""
        position = {"threshold_a": 0, "threshold_b": 1}.get(name.casefold().lstrip("-").replace("-", "_"))
        if position is not None and position < len(self.parameters):
            return f"{message}; it is called {self.parameters[position].name} here"
        return suggest_names(message, name, [*more_names, *(p.name for p in (*self.parameters, RESOLUTION_PARAMETER))])

    def load(self, device: str | Device = "cpu", library: Library | None = None) -> LoadedPreprocessor:
        """Return the preprocessor with its weights loaded; they stay loaded while the caller holds it. Without a
        library they come from the environment's folders, or are downloaded. Raises FileNotFoundError, which names all
        files that are missing and the command that brings them."""
        if not isinstance(self.factory, type):
            return LoadedPreprocessor(self, self.factory)
        if library is None:
            from .library import Library  # 10 ms

            library = Library()
        try:
            return LoadedPreprocessor(self, self.factory(device, library))
        except FileNotFoundError as error:
            missing = library.describe_missing(self.weights)
            if not missing:
                raise
            raise FileNotFoundError(f"{error}. Of {self.name}, {missing}") from error


@dataclass(frozen=True, eq=False)
class LoadedPreprocessor:
    """A preprocessor with its weights loaded: calls take an image and parameters and return its map."""

    spec: Preprocessor
    run: Callable[..., Any]

    def __call__(self, image: object, /, mask: object = None, **parameters: Any) -> ControlMap:
        """Return the map of an image; see `preprocess`."""
        return self.run_batch([image], masks=None if mask is None else [mask], **parameters)[0]

    def run_batch(
        self, images: Sequence[Any], /, masks: Sequence[Any] | None = None, **parameters: Any
    ) -> list[ControlMap]:
        """Return the maps of several images, in their order.

        Images of one size are given to a network together, where it can take them. Raises ValueError or TypeError as
        `preprocess` does, for the first image that fails.
        """
        if self.spec.needs_mask is (masks is None):
            rule = "needs a mask, white where to paint" if self.spec.needs_mask else "takes no mask"
            raise ValueError(f"{self.spec.name} {rule}")
        values = self.spec.check(parameters)
        resolution = values.pop("resolution", None)
        read = [read_image(image, resolution) for image in images]
        if masks is not None:
            read = [_append_mask(pixels, read_mask(mask)) for pixels, mask in zip(read, masks, strict=True)]
        inputs = [_prepare_input(pixels, resolution) for pixels in read]
        alike: dict[tuple[int, ...], list[int]] = {}
        for i, (pixels, *_) in enumerate(inputs):
            alike.setdefault(pixels.shape if self.spec.batched else (i,), []).append(i)
        maps: dict[int, ControlMap] = {}
        for group in alike.values():
            stack = [inputs[i][0] for i in group]
            results = self.run(np.stack(stack), **values) if self.spec.batched else [self.run(*stack, **values)]
            for i, result in zip(group, results, strict=True):
                maps[i] = _build_map(result, self.spec, *inputs[i])
        return [maps[i] for i in range(len(images))]


def _prepare_input(pixels: np.ndarray, resolution: int | None) -> tuple[np.ndarray, int, int]:
    """Return the image (H, W, 3) to work on, and the height and width to keep of the result."""
    return (pixels, *pixels.shape[:2]) if resolution is None else resize_for_detection(pixels, resolution)


def _append_mask(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    if mask.shape != pixels.shape:
        sizes = [f"{width}x{height}" for height, width, _ in (mask.shape, pixels.shape)]
        raise ValueError(f"the mask is {sizes[0]} pixels, but the image {sizes[1]}")
    return np.dstack([pixels, mask[..., 0]])


def _build_map(result: object, spec: Preprocessor, work_image: np.ndarray, height: int, width: int) -> ControlMap:
    """Return the map of what a preprocessor returned, cut to `height` and `width`.

    Raises TypeError or ValueError in one line for what `Preprocessor` does not allow.
    """
    is_rendered = callable(result)
    if callable(result):
        result = result(height, width)
    returned_pixels, values = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    pixels = _check_pixels(returned_pixels, spec.name)
    if isinstance(values, np.ndarray) and values.shape[:2] == work_image.shape[:2]:
        values = np.ascontiguousarray(values[:height, :width])
    if not is_rendered:  # of a map of another size, as tile_resample's, the same part
        rows = round(height * pixels.shape[0] / work_image.shape[0])
        columns = round(width * pixels.shape[1] / work_image.shape[1])
        pixels = pixels[: max(rows, 1), : max(columns, 1)]
    pixels = np.ascontiguousarray(pixels)
    fine = pixels if pixels.dtype == np.uint16 else None
    if fine is not None:
        pixels = (fine // 257).astype(np.uint8)  # cut to whole numbers twice is cut once: trunc(255 x)
    if pixels.ndim == 2:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    return ControlMap(pixels, spec.makes, values, fine)


def _check_pixels(pixels: object, name: str) -> np.ndarray:
    """Return the pixels of a map that a preprocessor returned. Raises TypeError or ValueError where it did not."""
    expected = "expected an array (H, W) or (H, W, 3) of uint8, or (H, W) of uint16"
    if not isinstance(pixels, np.ndarray):
        got = "nothing" if pixels is None else f"{type(pixels).__name__} {quote_value(pixels)}"
        raise TypeError(f"{name} returned {got}, {expected}")
    is_map = pixels.dtype == np.uint8 and (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3))
    if not is_map and not (pixels.dtype == np.uint16 and pixels.ndim == 2):
        advice = {"f": "; of floats 0..1: (255 * x).astype(np.uint8)", "b": "; of bools: x.astype(np.uint8) * 255"}
        raise ValueError(
            f"{name} returned {pixels.dtype} of shape {pixels.shape}, {expected}{advice.get(pixels.dtype.kind, '')}"
        )
    if 0 in pixels.shape:
        raise ValueError(f"{name} returned an array of shape {pixels.shape}, which has no pixels")
    return pixels


def preprocessor(
    name: str,
    *,
    makes: str,
    label: str | None = None,
    weights: WeightsFile | tuple[WeightsFile, ...] = (),
    batched: bool = False,
    needs_mask: bool = False,
    aliases: tuple[str, ...] = (),
    traits: Traits = Traits(),
    fidelity: Measure | NoMeasure | str | None = None,
    replace: bool = False,
) -> Callable[[F], F]:
    """Register the function or class below under `name` (canonical), `label` (sd-webui-controlnet's display name) and
    `aliases`.

    `makes` is the kind of its maps, `weights` the files that it loads, `fidelity` the measure of its maps or its name
    (by default that of the kind); the other arguments are fields of `Preprocessor`. With `replace` it takes the place
    of an earlier one of this name, as where a cell of a notebook runs again; those of this package are never replaced.
    Raises ValueError if a name is taken, cannot stand in a file name or a kind or a measure is unknown, TypeError if
    the signature cannot be read; the registry is then unchanged.
    """

    def enter(make: F) -> F:
        check_choice(f"{name}: map kind", makes, MAP_KINDS)
        parameters = read_parameters(make.__call__, skip=2) if isinstance(make, type) else read_parameters(make, skip=1)
        files = weights if isinstance(weights, tuple) else (weights,)
        label_or_name = label or name
        entry = Preprocessor(
            name, makes, label_or_name, make, parameters, files, batched, needs_mask, aliases, traits, fidelity
        )
        keys = {key.casefold() for key in (entry.name, entry.label, *entry.aliases)}
        if not _is_own(entry):
            _import_own_modules()  # whose names are taken too, and would be found after this one
        there = None
        if duplicates := sorted(keys & _specs_by_name.keys()):
            there = _specs_by_name[duplicates[0]]
            if not replace or _is_own(there) or there.name != entry.name:
                advice = "" if _is_own(there) else ", or replace it with replace=True"
                raise ValueError(
                    f"preprocessor {duplicates[0]!r} is entered already, by {there.factory.__module__}: "
                    f"give this one another name{advice}"
                )
        if not _is_own(entry):
            _check_name(entry)
            _check_fidelity(entry)
        for key in [key for key, other in _specs_by_name.items() if other is there]:
            del _specs_by_name[key]
        _specs_by_name.update(dict.fromkeys(keys, entry))
        return make

    return enter


def _is_own(entry: Preprocessor) -> bool:
    """Return True for a preprocessor of this package."""
    return entry.factory.__module__.startswith(f"{__package__}.")


def _check_name(entry: Preprocessor) -> None:
    """Raise ValueError for a name or a parameter that the command could not be given."""
    if not re.fullmatch(r"[\w+.-]*\w[\w+.-]*", entry.name) or entry.name.casefold() == NO_PREPROCESSOR:
        raise ValueError(
            f"a preprocessor called {quote_value(entry.name)}: expected letters, digits and _ + . - (and not 'none'), "
            "because files are named after it"
        )
    if RESOLUTION_PARAMETER.name in {parameter.name for parameter in entry.parameters}:
        raise ValueError(f"{entry.name}: every preprocessor has a resolution of its own: call the parameter otherwise")


def _check_fidelity(entry: Preprocessor) -> None:
    """Raise ValueError or TypeError for what is no measure, nor the name of one."""
    if entry.own_fidelity is None:
        return
    from ..maps.fidelity import Measure, NoMeasure

    with error_prefix(f"{entry.name}: fidelity"):
        if not isinstance(entry.fidelity, (Measure, NoMeasure)):
            raise TypeError(f"{quote_value(entry.own_fidelity)} is no Measure, no NoMeasure and no measure's name")


@cache
def _list_module_names() -> dict[str, str]:
    """The modules of the families in this package, by file name."""
    modules = pkgutil.walk_packages([os.path.dirname(__file__)], f"{__package__}.")
    return {module.name.rpartition(".")[2]: module.name for module in modules if not module.ispkg}


ENTRY_POINT_GROUP = "controlnet_ext.preprocessors"  # of installed packages that bring preprocessors
_entry_point_lock = threading.Lock()
_loaded_entry_points: set[str] = set()


def _load_entry_points() -> None:
    """Register the preprocessors of other installed packages, once; log one line for each entry that fails.

    An entry names a module, which registers its preprocessors when imported, or a function in it (`module:register`),
    which is called with the decorator `preprocessor`. The function also works where this package has another name, as
    inside stable-diffusion-webui.
    """
    from importlib.metadata import entry_points  # 40 ms

    with _entry_point_lock:
        for entry in entry_points(group=ENTRY_POINT_GROUP):
            if entry.value in _loaded_entry_points:
                continue
            _loaded_entry_points.add(entry.value)
            try:
                target = entry.load()
                if entry.attr:
                    target(preprocessor)
            except Exception as error:  # foreign code, which must not take the other preprocessors away
                reason = f"{type(error).__name__}: {one_line(error, 300)}"
                logger.warning("controlnet-ext: no preprocessors of %s (%s): %s", entry.name, entry.value, reason)


_loaded_files: dict[str, str] = {}  # sha256 in hex by absolute path


def register_file(path: str | os.PathLike[str]) -> None:
    """Run a Python file that registers preprocessors of one's own, once in each process.

    Its folder is added to the end of `sys.path`, so that it can import what lies beside it. Raises FileNotFoundError,
    or ValueError in one line for a file that fails or registers nothing.
    """
    import hashlib

    from ..files.disk import open_regular_file

    full = os.path.abspath(path)
    if full in _loaded_files:
        return
    name = repr(os.fspath(path))
    with open_regular_file(path) as file:
        content = file.read()
    module = ModuleType(f"controlnet_ext_loaded_{len(_loaded_files)}")
    module.__file__ = full
    folder = os.path.dirname(full)
    if folder not in sys.path:
        sys.path.append(folder)
    sys.modules[module.__name__] = module  # where type hints are looked up
    before = set(_specs_by_name.values())
    try:
        exec(compile(content, full, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:  # foreign code
        del sys.modules[module.__name__]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == full]
        at = f" in line {lines[-1]}" if lines else ""
        raise ValueError(f"{name} cannot be loaded: {type(error).__name__}{at}: {one_line(error, 300)}") from error
    if set(_specs_by_name.values()) <= before:
        raise ValueError(f"{name} registers no preprocessor: expected a function under @preprocessor(...)")
    _loaded_files[full] = hashlib.sha256(content).hexdigest()


def get_loaded_files() -> dict[str, str]:
    """Return the files that `register_file` ran: the sha256 of each in hex by its absolute path."""
    return dict(_loaded_files)


def _import_own_modules() -> None:
    for module in sorted(_list_module_names().values()):
        importlib.import_module(module)


def list_preprocessors() -> tuple[Preprocessor, ...]:
    """Return every preprocessor by name, those of other installed packages too."""
    _import_own_modules()
    _load_entry_points()
    return tuple(sorted(set(_specs_by_name.values()), key=lambda entry: entry.name))


def find(name: str) -> Preprocessor:
    """Return the preprocessor of this name, label or alias, in any case.

    Raises ValueError with the nearest names, TypeError for a name that is no text.
    """
    if not isinstance(name, str):
        raise TypeError(f"a preprocessor's name is text, not {type(name).__name__}")
    key = name.casefold()
    if (
        key not in _specs_by_name and key in _list_module_names()
    ):  # most are in the file of their name: the others need not be read
        importlib.import_module(_list_module_names()[key])
    if key not in _specs_by_name:
        names = [entry.name for entry in list_preprocessors()]
        if key not in _specs_by_name:
            raise ValueError(suggest_names(f"unknown preprocessor {name!r:.80}", name, names))
    return _specs_by_name[key]


def find_unless_none(name: str) -> Preprocessor | None:
    """Return the preprocessor as `find` does, None for the word "none"."""
    return None if name.casefold() == NO_PREPROCESSOR else find(name)


def find_or_none(name: str | None) -> Preprocessor | None:
    """Return the preprocessor of this name, label or alias, None for None and for names that nobody registered."""
    try:
        return None if name is None else find(name)
    except ValueError:
        return None


def find_default_preprocessor(kind: str) -> Preprocessor:
    """Return the preprocessor that finds maps of a kind of which nobody says how they were made. Raises ValueError
    where there is none."""
    for spec in list_preprocessors():
        if spec.makes == kind and spec.traits.is_default_for_kind:
            return spec
    raise ValueError(f"no preprocessor stands for maps of kind {kind!r}: name the one that made the map")


@overload
def preprocess(
    name: str,
    image: list[Any] | tuple[Any, ...],
    *,
    mask: object = None,
    device: str | Device = "cpu",
    library: Library | None = None,
    **parameters: Any,
) -> list[ControlMap]: ...


@overload
def preprocess(
    name: str,
    image: object,
    *,
    mask: object = None,
    device: str | Device = "cpu",
    library: Library | None = None,
    **parameters: Any,
) -> ControlMap: ...


def preprocess(
    name: str,
    image: object,
    *,
    mask: object = None,
    device: str | Device = "cpu",
    library: Library | None = None,
    **parameters: Any,
) -> ControlMap | list[ControlMap]:
    """Return the map that the preprocessor `name` (or a label, in any case) makes of an image, anything that
    `read_image` takes; of a list or tuple of images, an array (B, H, W, 3) or a tensor (B, 3, H, W) a list of their
    maps. `mask`, of the image's size, is white where to paint, for preprocessors that fill images; of several images a
    list.

    Weights are loaded in each call, on `device`, unless a `library` keeps them.

    `resolution` (64..2048) is the short side in pixels at which it works, and the map's; by default the image keeps
    its size, without the edge pixels that `resize_for_detection` adds. All other parameters are those of the
    preprocessor's signature. Raises ValueError or TypeError in one line: unknown names with the closest ones, values
    outside their range, an unreadable image.
    """
    run = find(name).load(device, library)
    pixels: Any = image
    is_stack = (isinstance(pixels, np.ndarray) or is_tensor(pixels)) and pixels.ndim == 4
    if not is_stack and not isinstance(pixels, (list, tuple)):
        return run(pixels, mask, **parameters)
    images, masks = list(pixels), list(mask) if isinstance(mask, (list, tuple)) else mask
    if masks is not None and (not isinstance(masks, list) or len(masks) != len(images)):
        raise ValueError(f"{len(images)} images need a list of as many masks")
    return run.run_batch(images, masks=masks, **parameters)
