"""From a recipe to all that its image needs, loaded. What can be refused is refused before the pipeline is loaded."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import cv2
import numpy as np

from ..embedded import EMBEDDED_NAME, describe_other_version, restrict_map_kind
from ..errors import error_prefix, one_line
from ..guidance.hints import HintImages, describe_unprocessed
from ..guidance.schedule import Span
from ..guidance.unit import Unit
from ..guidance.weighting import compute_step_weights, layer_scales
from ..maps.control_map import ControlMap, describe_misfit
from ..preprocessors.registry import find, find_or_none
from .inpainting import postprocess_for
from .pipeline_folder import PipelineFolder, silence_libraries
from .recipe import (
    NO_MODEL,
    GenerationRecipe,
    GuidanceSetup,
    ModelRef,
    RecipeUnit,
    UnitSpec,
    describe_expected_model,
    find_control_files,
    hash_files,
    limit_threads,
    verify_hashes,
)
from .recipe_png import encode_recipe

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ..guidance.contract import ControlModel, UNet
    from ..hosts.diffusers.host import Scheduler

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LoadedRecipe:
    """A recipe with its pipeline and control models loaded. `recipe` is complete: hashes, scheduler and versions are
    filled in; `png_texts` is its text in a PNG. `warnings` are sentences on why the image may differ in its last
    bits, and on images that are taken for maps and are none."""

    recipe: GenerationRecipe
    png_texts: Mapping[str, str]
    warnings: tuple[str, ...]
    pipe: Any
    guidance: GuidanceSetup

    def with_seed(self, seed: int) -> LoadedRecipe:
        """Return the recipe with another seed and the same pipeline. Raises ValueError for a seed out of range."""
        recipe = replace(self.recipe, seed=seed)
        return replace(self, recipe=recipe, png_texts=encode_recipe(recipe))


def fit_unit(spec: UnitSpec, height: int, width: int) -> RecipeUnit:
    """Return the unit with its map made by its preprocessor, and map, mask and region brought to this size in pixels.

    Raises FileNotFoundError, ValueError or TypeError in one line where an image cannot be read or preprocessed."""
    kind = spec.image.kind if isinstance(spec.image, ControlMap) else "other"
    kind = find(spec.preprocessor).makes if spec.preprocessor else kind
    pixels, mask = HintImages(spec).fit_first_map(height, width)
    return RecipeUnit(
        model=spec.model,
        control_map=ControlMap(pixels, kind),
        mask=mask,
        preprocessor=spec.preprocessor,
        parameters=spec.parameters,
        weight=spec.weight,
        window=spec.window,
        mode=spec.mode,
        layers=spec.layers,
        region=None if spec.region is None else _resize_region(spec.region, height, width),
        fit=spec.fit,
        source=None if spec.preprocessor is None or isinstance(spec.image, ControlMap) else spec.image,
    )


def refit_unit(unit: RecipeUnit, height: int, width: int) -> RecipeUnit:
    """Return the unit with its map, mask and region brought to another size in pixels."""
    source = UnitSpec(model=unit.model, image=unit.control_map, inpaint=unit.mask, region=unit.region, fit=unit.fit)
    new_unit = fit_unit(source, height, width)
    return replace(unit, control_map=new_unit.control_map, mask=new_unit.mask, region=new_unit.region)


def _resize_region(region: np.ndarray, height: int, width: int) -> np.ndarray:
    interpolation = cv2.INTER_AREA if height * width < region.size else cv2.INTER_LINEAR
    eight_bits = np.rint(region * 255).astype(np.uint8)  # as the recipe stores it
    return cv2.resize(eight_bits, (width, height), interpolation=interpolation).astype(np.float32) / 255


def check_models(recipe: GenerationRecipe) -> PipelineFolder:
    """Return the folder of the recipe's model. Raises FileNotFoundError or ValueError in one line where a model that it
    names is not there; nothing is loaded."""
    folder = _find_model(recipe.model, PipelineFolder.find, "--model")
    for i, unit in enumerate(recipe.units, 1):
        check_control_model(unit.model, i)
    return folder


def check_control_model(ref: ModelRef, number: int) -> None:
    """Raise FileNotFoundError or ValueError in one line unless the control model of unit `number` is there."""
    if ref.path != NO_MODEL:
        with error_prefix(f"unit {number}"):
            _find_model(ref, find_control_files, f"--control {number},model=PATH")


def load_recipe(recipe: GenerationRecipe, device: str, folder: PipelineFolder | None = None) -> LoadedRecipe:
    """Load what the recipe names on a device such as "cpu" or "cuda:1".

    Hashes in the recipe are verified before a model is built of a file; hashes that it lacks are filled in. `folder` is
    that of the recipe's model if all its models were looked for already. Raises FileNotFoundError, ValueError or
    TypeError in one line."""
    folder = folder or check_models(recipe)
    import torch

    from ..hosts.diffusers.guide import guide

    with silence_libraries():
        scheduler = folder.make_scheduler(recipe.scheduler)
        config = _read_scheduler_config(scheduler)
        if recipe.scheduler_config and recipe.scheduler_config != config:
            raise ValueError(f"the {type(scheduler).__name__} has other settings here than the recipe's")
        _check_steps(recipe, scheduler)
        dtype = getattr(torch, recipe.dtype)
        # another version of the embedded model is told before its networks do not fit
        hashes = _verify_model(recipe.model, folder) if recipe.model.path == EMBEDDED_NAME else {}
        recipe_units, units = _load_units(recipe.units, folder, device, dtype)
        hashes = hashes or _verify_model(recipe.model, folder)
        complete = replace(
            recipe,
            model=ModelRef(recipe.model.path, hashes),
            units=recipe_units,
            scheduler=type(scheduler).__name__,
            scheduler_config=config,
            threads=limit_threads(recipe.threads),
            made_with=_describe_versions(device),
        )
        png_texts = encode_recipe(complete)
        pipe = folder.load(dtype, scheduler).to(device)
    pipe.set_progress_bar_config(disable=None)  # shown on terminals
    with guide(pipe, units):
        pass  # units that cannot act on this pipeline are refused here, not in the run
    guidance = _make_guidance_setup(recipe_units, units)
    unknown = folder.describe_unknown_words(*recipe.prompts, negative=recipe.negative_prompt)
    warnings = (*_compare_versions(recipe, complete), *_describe_misfits(units), *((unknown,) if unknown else ()))
    return LoadedRecipe(complete, png_texts, warnings, pipe, guidance)


def _make_guidance_setup(recipe_units: Sequence[RecipeUnit], units: tuple[Unit, ...]) -> GuidanceSetup:
    at_work = [(unit, find_or_none(unit.preprocessor)) for unit in recipe_units if unit.weight != 0]
    steps = [
        postprocess_for(spec, unit.control_map.pixels, unit.mask, unit.fit)
        for unit, spec in at_work
        if spec is not None and spec.traits.changes_finished_image
    ]
    initial = next((unit.control_map.pixels for unit, spec in at_work if spec and spec.traits.starts_from_map), None)
    return GuidanceSetup(units, tuple(step for step in steps if step is not None), initial)


def _describe_misfits(units: Sequence[Unit]) -> Iterator[str]:
    """Yield a sentence on each image that is taken for a map of its stated kind, else of its model's, and plainly is
    none."""
    for i, unit in enumerate(units, 1):
        image = cast(ControlMap, unit.image)
        kind = unit.model.map_type if image.kind == "other" else image.kind
        if unit.preprocessor is None and kind and (has := describe_misfit(image.pixels, kind)):
            yield f"unit {i}: {describe_unprocessed(has, kind)}"


def _verify_model(ref: ModelRef, folder: PipelineFolder) -> dict[str, str]:
    """Return the hashes of the model's files. Raises ValueError in one line where they are not those of `ref`."""
    hashes = hash_files(folder.files())
    if ref.path == EMBEDDED_NAME and (other := describe_other_version(ref.sha256, hashes)):
        raise ValueError(other)
    verify_hashes(ref, hashes, "--model")
    return hashes


def _load_units(
    recipe_units: Sequence[RecipeUnit], folder: PipelineFolder, device: str, dtype: torch.dtype
) -> tuple[tuple[RecipeUnit, ...], tuple[Unit, ...]]:
    """Load the control models, each file once, and return the recipe's units with hashes and architectures, and the
    units that guide."""
    models: dict[str, tuple[dict[str, str], ControlModel]] = {}  # with the hashes of their files, by path
    unet: Any = folder.make_meta_unet() if recipe_units else None
    complete, units = [], []
    for i, recipe_unit in enumerate(recipe_units, 1):
        ref = recipe_unit.model
        with error_prefix(f"unit {i}"):
            if ref.path == NO_MODEL:
                if recipe_unit.after is None:
                    raise ValueError(f"model={NO_MODEL} is for what acts after each step, such as inpaint_only")
                hashes: dict[str, str] = {}
                model: ControlModel = recipe_unit.after
            else:
                if ref.path not in models:
                    models[ref.path] = _load_model(ref, f"--control {i},model=PATH", unet, device, dtype)
                hashes, model = models[ref.path]
                verify_hashes(ref, hashes, f"--control {i},model=PATH")
            if recipe_unit.layers is not None and model.skip_count is not None:
                layer_scales(1, recipe_unit.mode, recipe_unit.layers, model.skip_count, 0)
            units.append(recipe_unit.make_unit(model))
        complete.append(replace(recipe_unit, model=ModelRef(ref.path, hashes), architecture=model.architecture))
    return tuple(complete), tuple(units)


def _load_model(
    ref: ModelRef, option: str, unet: UNet, device: str, dtype: torch.dtype
) -> tuple[dict[str, str], ControlModel]:
    """Return the hashes of a control model's files and the model. The weights are read once, for both."""
    from ..models import ControlFile

    files: dict[str, Path] = _find_model(ref, find_control_files, option)
    try:
        file = ControlFile.read(files["weights"], with_sha256=True)
    except ValueError:
        verify_hashes(ref, hash_files(files), option)  # then it is another file than the recipe's, which says more
        raise
    hashes = {"weights": file.weights.sha256, **hash_files({k: v for k, v in files.items() if k != "weights"})}
    verify_hashes(ref, hashes, option)
    model: Any = restrict_map_kind(file.load(), ref.path)
    model = model.to(device=device, dtype=dtype)
    try:
        model.bind(unet)
    except ValueError as error:
        raise ValueError(f"{ref.path!r} does not fit the model: {error}") from error
    return hashes, model


def _find_model(ref: ModelRef, find: Callable[[str], T], option: str) -> T:
    try:
        return find(ref.path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; {describe_expected_model(ref, option)}" if ref.sha256 else str(error)
        ) from error


def _read_scheduler_config(scheduler: Scheduler) -> dict[str, Any]:
    """A scheduler's settings, without those that diffusers notes for itself."""
    return {k: v for k, v in json.loads(scheduler.to_json_string()).items() if not k.startswith("_")}


def _check_steps(recipe: GenerationRecipe, scheduler: Scheduler) -> None:
    """Raise ValueError unless the scheduler makes so many steps and each unit acts in one of them."""
    try:
        scheduler.set_timesteps(recipe.steps)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{recipe.steps} steps: {one_line(error)}") from error
    n = len(scheduler.timesteps)
    spans = [Span(k / n, (k + 1) / n) for k in range(n)]
    for i, unit in enumerate(recipe.units, 1):
        compute_step_weights(f"unit {i}", unit.weight, unit.window, spans)


def _describe_versions(device: str) -> dict[str, str]:
    import torch

    versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")}
    try:
        versions["controlnet-ext"] = importlib.metadata.version("controlnet-ext")
    except importlib.metadata.PackageNotFoundError:
        versions["controlnet-ext"] = "not installed"
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {**versions, "device": f"{kind}, {name}"}


def _compare_versions(old: GenerationRecipe, here: GenerationRecipe) -> tuple[str, ...]:
    remarks: tuple[str, ...] = ()
    if old.threads != here.threads:
        remarks = (f"made with {old.threads} threads, here {here.threads}: the last bits may differ",)
    if not old.made_with:
        return remarks
    return remarks + tuple(
        f"made with {name} {old.made_with.get(name)!r}, here {version!r}: the image may differ"
        for name, version in here.made_with.items()
        if old.made_with.get(name) != version
    )
