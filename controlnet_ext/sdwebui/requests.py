"""Requests for images, txt2img and img2img, as clients of stable-diffusion-webui send them, read into values.

With them come the two things that a request may ask for beside units: repainting a masked part, and hires fix. Sizes
and borders are those of AUTOMATIC1111 1.10.1 (modules/processing.py, modules/masking.py). Samplers and noise
schedules are those that diffusers has, by the webui's names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ..errors import suggest_names
from ..generation.inpainting import InpaintArea, make_inpaint_area
from ..generation.pipeline_folder import PipelineFolder
from ..generation.recipe import MAX_PROMPT_LENGTH, UPSCALERS, GenerationRequest, HiresFix, check_text
from ..maps.resize import fit
from .fields import (
    IMAGE_REF,
    BoolField,
    ChoiceField,
    Field,
    ImageField,
    IntField,
    JsonObject,
    NumberField,
    ObjectField,
    RequestLimits,
    Schema,
    TextField,
    UnsupportedField,
)
from .images import ImageMaskPair, check_total_pixels, decode_base64_image, decode_base64_mask
from .units import RESIZE_MODES, UnitFields, WebuiUnit, parse_webui_units

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {  # a name in `SCHEDULER_CLASSES`, and settings of the scheduler
    "Euler a": ("euler-ancestral", {}),
    "Euler": ("euler", {}),
    "Heun": ("heun", {}),
    "DPM2": ("kdpm2", {}),
    "DPM2 a": ("kdpm2-ancestral", {}),
    "DPM++ 2M": ("dpm++", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "DPM++ 2M SDE": ("dpm++", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "LCM": ("lcm", {}),
    "DDIM": ("ddim", {}),
    "PLMS": ("pndm", {}),
    "UniPC": ("unipc", {}),
    "DDPM": ("ddpm", {}),
    "DEIS": ("deis", {}),
}
NOISE_SCHEDULES = {"Karras": "use_karras_sigmas", "Exponential": "use_exponential_sigmas"}  # and diffusers' settings
AUTOMATIC_NAMES = ("", "automatic", "normal", "none")


def create_scheduler(folder: PipelineFolder, name: str, noise_schedule: str) -> tuple[Any, str]:
    """Return a scheduler of diffusers with the model's settings, and its name as the webui writes it.

    Without a name it is the model's own. "DPM++ 2M Karras" is sampler and noise schedule in one, as in the webui before
    1.9. Raises ValueError for unknown names, with the nearest ones, and for a schedule that the sampler does not have.
    """
    for schedule in NOISE_SCHEDULES:
        if name.casefold().endswith(f" {schedule.casefold()}"):
            name, noise_schedule = name[: -len(schedule) - 1], schedule
    names = {each.casefold(): each for each in SAMPLERS}
    if name and name.casefold() not in names:
        raise ValueError(suggest_names(f"unknown sampler {name!r:.80}", name, SAMPLERS))
    label = names[name.casefold()] if name else "the model's own"
    key, more = SAMPLERS[label] if name else (None, {})
    scheduler = folder.make_scheduler(key)
    if noise_schedule.casefold() not in AUTOMATIC_NAMES:
        words = (schedule for schedule in NOISE_SCHEDULES if schedule.casefold() == noise_schedule.casefold())
        word = next(words, None)
        if word is None:
            raise ValueError(
                f"unknown scheduler {noise_schedule!r:.80}, known are: Automatic, {', '.join(NOISE_SCHEDULES)}"
            )
        if NOISE_SCHEDULES[word] not in scheduler.config:
            raise ValueError(f"the sampler {label!r} has no scheduler {word!r}")
        more, label = {**more, NOISE_SCHEDULES[word]: True}, f"{label} {word}"
    return type(scheduler).from_config(scheduler.config, **more), label


INPAINTING_FILLS = (
    ("fill", "fill"),
    ("original", "original"),
    ("latent noise", "noise"),
    ("latent nothing", "nothing"),
)
MAX_PADDING, MAX_MASK_BLUR = 256, 64  # pixels at most
UNIT_REF: Schema = {"$ref": f"#/components/schemas/{UnitFields.schema_name}"}


class InpaintFields(JsonObject):
    """The fields of img2img that say what is repainted."""

    mask = ImageField("Where to repaint: opaque if any pixel is transparent, else white")
    mask_blur = NumberField(
        "Standard deviation of the mask's blur in pixels, in both directions", None, 0, MAX_MASK_BLUR
    )
    mask_blur_x = NumberField("Blur across, where mask_blur is not given", 4, 0, MAX_MASK_BLUR)
    mask_blur_y = NumberField("Blur down, where mask_blur is not given", 4, 0, MAX_MASK_BLUR)
    inpainting_mask_invert = BoolField("Repaint where the mask is black", False, as_int=True)
    inpainting_fill = ChoiceField("Content that the masked part begins with", INPAINTING_FILLS, "fill")
    inpaint_full_res = BoolField("Repaint the masked part alone, enlarged to the size of the result", True)
    inpaint_full_res_padding = IntField("Pixels around the masked part that belong to it", 0, 0, MAX_PADDING)


def parse_inpaint_area(
    fields: InpaintFields, image: np.ndarray, mask: np.ndarray, height: int, width: int, fit_mode: str
) -> InpaintArea | None:
    """Return the area of `image` `(H, W, 3)` to repaint where `mask` `(H, W, 3)` is white, for results of that size.

    `fit_mode` is how the image is fitted to the result. None where only the masked part is wanted and the mask is
    black. Raises ValueError for fields outside their bounds.
    """
    both = fields.mask_blur
    return make_inpaint_area(
        image,
        mask,
        (height, width),
        fit_mode,
        blur=(fields.mask_blur_x, fields.mask_blur_y) if both is None else (both, both),
        padding=fields.inpaint_full_res_padding,
        masked_content=fields.inpainting_fill,
        only_masked=fields.inpaint_full_res,
        is_inverted=fields.inpainting_mask_invert,
    )


def prepare_inpaint_mask(fields: InpaintFields, mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return the mask `(H, W, 3)` in 0 and 255, as large as its image, inverted where the request says so."""
    resized_mask = cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    white = (cv2.cvtColor(resized_mask, cv2.COLOR_RGB2GRAY) > 127) != fields.inpainting_mask_invert
    return cv2.merge([np.where(white, np.uint8(255), np.uint8(0))] * 3)


MAX_HIRES_SCALE = 4  # at most


class HiresFields(JsonObject):
    """The fields of txt2img that say what hires fix does."""

    enable_hr = BoolField("Enlarge the result, and denoise it once more", False)
    hr_scale = NumberField("Factor by which both sides are enlarged, where none is given", 2, 1, MAX_HIRES_SCALE)
    hr_resize_x = IntField(
        "Width to enlarge to; 0: by the height, or by hr_scale", 0, 0, lambda limits: limits.max_side
    )
    hr_resize_y = IntField(
        "Height to enlarge to; 0: by the width, or by hr_scale", 0, 0, lambda limits: limits.max_side
    )
    hr_second_pass_steps = IntField(
        "Steps of the second pass; 0: as many as the first", 0, 0, lambda limits: limits.max_steps
    )
    hr_upscaler = ChoiceField(
        "Enlarges latents, or pixels", [(name, name) for name in UPSCALERS], "Latent", literal_none=True
    )
    denoising_strength = NumberField("Share of the steps that the second pass runs", 0.75, 0, 1)
    hr_prompt = UnsupportedField(same_as="prompt")
    hr_negative_prompt = UnsupportedField(same_as="negative_prompt")
    hr_sampler_name = UnsupportedField(same_as="sampler_name")
    hr_scheduler = UnsupportedField(same_as="scheduler")
    hr_checkpoint_name = UnsupportedField()


def parse_hires_fix(fields: HiresFields, height: int, width: int, steps: int) -> HiresFix | None:
    """Return the second pass after a first pass of this size and steps, or None without `enable_hr`.

    Raises ValueError for fields outside their bounds, and for sides outside 64..`limits.max_side`.
    """
    if not fields.enable_hr:
        return None
    fields.check_unsupported(HiresFields)
    x, y, scale = fields.hr_resize_x, fields.hr_resize_y, fields.hr_scale
    if x and y:
        scale = max(x / width, y / height)
    elif x or y:
        scale = x / width if x else y / height
    over = _floor8(height * scale), _floor8(width * scale)
    size = (min(_floor8(y), over[0]), min(_floor8(x), over[1])) if x and y else over
    if min(size) < 64 or max(size) > fields.limits.max_side:
        raise ValueError(
            f"{fields.owner}: the second pass makes {size[1]}x{size[0]}, expected sides of 64..{fields.limits.max_side}"
        )
    return HiresFix(size, over, fields.hr_upscaler, fields.hr_second_pass_steps or steps, fields.denoising_strength)


def _floor8(side: float) -> int:
    return int(side + 1e-6) // 8 * 8  # 1e-6: 3 * (64 / 3) is 64


SIDE_RULE = "cut to a multiple of 8, as the webui does"
SCRIPT_TITLES = ("controlnet", "controlnet m2m")  # always-on scripts; webuiapi takes the second for ControlNet


class PromptField(TextField):
    """A prompt: any text is one, "none" too."""

    def read(self, record: JsonObject) -> str:
        """Return the prompt, "" without one. Raises TypeError and ValueError as `check_text` does."""
        value = record.values.get(self.name)
        check_text(self.name, "" if value is None else value)
        return value or ""


class OverrideFields(JsonObject):
    """The fields of `override_settings`."""

    CLIP_stop_at_last_layers = IntField("Layer of the text encoder that is used, counted from the last", 1, 1, 12)
    sd_model_checkpoint = TextField("The checkpoint, which must be the one that is served")


def _make_scripts_schema(limits: RequestLimits) -> Schema:
    units = {"type": "object", "properties": {"args": _make_unit_list_schema(limits)}}
    return {"type": "object", "properties": {"ControlNet": units}, "additionalProperties": False}


def _make_unit_list_schema(limits: RequestLimits) -> Schema:
    return {"type": "array", "items": UNIT_REF, "description": f"Up to {limits.max_units} that are on"}


class GenerationFields(JsonObject):
    """The fields that txt2img and img2img share."""

    prompt = PromptField("Prompt", max_length=MAX_PROMPT_LENGTH)
    negative_prompt = PromptField("Negative prompt", max_length=MAX_PROMPT_LENGTH)
    seed = IntField("Seed of the first image, the next have the next; -1 draws one", -1, -1, 2**63 - 1)
    batch_size = IntField("Images of a batch", 1, 1, lambda limits: limits.max_images)
    n_iter = IntField("Batches", 1, 1, lambda limits: limits.max_images)
    steps = IntField("Steps of the sampler", 20, 1, lambda limits: limits.max_steps)
    width = IntField(f"By default the model's; {SIDE_RULE}", None, 64, lambda limits: limits.max_side)
    height = IntField(f"By default the model's; {SIDE_RULE}", None, 64, lambda limits: limits.max_side)
    cfg_scale = NumberField("Scale of classifier-free guidance", 7, 0, 100)
    sampler_name = TextField("By default the model's own", list_names=lambda _: list(SAMPLERS))
    sampler_index = TextField("Older name of sampler_name, which goes first", list_names=lambda _: list(SAMPLERS))
    scheduler = TextField("Schedule of noise", list_names=lambda _: ["Automatic", *NOISE_SCHEDULES])
    send_images = BoolField("Return the images", True)
    override_settings = ObjectField("Settings for this request", OverrideFields)
    alwayson_scripts = Field[Any](
        "The units, as args of ControlNet in any case, or of 'controlnet m2m'", _make_scripts_schema
    )
    controlnet_units = Field[Any]("Older place of the units, read where the other has none", _make_unit_list_schema)
    restore_faces = UnsupportedField()
    tiling = UnsupportedField()
    subseed_strength = UnsupportedField()
    styles = UnsupportedField()
    script_name = UnsupportedField()
    refiner_checkpoint = UnsupportedField()


WEBUI_NAMES = frozenset(  # members of both requests that mean nothing here
    [
        *("subseed", "seed_resize_from_h", "seed_resize_from_w", "do_not_save_samples", "do_not_save_grid", "eta"),
        *("s_min_uncond", "s_churn", "s_tmax", "s_tmin", "s_noise", "override_settings_restore_afterwards"),
        *("refiner_switch_at", "disable_extra_networks", "firstpass_image", "comments", "force_task_id"),
        *("script_args", "save_images", "infotext"),
    ]
)
TEXT_NAMES = frozenset(["firstphase_width", "firstphase_height"])
IMAGE_NAMES = frozenset(
    ["image_cfg_scale", "mask_round", "initial_noise_multiplier", "latent_mask", "include_init_images"]
)


class TextToImageFields(HiresFields, GenerationFields):
    """The fields of txt2img."""

    schema_name = "TextToImage"
    ignored_names = WEBUI_NAMES | TEXT_NAMES


class ImageToImageFields(InpaintFields, GenerationFields):
    """The fields of img2img."""

    schema_name = "ImageToImage"
    ignored_names = WEBUI_NAMES | IMAGE_NAMES

    init_images = ImageField(
        "The initial image", {"type": "array", "items": IMAGE_REF, "minItems": 1, "maxItems": 1}, is_required=True
    )
    denoising_strength = NumberField("Share of the steps that are run", 0.75, 0, 1)
    resize_mode = ChoiceField("How the initial image is fitted to the size of the result", RESIZE_MODES[:4], "stretch")


@dataclass(frozen=True, eq=False, kw_only=True)
class WebuiRequest(GenerationRequest):
    """A txt2img or img2img request of a webui client: a generation, and what the server adds to it.

    `units` are the units that are on, with their places in the request, from 1. `init_source` is the initial image
    `(H, W, 3)` with its mask, which units without an image take; `fit` is how it came to the size of `init_image`.
    `image_count` images have the seeds `seed`, `seed` + 1, … `warnings` are sentences about members that were ignored.
    """

    prompt: str
    image_count: int
    batch_size: int
    sampler_name: str
    noise_schedule: str
    units: tuple[tuple[int, WebuiUnit], ...]
    init_source: ImageMaskPair | None = None
    fit: str = "stretch"
    returns_images: bool = True
    checkpoint: str | None = None
    warnings: tuple[str, ...] = ()


def parse_generation_request(
    value: object, default_size: tuple[int, int], limits: RequestLimits, is_img2img: bool
) -> WebuiRequest:
    """Return the request in a JSON object. `default_size` is the height and width where it gives none.

    Raises ValueError and TypeError, in one line, for what cannot be or is not offered.
    """
    fields: TextToImageFields | ImageToImageFields = (ImageToImageFields if is_img2img else TextToImageFields)(
        value, "the request", limits
    )
    check_total_pixels(value)
    fields.check_unsupported(GenerationFields)
    height, width = (
        _floor8(min(default, limits.max_side) if side is None else side)
        for side, default in zip((fields.height, fields.width), default_size, strict=True)
    )
    seed, batch_size, steps = fields.seed, fields.batch_size, fields.steps
    count = batch_size * fields.n_iter
    if count > limits.max_images:
        raise ValueError(f"the request: {count} images, expected up to {limits.max_images}")
    override = fields.override_settings
    return WebuiRequest(
        prompt=fields.prompt,
        negative_prompt=fields.negative_prompt,
        seed=int.from_bytes(os.urandom(4), "big") if seed < 0 else seed,
        image_count=count,
        batch_size=batch_size,
        steps=steps,
        width=width,
        height=height,
        guidance_scale=fields.cfg_scale,
        sampler_name=fields.sampler_name or fields.sampler_index,
        noise_schedule=fields.scheduler,
        clip_skip=override.CLIP_stop_at_last_layers - 1,
        units=_parse_units(fields),
        returns_images=fields.send_images,
        checkpoint=override.sd_model_checkpoint or None,
        warnings=tuple(_list_warnings(fields)),
        **(
            _parse_init_image(fields, height, width)
            if isinstance(fields, ImageToImageFields)
            else {"hires_fix": parse_hires_fix(fields, height, width, steps)}
        ),
    )


def _parse_init_image(fields: ImageToImageFields, height: int, width: int) -> dict[str, Any]:
    """Return the arguments of `WebuiRequest` that img2img adds."""
    images = fields.init_images
    if not isinstance(images, list) or len(images) != 1:
        raise fields.make_error("init_images", images, "a list of one image")
    fit_mode = fields.resize_mode
    image, mask = decode_base64_image(images[0], "init_images"), fields.mask
    arguments: dict[str, Any] = {
        "init_source": (image, None),
        "fit": fit_mode,
        "init_image": fit(image, height, width, fit_mode),
        "strength": fields.denoising_strength,
    }
    if mask is not None:
        white = prepare_inpaint_mask(fields, decode_base64_mask(mask, "mask"), image)
        arguments["init_source"] = image, white
        arguments["inpaint_area"] = parse_inpaint_area(fields, image, white, height, width, fit_mode)
    return arguments


def _list_warnings(fields: GenerationFields) -> list[str]:
    """Return a sentence for each member of the request, its settings and its units that is no field."""
    objects: list[JsonObject] = [fields, fields.override_settings]
    objects += [
        UnitFields(unit, f"unit {i}") for i, unit in enumerate(_list_units(fields), 1) if isinstance(unit, dict)
    ]
    warnings = [text for each in objects for text in each.describe_unknown_members()]
    if fields.controlnet_units and _list_units(fields) != fields.controlnet_units:
        warnings.append("the request: controlnet_units was ignored, the units of alwayson_scripts go first")
    return warnings


def _parse_units(fields: GenerationFields) -> tuple[tuple[int, WebuiUnit], ...]:
    """Return the units that are on with their places, from alwayson_scripts, else from the older controlnet_units."""
    values = _list_units(fields)
    units = parse_webui_units(values, fields.limits.max_units)
    places = {place for place, _ in units}
    for i, value in enumerate(values, 1):
        if i not in places:
            _check_off(UnitFields(value, f"unit {i}"))
    return units


def _check_off(fields: UnitFields) -> None:
    """Raise ValueError if a unit is off by misspelled members only."""
    if fields.enabled is None:
        for text in fields.describe_unknown_members("so the unit would do nothing"):
            raise ValueError(text)


def _list_units(fields: GenerationFields) -> list[Any]:
    """Return the units as they stand in the request. Raises ValueError where they stand where none are looked for."""
    values: list[Any] = []
    for title, script in JsonObject(fields.alwayson_scripts or {}, "alwayson_scripts").values.items():
        if title.casefold() not in SCRIPT_TITLES:
            raise ValueError(f"alwayson_scripts: always on script {title!r:.80} not found")
        if isinstance(script, Mapping) and script and "args" not in script:
            raise ValueError(f"alwayson_scripts: {title} has no args, expected {{'args': [unit, ...]}}")
        args = script.get("args") if isinstance(script, Mapping) else script
        if args is not None and not isinstance(args, list):
            raise ValueError(f"alwayson_scripts: args of {title} is {type(args).__name__}, expected a list of units")
        values += args or []
    if not values:
        older = fields.controlnet_units or []
        if not isinstance(older, list):
            raise fields.make_error("controlnet_units", older, "a list of units")
        values = older
    return values
