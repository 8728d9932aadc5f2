"""All that an image is made from: the request that every front end builds and `render` runs, the recipe by which it can
be made again to the bit, and references to models with the sha256 of their files. No HTTP, no networks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..embedded import resolve_embedded
from ..errors import check_choice
from ..files.disk import open_regular_file
from ..files.image_formats import MAX_PIXELS
from ..files.safetensors import list_parts
from ..guidance.after_steps import PostStep, post_step_for
from ..guidance.contract import ControlModel
from ..guidance.unit import Unit, UnitSettings
from ..maps.control_map import ControlMap
from ..models import locate_weights, read_config
from ..preprocessors.parameters import Parameter, Range
from ..preprocessors.registry import RESOLUTION_PARAMETER, find_or_none
from . import DEVICES, DTYPES
from .inpainting import InpaintArea, Postprocess

LATENT_UPSCALERS = {  # name in the webui: torch's interpolation mode of the latents, and antialias
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}
PIXEL_UPSCALERS = {"None": "lanczos", "Lanczos": "lanczos", "Nearest": "nearest"}  # interpolation of the image
UPSCALERS = (*LATENT_UPSCALERS, *PIXEL_UPSCALERS)


@dataclass(frozen=True)
class HiresFix:
    """A second pass over an enlarged first image, as the webui's hires fix.

    The image of the first pass is enlarged to `canvas_size`, (height, width) in pixels that cover `size`, cut to `size`
    about its middle, and denoised again in `steps` at `strength`, 0..1. `upscaler` is one of `UPSCALERS`."""

    size: tuple[int, int]
    canvas_size: tuple[int, int]
    upscaler: str
    steps: int
    strength: float


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerationRequest:
    """Text, numbers and initial images of one generation, for any Stable Diffusion pipeline of diffusers.

    `prompt` is a text, or a tuple of texts: then all images come out of one batch and begin with the same noise, each
    prompt `images_per_prompt` times in a row. `width` and `height` are in pixels, multiples of 8. `clip_skip` is the
    number of last text encoder layers to skip. With `init_image`, (H, W, 3) uint8 RGB of that size, the run is
    image-to-image at `strength`, 0..1; with `inpaint_area` it repaints the area's masked part; `hires_fix` adds a
    second pass to text-to-image.

    A recipe in a PNG (`GenerationRecipe`) and a webui client's request (`WebuiRequest`) extend it by what they store
    beside it."""

    prompt: str | tuple[str, ...]
    negative_prompt: str
    seed: int
    steps: int
    width: int
    height: int
    guidance_scale: float
    images_per_prompt: int = 1
    clip_skip: int = 0
    init_image: np.ndarray | None = None
    strength: float = 1.0
    inpaint_area: InpaintArea | None = None
    hires_fix: HiresFix | None = None

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of each image, in the order of the images."""
        texts = (self.prompt,) if isinstance(self.prompt, str) else self.prompt
        return tuple(text for text in texts for _ in range(self.images_per_prompt))

    @property
    def denoising_strength(self) -> float | None:
        """The strength of the pass that begins with an image, or None."""
        return self.hires_fix.strength if self.hires_fix else None if self.init_image is None else self.strength


@dataclass(frozen=True, eq=False)
class GuidanceSetup:
    """Units with loaded models, and what their preprocessors do before and after the run.

    `postprocess` is applied to each image in order. `initial_noise_image`, (H, W, 3) uint8 RGB, is mixed into the
    noise that a text-to-image run begins with (inpaint_only+lama)."""

    units: tuple[Unit, ...] = ()
    postprocess: tuple[Postprocess, ...] = ()
    initial_noise_image: np.ndarray | None = None


NO_MODEL = "none"  # the path of the model of a unit that has no network


@dataclass(frozen=True)
class ModelRef:
    """The name of a model that is not loaded: a file, folder or repository, and the sha256 of its files in hex by their
    names, empty where they are not known yet."""

    path: str
    sha256: Mapping[str, str] = field(default_factory=dict)


def find_control_files(path: str) -> dict[str, Path]:
    """Return the files of a control model by name: "weights", whatever the file is called, and its "config.json". If
    the weights are an index, its parts too. Raises FileNotFoundError or ValueError when there is none."""
    weights = locate_weights(resolve_embedded(path))
    config = {"config.json": weights.parent / "config.json"} if read_config(weights) else {}
    parts = {part.name: part for part in list_parts(weights) if part != weights}
    return {"weights": weights, **parts, **config}


def hash_files(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the sha256 of each file in hex by name.

    One after the other (1.1 GB/s with SHA instructions), so that Ctrl-C stops it."""
    return {name: hash_file(file) for name, file in files.items()}


def hash_file(path: Path) -> str:
    """Return the sha256 of a file in hex. Raises FileNotFoundError or ValueError when it cannot be read."""
    digest = hashlib.sha256()
    with open_regular_file(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def hash_weights(path: Path) -> str:
    """Return the sha256 of a weights file in hex; of an index of weights in parts, that of the hashes of all files."""
    parts = list_parts(path)
    if parts == [path]:
        return hash_file(path)
    return hashlib.sha256("".join(map(hash_file, (path, *parts))).encode()).hexdigest()


def verify_hashes(ref: ModelRef, hashes: Mapping[str, str], option: str) -> None:
    """Raise ValueError unless `hashes`, those found here, are those of `ref` or it has none. `option` is the flag that
    names another place."""
    if not ref.sha256:
        return
    for name, digest in ref.sha256.items():
        if name not in hashes:
            raise ValueError(f"the model {ref.path!r} has no {name!r}; {describe_expected_model(ref, option)}")
        if hashes[name] != digest:
            raise ValueError(
                f"{name!r} of the model {ref.path!r} has sha256 {hashes[name]}, the recipe was made with {digest}; "
                f"name the right model with {option}"
            )
    if more := sorted(hashes.keys() - ref.sha256.keys()):
        raise ValueError(f"the model {ref.path!r} has {more[0]!r}, which the recipe's did not have")


def describe_expected_model(ref: ModelRef, option: str) -> str:
    """Return a sentence on the model that a recipe was made with, by its most telling file, and the flag to give it."""
    name = min(ref.sha256, key=lambda name: (name.endswith((".json", ".txt")), not name.startswith("unet/"), name))
    return f"the recipe was made with one whose {name!r} has sha256 {ref.sha256[name]}: name it with {option}"


NUMBER_FIELDS = {
    number.name: number
    for number in (
        Parameter("seed", int, 0, Range(0, 2**63 - 1)),
        Parameter("steps", int, 30, Range(1, 1000)),
        Parameter("width", int, 512, Range(64, 4096)),
        Parameter("height", int, 512, Range(64, 4096)),
        Parameter("guidance", float, 7.5, Range(0, 100)),
        Parameter("threads", int, 1, Range(1, 256)),
    )
}
ATTRIBUTES = {"negative": "negative_prompt", "guidance": "guidance_scale"}  # of a recipe, where its file says less
THREADS_PER_CPU = 4  # at most, whatever a recipe was made with
MAX_UNITS = 16  # at most
MAX_PROMPT_LENGTH = 10_000  # characters of a prompt at most


@dataclass(frozen=True, eq=False, kw_only=True)
class UnitSpec(UnitSettings):
    """A unit as `--control` describes it: nothing preprocessed, fitted or loaded yet.

    `image` is a path, RGB pixels (H, W, 3) uint8 or a map; `inpaint` is white where to repaint. `preprocessor` is a
    canonical name, or None for an image that is a map already; `parameters` are its own."""

    model: ModelRef
    image: str | np.ndarray | ControlMap
    inpaint: str | np.ndarray | None = None
    preprocessor: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> tuple[str | np.ndarray | ControlMap, ...]:
        """The image, of any shape, as `HintImages` reads it."""
        return (self.image,)


@dataclass(frozen=True, eq=False, kw_only=True)
class RecipeUnit(UnitSettings):
    """A unit as a recipe stores it: its map, mask and region have the size of the image.

    `mask` is (H, W, 3) uint8, white where to repaint, or None. `preprocessor` and `parameters` say how the map was made
    and what happens after each step; `architecture` is the kind of the model, "" until it is known. `source` is the
    image of which the preprocessor made the map, a path or pixels (H, W, 3) uint8 RGB of any size, while it is at hand:
    it is not stored."""

    model: ModelRef
    control_map: ControlMap
    mask: np.ndarray | None = None
    preprocessor: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    architecture: str = ""
    source: str | np.ndarray | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (spec := find_or_none(self.preprocessor)) is not None:
            names = {p.name for p in (*spec.parameters, RESOLUTION_PARAMETER)}
            spec.check({k: v for k, v in self.parameters.items() if k in names and (k, v) != ("resolution", "match")})

    @property
    def after(self) -> PostStep | None:
        """The change of the latents after each step that the preprocessor stands for, or None."""
        spec = find_or_none(self.preprocessor)
        return post_step_for(spec, self.parameters) if spec is not None and spec.traits.acts_after_step else None

    def make_unit(self, model: ControlModel) -> Unit:
        """Return the unit with its loaded model. Raises ValueError or TypeError where it makes no sense."""
        settings = {each.name: getattr(self, each.name) for each in fields(UnitSettings)}
        return Unit(model, self.control_map, inpaint=self.mask, after=self.after, **settings)


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerationRecipe(GenerationRequest):
    """A request with all that its image depends on, so that the image can be made again to the bit.

    `units` hold maps of `width` x `height` pixels. `scheduler` is the name of a class of diffusers, None for the
    model's own; `scheduler_config` is empty until it is known. `dtype` is one of `DTYPES`, `device` one of `DEVICES`.
    `threads` are torch's, on which the last bits depend. `made_with` names versions and the device, for comparison
    only.

    Raises ValueError or TypeError on what is outside its range."""

    dtype: str
    device: str
    threads: int
    model: ModelRef
    units: tuple[RecipeUnit, ...]
    scheduler: str | None = None
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)
    made_with: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_text("prompt", self.prompt)
        check_text("negative", self.negative_prompt)
        for name, number in NUMBER_FIELDS.items():
            attribute = ATTRIBUTES.get(name, name)
            object.__setattr__(self, attribute, number.check(getattr(self, attribute)))
        if self.width % 8 or self.height % 8:
            raise ValueError(f"size {self.width}x{self.height}: both sides must be multiples of 8")
        for name, choices in (("dtype", DTYPES), ("device", DEVICES)):
            check_choice(name, getattr(self, name), choices)
        check_units(len(self.units), self.width, self.height)


def limit_threads(threads: int) -> int:
    """Return the number of torch's threads, or the most that this machine is given: four for each CPU, at least 16."""
    return min(threads, max(THREADS_PER_CPU * (os.cpu_count() or 1), 16))


def check_units(count: int, width: int, height: int) -> None:
    """Raise ValueError when there are over 16 units, or their maps have over 64 megapixels in all."""
    if count > MAX_UNITS or count * width * height > MAX_PIXELS:
        raise ValueError(
            f"{count} units of {width}x{height} pixels: expected up to {MAX_UNITS}, and 64 megapixels in all"
        )


def check_text(name: str, text: object) -> None:
    """Raise TypeError or ValueError unless `text` can be a prompt."""
    if not isinstance(text, str):
        raise TypeError(f"{name} is {type(text).__name__}, expected text")
    if len(text) > MAX_PROMPT_LENGTH:
        raise ValueError(f"{name} has {len(text)} characters, expected up to {MAX_PROMPT_LENGTH}")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{name} holds bytes that are not UTF-8")
