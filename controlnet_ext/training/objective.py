"""The training objective of a ControlNet beside a frozen Stable Diffusion, and the evaluation of its fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from ..guidance.contract import Residuals, Step
from ..guidance.schedule import Span
from ..models.kinds.controlnet import ControlNet
from .config import MAX_LAYOUT_FACTOR, WARM_UP_STEPS, WEIGHTINGS
from .data import ControlDataset

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    from ..hosts.diffusers.host import Scheduler

SNR_LIMIT = 5.0
MIN_VERDICT_STEPS = WARM_UP_STEPS  # before, the rate has not risen to its value yet


class DiffusionLoss:
    """The loss of noised latents over the noise levels of a diffusers scheduler.

    Networks predict the noise or, where the config states `v_prediction`, the velocity (Salimans and Ho,
    arXiv:2202.00512, appendix D). The weighting `min-snr` multiplies the loss by min(SNR, 5) / SNR for noise, min(SNR,
    5) / (SNR + 1) for velocity (Hang et al., arXiv:2303.09556, section 3.4). `layout` multiplies it by min(1 / SNR + 1,
    50) more: high noise levels, at which the places of colors are decided, count almost as for velocity without
    weights; levels are then sampled in proportion to their weights instead of uniformly, which is equal in expectation.
    Raises ValueError for another type of prediction or weighting.
    """

    def __init__(self, scheduler: Scheduler, weighting: str = "min-snr"):
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting {weighting!r} of the losses, expected one of {', '.join(WEIGHTINGS)}")
        kind = scheduler.config.get("prediction_type", "epsilon")
        if kind not in ("epsilon", "v_prediction"):
            raise ValueError(f"the model predicts {kind!r}, expected epsilon or v_prediction")
        self._predicts_velocity = kind == "v_prediction"
        alphas = scheduler.alphas_cumprod.float()
        self._signal, self._noise = alphas.sqrt(), (1 - alphas).sqrt()
        snr = alphas / (1 - alphas)
        weights = (SNR_LIMIT / snr).clamp(max=1)
        if weighting == "layout":
            weights = weights * (1 / snr + 1).clamp(max=MAX_LAYOUT_FACTOR)
        self._weights = weights * snr / (snr + 1) if self._predicts_velocity else weights
        self._is_uniform = weighting == "min-snr"

    @property
    def num_timesteps(self) -> int:
        """Number of noise levels."""
        return len(self._weights)

    def sample(self, latents: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return noised latents (B, C, h, w), the target of the prediction, and timesteps (B,), sampled on the CPU."""
        noise = torch.randn(latents.shape, generator=rng)
        if self._is_uniform:
            t = torch.randint(self.num_timesteps, (len(latents),), generator=rng)
        else:
            t = torch.multinomial(self._weights, len(latents), replacement=True, generator=rng)
        return self.add_noise(latents, noise, t)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `sample` returns, for latents and noise (B, C, h, w) and timesteps (B,)."""
        signal, sigma = self._signal[t].view(-1, 1, 1, 1), self._noise[t].view(-1, 1, 1, 1)
        return (
            signal * latents + sigma * noise,
            signal * noise - sigma * latents if self._predicts_velocity else noise,
            t,
        )

    def compute_loss(self, predicted: Tensor, target: Tensor, t: Tensor, importance_sampled: bool = True) -> Tensor:
        """Return the mean of weighted squared errors of predictions (B, C, h, w) at timesteps (B,).

        `importance_sampled` is True for timesteps from `sample`, False for evenly spaced ones.
        """
        errors = (predicted.float() - target.to(predicted.device)).square().mean((1, 2, 3))
        weights = self._weights[t] if self._is_uniform or not importance_sampled else self._weights.mean()
        return (errors * weights.to(errors.device)).mean()


def make_generator(*seeds: int) -> torch.Generator:
    """Return a generator on the CPU that depends on these numbers alone."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))


EMPTY_CAPTION_RATE = 0.1
CACHE_BYTES = 2**31  # bytes of encoded examples in memory
NARROW_CHANNELS = 128  # channels, for whose heads PyTorch's fused attention takes up to four times as long on a CPU
EVALUATION_DRAWS = 128  # examples with noise of one measurement
SIGNIFICANT_CHANGE, MIN_SHARED_GAIN = (
    0.02,
    0.5,
)  # what the verdict calls a change, and how much of the gain must hold for other images


class FrozenBase:
    """A pipeline of SD1.5 or SD2.1 that is evaluated and stays unchanged.

    Raises ValueError for an inpainting UNet or an SDXL.
    """

    def __init__(self, pipe: DiffusionPipeline, device: str):
        if getattr(pipe, "text_encoder_2", None) is not None:
            raise ValueError("the model is an SDXL; ControlNets are trained for SD1.5's and SD2.1's kind only")
        if pipe.unet.config["in_channels"] != pipe.vae.config["latent_channels"]:
            raise ValueError(
                f"the model's UNet reads {pipe.unet.config['in_channels']} channels: is it for inpainting?"
            )
        self.device = torch.device(device)
        self._pipe = pipe.to(device)
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            part.requires_grad_(False).eval()
        if self.device.type == "cpu" and pipe.unet.config["block_out_channels"][0] <= NARROW_CHANNELS:
            pipe.unet.set_attn_processor(AttnProcessor())
        self.empty_context = self.encode_caption("")

    @torch.no_grad()
    def encode_latents(self, pixels: np.ndarray) -> Tensor:
        """Return the most likely latents (C, h, w), on the CPU, of RGB uint8 (H, W, 3).

        In float32 and one image at a time: an example is equal to the bit in any batch, so a resumed run is too.
        """
        x = torch.from_numpy(pixels).to(self.device).permute(2, 0, 1)[None].float() / 127.5 - 1
        vae = self._pipe.vae
        with torch.autocast(self.device.type, enabled=False):
            return (vae.encode(x).latent_dist.mode() * vae.config["scaling_factor"])[0].cpu()

    @torch.no_grad()
    def encode_caption(self, caption: str) -> Tensor:
        """Return the text states (T, D) of a caption, on the CPU."""
        with torch.autocast(self.device.type, enabled=False):
            return self._pipe.encode_prompt(caption, self.device, 1, False)[0][0].cpu()

    def predict(self, x: Tensor, t: Tensor, context: Tensor, net: nn.Module | None, maps: np.ndarray) -> Tensor:
        """Return the prediction (B, C, h, w) of the UNet for noised latents.

        `net` guides it with maps (B, H, W, 3) uint8; None predicts without control.
        """
        x, t, context = x.to(self.device), t.to(self.device), context.to(self.device)
        given: dict[str, Any] = {}
        if net is not None:
            residuals: Residuals = net(Step(x, t, context, Span(0, 1)), cast(ControlNet, net).hint(maps))
            given = {
                "down_block_additional_residuals": residuals.skips,
                "mid_block_additional_residual": residuals.middle,
            }
        return self._pipe.unet(x, t, context, **given).sample


@dataclass(frozen=True, eq=False)
class EncodedExample:
    """An example as networks read it: latents (C, h, w), text states (T, D), map (H, W, 3) uint8."""

    latents: Tensor
    context: Tensor
    map: np.ndarray


class EncodedExamples:
    """Examples that are encoded on first use; the first of them, up to 2 GiB, stay in memory."""

    def __init__(self, dataset: ControlDataset, frozen: FrozenBase, height: int, width: int):
        self._dataset, self._frozen, self._size = dataset, frozen, (height, width)
        self._cache: dict[int, EncodedExample] = {}

    def __len__(self) -> int:
        return len(self._dataset)

    def load_batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, np.ndarray]:
        """Return latents (B, C, h, w), text states (B, T, D) and maps (B, H, W, 3) uint8."""
        found = [self._load_example(i) for i in rows]
        return (
            torch.stack([each.latents for each in found]),
            torch.stack([each.context for each in found]),
            np.stack([each.map for each in found]),
        )

    def _load_example(self, i: int) -> EncodedExample:
        if i in self._cache:
            return self._cache[i]
        pixels, control, caption = self._dataset.read(i, *self._size)
        encoded = EncodedExample(self._frozen.encode_latents(pixels), self._frozen.encode_caption(caption), control)
        if (i + 1) * (encoded.latents.nbytes + encoded.context.nbytes + encoded.map.nbytes) <= CACHE_BYTES:
            self._cache[i] = encoded
        return encoded


def compute_control_loss(
    net: nn.Module,
    frozen: FrozenBase,
    examples: EncodedExamples,
    objective: DiffusionLoss,
    batch_size: int,
    rng: torch.Generator,
) -> Tensor:
    """Return the loss, shape (), on `batch_size` random examples, a tenth of the captions empty.

    Gradients flow to the network alone.
    """
    rows = torch.randint(len(examples), (batch_size,), generator=rng).tolist()
    latents, context, maps = examples.load_batch(rows)
    dropped = torch.rand(batch_size, 1, 1, generator=rng) < EMPTY_CAPTION_RATE
    x, target, t = objective.sample(latents, rng)
    return objective.compute_loss(
        frozen.predict(x, t, torch.where(dropped, frozen.empty_context, context), net, maps), target, t
    )


class FixedNoiseLoss:
    """The loss on 128 examples (repeated if there are fewer) with noise and timesteps that never change.

    Noise and timesteps are the same for every set of examples.
    """

    def __init__(self, frozen: FrozenBase, examples: EncodedExamples, objective: DiffusionLoss, batch_size: int):
        self._frozen, self._examples, self._objective, self._batch_size = frozen, examples, objective, batch_size
        self.unguided_loss = self(None)

    @torch.no_grad()
    def __call__(self, net: nn.Module | None) -> float:
        numbers = make_generator(1)
        times = (
            torch.randperm(EVALUATION_DRAWS, generator=numbers) * self._objective.num_timesteps // EVALUATION_DRAWS
        )  # every noise level alike
        losses = []
        for draws in torch.arange(EVALUATION_DRAWS).split(self._batch_size):
            latents, context, maps = self._examples.load_batch(
                [i * len(self._examples) // EVALUATION_DRAWS for i in draws.tolist()]
            )
            noise = torch.randn(latents.shape, generator=numbers)
            x, target, t = self._objective.add_noise(latents, noise, times[draws])
            predicted = self._frozen.predict(x, t, context, net, maps)
            losses.append(len(draws) * self._objective.compute_loss(predicted, target, t, importance_sampled=False))
        return float(sum(losses)) / EVALUATION_DRAWS


def describe_fit(rows: Sequence[dict[str, float]]) -> str:
    """Return a sentence on overfitting or underfitting from the log of a training, or that it is too short to tell.

    Each row has `step`, the fixed losses `training` and `held_out`, and those of the model without control,
    `training_unguided` and `held_out_unguided`.
    """
    last, lowest = rows[-1], min(rows, key=lambda row: row["held_out"])
    gained = {side: last[f"{side}_unguided"] - last[side] for side in ("training", "held_out")}
    earlier = next(row for row in rows if row["step"] >= 0.75 * last["step"])
    figures = (
        f"held-out loss {last['held_out']:.4g} ({last['held_out_unguided']:.4g} without control), "
        f"training loss {last['training']:.4g} ({last['training_unguided']:.4g})"
    )
    if last["step"] < MIN_VERDICT_STEPS:
        return f"too few steps to tell, {last['step']:.0f} of at least {MIN_VERDICT_STEPS}; {figures}: more steps"
    if last["held_out"] > (1 + SIGNIFICANT_CHANGE) * lowest["held_out"]:
        where = f"the held-out loss was lowest, {lowest['held_out']:.4g}, after {lowest['step']:.0f} steps"
        return f"overfits: {where}; {figures}: more images, or fewer steps"
    if gained["training"] > 0 and gained["held_out"] < MIN_SHARED_GAIN * gained["training"]:
        share = math.floor(100 * gained["held_out"] / gained["training"])
        return f"overfits: {share} % of what control gains on training images holds for others; {figures}: more images"
    if gained["held_out"] <= 0 or last["held_out"] < (1 - SIGNIFICANT_CHANGE) * earlier["held_out"]:
        return f"underfits: the held-out loss still falls, or control does not help yet; {figures}: more steps"
    if earlier is last:
        return f"too few measurements to tell whether the loss still falls; {figures}: a smaller --every"
    return f"fits: neither over- nor underfits; {figures}"
