"""Answers of the routes under /controlnet/, as functions of JSON. ValueErrors are for the client."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ..files.image_formats import MAX_PIXELS, MAX_SIDE
from ..preprocessors.poses.drawing import render_pose
from ..preprocessors.poses.json import POSES_SCHEMA, encode_poses, parse_poses
from ..preprocessors.poses.key_points import Poses
from ..preprocessors.registry import LoadedPreprocessor, list_preprocessors
from .fields import IMAGE_REF, Field, ImageField, IntField, JsonObject, NumberField, Schema, TextField, is_empty_value
from .images import check_total_pixels, decode_base64_mask, encode_png_base64, parse_image_mask_pairs
from .modules import describe_sliders, find_module, parameters_from_sliders
from .units import SLIDER_BOUND, SLIDER_RULE

API_VERSION = 3
MAX_REQUEST_IMAGES = 16  # of one request at most


class DetectFields(JsonObject):
    """The fields of a request for maps."""

    schema_name = "Detection"
    ignored_names = frozenset(["low_vram"])

    controlnet_module = TextField(
        "Preprocessor, by name, label or older name",
        "none",
        list_names=lambda _: ["none", *(entry.name for entry in list_preprocessors())],
    )
    controlnet_input_images = ImageField(
        "Images",
        {"type": "array", "items": IMAGE_REF, "minItems": 1, "maxItems": MAX_REQUEST_IMAGES},
        aliases=("controlnet_images",),
        is_required=True,
    )
    controlnet_masks = ImageField(
        "Masks of the images, as many as these",
        {"type": "array", "items": IMAGE_REF, "maxItems": MAX_REQUEST_IMAGES},
        aliases=("controlnet_mask",),
    )
    controlnet_processor_res = NumberField(f"Resolution; {SLIDER_RULE}", -1, -SLIDER_BOUND, SLIDER_BOUND)
    controlnet_threshold_a = NumberField(f"First slider of the module; {SLIDER_RULE}", -1, -SLIDER_BOUND, SLIDER_BOUND)
    controlnet_threshold_b = NumberField(f"Second slider of the module; {SLIDER_RULE}", -1, -SLIDER_BOUND, SLIDER_BOUND)


POSE_LIST_SCHEMA: Schema = {"type": "array", "maxItems": MAX_REQUEST_IMAGES, "items": POSES_SCHEMA}


class PoseFields(JsonObject):
    """The fields of a request for images of poses that state no canvas, as OpenPose's own."""

    schema_name = "PosesOnCanvas"

    poses: Field[Any] = Field("Poses of images", POSE_LIST_SCHEMA, default=[], is_required=True)
    canvas_width = IntField("Width in pixels of the image to which poses belong that state none", None, 1, MAX_SIDE)
    canvas_height = IntField("Its height", None, 1, MAX_SIDE)


def list_modules(use_labels: bool) -> dict[str, Any]:
    """Return the names of preprocessors, or with `use_labels` their labels, and the sliders of each."""
    sliders = {(entry.label if use_labels else entry.name): describe_sliders(entry) for entry in list_preprocessors()}
    details = {name: {"model_free": False, "sliders": each} for name, each in {"none": [], **sliders}.items()}
    return {"module_list": list(details), "module_detail": details}


def describe_settings(max_units: int) -> dict[str, int]:
    """Return the number of units that a request may have, also under the key that older clients read."""
    return {"control_net_unit_count": max_units, "control_net_max_models_num": max_units}


def detect_maps(
    value: object,
    load_preprocessor: Callable[[str], LoadedPreprocessor],
    before_each: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Return the maps of images as PNGs in base64, and the JSON of poses; `load_preprocessor` loads one by name.

    `before_each` is called before each map is made, and may raise to end the work. Members that are no field are named
    under `warnings`.
    Raises ValueError without an image, for what is no image, for masks that are not as many as the images, and
    without a mask where the preprocessor inpaints.
    """
    fields = DetectFields(value, "the request")
    check_total_pixels(value)
    entry = find_module(fields.controlnet_module)
    images = fields.controlnet_input_images
    images = [images] if isinstance(images, str) else images
    if images is None:
        raise ValueError("No image selected")
    if not isinstance(images, list) or len(images) > MAX_REQUEST_IMAGES:
        raise fields.make_error("controlnet_input_images", images, f"a list of up to {MAX_REQUEST_IMAGES} images")
    masks = fields.controlnet_masks or []
    masks = masks if isinstance(masks, list) else [masks]
    if masks and len(masks) != len(images):
        raise ValueError(f"controlnet_masks has {len(masks)} masks for {len(images)} images")
    pairs = []
    for i, image in enumerate(images):
        ((pixels, own_mask),) = parse_image_mask_pairs(image, None, f"controlnet_input_images[{i}]") or ((None, None),)
        if pixels is None:
            raise ValueError("No image selected")
        mask = (
            decode_base64_mask(masks[i], f"controlnet_masks[{i}]")
            if masks and not is_empty_value(masks[i])
            else own_mask
        )
        if mask is None and entry is not None and entry.takes_mask:
            raise ValueError(
                f"{entry.label} needs to know where to paint: give a mask for each image in controlnet_masks, white "
                "there"
            )
        pairs.append((pixels, mask))
    warnings = fields.describe_unknown_members()
    answer: dict[str, Any] = {"info": "Success", **({"warnings": warnings} if warnings else {})}
    if entry is None:
        return {**answer, "images": [encode_png_base64(pixels) for pixels, _ in pairs]}
    resolution = fields.controlnet_processor_res
    a, b = fields.controlnet_threshold_a, fields.controlnet_threshold_b
    run, parameters = load_preprocessor(entry.name), parameters_from_sliders(entry, resolution, a, b)
    maps = []
    for pixels, mask in pairs:
        before_each()
        maps.append(run(pixels, mask if entry.needs_mask else None, **parameters))
    poses = [encode_poses(each.values) for each in maps if isinstance(each.values, Poses)]
    return {
        **answer,
        "images": [encode_png_base64(each.pixels) for each in maps],
        **({"poses": poses} if poses else {}),
    }


def render_poses(value: object) -> dict[str, Any]:
    """Return images of poses, people and animals, as large as their canvases, as PNGs in base64.

    `value` is a list of poses, or one; or `PoseFields`, with the canvas of those that state none. Raises ValueError for
    what is no pose, for too many, and for canvases of over 64 megapixels in all.
    """
    canvas = None
    if isinstance(value, Mapping) and "poses" not in value:
        value = [value]
    elif isinstance(value, Mapping):
        fields = PoseFields(value, "the request")
        height, width = fields.canvas_height, fields.canvas_width
        if (height is None) is not (width is None):
            raise ValueError("the request: a canvas has both canvas_width and canvas_height")
        canvas = None if height is None or width is None else (height, width)
        value = fields.poses
    if value == []:
        return {"info": "No pose data detected."}
    if isinstance(value, list) and len(value) > MAX_REQUEST_IMAGES:
        raise ValueError(f"{len(value)} poses, expected up to {MAX_REQUEST_IMAGES}")
    poses = parse_poses(json.dumps(value).encode(), "the request", canvas)
    if sum(each.height * each.width for each in poses) > MAX_PIXELS:
        raise ValueError("the canvases have over 64 megapixels in all")
    return {
        "images": [encode_png_base64(render_pose(each, each.height, each.width)) for each in poses],
        "info": "Success",
    }
