"""Kinds that act inside a UNet's attention or encoder, where the UNet does not let them."""

from __future__ import annotations

from typing import Any

import diffusers
import fakes
import pytest
import tiny
import torch
from diffusers import MotionAdapter, StableDiffusionPipeline, T2IAdapter, UNetMotionModel
from networks import randomised

from controlnet_ext import Unit, guide
from controlnet_ext.models.kinds import t2i_adapter


def compile_whole(pipe: Any) -> None:
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def compile_in_place(pipe: Any) -> None:
    pipe.unet.compile(backend="eager")


def compile_blocks(pipe: Any) -> None:
    pipe.unet.compile_repeated_blocks(backend="eager")


@pytest.mark.parametrize("compiled", [compile_whole, compile_in_place, compile_blocks])
def test_a_compiled_unet_is_refused_because_it_would_not_notice_them(compiled: Any) -> None:
    pipe = tiny.pipeline(StableDiffusionPipeline, unet=tiny.unet())
    compiled(pipe)
    with (
        pytest.raises(ValueError, match="unit 1: pushes acts inside the UNet's attention, where torch"),
        guide(pipe, [Unit(fakes.Plus(), fakes.GREY)]),
    ):
        pass
    with guide(pipe, [Unit(fakes.Pushes(), fakes.GREY)]):  # what acts outside is not
        pass


def test_a_video_unet_refuses_a_t2i_adapter_when_the_guide_begins() -> None:
    adapter = MotionAdapter(
        block_out_channels=(32, 64, 64, 64), motion_layers_per_block=2, motion_num_attention_heads=2
    )
    parts = {k: v for k, v in tiny.parts().items() if k not in ("safety_checker", "unet", "feature_extractor")}
    scheduler = diffusers.DDIMScheduler(**tiny.DDIM)
    unet = UNetMotionModel.from_unet2d(tiny.unet(), adapter)
    pipe = diffusers.AnimateDiffPipeline(**parts, unet=unet, motion_adapter=adapter, scheduler=scheduler)
    theirs = randomised(T2IAdapter(channels=(32, 64, 64, 64), downscale_factor=8, adapter_type="full_adapter"))
    model = t2i_adapter.load(theirs.state_dict(), theirs.config)
    with (
        pytest.raises(ValueError, match="a T2I-Adapter acts inside the encoder, where a UNet with motion modules"),
        guide(pipe, [Unit(model, tiny.random_image())]),
    ):
        pass
