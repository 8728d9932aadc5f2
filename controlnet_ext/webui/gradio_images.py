"""Values of drawing components of gradio 3.41 (stable-diffusion-webui 1.10) and 4.40."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
import numpy as np

from ..files.image_reader import read_mask

IS_GRADIO_3 = gr.__version__.startswith("3.")


def read_canvas(value: Any) -> Any:
    """Return {"image", "mask"} of arrays, the mask None if nothing is painted; or the array of a component without a
    brush."""
    if not isinstance(value, Mapping):
        return value
    if "background" not in value:
        mask = value.get("mask")
        is_painted = mask is not None and read_mask(mask).any()  # an opaque black mask has an alpha of 255
        return {**value, "mask": mask if is_painted else None}
    layers = [layer for layer in value.get("layers") or () if layer is not None]
    masks = [np.where(layer[..., 3:] > 0, np.uint8(255), np.uint8(0)).repeat(3, 2) for layer in layers]
    mask = np.maximum.reduce(masks) if masks else None
    image = value["background"]
    if image is not None and image.shape[2] == 4 and not image[..., 3].any():
        image = None  # gradio 4 gives a transparent one where there is none
    return {"image": image, "mask": mask if np.any(mask) else None}


def get_image_and_mask(value: Any) -> tuple[Any, Any]:
    """Return image and mask of a component's value, None for each that is absent."""
    canvas = read_canvas(value)
    return (canvas.get("image"), canvas.get("mask")) if isinstance(canvas, Mapping) else (canvas, None)
