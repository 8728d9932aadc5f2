"""ADetailer beside the extension: a stand-in that repaints a face as Bing-su/adetailer 25.3.0's script does."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_webui import api, hooks
from tiny import random_image
from webui_host import Request

FACE = (32, 16, 64, 64)  # left, top, width, height of the part that is repainted, in an image of 128x128


def run(p: Any) -> tuple[torch.Tensor, list[np.ndarray]]:
    """The latents of a request, and the maps among its results."""
    shown = SimpleNamespace(images=[])
    for script in p.scripts.alwayson_scripts:
        script.process(p, *p.script_args[script.args_from : script.args_to])
    latents = p.sample()
    for script in p.scripts.alwayson_scripts:
        script.postprocess(p, shown)
    return latents, [np.asarray(image) for image in shown.images]


def outer(host: Any, *units: Any) -> Any:
    """A text-to-image request over the API, with these units."""
    from controlnet_ext.webui.script import ControlNetScript

    script = ControlNetScript()
    script.filename = str(Path(__file__).parents[2] / "scripts" / "controlnet.py")
    script.args_from, script.args_to = 1, 1 + len(script.ui(False))
    nothing = {"process": lambda *_: None, "postprocess": lambda *_: None, "args_from": 0, "args_to": 1}
    other = SimpleNamespace(filename="other.py", title=lambda: "Other", **nothing)
    args = ["other", *units, *[None] * (script.args_to - 1 - len(units))]
    return Request(
        host,
        host.model.model.diffusion_model,
        scripts=SimpleNamespace(alwayson_scripts=[script, other]),
        script_args=args,
        width=128,
        height=128,
    )


def inner(p: Any, image: Image.Image, model: str, weight: float = 1.0, module: str | None = None) -> Any:
    """The request by which the face of `image` is repainted, of the outer request `p`."""
    from controlnet_ext.webui import external_code

    mask = np.zeros((128, 128), np.uint8)
    left, top, width, height = FACE
    mask[top : top + height, left : left + width] = 255
    p2 = copy(p)
    p2.width = p2.height = 64
    p2.init_images, p2.image_mask, p2.paste_to = [image], Image.fromarray(mask), FACE
    p2.inpaint_full_res, p2.inpainting_mask_invert, p2.resize_mode = 1, 0, 0
    p2.extra_generation_params = {}
    p2.scripts = copy(p.scripts)
    names = {"controlnet"} if model != "None" else set()
    p2.scripts.alwayson_scripts = [s for s in p.scripts.alwayson_scripts if Path(s.filename).stem in names]
    p2.script_args = [
        {**a, "enabled": False} if isinstance(a, dict) and "module" in a and model != "Passthrough" else a
        for a in p.script_args
    ]
    if model not in ("None", "Passthrough"):
        listed = next(name for name in external_code.get_models() if name.startswith(model))
        mode = external_code.ControlMode.BALANCED
        span = {"guidance_start": 0.0, "guidance_end": 1.0}
        unit = external_code.ControlNetUnit(
            model=listed, weight=weight, control_mode=mode, module=module, pixel_perfect=True, enabled=True, **span
        )
        external_code.update_cn_script_in_processing(p2, [unit])
    return p2


def crop(image: Image.Image) -> np.ndarray:
    left, top, width, height = FACE
    return np.asarray(image)[top : top + height, left : left + width]


def test_the_face_is_guided_by_its_own_part_of_the_image(host: Any) -> None:
    network, image = host.model.model.diffusion_model, random_image(3, 128)
    p = outer(host, api())
    guided, _ = run(p)
    plain, none = run(inner(p, image, "None"))
    assert not none
    painted, (shown,) = run(inner(p, image, "diffusion_pytorch_model"))
    assert np.array_equal(shown, crop(image)) and not torch.equal(painted, plain)
    _, (edges,) = run(inner(p, image, "diffusion_pytorch_model", module="canny"))
    from controlnet_ext import preprocess

    assert np.array_equal(edges, preprocess("canny", crop(image), resolution=64).pixels)
    assert torch.equal(run(inner(p, image, "diffusion_pytorch_model", weight=0.0))[0], plain)
    assert hooks(network) == 0 and torch.equal(run(p)[0], guided)  # the outer request is as it was


def test_the_outer_units_pass_through_cut_to_the_face(host: Any) -> None:
    from controlnet_ext.sdwebui.images import encode_png_base64

    photo = random_image(5, 128)
    p = outer(host, api(module="none", image=encode_png_base64(np.asarray(photo))))
    painted, (shown,) = run(inner(p, random_image(3, 128), "Passthrough"))
    assert np.array_equal(shown, crop(photo))
    assert not torch.equal(painted, run(inner(p, random_image(3, 128), "None"))[0])


def test_a_module_that_is_not_there_yet_ends_the_repainting_in_a_sentence(host: Any) -> None:
    from controlnet_ext.webui.sampling import GuidanceError

    with pytest.raises(GuidanceError, match="'ip-adapter-auto' of control type IP-Adapter is not supported yet"):
        run(inner(outer(host), random_image(3, 128), "diffusion_pytorch_model", module="ip-adapter-auto"))
