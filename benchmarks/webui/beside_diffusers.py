"""The webui's guided DDIM beside the same steps written over diffusers' own UNet and ControlNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline

from controlnet_ext.embedded import EMBEDDED_FOLDER

from .calls import SIDE, Check, Webui

PROMPT, SEED, STEPS, SCALE = "a red circle and a blue star on a green ground", 7, 10, 7.5


def beside(webui: Webui, name: str | None = None, folder: str | Path = EMBEDDED_FOLDER / "controlnet_canny") -> Check:
    """Compare an image of the webui's model `name`, its canny model by default, with that of the same in a folder.

    Both have the weights rounded to half precision, as the export does. The webui cuts to 0..255, and does not
    round."""
    unit = {} if name is None else {"model": name}
    theirs = webui.draw(unit, prompt=PROMPT, seed=SEED, steps=STEPS, cfg_scale=SCALE)
    parts = load_parts(folder)
    guided, plain = (_apart(theirs.first, draw_image(parts, theirs.maps[0], scale)) for scale in (1.0, 0.0))
    words = f"{guided[0]} of {theirs.first.size} values differ, by {guided[1]} of 255 at most"
    what = f"guided txt2img, {STEPS} steps of DDIM, {'by ' + name + ' ' if name else ''}beside diffusers' UNet and "
    figure = f"{words} (from the unguided: {plain[0]}, by {plain[1]})"
    return Check(f"{what}ControlNetModel", figure, guided[1] <= 1 < plain[1])


def load_parts(folder: str | Path) -> dict[str, Any]:
    pipe: Any = StableDiffusionPipeline.from_pretrained(EMBEDDED_FOLDER, local_files_only=True)
    net: Any = ControlNetModel.from_pretrained(folder)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder, net):
        part.eval().half().float()
    return {"pipe": pipe, "net": net}


@torch.no_grad()
def draw_image(parts: dict[str, Any], edges: np.ndarray, scale: float) -> np.ndarray:
    """The image (H, W, 3) uint8 that this map guides, with the ControlNet's residuals times `scale`."""
    pipe, net = parts["pipe"], parts["net"]
    words = pipe.tokenizer(["", PROMPT], padding="max_length", truncation=True, return_tensors="pt").input_ids
    context = pipe.text_encoder(words).last_hidden_state
    hint = (torch.from_numpy(edges.copy()).permute(2, 0, 1)[None].float() / 255).repeat(2, 1, 1, 1)
    x = torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(SEED))
    alphas = pipe.scheduler.alphas_cumprod.double()
    times = [1 + 1000 // STEPS * i for i in range(STEPS)]
    for i in range(STEPS - 1, 0, -1):  # as the webui's: the last step is not taken
        both, t = torch.cat([x, x]), torch.tensor(times[i])
        skips, middle = net(both, t, context, hint, conditioning_scale=scale, return_dict=False)
        residuals = {"down_block_additional_residuals": skips, "mid_block_additional_residual": middle}
        negative, positive = pipe.unet(both, t, context, **residuals).sample.chunk(2)
        noise = (negative + SCALE * (positive - negative)).double()
        now, then = alphas[times[i]], alphas[times[i - 1]]
        x = (then.sqrt() * (x - (1 - now).sqrt() * noise) / now.sqrt() + (1 - then).sqrt() * noise).float()
    pixels = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample[0]
    return ((pixels + 1) / 2).clamp(0, 1).mul(255).permute(1, 2, 0).numpy().astype(np.uint8)


def _apart(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """How many values differ, and by how much at most."""
    far = np.abs(a.astype(int) - b)
    return int((far > 0).sum()), int(far.max())
