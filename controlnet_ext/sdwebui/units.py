"""Units as clients of sd-webui-controlnet send them, in older and newer spellings, read into `WebuiUnit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import error_prefix
from ..guidance.schedule import WebuiWindow, Window
from ..preprocessors.registry import Preprocessor, list_preprocessors
from .fields import (
    IMAGE_REF,
    BoolField,
    ChoiceField,
    ImageField,
    JsonObject,
    NumberField,
    NumberListField,
    Schema,
    TextField,
    UnsupportedField,
    is_empty_value,
)
from .images import MAX_UNIT_IMAGES, ImageMaskPair, decode_base64_mask, parse_image_mask_pairs
from .modules import find_module

RESIZE_MODES = (
    *(("Just Resize", "stretch"), ("Crop and Resize", "crop"), ("Resize and Fill", "fill")),
    ("Latent upscale", "stretch"),  # the webui's own fourth
    *(("Scale to Fit (Inner Fit)", "crop"), ("Inner Fit (Scale to Fit)", "crop")),
    *(("Envelope (Outer Fit)", "fill"), ("Outer Fit (Shrink to Fit)", "fill")),
)
CONTROL_MODES = (
    ("Balanced", "balanced"),
    ("My prompt is more important", "prompt"),
    ("ControlNet is more important", "control"),
)
HR_OPTIONS = (("Both", "both"), ("Low res only", "low"), ("High res only", "high"))
UNION_MAP_TYPES = (
    *(("OpenPose", "pose"), ("Depth", "depth"), ("Soft Edge", "soft edges"), ("Hard Edge", "edges")),
    *(("Normal Map", "normals"), ("Segmentation", "segmentation"), ("Tile", "tile"), ("Inpaint", "inpaint")),
    ("Unknown", None),
)
MAX_LAYER_SCALES = 100  # scales in advanced_weighting at most
SLIDER_BOUND = 1e9  # sliders take any number: what lies outside their range means their default
SLIDER_RULE = "a value outside its slider, such as -1, means the default"
MASKED_IMAGE_SCHEMA: Schema = {"type": "object", "properties": {"image": IMAGE_REF, "mask": IMAGE_REF}}
MASKED_IMAGES_SCHEMA: Schema = {"type": "array", "items": MASKED_IMAGE_SCHEMA, "maxItems": MAX_UNIT_IMAGES}
IMAGE_PAIR_SCHEMA: Schema = {"type": "array", "items": IMAGE_REF, "minItems": 1, "maxItems": 2}


class UnitFields(JsonObject):
    """The fields of a unit, in the spelling of sd-webui-controlnet 1.1."""

    schema_name = "Unit"
    ignored_names = frozenset(
        [
            *("is_ui", "batch_images", "output_dir", "loopback", "pulid_mode", "generated_image"),
            *("use_preview_as_input", "batch_mask_dir", "animatediff_batch", "batch_modifiers", "batch_image_files"),
            "batch_keyframe_idx",
        ]
    )

    enabled = BoolField("By default true where there is a model, a module or an image", None)
    module = TextField(
        "Preprocessor, by name, label or older name",
        "none",
        list_names=lambda _: ["none", *(entry.name for entry in list_preprocessors())],
    )
    model = TextField(
        "Control model as listed; case and hash may be left out", list_names=lambda models: ["None", *models]
    )
    image = ImageField(
        "Control image, with a mask or without; several act together. Without one the unit takes the initial image of "
        "img2img",
        {"anyOf": [IMAGE_REF, MASKED_IMAGE_SCHEMA, IMAGE_PAIR_SCHEMA, MASKED_IMAGES_SCHEMA]},
        aliases=("input_image",),
    )
    mask = ImageField(
        "White, or opaque, where a module that inpaints repaints; for other modules a partly painted mask is the map",
        aliases=("mask_image",),
    )
    weight = NumberField("Scale of all residuals", 1, 0, 2)
    weight_schedule = TextField("Weights over the run instead of `weight`, as text such as 0: 1, 0.5: 0.2")
    resize_mode = ChoiceField("How the control image is fitted to the size of the result", RESIZE_MODES, "crop")
    control_mode = ChoiceField("Balance of prompt and control; Balanced by default", CONTROL_MODES, None)
    guessmode = BoolField("Older spelling of the control mode 'ControlNet is more important'", False)
    hr_option = ChoiceField("Passes of hires fix in which the unit acts", HR_OPTIONS, "both")
    guidance_start = NumberField("The unit acts in steps that begin between start and end, both included", 0, 0, 1)
    guidance_end = NumberField("End of the steps in which the unit acts", 1, 0, 1, aliases=("guidance",))
    processor_res = NumberField(f"Resolution of the preprocessor; {SLIDER_RULE}", -1, -SLIDER_BOUND, SLIDER_BOUND)
    threshold_a = NumberField(f"First slider of the module; {SLIDER_RULE}", -1, -SLIDER_BOUND, SLIDER_BOUND)
    threshold_b = NumberField(f"Second slider of the module; {SLIDER_RULE}", -1, -SLIDER_BOUND, SLIDER_BOUND)
    pixel_perfect = BoolField("Choose the resolution of the preprocessor by the sizes of image and result", False)
    low_vram = BoolField("Hold the control model in main memory between steps", False, aliases=("lowvram",))
    union_control_type = ChoiceField("Map type for union models", UNION_MAP_TYPES, None)
    advanced_weighting = NumberListField(
        "A scale per layer, instead of weight and soft weights", -10, 10, MAX_LAYER_SCALES
    )
    effective_region_mask = ImageField("White, or opaque, where the unit acts")
    save_detected_map = BoolField("Return the map after the images", True)
    inpaint_crop_input_image = BoolField("Crop the control image to the area that is repainted", True)
    input_mode = TextField("'simple' only: other modes read folders", "simple")
    ipadapter_input = UnsupportedField("holds serialised objects, which are not decoded; send the image")


@dataclass(frozen=True, eq=False)
class WebuiUnit:
    """A unit as read. `images` are pairs (image `(H, W, 3)`, mask `(H, W, 3)` or None), uint8 RGB; `model` is a name as
    listed.

    `weight_schedule` replaces the weight by text as `Unit.weight` takes it. `resolution`, `threshold_a` and
    `threshold_b` are sliders, -1 for their defaults; `layer_scales` replace weight and soft weights.
    `crops_to_inpaint_area`: where only the masked part is repainted, the control image is cropped to that part.
    """

    module: Preprocessor | None
    model: str | None
    images: tuple[ImageMaskPair, ...]
    weight: float
    weight_schedule: str | None
    window: Window
    fit: str
    mode: str
    hires: str
    resolution: float
    threshold_a: float
    threshold_b: float
    pixel_perfect: bool
    low_vram: bool
    union_type: str | None
    layer_scales: tuple[float, ...] | None
    region_mask: np.ndarray | None
    returns_map: bool
    crops_to_inpaint_area: bool


def parse_webui_units(values: Sequence[object], max_units: int) -> tuple[tuple[int, WebuiUnit], ...]:
    """Return the units that are on, with their numbers from 1; those that are off do not count.

    Raises ValueError for a wrong unit and for more than `max_units`, before an image is decoded.
    """
    tables = [(i, UnitFields(value, f"unit {i}")) for i, value in enumerate(values, 1)]
    tables = [(i, fields) for i, fields in tables if _is_on(fields)]
    if len(tables) > max_units:
        raise ValueError(f"{len(tables)} units, expected up to {max_units}")
    return tuple((i, _parse_fields(fields, f"unit {i}")) for i, fields in tables)


def parse_webui_unit(value: object, name: str) -> WebuiUnit | None:
    """Return the unit that a JSON object describes, or None where it is off.

    Without `enabled` it is off if it has no model, module and image. Unknown fields are ignored, as sd-webui-controlnet
    does. Raises ValueError that begins with `name`.
    """
    fields = UnitFields(value, name)
    return _parse_fields(fields, name) if _is_on(fields) else None


def _is_on(fields: UnitFields) -> bool:
    if fields.enabled is not None:
        return fields.enabled
    return any(not _is_blank(each) for each in (fields.image, *map(fields.find_value, ("model", "module"))))


def _parse_fields(fields: UnitFields, name: str) -> WebuiUnit:
    image = fields.image
    fields.check_unsupported(UnitFields)
    if fields.input_mode.casefold() not in ("simple", "inputmode.simple"):
        raise ValueError(f"{name}: input_mode {fields.input_mode!r:.40} reads folders; send images, one a request")
    start, end, region = fields.guidance_start, fields.guidance_end, fields.effective_region_mask
    with error_prefix(name):
        window, preprocessor = WebuiWindow(start, end), find_module(fields.module)
    return WebuiUnit(
        module=preprocessor,
        model=fields.model or None,
        images=parse_image_mask_pairs(image, fields.mask, f"{name}: image"),
        weight=fields.weight,
        weight_schedule=fields.weight_schedule or None,
        window=window,
        fit=fields.resize_mode,
        mode=fields.control_mode or ("control" if fields.guessmode else "balanced"),
        hires=fields.hr_option,
        resolution=fields.processor_res,
        threshold_a=fields.threshold_a,
        threshold_b=fields.threshold_b,
        pixel_perfect=fields.pixel_perfect,
        low_vram=fields.low_vram,
        union_type=fields.union_control_type,
        layer_scales=fields.advanced_weighting,
        region_mask=None if region is None else decode_base64_mask(region, f"{name}: effective_region_mask"),
        returns_map=fields.save_detected_map,
        crops_to_inpaint_area=fields.inpaint_crop_input_image,
    )


def _is_blank(value: object) -> bool:
    """Return True for an empty value, also for {"image": "", "mask": ""} and lists of such objects."""
    if isinstance(value, Mapping):
        return is_empty_value(value.get("image"))
    return all(map(_is_blank, value)) if isinstance(value, list) else is_empty_value(value)
