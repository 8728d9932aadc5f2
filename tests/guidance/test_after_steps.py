"""What units do after each step: formulas on typed-out numbers, whatever the model predicts, and in real runs."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from fakes import GREY, WHITE, Plus, Pushes, run, state

from controlnet_ext import ControlModel, PerSample, Unit, Window, guide
from controlnet_ext.guidance.after_steps import ColorFix, InpaintRestore, NoiseLevel, box_blur, downscale_mask
from controlnet_ext.guidance.contract import Step
from controlnet_ext.guidance.schedule import Span
from controlnet_ext.hosts.diffusers.host import read_noise_level

MASK = np.zeros((tiny.SIZE, tiny.SIZE, 3), np.uint8)
MASK[:, 32:] = 255  # the right half is repainted
PHOTO = np.asarray(tiny.random_image(3))


def step(positive: list[bool] | None = None, rows: int = 2) -> Step:
    x = torch.zeros(rows, 4, 8, 8)
    known = None if positive is None else torch.tensor(positive)
    return Step(x, torch.zeros(rows), torch.zeros(rows, 2, 2), Span(0, 1), known)


def noisy(seed: int = 0, rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def pipe() -> Any:
    return tiny.pipeline(StableDiffusionPipeline)


# -- what the UNet's output says


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_an_output_means_an_image_and_an_image_an_output(prediction: str) -> None:
    clean, change, gauss, signal, grain = noisy(1), noisy(2), noisy(3), 0.6, 0.8
    x = signal * clean + grain * gauss
    outputs = {"epsilon": gauss, "v_prediction": signal * gauss - grain * clean, "sample": clean}
    noise = NoiseLevel(prediction, signal, grain)
    torch.testing.assert_close(noise.predict_x0(x, outputs[prediction]), clean)
    moved = noise.output_for_x0_shift(outputs[prediction], change)
    torch.testing.assert_close(noise.predict_x0(x, moved), clean + change)
    assert torch.equal(noise.output_for_x0_shift(moved, torch.zeros_like(change)), moved)


def test_another_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="prediction type 'flow_prediction' is none of: epsilon"):
        NoiseLevel("flow_prediction", 0.6, 0.8)


SCHEDULERS = ["DDIM", "EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete", "HeunDiscrete", "DPMSolverMultistep"]
SCHEDULERS += ["UniPCMultistep", "DEISMultistep", "DPMSolverSinglestep", "DDPM", "KDPM2Discrete", "LCM", "PNDM"]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_image_is_the_schedulers_own(name: str, prediction: str) -> None:
    """Each scheduler's own word for it, where it has one, in all its calls; x is scaled as the pipeline does."""
    config = tiny.DDIM | {"prediction_type": prediction}
    kind = getattr(diffusers, name + "Scheduler")
    scheduler = kind.from_config(diffusers.DDIMScheduler(**config).config)
    if name == "PNDM":
        scheduler = kind.from_config(scheduler.config, skip_prk_steps=True)
    scheduler.set_timesteps(6)
    x, compared = 3 * noisy(1), 0
    seed = torch.Generator().manual_seed(0)
    for i, t in enumerate(scheduler.timesteps):
        scaled, out = scheduler.scale_model_input(x, t), noisy(i + 10)
        found = read_noise_level(scheduler, t.item()).predict_x0(scaled, out)
        expected = own(scheduler, out, x, t)
        given = (
            {} if name in ("PNDM", "UniPCMultistep", "DEISMultistep", "DPMSolverSinglestep") else {"generator": seed}
        )
        if name in ("DPMSolverMultistep", "HeunDiscrete", "KDPM2Discrete", "LMSDiscrete"):
            given = {}
        done = scheduler.step(out, t, x, **given)
        expected = getattr(done, "pred_original_sample", None) if expected is None else expected
        if expected is not None:
            torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)
            compared += 1
        x = done.prev_sample
    assert compared >= 3


def own(scheduler: Any, out: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor | None:
    """What the scheduler takes for the image, where `step` does not tell."""
    name = type(scheduler).__name__
    if name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DPMSolverSinglestepScheduler"):
        if scheduler.step_index is None:
            scheduler._init_step_index(t)
        return scheduler.convert_model_output(out, sample=x)
    alpha = scheduler.alphas_cumprod[int(t)]
    signal, grain = alpha**0.5, (1 - alpha) ** 0.5
    if name in ("PNDMScheduler", "LCMScheduler"):
        v = scheduler.config.prediction_type == "v_prediction"
        return signal * x - grain * out if v else (x - grain * out) / signal
    if name in ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "DEISMultistepScheduler"):
        first = getattr(scheduler, "state_in_first_order", True)
        table = scheduler.sigmas if first or name[0] == "H" else scheduler.sigmas_interpol
        sigma = table[scheduler.step_index if scheduler.step_index is not None else 0]
        if name[0] == "D":  # without scaling
            alpha = 1 / (1 + sigma**2)
            signal, grain = alpha**0.5, (1 - alpha) ** 0.5
            v = scheduler.config.prediction_type == "v_prediction"
            return signal * x - grain * out if v else (x - grain * out) / signal
        if scheduler.config.prediction_type == "v_prediction":
            return out * (-sigma / (sigma**2 + 1) ** 0.5) + x / (sigma**2 + 1)
        return x - sigma * out
    return None


def test_schedulers_of_other_models_are_refused() -> None:
    flow = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    with pytest.raises(ValueError, match="UniPCMultistepScheduler predicts 'flow_prediction'"):
        read_noise_level(flow, 1)
    for name in ("EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"):
        with pytest.raises(ValueError, match=f"{name} has no cumulated alphas"):
            read_noise_level(getattr(diffusers, name)(), 1)


# -- formulas


def test_latents_are_painted_where_a_pixel_beside_them_is_white() -> None:
    mask = torch.zeros(24, 32)
    mask[7, 16] = 1  # a pixel of the latent (0, 2), beside those of (1, 2) and (0, 1)
    expected = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]).float()
    assert torch.equal(downscale_mask(mask, 8)[0, 0], expected)


def test_restore_is_the_image_where_nothing_is_painted() -> None:
    x0, image = noisy(1), noisy(2, rows=1)
    white = downscale_mask(torch.from_numpy(MASK[..., 0] > 0), 8)
    found = InpaintRestore().apply_to_latents(x0, step(), image, white)
    assert torch.equal(found[..., 4:], x0[..., 4:])  # column 3 touches the mask's border
    assert torch.equal(found[..., 3], x0[..., 3])
    assert torch.equal(found[..., :3], image.expand(2, -1, -1, -1)[..., :3])


def test_a_blur_is_the_mean_of_a_box_with_the_border_continued() -> None:
    x = noisy(4).double()
    expected = torch.zeros_like(x)
    for i in range(8):
        for j in range(8):
            box = [x[:, :, min(max(i + a, 0), 7), min(max(j + b, 0), 7)] for a in range(-2, 3) for b in range(-2, 3)]
            expected[:, :, i, j] = sum(box) / 25
    torch.testing.assert_close(box_blur(x, 2), expected)


def test_colours_are_the_images_and_details_the_steps() -> None:
    x0, image = noisy(1), noisy(2)
    expected = x0 - box_blur(x0, 3) + box_blur(image, 3)
    assert torch.equal(ColorFix(3).apply_to_latents(x0, step(), image, None), expected)
    flat = torch.full_like(x0, 0.5)  # without details: the mean of the image
    torch.testing.assert_close(
        ColorFix(8).apply_to_latents(flat, step(), torch.full_like(x0, 2.0), None), torch.full_like(x0, 2.0)
    )


def test_sharpness_blurs_the_rows_without_the_prompt() -> None:
    x0, image = noisy(1), noisy(2)
    plain = ColorFix(3).apply_to_latents(x0, step(), image, None)
    found = ColorFix(3, 2).apply_to_latents(x0, step([False, True]), image, None)
    assert torch.equal(found[1], plain[1])
    torch.testing.assert_close(found[0], 0.02 * box_blur(plain, 3)[0] + 0.98 * plain[0])
    with pytest.raises(ValueError, match="the host cannot tell which"):
        ColorFix(3, 1).apply_to_latents(x0, step(), image, None)


# -- units


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"preprocessor": "inpaint_only"}, "inpaint_only changes what an inpaint mask covers, and the unit has none"),
        ({"after": InpaintRestore()}, "inpaint_only changes what an inpaint mask covers"),
        ({"after": "inpaint_only"}, "after 'inpaint_only' is str, expected a PostStep"),
        ({"after": ColorFix(), "image": (GREY, WHITE)}, "tile_colorfix acts by one image, and the unit has 2"),
    ],
)
def test_what_cannot_act_after_a_step_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Unit(**{"model": Pushes(), "image": GREY} | given)


@pytest.mark.parametrize("given", [(0,), (8, -1), (8, 3), (8.5,), (True,), (8, "1")])
def test_numbers_of_colours_are_checked(given: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError), match="variation"):
        ColorFix(*given)


def test_the_preprocessor_says_what_is_done() -> None:
    def after(name: str, **parameters: Any) -> Any:
        return Unit(Pushes(), GREY, preprocessor=name, inpaint=MASK, parameters=parameters).after

    assert after("Inpaint_Only") == InpaintRestore() and after("inpaint") is None and after("canny") is None
    assert after("inpaint", resolution="match") is None
    assert after("tile_colorfix") == ColorFix(8) and after("tile_colorfix", variation=4) == ColorFix(4)
    assert after("tile_colorfix+sharp") == ColorFix(8, 1.0)
    assert after("tile_colorfix+sharp", sharpness=0.5, variation=12) == ColorFix(12, 0.5)


# -- runs


def encoded(pipe: Any, image: np.ndarray) -> torch.Tensor:
    pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        return pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", ["DDIM", "EulerDiscrete", "DPMSolverMultistep"])
def test_what_is_not_painted_is_kept_whatever_the_model_predicts(pipe: Any, scheduler: str, prediction: str) -> None:
    if scheduler == "EulerDiscrete" and prediction == "sample":
        pytest.skip("diffusers' Euler does not take it")
    kind = getattr(diffusers, scheduler + "Scheduler")
    pipe.scheduler = kind.from_config(diffusers.DDIMScheduler(**tiny.DDIM, prediction_type=prediction).config)
    plain, before = run(pipe), state(pipe)
    with guide(pipe, [Unit(Pushes(0.1), PHOTO, preprocessor="inpaint_only", inpaint=MASK)]):
        found = run(pipe)
    assert state(pipe) == before
    expected = encoded(pipe, PHOTO)
    # eps at signal 0.07 loses four bits of float32; the images differ by 1
    torch.testing.assert_close(found[..., :3], expected[..., :3], rtol=0, atol=2e-4)
    assert (plain - expected)[..., :3].abs().max() > 0.1
    assert (found - expected)[..., 4:].abs().max() > 0.1


def test_weights_windows_and_regions_hold_after_a_step_too(pipe: Any) -> None:
    plain, expected = run(pipe), encoded(pipe, PHOTO)
    still = Pushes(0.0)

    def found(**given: Any) -> torch.Tensor:
        with guide(pipe, [Unit(still, PHOTO, after=InpaintRestore(), inpaint=MASK, **given)]):
            return run(pipe)

    assert torch.equal(found(weight=0), plain)
    assert torch.equal(found(weight=-1), plain)
    last = found(window=Window(0.75, 1))
    torch.testing.assert_close(last[..., :3], expected[..., :3], rtol=0, atol=2e-4)
    half = found(window=Window(0.75, 1), weight=0.5)
    torch.testing.assert_close(half[..., :3], ((plain + last) / 2)[..., :3], rtol=0, atol=2e-4)
    assert (found(window=Window(0, 0.5)) - expected)[..., :3].abs().max() > 0.05
    top = np.zeros((8, 8), np.float32)
    top[:4] = 1
    part = found(window=Window(0.75, 1), region=top)
    torch.testing.assert_close(part[..., :4, :], last[..., :4, :], rtol=0, atol=1e-6)
    torch.testing.assert_close(part[..., 4:, :], plain[..., 4:, :], rtol=0, atol=1e-6)


def test_a_unit_that_only_pushes_leaves_the_output_as_it_is(pipe: Any) -> None:
    outs = []
    handle = pipe.unet.register_forward_hook(lambda *call: outs.append(call[-1]))
    seen = []
    with guide(pipe, [Unit(Pushes(), GREY)]):
        own = pipe.unet.register_forward_hook(lambda *call: seen.append(call[-1]))
        run(pipe)
        own.remove()
    handle.remove()
    assert len(seen) == 4 and all(a is b for a, b in zip(outs, seen, strict=True))


def test_each_image_keeps_its_own(pipe: Any) -> None:
    photos = [PHOTO, np.asarray(tiny.random_image(5))]
    unit = Unit(Pushes(0.0), PerSample(photos), after=InpaintRestore(), inpaint=MASK)
    with guide(pipe, [unit]):
        found = run(pipe, ["a cat", "a dog"])
    for latents, photo in zip(found, photos, strict=True):
        torch.testing.assert_close(latents[None, ..., :3], encoded(pipe, photo)[..., :3], rtol=0, atol=2e-4)


def test_nested_guides_act_after_a_step_in_order_of_entry(pipe: Any) -> None:
    """The outer one restores the left half, the inner one the right half of what it gave."""
    other = np.asarray(tiny.random_image(5))
    first = Unit(Pushes(0.0), PHOTO, after=InpaintRestore(), inpaint=MASK)
    second = Unit(Plus(0.0), other, after=InpaintRestore(), inpaint=255 - MASK)
    with guide(pipe, [first, second]):
        flat = run(pipe)
    with guide(pipe, [first]), guide(pipe, [second]):
        nested = run(pipe)
    torch.testing.assert_close(nested, flat, rtol=0, atol=2e-4)
    torch.testing.assert_close(flat[..., 5:], encoded(pipe, other)[..., 5:], rtol=0, atol=2e-4)
    torch.testing.assert_close(flat[..., :3], encoded(pipe, PHOTO)[..., :3], rtol=0, atol=2e-4)


def test_a_model_may_act_after_steps_itself(pipe: Any) -> None:
    class Blue(ControlModel):
        """Residuals of none, and an image of one colour."""

        architecture, family = "blue", "sd15"
        makes_residuals, acts_after_step = False, True

        def hint(self, image: Any) -> None: ...

        def after_step(self, x0: torch.Tensor, step: Step) -> torch.Tensor:
            self.span = step.span
            return torch.full_like(x0, 0.25)

    model = Blue()
    with guide(pipe, [Unit(model, GREY, window=Window(0.5, 1))]):
        found = run(pipe)
    assert model.span == (0.75, 1)
    torch.testing.assert_close(found, torch.full_like(found, 0.25), rtol=0, atol=2e-4)


def test_latents_that_are_not_finite_stop_the_run(pipe: Any) -> None:
    model = Pushes()
    model.acts_after_step = True
    model.after_step = lambda x0, step: x0 / 0  # type: ignore[method-assign]
    _, before = run(pipe), state(pipe)
    with (
        guide(pipe, [Unit(Plus(), GREY), Unit(model, GREY, window=Window(0.5, 1))]),
        pytest.raises(ValueError, match="the latents of unit 2 are not finite after step 3 of 4"),
    ):
        run(pipe)
    assert state(pipe) == before
