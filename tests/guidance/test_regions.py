"""Region masks at every size from 512 to 1536 in steps of 8, where sd-webui-controlnet's crash at most of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from fakes import GREY
from networks import randomised

from controlnet_ext import ControlModel, Residuals, Step, Unit, guide
from controlnet_ext.guidance.weighting import RegionMask, apply_weight

SIDES = range(512, 1537, 8)
PAIRS = [
    (side, SIDES[(37 * i + 11) % len(SIDES)]) for i, side in enumerate(SIDES)
]  # each side once as height and width


def layers(height: int, width: int) -> list[tuple[int, int]]:
    """SD1.5's twelve skips and its middle block for latents of that size: each level is half the last, rounded up."""
    found = [(height, width)]
    for level in range(4):
        found += [(height, width)] * 2
        if level < 3:
            height, width = -(-height // 2), -(-width // 2)
            found.append((height, width))
    return [*found, (height, width)]


def test_every_side_is_tried_as_height_and_as_width() -> None:
    assert len(SIDES) == 129 and sorted(w for _, w in PAIRS) == list(SIDES)
    assert layers(64, 65)[::3] == [(64, 65), (32, 33), (16, 17), (8, 9), (8, 9)] and len(layers(64, 65)) == 13


def test_a_region_covers_each_of_the_layers_at_all_129_sizes() -> None:
    draw = np.random.default_rng(0)
    for height, width in PAIRS:
        mask = torch.from_numpy(draw.random((height, width), np.float32))[None, None]
        shapes = layers(height // 8, width // 8)
        ones = [torch.ones(1, 1, *shape) for shape in shapes]
        residuals = Residuals(tuple(ones[:-1]), ones[-1])
        for region in (RegionMask(mask), RegionMask(torch.ones(1, 1, 721, 1283))):
            found = apply_weight(residuals, 1.0, "balanced", None, region).tensors
            assert [tuple(h.shape[-2:]) for h in found] == shapes
            assert all(h.min() >= 0 and h.max() <= 1 + 1e-6 for h in found)  # shares of neighbours are rounded
            if region.mask is not mask:
                assert all((h - 1).abs().max() < 1e-6 for h in found)


class Fitting(ControlModel):
    """Residuals of the sizes that a ControlNet's have."""

    architecture, family = "fitting", "sd15"

    def hint(self, image: Any) -> None: ...

    def __call__(self, step: Step, hint: None) -> Residuals:
        *skips, middle = (torch.full((len(step.x), 8, *shape), 0.3) for shape in layers(*step.x.shape[-2:]))
        return Residuals(tuple(skips), middle)


@pytest.fixture(scope="module")
def pipe() -> Any:
    """Of SD1.5's topology, with attention in the middle only."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8,) * 4,
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=32,
    )
    return tiny.pipeline(StableDiffusionPipeline, unet=randomised(unet), scheduler=DDIMScheduler(**tiny.DDIM))


@pytest.mark.parametrize(("height", "width"), [*PAIRS[::24], (512, 1536), (1536, 520)])
def test_a_guided_run_has_a_region_of_any_size(pipe: Any, height: int, width: int) -> None:
    def made(**given: Any) -> torch.Tensor:
        with guide(pipe, [Unit(Fitting(), GREY, **given)]):
            seed = torch.Generator().manual_seed(0)
            call = {"height": height, "width": width, "num_inference_steps": 1, "output_type": "latent"}
            return pipe("a cat", generator=seed, **call).images

    whole, none = made(), made(weight=0)
    assert whole.shape[-2:] == (height // 8, width // 8)
    assert (made(region=np.ones((600, 800), bool)) - whole).abs().max() < 1e-4
    left = np.zeros((721, 1283), np.float32)
    left[:, :641] = 1
    half = made(region=left)
    changed = (half - none).abs().mean(dim=(0, 1, 2))
    # beyond a few latents the right half only feels the norms, which see the whole image
    assert changed[: len(changed) // 3].mean() > 2 * changed[-len(changed) // 3 :].mean()
