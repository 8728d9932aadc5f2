"""Scripts that draw an image in tiles: Tiled Diffusion, if the webui has it, and the webui's own SD upscale."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from controlnet_ext.preprocessors import preprocess
from PIL import Image

from controlnet_ext.embedded import SAMPLE_PHOTO
from controlnet_ext.maps.fidelity import canny_f1

from .calls import SIDE, Check, Webui, png
from .guidance import MIN_GUIDED_F1

WHOLE = 2 * SIDE  # of the images, in pixels; a tile has SIDE
TILED_DIFFUSION = "tiled diffusion"
METHODS = ("MultiDiffusion", "Mixture of Diffusers")


def tiles(webui: Webui) -> Iterator[Check]:
    photo = np.asarray(Image.open(SAMPLE_PHOTO).convert("RGB").resize((WHOLE, WHOLE)))
    edges = preprocess("canny", photo).pixels
    unit = {"module": "none", "image": png(edges)}
    body: dict[str, Any] = {"width": WHOLE, "height": WHOLE, "steps": 6, "cfg_scale": 2}

    def score(*units: dict[str, Any], **changes: Any) -> float:
        render = webui.draw(*units, **{**body, **changes})
        return canny_f1(edges, np.asarray(Image.fromarray(render.first).resize((WHOLE, WHOLE)))).within_1px

    scripts_by_name = {each["name"]: each for each in webui.get("/sdapi/v1/script-info") if not each["is_img2img"]}
    for method in (
        METHODS if TILED_DIFFUSION in scripts_by_name else ()
    ):  # sides of tiles are those of latents; the last is the batch
        arguments = [each["value"] for each in scripts_by_name[TILED_DIFFUSION]["args"]]
        arguments[:2], arguments[6:10] = (
            (True, method),
            (SIDE // 8, SIDE // 8, SIDE // 16, 4),
        )
        scripts = {"alwayson_scripts": {TILED_DIFFUSION: {"args": arguments}}}
        plain, guided = score(**scripts), score(unit, **scripts)
        words = f"plain {plain:.2f}, guided {guided:.2f}; guided without tiles {score(unit):.2f}"
        yield Check(
            f"Tiled Diffusion, {method}, {WHOLE}x{WHOLE} in tiles of {SIDE}", words, guided > MIN_GUIDED_F1 > plain
        )
    upscale = {"script_name": "SD upscale", "script_args": ["", SIDE // 4, "None", 2.0]}
    upscale |= {"init_images": [png(photo)], "denoising_strength": 0.6, "width": SIDE, "height": SIDE}
    plain, guided = score(**upscale), score(unit, **upscale)
    words = f"plain {plain:.2f}, with a unit's own map of the whole {guided:.2f}"
    yield Check(f"SD upscale of a photo of {WHOLE}x{WHOLE} in tiles of {SIDE}", words, guided > plain + 0.1)
