"""A third host on `GuideSession`: a DDIM loop around a bare UNet, without a pipeline, a scheduler or hooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import Attention
from fakes import GREY, Plus, Pushes
from torch import Tensor

from controlnet_ext import Span, Step, Unit, Window, guide
from controlnet_ext.guidance.after_steps import ColorFix, NoiseLevel
from controlnet_ext.hosts.session import GuidedUNet, GuideSession
from controlnet_ext.models.kinds.controlnet import ControlNet

STEPS, SCALE = 4, 7.5


class ToyHost:
    """The services of a host: `x` is what the UNet is called with; `vae` is diffusers'."""

    def __init__(self, unet: Any, vae: Any):
        self.unet, self._vae = unet, vae
        self.x = torch.empty(0)
        self.generator = torch.Generator().manual_seed(0)

    @property
    def pixel_size(self) -> tuple[int, int]:
        return 8 * self.x.shape[-2], 8 * self.x.shape[-1]

    def encode(self, image: np.ndarray, apply_vae_shift: bool = True) -> Tensor:
        pixels = torch.from_numpy(image.reshape(-1, *image.shape[-3:])).permute(0, 3, 1, 2) / 127.5 - 1
        return self._vae.encode(pixels).latent_dist.mode() * self._vae.config["scaling_factor"]

    def iter_attentions(self) -> Iterator[tuple[str, Any, str]]:
        for place, block in (("input", "down_blocks"), ("middle", "mid_block"), ("output", "up_blocks")):
            for name, module in self.unet.get_submodule(block).named_modules(prefix=block):
                if isinstance(module, Attention):
                    yield name, module, place


@torch.no_grad()
def sample(unet: Any, vae: Any, units: Iterable[Unit], latents: Tensor, context: Tensor) -> Tensor:
    """Latents `(1, 4, h, w)` after DDIM steps with guidance; `context` has a row without the prompt and one with it."""
    alphas = DDIMScheduler(**tiny.DDIM).alphas_cumprod
    times = [1 + i * (len(alphas) // STEPS) for i in reversed(range(STEPS))]
    host, session = ToyHost(unet, vae), GuideSession(units, unet)
    with session.enter(unet, lambda: GuidedUNet(unet)) as guided:
        session.begin_run([Span(i / STEPS, (i + 1) / STEPS) for i in range(STEPS)], host)
        for i, t in enumerate(times):
            alpha, before = alphas[t], alphas[times[i + 1]] if i + 1 < STEPS else torch.tensor(1.0)
            x = host.x = torch.cat([latents, latents])
            step = Step(
                x,
                torch.full((2,), t),
                context,
                Span(i / STEPS, (i + 1) / STEPS),
                positive=torch.tensor([False, True]),
                samples=torch.zeros(2, dtype=torch.long),
            )
            level = NoiseLevel("epsilon", float(alpha) ** 0.5, float(1 - alpha) ** 0.5)
            guided.claim_call()
            guided.start_call(x, is_new_run=i == 0)
            total = guided.sum_residuals([session.compute_residuals(step, lambda level=level: level)], x.device)
            guided.wait()
            added = {} if total is None else {"down_block_additional_residuals": total.skips}
            added |= {} if total is None else {"mid_block_additional_residual": total.middle}
            noise = guided.finish_call(unet(x, t, context, **added).sample)
            without, with_prompt = noise.chunk(2)
            noise = without + SCALE * (with_prompt - without)
            x0 = (latents - (1 - alpha) ** 0.5 * noise) / alpha**0.5
            latents = before**0.5 * x0 + (1 - before) ** 0.5 * noise
    return latents


def make_units(kind: str) -> list[Unit]:
    theirs = tiny.control()
    net = ControlNet.load(theirs.state_dict(), dict(theirs.config))
    return {
        "residuals": [
            Unit(net, tiny.random_image(), window=Window(0, 0.5)),
            Unit(net, GREY, weight=0.5, mode="control"),
        ],
        "attention": [Unit(Plus(), GREY), Unit(net, tiny.random_image())],
        "after the step": [Unit(net, tiny.random_image(), after=ColorFix(2, 1.0))],
        "none": [],
    }[kind]


@pytest.mark.parametrize("kind", ["residuals", "attention", "after the step", "none"])
def test_a_host_of_a_hundred_lines_gives_what_diffusers_host_gives(kind: str) -> None:
    pipe = tiny.pipeline(StableDiffusionPipeline, unet=tiny.unet(), scheduler=DDIMScheduler(**tiny.DDIM))
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 8, 8, generator=draw)
    context = torch.randn(2, 16, 32, generator=draw)
    with guide(pipe, make_units(kind)):
        expected = pipe(
            prompt_embeds=context[1:],
            negative_prompt_embeds=context[:1],
            latents=latents,
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            output_type="latent",
        ).images
    found = sample(pipe.unet, pipe.vae, make_units(kind), latents, context)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)  # DDIM's terms in another order than diffusers'


def test_it_refuses_and_restores_as_the_others_do() -> None:
    unet = tiny.unet()
    with pytest.raises(TypeError, match="unit 1: a str, expected a Unit"):
        GuideSession(["canny"], unet)  # type: ignore[list-item]
    session = GuideSession([Unit(Pushes(), GREY, window=Window(0.4, 0.6))], unet)
    with (
        pytest.raises(ValueError, match=r"window 0.4..0.6 of unit 1 holds none of 1 steps"),
        session.enter(unet, lambda: GuidedUNet(unet)),
    ):
        session.begin_run([Span(0, 1)], ToyHost(unet, None))
    with session.enter(unet, lambda: GuidedUNet(unet)):
        other = GuideSession([], unet)
        with pytest.raises(RuntimeError, match="guided already"), other.enter(unet, lambda: GuidedUNet(unet)):
            pass
