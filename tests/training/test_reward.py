"""The reward of a training: its annotators against the preprocessors, its gradients, and what has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import tiny
import torch
from controlnet_ext.annotators.hed import HED
from controlnet_ext.annotators.lineart import LineartGenerator
from controlnet_ext.preprocessors import find, preprocess
from controlnet_ext.preprocessors.backends.torch import Device, Network
from controlnet_ext.preprocessors.library import Library
from diffusers import AutoencoderTiny, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from torch import Tensor, nn
from torch.nn import functional as F

from controlnet_ext.embedded.scenes import draw_scene
from controlnet_ext.training.bases import EncodedBatch, FrozenBase
from controlnet_ext.training.config import REWARDS, LossSettings, RewardSettings
from controlnet_ext.training.job import compute_control_errors
from controlnet_ext.training.losses import DiffusionLoss, make_generator
from controlnet_ext.training.reward import ANNOTATORS, Reward, check_reward, load_annotator

SCHEDULER = DDPMScheduler(**tiny.DDIM)
CPU = torch.device("cpu")


class ToyBase:
    """A frozen model whose prediction is what the network makes of the latents, and whose images are the latents."""

    device = CPU

    def predict(self, x: Tensor, t: Tensor, batch: EncodedBatch, net: nn.Module) -> Tensor:
        return net(x)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents[:, :3], scale_factor=4) / 6 + 0.5


def make_batch(count: int = 6) -> EncodedBatch:
    latents = torch.randn(count, 4, 8, 8, generator=make_generator(1))
    return EncodedBatch(latents, torch.zeros(count, 1, 1), np.full((count, 32, 32, 3), 255, np.uint8))


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(4, 4, 3, padding=1)


def compute(batch: EncodedBatch, limit: int | None, rank: int = 0, ranks: int = 1, **loss: Any) -> Tensor:
    objective, base = DiffusionLoss(SCHEDULER, LossSettings(**loss)), ToyBase()
    settings = None if limit is None else RewardSettings("canny", 2.0, limit)
    reward = None if settings is None else Reward(settings, base, objective)
    return compute_control_errors(make_net(), base, batch, objective, make_generator(2), rank, ranks, reward)


def to_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_clean_latents_of_a_prediction_are_those_of_diffusers(kind):
    scheduler = DDIMScheduler(**tiny.DDIM, prediction_type=kind)
    scheduler.set_timesteps(1000)
    x, predicted = torch.randn(2, 1, 4, 8, 8, generator=make_generator(3))
    for t in (1, 100, 900):
        expected = scheduler.step(predicted, t, x).pred_original_sample
        found = DiffusionLoss(scheduler).predict_clean(x, predicted, torch.tensor([t]))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vae", ["AutoencoderKL", "AutoencoderTiny"])
def test_the_gradient_of_the_reward_is_the_slope_of_its_loss_and_the_model_has_none(vae):
    torch.manual_seed(0)
    widths = {f"{half}_block_out_channels": (8,) * 4 for half in ("encoder", "decoder")}
    blocks = {f"num_{half}_blocks": (1,) * 4 for half in ("encoder", "decoder")}
    other = {"vae": AutoencoderTiny(**widths, **blocks).eval()} if vae == "AutoencoderTiny" else {}
    base = FrozenBase(tiny.pipeline(StableDiffusionPipeline, **other), "cpu")
    torch.manual_seed(0)  # again: a pipeline may have been made before
    objective, x = DiffusionLoss(SCHEDULER), torch.randn(1, 4, 8, 8)
    reward = Reward(RewardSettings("lineart_standard", 0.5), base, objective)
    batch = EncodedBatch(torch.randn(1, 4, 8, 8), torch.zeros(1, 1, 1), np.ones((1, 64, 64, 3), np.uint8))
    before = [p.clone() for p in base.pipe.vae.parameters()]

    def loss(predicted: Tensor) -> Tensor:
        return reward.compute_errors(x, predicted, torch.tensor([150]), batch).sum()

    predicted = torch.randn(1, 4, 8, 8, requires_grad=True)
    loss(predicted).backward()
    slope, step = predicted.grad.norm(), 0.02
    assert slope > 0
    along = predicted.grad / slope
    with torch.no_grad():
        measured = (loss(predicted + step * along) - loss(predicted - step * along)) / (2 * step)
    torch.testing.assert_close(measured, slope, rtol=0.2, atol=0)  # of kinks, where lines are cut at 0
    assert all(
        p.grad is None and torch.equal(p, old) for p, old in zip(base.pipe.vae.parameters(), before, strict=True)
    )


def test_images_of_latents_are_those_of_the_pipeline():
    pipe = tiny.pipeline(StableDiffusionPipeline)
    base, latents = FrozenBase(pipe, "cpu"), torch.randn(1, 4, 8, 8, generator=make_generator(4))
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    expected = pipe.image_processor.postprocess(decoded, output_type="pt")
    assert torch.allclose(base.decode_latents(latents).clamp(0, 1), expected, atol=1e-6)  # of rounding


def test_edges_are_where_canny_finds_them():
    pixels = draw_scene(3).pixels
    soft = load_annotator("canny", CPU)(to_tensor(pixels))[0, 0].numpy()
    hard = cv2.GaussianBlur(cv2.Canny(pixels, 100, 200).astype(np.float32), (0, 0), 1)  # thin lines, as wide as those
    assert np.corrcoef(soft.ravel(), hard.ravel())[0, 1] > 0.8
    assert soft.min() >= 0 and soft.max() > 0.9


def test_lines_are_those_of_the_preprocessor():
    pixels = draw_scene(3).pixels
    soft = load_annotator("lineart_standard", CPU)(to_tensor(pixels))[0, 0].numpy()
    expected = preprocess("lineart_standard", pixels).pixels[..., 0] / 255
    assert np.corrcoef(soft.ravel(), expected.ravel())[0, 1] > 0.99  # all but the borders, and a median


class RandomLibrary(Library):
    """A library whose networks have random weights."""

    def load_network(self, file: Any, build: Callable[..., nn.Module], device: Any = "cpu") -> Network:
        torch.manual_seed(0)
        module = HED() if "HED" in file.name else LineartGenerator(1)
        return Network.from_module(module, Device.coerce(device))


@pytest.mark.parametrize("name", ["hed", "lineart"])
def test_networks_give_the_maps_of_the_preprocessor_with_gradients(name):
    pixels = np.array(tiny.random_image(size=32))
    x = to_tensor(pixels).requires_grad_()
    found = load_annotator(name, CPU, RandomLibrary())(x)
    expected = find(name).load("cpu", RandomLibrary())(pixels).pixels[..., 0]
    assert np.abs(found.detach()[0, 0].numpy() * 255 - expected).max() <= 1  # of rounding
    found.square().mean().backward()
    assert x.grad.abs().max() > 0


def test_only_examples_with_little_noise_and_a_map_are_rewarded():
    batch = make_batch()
    plain, all_levels = compute(batch, None), compute(batch, 1000)
    assert bool((all_levels > plain).all())
    some = compute(batch, 500)
    rewarded = some > plain
    assert 0 < rewarded.sum() < len(plain)
    torch.testing.assert_close(some[rewarded], all_levels[rewarded])
    noisy = {"timesteps": (300, 1000)}
    assert torch.equal(compute(batch, 300, **noisy), compute(batch, None, **noisy))
    dropped = replace(batch, maps=batch.maps * np.array([0, 1, 1, 1, 1, 1], np.uint8)[:, None, None, None])
    assert ((compute(dropped, 1000) > plain).tolist()) == [False] + [True] * 5


def test_two_processes_have_the_reward_of_one_with_the_doubled_batch():
    batch = make_batch()

    def part(rank: int) -> Tensor:
        return compute(replace(batch, latents=batch.latents[rank::2], maps=batch.maps[rank::2]), 500, rank, 2)

    whole = compute(batch, 500)
    torch.testing.assert_close((part(0).mean() + part(1).mean()) / 2, whole.mean())
    assert whole.mean() > compute(batch, None).mean()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "depth"}, "reward 'depth' of the training, expected one of canny, lineart_standard, hed, lineart"),
        ({"weight": float("nan")}, "weight nan of the reward canny"),
        ({"timesteps": 0}, "reward-timesteps 0"),
    ],
)
def test_rewards_that_make_no_sense_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        RewardSettings(**{"name": "canny", "weight": 0.5, **wrong})


def test_every_reward_has_an_annotator():
    assert tuple(ANNOTATORS) == REWARDS


def test_inpainting_models_have_no_reward():
    with pytest.raises(ValueError, match="reward canny: the model is for inpainting"):
        check_reward(RewardSettings("canny", 0.5), is_inpainting=True)
    check_reward(RewardSettings("canny", 0.5), is_inpainting=False)
    check_reward(None, is_inpainting=True)
