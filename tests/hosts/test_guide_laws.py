"""What holds for every guided run: what adds up, what is called when, and whose rows are whose."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from fakes import GREY, WHITE, Plus, Pushes, run, state

from controlnet_ext import PerSample, Unit, Window, guide
from controlnet_ext.models.kinds.controlnet import ControlNet


@pytest.fixture
def pipe() -> Any:
    return tiny.pipeline(StableDiffusionPipeline)


# -- sums


def test_a_unit_of_weight_0_changes_nothing_and_its_net_is_not_called(pipe: Any) -> None:
    model = Pushes()
    with guide(pipe, [Unit(model, GREY, weight=0)]):
        assert torch.equal(run(pipe), run(pipe))
        guided = run(pipe)
    assert torch.equal(guided, run(pipe))
    assert model.steps == [] and model.hints == []


def test_no_units_change_nothing(pipe: Any) -> None:
    with guide(pipe, []):
        guided = run(pipe)
    assert torch.equal(guided, run(pipe))


def test_two_units_are_their_sum(pipe: Any) -> None:
    with guide(pipe, [Unit(Pushes(0.25), WHITE), Unit(Pushes(0.5), WHITE)]):
        two = run(pipe)
    with guide(pipe, [Unit(Pushes(0.75), WHITE)]):
        assert torch.equal(run(pipe), two)  # quarters are exact
    assert (run(pipe) - two).abs().max() > 1e-3


def test_nested_guides_are_one_with_all_units_in_order_of_entry(pipe: Any) -> None:
    units = [Unit(Pushes(value), GREY) for value in (0.1, 0.37, 0.73)]
    with guide(pipe, units):
        flat = run(pipe)
    with guide(pipe, units[:1]), guide(pipe, units[1:2]), guide(pipe, units[2:]):
        assert torch.equal(run(pipe), flat)


def test_guides_may_be_left_out_of_order(pipe: Any) -> None:
    run(pipe)
    before = state(pipe)
    inner, outer = ExitStack(), ExitStack()
    outer.enter_context(guide(pipe, [Unit(Plus(0.5), GREY), Unit(Pushes(), GREY)]))
    run(pipe)
    inner.enter_context(guide(pipe, [Unit(Plus(0.25), GREY)]))
    run(pipe)
    outer.close()
    alone = run(pipe)
    inner.close()
    assert state(pipe) == before
    with guide(pipe, [Unit(Plus(0.25), GREY)]):
        assert torch.equal(run(pipe), alone)


def test_a_batch_is_its_images_one_by_one(pipe: Any) -> None:
    unit = Unit(Pushes(), PerSample([GREY, WHITE]), mode="control")
    with guide(pipe, [unit]):
        both = run(pipe, ["a cat", "a dog"])
    for i, (prompt, image) in enumerate([("a cat", GREY), ("a dog", WHITE)]):
        with guide(pipe, [Unit(Pushes(), image, mode="control")]):
            generator = [torch.Generator().manual_seed(i)]
            call = {"height": tiny.SIZE, "width": tiny.SIZE, "num_inference_steps": 4, "output_type": "latent"}
            alone = pipe([prompt], generator=generator, **call).images
        # the same sums in batches of 2 and 4 rows: measured 3e-5 where values reach 15
        assert torch.allclose(both[i : i + 1], alone, rtol=0, atol=1e-3)


def test_residuals_that_the_pipeline_passes_itself_stay() -> None:
    theirs = [tiny.control(seed=seed) for seed in (2, 3)]
    ours = ControlNet.load(theirs[1].state_dict(), theirs[1].config)
    both = tiny.pipeline(diffusers.StableDiffusionControlNetPipeline, controlnet=theirs)
    one = tiny.pipeline(diffusers.StableDiffusionControlNetPipeline, controlnet=theirs[0])
    images = [tiny.random_image(1), tiny.random_image(2)]
    expected = run(both, image=images, controlnet_conditioning_scale=[0.7, 0.6])
    with guide(one, [Unit(ours, images[1], weight=0.6)]):
        assert torch.equal(run(one, image=images[0], controlnet_conditioning_scale=0.7), expected)


def test_a_t2i_adapter_that_the_pipeline_has_stays(pipe: Any) -> None:
    torch.manual_seed(0)
    adapter = diffusers.T2IAdapter(channels=(32, 64, 64, 64), num_res_blocks=1, downscale_factor=8).eval()
    adapted = tiny.pipeline(diffusers.StableDiffusionAdapterPipeline, adapter=adapter)
    given = {"image": tiny.random_image(1), "height": tiny.SIZE, "width": tiny.SIZE}
    with guide(adapted, [Unit(Pushes(), GREY)]):
        both = run(adapted, **given)
    with guide(pipe, [Unit(Pushes(), GREY)]):
        pushed = run(pipe)
    assert (both - pushed).abs().max() > 1e-3 and (both - run(adapted, **given)).abs().max() > 1e-3


# -- what is called when


@pytest.mark.parametrize(
    ("window", "steps", "expected"),
    [((0, 1), 4, [0, 1, 2, 3]), ((0, 0.5), 4, [0, 1]), ((0.3, 0.8), 10, [3, 4, 5, 6, 7]), ((0.5, 1), 5, [3, 4])],
)
def test_outside_its_window_a_net_is_not_called(
    pipe: Any, window: tuple[float, float], steps: int, expected: list[int]
) -> None:
    model = Pushes()
    with guide(pipe, [Unit(model, GREY, window=Window(*window))]):
        run(pipe, steps=steps)
    assert [step.span for step in model.steps] == [(i / steps, (i + 1) / steps) for i in expected]


@pytest.mark.parametrize(
    ("scheduler", "calls"),
    [("DDIM", 4), ("PNDM", 5), ("EulerDiscrete", 4), ("HeunDiscrete", 7), ("KDPM2AncestralDiscrete", 7)],
)
def test_each_call_of_the_unet_is_a_step_of_its_own(pipe: Any, scheduler: str, calls: int) -> None:
    pipe.scheduler = getattr(diffusers, scheduler + "Scheduler").from_config(pipe.scheduler.config, skip_prk_steps=True)
    model = Pushes()
    with guide(pipe, [Unit(model, GREY)]):
        run(pipe)
    assert [step.span for step in model.steps] == [(i / calls, (i + 1) / calls) for i in range(calls)]


def test_fractions_are_those_of_the_steps_that_run() -> None:
    half = tiny.pipeline(StableDiffusionImg2ImgPipeline)
    model = Pushes()
    with guide(half, [Unit(model, GREY)]):
        run(half, image=tiny.random_image(), strength=0.5, steps=6)
    assert [step.span for step in model.steps] == [(i / 3, (i + 1) / 3) for i in range(3)]


def test_a_run_that_ends_early_has_fractions_of_the_whole_schedule() -> None:
    pipe = tiny.pipeline(StableDiffusionXLPipeline, "SDXL")
    model = Pushes(skips=9)
    with guide(pipe, [Unit(model, GREY)]):
        run(pipe, steps=5, denoising_end=0.6)
    assert [step.span for step in model.steps] == [(i / 5, (i + 1) / 5) for i in range(3)]


def test_the_hint_is_made_once_a_run_and_size(pipe: Any) -> None:
    model = Pushes()
    with guide(pipe, [Unit(model, tiny.random_image(size=96), window=Window(0.25, 1))]):
        run(pipe)
        assert model.hints == [(2, 64, 64, 3)]
        pipe("a cat", height=64, width=128, num_inference_steps=4, output_type="latent")
        run(pipe, ["a cat", "a dog"])
    assert model.hints == [(2, 64, 64, 3), (2, 64, 128, 3), (4, 64, 64, 3)]


def test_rows_are_known_with_and_without_guidance(pipe: Any) -> None:
    for scale, positive in ((5.0, [False, False, True, True]), (1.0, [True, True])):
        model = Pushes()
        with guide(pipe, [Unit(model, GREY)]):
            run(pipe, ["a cat", "a dog"], guidance_scale=scale)
        for step in model.steps:
            assert step.positive is not None and step.positive.tolist() == positive
            assert step.samples is not None and step.samples.tolist() == [0, 1] * (len(positive) // 2)


def test_guidance_may_be_switched_off_in_the_middle(pipe: Any) -> None:
    def off(pipe: Any, i: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        if i == 1:
            pipe._guidance_scale = 0.0
            given["prompt_embeds"] = given["prompt_embeds"].chunk(2)[1]
        return given

    model = Pushes()
    with guide(pipe, [Unit(model, GREY, mode="control"), Unit(Plus(), GREY), Unit(Plus(), WHITE)]):
        run(pipe, callback_on_step_end=off, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert [len(step.x) for step in model.steps] == [1, 1, 1, 1]


def test_perturbed_rows_have_the_prompt() -> None:
    pag = tiny.pipeline(diffusers.StableDiffusionPAGPipeline, pag_applied_layers=["mid"])
    for scale, positive in ((5.0, [False, False, True, True, True, True]), (0.0, [True] * 4)):
        model = Pushes()
        with guide(pag, [Unit(model, PerSample([GREY, WHITE])), Unit(Pushes(), GREY, mode="control")]):
            run(pag, ["a cat", "a dog"], guidance_scale=scale)
        assert model.steps[0].positive is not None and model.steps[0].positive.tolist() == positive


def test_a_batch_of_another_make_is_not_guessed(pipe: Any) -> None:
    """instruct-pix2pix stacks three copies, prompt first; with two images that divides by two."""
    nine = tiny.unet("SD1.5", channels=8)
    other = tiny.pipeline(diffusers.StableDiffusionInstructPix2PixPipeline, unet=nine, image_encoder=None)
    model = Pushes()
    call = {"image": tiny.random_image(), "num_inference_steps": 2, "output_type": "latent"}
    with guide(other, [Unit(model, GREY)]):
        other(["a cat", "a dog"], **call)
    assert model.steps[0].positive is None and len(model.steps[0].x) == 6
    with (
        guide(other, [Unit(model, GREY, mode="control")]),
        pytest.raises(ValueError, match="unit 1 acts on the prompt"),
    ):
        other(["a cat", "a dog"], **call)


def test_residuals_take_their_dtype_from_x() -> None:
    pipe = tiny.pipeline(StableDiffusionPipeline, unet=tiny.unet().to(torch.bfloat16))
    theirs = tiny.control()
    net = ControlNet.load(theirs.state_dict(), theirs.config)  # float32
    pipe.scheduler.set_timesteps(2)
    call = {"sample": torch.randn(2, 4, 8, 8), "encoder_hidden_states": torch.randn(2, 16, 32)}
    call = {name: value.to(torch.bfloat16) for name, value in call.items()}
    with torch.no_grad(), guide(pipe, [Unit(net, GREY, weight=0.3, region=np.ones((5, 5))), Unit(Pushes(), GREY)]):
        guided = pipe.unet(timestep=501, **call).sample
    assert guided.dtype == torch.bfloat16
    assert (guided - pipe.unet(timestep=501, **call).sample).abs().max() > 1e-2


def test_arguments_may_come_by_place_or_by_name(pipe: Any) -> None:
    unet, x, context = pipe.unet, torch.randn(2, 4, 8, 8), torch.randn(2, 16, 32)
    pipe.scheduler.set_timesteps(2)
    pipe._guidance_scale = 5.0
    x[1] = x[0]
    for t in (501, 501.0, torch.tensor(501), torch.tensor([501]), torch.tensor([501, 501])):
        pipe.scheduler.set_timesteps(2)
        with torch.no_grad(), guide(pipe, [Unit(Pushes(), GREY)]):
            by_name = unet(sample=x, timestep=t, encoder_hidden_states=context).sample
            pipe.scheduler.set_timesteps(2)
            by_place = unet(x, t, context, None, None, None, None, None, None, None, None, None, False)[0]
        assert torch.equal(by_name, by_place)
        assert (by_name - unet(x, t, context).sample).abs().max() > 1e-3
