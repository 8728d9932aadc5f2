"""The losses of a training against diffusers and the formulas of their sources."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from diffusers import DDPMScheduler

from controlnet_ext.training.config import LossSettings
from controlnet_ext.training.losses import DiffusionLoss, make_generator


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noising_is_that_of_diffusers(kind):
    scheduler = DDPMScheduler(**{**tiny.DDIM, "clip_sample": False, "prediction_type": kind})
    noising = DiffusionLoss(scheduler)
    torch.manual_seed(0)
    latents, noise, t = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8), torch.tensor([0, 10, 500, 999])
    x, target, _ = noising.add_noise(latents, noise, t)
    assert torch.equal(x, scheduler.add_noise(latents, noise, t))
    assert torch.equal(target, noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, t))
    snr = scheduler.alphas_cumprod[t] / (1 - scheduler.alphas_cumprod[t])
    weights = snr.clamp(max=5) / (snr if kind == "epsilon" else snr + 1)
    expected = (weights * torch.ones(4)).mean()
    torch.testing.assert_close(
        noising.compute_loss(target + 1, target, t), expected, rtol=1e-5, atol=0
    )  # order of rounding
    assert torch.equal(noising.sample(latents, make_generator(3))[0], noising.sample(latents, make_generator(3))[0])
    layout = DiffusionLoss(scheduler, LossSettings("layout"))
    even = layout.compute_loss(target + 1, target, t, importance_sampled=False)
    torch.testing.assert_close(even, (weights * (1 / snr + 1).clamp(max=50)).mean(), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="weighting 'even'"):
        LossSettings("even")
    with pytest.raises(ValueError, match="predicts 'sample'"):
        DiffusionLoss(DDPMScheduler(prediction_type="sample"))


def test_layout_draws_levels_as_often_as_they_count():
    layout = DiffusionLoss(DDPMScheduler(**{**tiny.DDIM, "clip_sample": False}), LossSettings("layout"))
    latents, levels = torch.zeros(40_000, 1, 1, 1), torch.arange(layout.num_timesteps)
    _, target, t = layout.sample(latents, make_generator(1))
    wrong = (t / layout.num_timesteps).view(-1, 1, 1, 1)  # an error that depends on the level
    every = (levels / layout.num_timesteps).view(-1, 1, 1, 1)
    expected = layout.compute_loss(every, torch.zeros_like(every), levels, importance_sampled=False)
    torch.testing.assert_close(
        layout.compute_loss(target + wrong, target, t), expected, rtol=0.02, atol=0
    )  # of 40,000 draws
    assert (t > 700).float().mean() > 0.6


def make_loss(prediction: str = "epsilon", **settings: object) -> DiffusionLoss:
    scheduler = DDPMScheduler(**{**tiny.DDIM, "clip_sample": False, "prediction_type": prediction})
    return DiffusionLoss(scheduler, LossSettings(**settings))


def list_alphas() -> torch.Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


LEVELS = torch.tensor([0, 10, 500, 999])


def weigh(loss: DiffusionLoss) -> list[float]:
    """The loss of an error of 1 at four levels."""
    ones = torch.ones(4, 4, 2, 2)
    return loss.compute_errors(2 * ones, ones, LEVELS).tolist()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_weights_of_levels_are_those_of_their_papers(prediction):
    snr = list_alphas()[LEVELS] / (1 - list_alphas()[LEVELS])
    velocity = prediction == "v_prediction"
    capped = snr.clamp(max=1000)
    for settings, expected in (
        ({"weighting": "none"}, torch.ones(4)),
        ({"snr_gamma": 1.0}, snr.clamp(max=1) / (snr + 1 if velocity else snr)),
        ({"weighting": "debiased"}, 1 / (capped + 1) if velocity else 1 / capped.sqrt()),
    ):
        assert weigh(make_loss(prediction, **settings)) == pytest.approx(expected.tolist(), rel=1e-3)  # float32 alphas


def test_huber_losses_are_those_of_sd_scripts():
    """conditional_loss and get_huber_threshold_if_needed of kohya-ss/sd-scripts @ 48d368f, typed out."""
    alphas = list_alphas()[LEVELS]
    thresholds = {
        "constant": [0.3] * 4,
        "exponential": [math.exp(math.log(0.3) / 1000 * t) for t in LEVELS.tolist()],
        "snr": ((1 - 0.3) / (1 + ((1 - alphas) / alphas) ** 0.5) ** 2 + 0.3).tolist(),
    }
    for schedule, cs in thresholds.items():
        for kind, factors in (("huber", cs), ("smooth-l1", [1.0] * 4)):
            loss = make_loss(weighting="none", kind=kind, huber_c=0.3, huber_schedule=schedule)
            expected = [2 * f * (math.sqrt(1 + c * c) - c) for f, c in zip(factors, cs, strict=True)]
            assert weigh(loss) == pytest.approx(expected, rel=1e-4)  # float32 alphas


@pytest.mark.parametrize("weighting", ["min-snr", "layout"])
def test_a_range_of_timesteps_is_all_that_is_drawn(weighting):
    loss = make_loss(weighting=weighting, timesteps=(200, 203))
    _, _, t = loss.sample(torch.zeros(60, 1, 1, 1), make_generator(1))
    assert set(t.tolist()) == {200, 201, 202}
    assert make_loss(timesteps=(0, 1000)).sample(torch.zeros(9, 1, 1, 1), make_generator(1))[2].tolist() == (
        make_loss().sample(torch.zeros(9, 1, 1, 1), make_generator(1))[2].tolist()
    )
    with pytest.raises(ValueError, match=r"timesteps 0\.\.1001 of the training, the model has 0\.\.1000"):
        make_loss(timesteps=(0, 1001))


def test_an_offset_shifts_the_noise_of_each_channel_and_nothing_else():
    latents = torch.zeros(3, 4, 8, 8)
    (x, plain, t), (y, shifted, same) = (
        make_loss(noise_offset=offset).sample(latents, make_generator(1)) for offset in (0.0, 0.1)
    )
    difference = shifted - plain
    assert torch.equal(t, same)
    assert torch.allclose(difference, difference[:, :, :1, :1].expand_as(difference), atol=1e-6)  # of rounding
    assert 0.02 < difference[:, :, 0, 0].std() < 0.2 and not torch.equal(x, y)


def test_each_of_several_processes_draws_its_part_of_the_whole_batch():
    loss, latents = make_loss(noise_offset=0.1), torch.randn(6, 4, 8, 8, generator=make_generator(5))
    whole = loss.sample(latents, make_generator(1))
    for rank in range(3):
        part = loss.sample(latents[rank::3], make_generator(1), rank, 3)
        assert all(torch.equal(a, b[rank::3]) for a, b in zip(part, whole, strict=True))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kind": "l3"}, "loss 'l3' of the training, expected one of l2, huber, smooth-l1"),
        ({"huber_schedule": "linear"}, "Huber schedule 'linear'"),
        ({"huber_c": 0.0}, "Huber c 0"),
        ({"huber_c": math.nan}, "Huber c nan"),
        ({"snr_gamma": 0.0}, "SNR gamma 0"),
        ({"noise_offset": -0.1}, "noise offset -0.1"),
        ({"timesteps": (5, 5)}, r"timesteps 5\.\.5"),
    ],
)
def test_losses_that_make_no_sense_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        LossSettings(**wrong)
