"""Whose rows are whose, in pipelines that ask the UNet once a step, several times, or in batches of another make:
known, or refused by name."""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from fakes import GREY, WHITE, Plus, Pushes, run

from controlnet_ext import PerSample, Span, Unit, guide
from controlnet_ext.models.kinds.controlnet import ControlNet

PROMPTS = ["a cat", "a dog"]
MAPS = [tiny.random_image(1), tiny.random_image(2)]
STEPS = 3


@functools.cache
def net(shape: str) -> ControlNet:
    theirs = tiny.control(shape)
    return ControlNet.load(theirs.state_dict(), theirs.config)


# -- guiders: one call a step for each kind of row


def modular(guider: Any, scheduler: Any) -> Any:
    """diffusers' modular SDXL, which asks the UNet once for each of the guider's conditions."""
    pipe = diffusers.StableDiffusionXLAutoBlocks().init_pipeline()
    pipe.update_components(**tiny.parts("SDXL"), scheduler=scheduler, guider=guider)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe: Any, **given: Any) -> torch.Tensor:
    call = {"prompt": PROMPTS, "height": 64, "width": 64, "num_inference_steps": STEPS, "output_type": "latent"}
    seeds = [torch.Generator().manual_seed(i) for i in range(2)]
    return pipe(**call, generator=seeds, **given)


@pytest.mark.parametrize("scheduler", [diffusers.EulerDiscreteScheduler, diffusers.DDIMScheduler])
def test_guidance_split_over_two_calls_is_that_of_one(scheduler: Any) -> None:
    """A map for each image, and residuals on the prompt's rows only, which both need to know the rows."""
    config = diffusers.DDIMScheduler(**tiny.DDIM).config
    whole = tiny.pipeline(StableDiffusionXLPipeline, "SDXL", scheduler=scheduler.from_config(config))
    split = modular(diffusers.ClassifierFreeGuidance(guidance_scale=5.0), scheduler.from_config(config))
    counts = Pushes(skips=9)
    units = [Unit(net("SDXL"), PerSample(MAPS), mode="control"), Unit(counts, GREY, weight=0.01)]
    plain = latents(whole, guidance_scale=5.0).images
    with guide(whole, units):
        expected = latents(whole, guidance_scale=5.0).images
    counts.steps.clear()
    with guide(split, units):
        found = latents(split, output="images")
    # batches of two and four rows: measured 2e-4, where guidance moves them by 1
    assert (found - expected).abs().max() < 5e-3 < 0.3 < (expected - plain).abs().max()
    assert [step.span.start for step in counts.steps] == [i // 2 / STEPS for i in range(2 * STEPS)]
    assert [step.positive.tolist() for step in counts.steps] == [[True] * 2, [False] * 2] * STEPS  # type: ignore[union-attr]
    assert all(step.samples.tolist() == [0, 1] for step in counts.steps)  # type: ignore[union-attr]


def perturbed() -> Any:
    """After the first step a third call, in which the middle block's attention is the identity."""
    skipped = diffusers.LayerSkipConfig(
        indices=[0],
        fqn="mid_block.attentions.0.transformer_blocks",
        skip_attention=False,
        skip_ff=False,
        skip_attention_scores=True,
    )
    return diffusers.PerturbedAttentionGuidance(
        guidance_scale=4.0,
        perturbed_guidance_start=0.0,
        perturbed_guidance_stop=1.0,
        perturbed_guidance_config=skipped,
    )


@pytest.mark.parametrize(
    ("guider", "positive"),
    [
        (lambda: diffusers.ClassifierFreeGuidance(guidance_scale=1.0), [[True]] * 3),
        (lambda: diffusers.AdaptiveProjectedGuidance(guidance_scale=4.0), [[True, False]] * 3),
        (perturbed, [[True, False], [True, False, True], [True, False, True]]),
    ],
)
def test_each_call_of_a_guider_has_its_rows(guider: Any, positive: list[list[bool]]) -> None:
    pipe = modular(guider(), diffusers.EulerDiscreteScheduler())
    model = Pushes(skips=9)
    with guide(pipe, [Unit(model, PerSample([GREY, WHITE])), Unit(Pushes(skips=9), GREY, mode="control", reuse=2)]):
        latents(pipe, output="images")
    spans = [Span(i / STEPS, (i + 1) / STEPS) for i in range(STEPS)]
    calls = [[step.positive[0].item() for step in model.steps if step.span == span] for span in spans]  # type: ignore[index]
    assert calls == positive and len(model.steps) == sum(map(len, positive))


def test_a_guider_that_does_not_tell_its_rows_is_refused_where_one_matters() -> None:
    """Tangential guidance asks a property of itself that it does not have (diffusers 0.42)."""
    pipe = modular(diffusers.TangentialClassifierFreeGuidance(guidance_scale=4.0), diffusers.EulerDiscreteScheduler())
    with guide(pipe, [Unit(Pushes(skips=9), GREY)]):
        latents(pipe, output="images")
    with guide(pipe, [Unit(Pushes(skips=9), GREY, mode="control")]), pytest.raises(ValueError, match="cannot tell"):
        latents(pipe, output="images")


# -- calls that nothing tells apart


def by_hand(pipe: Any, split: bool, scale: float = 5.0) -> torch.Tensor:
    """A loop of one's own, with guidance in one call or in two."""
    draw = torch.Generator().manual_seed(0)
    x, contexts = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 2, 16, 32, generator=draw)
    pipe.scheduler.set_timesteps(4)
    x = x * pipe.scheduler.init_noise_sigma
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            scaled = pipe.scheduler.scale_model_input(x, t)
            if split:
                outs = [pipe.unet(scaled, t, context).sample for context in contexts]
            else:
                outs = list(pipe.unet(scaled.repeat(2, 1, 1, 1), t, contexts.flatten(0, 1)).sample.chunk(2))
            x = pipe.scheduler.step(outs[0] + scale * (outs[1] - outs[0]), t, x).prev_sample
    return x


def test_a_loop_of_two_calls_a_step_is_guided_where_no_row_matters() -> None:
    pipe = tiny.pipeline(StableDiffusionPipeline)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe._guidance_scale = 5.0
    with guide(pipe, [Unit(net("SD1.5"), MAPS[0], weight="1@0, 0.2@1")]):
        whole, split = by_hand(pipe, False), by_hand(pipe, True)
    assert (whole - split).abs().max() < 5e-3 < (whole - by_hand(pipe, False)).abs().max()


@pytest.mark.parametrize("given", [{"mode": "control"}, {"image": PerSample([GREY, WHITE])}, {"reuse": 2}])
def test_and_refused_where_one_does(given: dict[str, Any]) -> None:
    pipe = tiny.pipeline(StableDiffusionPipeline)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe._guidance_scale = 5.0
    unit = Unit(**{"model": Pushes(), "image": GREY} | given)
    with guide(pipe, [unit]), pytest.raises(ValueError, match=r"unit 1.*the host cannot tell"):
        by_hand(pipe, True)


def test_two_images_that_are_equal_are_not_taken_for_guidance() -> None:
    """Their batch looks like one with and without the prompt, until the step's second call."""
    pipe = tiny.pipeline(StableDiffusionPipeline)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.scheduler.set_timesteps(4)
    pipe._guidance_scale = 5.0
    x, context = torch.randn(1, 4, 8, 8).repeat(2, 1, 1, 1), torch.randn(2, 16, 32)
    with torch.no_grad(), guide(pipe, [Unit(Pushes(), GREY, mode="control")]):
        pipe.unet(x, pipe.scheduler.timesteps[0], context)
        with pytest.raises(ValueError, match="unit 1 acts on the prompt's rows only, and the host cannot tell"):
            pipe.unet(x, pipe.scheduler.timesteps[0], context)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"])
def test_two_calls_a_step_are_one_step_whatever_the_scheduler_counts(scheduler: str) -> None:
    pipe, model = tiny.pipeline(StableDiffusionPipeline), Pushes()
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, skip_prk_steps=True)
    with guide(pipe, [Unit(model, GREY)]):
        by_hand(pipe, True)
    steps = len(pipe.scheduler.timesteps)
    assert [step.span.start for step in model.steps] == [i // 2 / steps for i in range(2 * steps)]


def test_self_attention_guidance_is_guided_in_each_of_its_calls() -> None:
    """It asks once more a step, about an image that it has blurred."""
    pipe, model = tiny.pipeline(diffusers.StableDiffusionSAGPipeline, image_encoder=None), Pushes()
    with guide(pipe, [Unit(model, GREY)]):
        run(pipe, sag_scale=0.75)
    assert [(len(step.x), step.span.start) for step in model.steps] == [(n, i / 4) for i in range(4) for n in (2, 1)]


def test_views_of_a_panorama_are_refused_by_name() -> None:
    pipe = tiny.pipeline(diffusers.StableDiffusionPanoramaPipeline, image_encoder=None)
    with (
        pytest.raises(ValueError, match="StableDiffusionPanoramaPipeline asks the UNet for parts of the image"),
        guide(pipe, [Unit(Pushes(), GREY)]),
    ):
        pytest.fail("nothing may run")


# -- perturbed attention guidance: two or three copies in a batch

PAG: list[tuple[str, str, dict[str, Any]]] = [
    ("StableDiffusionPAGPipeline", "SD1.5", {}),
    ("StableDiffusionPAGImg2ImgPipeline", "SD1.5", {"image": tiny.random_image(), "strength": 1.0}),
    ("StableDiffusionXLPAGPipeline", "SDXL", {}),
]


@pytest.mark.parametrize(("name", "shape", "given"), PAG, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("scale", [5.0, 0.0])
def test_perturbed_attention_guidance_has_its_rows(name: str, shape: str, given: dict[str, Any], scale: float) -> None:
    """Residuals on the prompt's rows are to each of the three what the network gives alone."""
    pipe = tiny.pipeline(getattr(diffusers, name), shape, pag_applied_layers=["mid"])
    model, seen = net(shape), []
    handle = pipe.unet.register_forward_hook(
        lambda _, args, kwargs, out: seen.append(kwargs["mid_block_additional_residual"]), with_kwargs=True
    )
    with guide(pipe, [Unit(model, PerSample(MAPS), mode="control"), Unit(Plus(0.0), GREY)]):
        inner = pipe.unet.register_forward_pre_hook(lambda *_: None)
        run(pipe, PROMPTS, steps=1, guidance_scale=scale, pag_scale=3.0, **given)
        inner.remove()
    handle.remove()
    copies = 3 if scale else 2
    (residual,) = seen
    assert len(residual) == 2 * copies
    assert torch.equal(residual[:2], torch.zeros_like(residual[:2])) is bool(scale)
    torch.testing.assert_close(residual[-2:], residual[-4:-2], rtol=0, atol=1e-5)
    assert (residual[-2] - residual[-1]).abs().max() > 1e-2  # each image its own map


def test_as_many_maps_as_images_however_many_copies() -> None:
    pipe = tiny.pipeline(StableDiffusionPipeline)
    for scale in (1.0, 5.0):
        model = Pushes()
        with guide(pipe, [Unit(model, PerSample([GREY, WHITE]))]):
            run(pipe, PROMPTS, guidance_scale=scale, steps=1)
        assert model.hints == [(2 if scale == 1 else 4, 64, 64, 3)]
    with (
        guide(pipe, [Unit(Pushes(), PerSample([np.array(GREY)] * 3))]),
        pytest.raises(ValueError, match="3 maps for 2"),
    ):
        run(pipe, PROMPTS, steps=1)
