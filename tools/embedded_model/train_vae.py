"""Trains the embedded VAE on scenes: `python -m tools.embedded_model.train_vae runs/vae`. Run it again to go on.

Most steps see a 64x64 piece of each scene, the last ones whole scenes. Loss: L1 of the pixels, L1 of their differences
to the right and below (what an edge detector sees), and a KL term too weak to blur.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from controlnet_ext.embedded.scenes import HELD_OUT_SEEDS, draw_scene
from controlnet_ext.maps.fidelity import canny_f1
from controlnet_ext.training.config import TrainingSchedule
from controlnet_ext.training.loop import train

KL_WEIGHT = 1e-6
EDGE_WEIGHT = 2.0
BATCH_SIZE = 8
NORM_GROUPS = 8
CROP_SIZE = 64  # pixels: four times as many steps in the same time


def make_vae() -> Any:
    """SD1.5's autoencoder topology (factor 8, 4 latent channels), 1.03 M parameters instead of 83.7 M.

    Four channels and more a group, as there; with 32 groups each channel of 32 would lose its mean, which is colour.
    """
    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        norm_num_groups=NORM_GROUPS,
        sample_size=128,
    )
    with torch.no_grad():
        vae.quant_conv.bias[4:] = -6  # log variance; with the usual 0 noise hides the latents for 300 steps
    return vae


def render_scenes(seeds: range) -> Tensor:
    """Scenes (B, 3, 128, 128) float32 in -1..1."""
    images = np.stack([draw_scene(seed).pixels for seed in seeds])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def compute_differences(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def make_batch(step: int, whole_scenes_from: int) -> Tensor:
    """What a step sees: whole scenes at the end, before that a piece of each, anywhere in it."""
    x = render_scenes(range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE))
    if step >= whole_scenes_from:
        return x
    corners = np.random.default_rng(step).integers(0, x.shape[-1] - CROP_SIZE + 1, (BATCH_SIZE, 2))
    return torch.stack([one[:, i : i + CROP_SIZE, j : j + CROP_SIZE] for one, (i, j) in zip(x, corners, strict=True)])


def compute_vae_loss(vae: Any, x: Tensor) -> Tensor:
    posterior = vae.encode(x).latent_dist
    y = vae.decode(posterior.sample()).sample.float()
    edges = sum(F.l1_loss(a, b) for a, b in zip(compute_differences(y), compute_differences(x), strict=True))
    return F.l1_loss(y, x) + EDGE_WEIGHT * edges + KL_WEIGHT * posterior.kl().mean()


@torch.no_grad()
def evaluate_held_out(vae: Any, step: int = 0, count: int = 64) -> dict[str, float]:
    """Mean absolute error in 0..255 and mean canny F1 (1 px) of held-out scenes that went through the VAE."""
    x = render_scenes(HELD_OUT_SEEDS[:count])
    y = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in x.split(16)]).clamp(-1, 1)
    a, b = (((t.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy() for t in (x, y))
    scores = [canny_f1(cv2.Canny(one, 100, 200), two) for one, two in zip(a, b, strict=True)]
    return {
        "held_out_error": (y - x).abs().mean().item() * 127.5,
        "held_out_f1": float(np.nanmean([score.within_1px for score in scores])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--whole", type=int, default=2500, help="how many of them see whole scenes")
    parser.add_argument("--every", type=int, default=250)
    options = parser.parse_args()
    torch.manual_seed(0)
    cv2.setNumThreads(1)
    schedule = TrainingSchedule(options.steps, learning_rate=1e-3, ema_decay=0.998, evaluation_interval=options.every)
    whole_from = options.steps - options.whole
    vae: Any = train(
        make_vae(),
        lambda net, step, _: compute_vae_loss(net, make_batch(step, whole_from)),
        evaluate_held_out,
        schedule,
        options.folder,
    )
    if vae is not None:
        vae.save_pretrained(options.folder / "vae")


if __name__ == "__main__":
    main()
