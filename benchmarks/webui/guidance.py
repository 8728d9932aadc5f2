"""Whether units guide, in whatever way the webui samples."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import cv2
import numpy as np

from controlnet_ext.maps.fidelity import canny_f1

from .calls import IMAGE, SIDE, Check, Render, Webui, apart, png

SAMPLERS = (
    *("Euler a", "DPM++ 2M", "Heun", "UniPC", "PLMS", "DPM++ SDE", "DPM adaptive", "LCM", "Restart", "DPM fast"),
    *("DDIM CFG++", "DPM2 a", "LMS"),
)
COLOR_FIX = {"module": "tile_colorfix", "threshold_a": 3}
MIN_GUIDED_F1 = 0.3  # F1 from which an image is guided; without a unit it is 0.1 to 0.2


def guidance(webui: Webui) -> Iterator[Check]:
    plain, guided = webui.draw(), webui.draw({})
    edges = guided.maps[0]
    before, after = (_f1(edges, each) for each in (plain, guided))
    yield Check(
        f"F1 of the map and the image's, {SIDE}x{SIDE}, 4 steps of DDIM",
        f"plain {before:.2f}, guided {after:.2f}",
        after > MIN_GUIDED_F1 > before,
    )
    yield _equal("the same request again", guided, webui.draw({}))
    yield _equal("plain after guided", plain, webui.draw())
    yield _equal("weight 0, and plain", plain, webui.draw({"weight": 0}))
    modes = [webui.draw({"control_mode": mode}) for mode in range(3)]
    scores = [_f1(edges, each) for each in modes]
    differ = min(apart(a.first, b.first) for a, b in combinations([plain, *modes], 2))
    yield Check("control modes balanced, prompt, control", _words(scores), differ > 0 and min(scores) > before)
    yield _scores(
        "prompts joined by AND", edges, [webui.draw({}, prompt="a blue blob AND a yellow curve on a red ground")]
    )
    yield _scores(
        "a prompt of over 75 tokens", edges, [webui.draw({}, prompt="a blue blob" + " and a yellow curve" * 40)]
    )
    with webui.options(batch_cond_uncond=False):
        alone = webui.draw({}), webui.draw({"control_mode": 2})
    values = apart(alone[0].first, guided.first), apart(alone[1].first, modes[2].first)
    yield Check(
        '"Batch cond/uncond" off, beside on: balanced, control', f"{values[0]} and {values[1]} of 255", max(values) <= 1
    )
    with webui.options(skip_early_cond=0.5):
        yield _scores("Skip Early CFG", edges, [webui.draw({}, steps=10)])
    batch = webui.draw({}, batch_size=2, n_iter=2)
    yield Check(
        "batch size 2, count 2: the first beside one alone",
        f"{apart(batch.first, guided.first)} of 255",
        apart(batch.first, guided.first) <= 1 and len(batch.images) == 4,
    )
    yield _equal("low VRAM, and without", guided, webui.draw({"low_vram": True}))


def passes(webui: Webui) -> Iterator[Check]:
    """hires fix, samplers, img2img."""
    edges = webui.draw({}).maps[0]
    large = cv2.resize(edges, (2 * SIDE, 2 * SIDE), interpolation=cv2.INTER_NEAREST)
    how = {"enable_hr": True, "hr_scale": 2, "denoising_strength": 0.7, "hr_upscaler": "Latent"}
    renders = [webui.draw({"hr_option": word}, **how) for word in ("Both", "Low res only", "High res only")]
    scores = [_f1(large, each) for each in renders]
    yield Check(
        "hires fix: both passes, first only, second only", _words(scores), min(scores[0], scores[2]) > scores[1]
    )
    for names in (SAMPLERS[:5], SAMPLERS[5:10], SAMPLERS[10:]):
        yield _scores(", ".join(names), edges, [webui.draw({}, sampler_name=name) for name in names])
    how = {"init_images": [IMAGE], "denoising_strength": 0.9}
    yield _scores("img2img, of its own image", edges, [webui.draw({"image": None}, **how)])


def inpainting(webui: Webui) -> Iterator[Check]:
    start = webui.draw().first
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[30:90, 40:100] = 255
    how = {"init_images": [png(start)], "mask": png(mask), "inpaint_full_res_padding": 16, "mask_blur": 0}
    how |= {"inpainting_fill": 1, "denoising_strength": 0.95, "steps": 10}
    whole, part = (webui.draw({}, inpaint_full_res=full, **how) for full in (False, True))
    outside = max(apart(each.first[mask == 0], start[mask == 0]) for each in (whole, part))
    inside = _f1(whole.maps[0] * (mask > 0)[..., None], Render([whole.first * (mask > 0)[..., None]], [], "", ""))
    yield Check("inpainting, whole image: inside the mask", f"{inside:.2f}", inside > MIN_GUIDED_F1)
    yield Check("inpainting, whole image and only masked: outside", f"{outside} of 255 changed", outside == 0)
    cut = webui.draw({"inpaint_crop_input_image": False}, inpaint_full_res=True, **how)
    yield Check(
        "only masked: the map is that of the masked part",
        f"{(part.maps[0] != cut.maps[0]).mean():.0%} of it differs from the whole's",
        apart(part.maps[0], cut.maps[0]) > 0,
    )


def afterwards(webui: Webui) -> Iterator[Check]:
    """What units do after each step and to the image in the end."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[40:100, 40:100] = 255
    image = webui.draw({"module": "none"}).maps[0]  # the photo, as large as the image
    inpainting = webui.draw({}, {"module": "inpaint_only", "image": png(image), "mask": png(mask)}).first
    far = cv2.dilate(mask, np.ones((15, 15), np.uint8)) == 0
    change_percent = int((inpainting != image).any(axis=2)[mask > 0].mean() * 100)
    yield Check(
        "inpaint_only: 7 pixels beyond its mask, and inside",
        f"{apart(inpainting[far], image[far])} of 255 from the image; {change_percent}% of its pixels are others",
        apart(inpainting[far], image[far]) == 0 and change_percent > 90,
    )
    grey = webui.draw({"module": "recolor_intensity"})
    off = int(np.abs(grey.first.max(axis=2).astype(int) - grey.maps[0][..., 0]).max())
    yield Check("recolor_intensity: the image's V beside its map's", f"{off} of 255 at most", off <= 2)
    colours = [np.abs(_coarse(webui.draw(*units).first) - _coarse(image)).mean() for units in ((), (COLOR_FIX,))]
    words = f"{colours[0]:.0f} without, {colours[1]:.0f} with it, of 255"
    yield Check("tile_colorfix: mean colours of 32x32 pixels beside the image's", words, colours[1] < colours[0] / 2)


def _coarse(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (SIDE // 32, SIDE // 32), interpolation=cv2.INTER_AREA).astype(float)


def _f1(edges: np.ndarray, render: Render) -> float:
    return canny_f1(edges, render.first).within_1px


def _words(scores: list[float]) -> str:
    return ", ".join(f"{each:.2f}" for each in scores)


def _scores(what: str, edges: np.ndarray, renders: list[Render]) -> Check:
    scores = [_f1(edges, each) for each in renders]
    return Check(what, _words(scores), min(scores) > MIN_GUIDED_F1)


def _equal(what: str, a: Render, b: Render) -> Check:
    far = apart(a.first, b.first)
    return Check(what, "equal" if far == 0 else f"{far} of 255 apart", far == 0)
