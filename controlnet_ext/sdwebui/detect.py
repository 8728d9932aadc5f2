"""What the routes under /controlnet/ answer, as functions of JSON. ValueErrors are the client's."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..files.image_formats import MAX_PIXELS
from ..preprocessors.poses.drawing import drawn
from ..preprocessors.poses.json import parse_poses, poses_object
from ..preprocessors.poses.key_points import Poses
from ..preprocessors.registry import Ready, registered
from .fields import Fields, empty
from .modules import module, sliders, values
from .pictures import check_sizes, encoded, pairs, picture
from .units import ANY

VERSION = 3
PICTURES = 16  # of one request at most


def module_list(aliases: bool) -> dict[str, Any]:
    """Names, or with `aliases` labels, and what sliders they have."""
    named = {(entry.label if aliases else entry.name): sliders(entry) for entry in registered()}
    details = {name: {"model_free": False, "sliders": each} for name, each in {"none": [], **named}.items()}
    return {"module_list": list(details), "module_detail": details}


def settings(units: int) -> dict[str, int]:
    """How many units a request may have, also under the key that older clients read."""
    return {"control_net_unit_count": units, "control_net_max_models_num": units}


def detect(value: Any, ready: Callable[[str], Ready]) -> dict[str, Any]:
    """Maps of pictures, and of poses also their JSON; `ready` gives a preprocessor by name."""
    fields = Fields.of(value, "the request")
    check_sizes(value)
    entry = module(fields.text("controlnet_module", "none"))
    images = fields.get("controlnet_input_images", "controlnet_images")
    images = [images] if isinstance(images, str) else images
    if images is None:
        raise ValueError("No image selected")
    if not isinstance(images, list) or len(images) > PICTURES:
        raise fields.wrong("controlnet_input_images", images, f"a list of up to {PICTURES} pictures")
    masks = fields.get("controlnet_masks", "controlnet_mask") or []
    masks = masks if isinstance(masks, list) else [masks]
    if masks and len(masks) != len(images):
        raise ValueError(f"controlnet_masks has {len(masks)} masks for {len(images)} images")
    found = []
    for i, image in enumerate(images):
        ((pixels, own),) = pairs(image, None, f"controlnet_input_images[{i}]") or ((None, None),)
        if pixels is None:
            raise ValueError("No image selected")
        mask = picture(masks[i], f"controlnet_masks[{i}]") if masks and not empty(masks[i]) else own
        found.append((pixels, mask))
    if entry is None:
        return {"info": "Success", "images": [encoded(pixels) for pixels, _ in found]}
    resolution, a, b = (
        fields.number(f"controlnet_{name}", default=-1, low=-ANY, high=ANY)
        for name in ("processor_res", "threshold_a", "threshold_b")
    )
    run, given = ready(entry.name), values(entry, resolution, a, b)
    maps = [run(pixels, mask if entry.masked else None, **given) for pixels, mask in found]
    poses = [poses_object(each.values) for each in maps if isinstance(each.values, Poses)]
    return {"info": "Success", "images": [encoded(each.pixels) for each in maps], **({"poses": poses} if poses else {})}


def render_poses(value: Any) -> dict[str, Any]:
    """Pictures of poses, people and animals, as large as their canvases."""
    if value == []:
        return {"info": "No pose data detected."}
    if isinstance(value, list) and len(value) > PICTURES:
        raise ValueError(f"{len(value)} poses, expected up to {PICTURES}")
    poses = parse_poses(json.dumps(value).encode(), "the request")
    if sum(each.height * each.width for each in poses) > MAX_PIXELS:
        raise ValueError("the canvases have over 64 megapixels in all")
    return {"images": [encoded(drawn(each, each.height, each.width)) for each in poses], "info": "Success"}
