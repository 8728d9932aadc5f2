"""Trains the embedded VAE on scenes: `python -m controlnet_ext.shapes.train_vae runs/vae`. Run it again to go on.

Step k always sees the same scenes, so a resumed run sees what an uninterrupted one would. Loss: L1 of the pixels, L1 of
their differences to the right and below (what an edge detector sees), and a KL term too weak to blur.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from .scenes import HELD_OUT, scene

EMA = 0.998
KL_WEIGHT = 1e-6
EDGE_WEIGHT = 2.0


def narrow_vae() -> AutoencoderKL:
    """SD1.5's autoencoder topology (factor 8, 4 latent channels, 32 groups), 1.03 M parameters instead of 83.7 M."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        sample_size=128,
    )


def pixels(seeds: range) -> Tensor:
    """Scenes (B, 3, 128, 128) float32 in -1..1."""
    stacked = np.stack([scene(seed).pixels for seed in seeds])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def differences(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def loss(vae: AutoencoderKL, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
    edges = sum(F.l1_loss(a, b) for a, b in zip(differences(y.float()), differences(x), strict=True))
    return F.l1_loss(y.float(), x) + EDGE_WEIGHT * edges + KL_WEIGHT * posterior.kl().mean()


@torch.no_grad()
def held_out(vae: AutoencoderKL, count: int = 64) -> tuple[float, float]:
    """Mean absolute error in 0..255 and mean canny F1 (1 px) of pictures that went through the VAE."""
    from ..fidelity import canny_f1

    x = pixels(HELD_OUT[:count])
    y = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in x.split(16)]).clamp(-1, 1)
    a, b = (((t.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy() for t in (x, y))
    scores = [canny_f1(cv2.Canny(one, 100, 200), two) for one, two in zip(a, b, strict=True)]
    return (y - x).abs().mean().item() * 127.5, float(np.nanmean([s.within_1px for s in scores]))


def rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 100 steps, then level, then linear to zero over the last 40 %."""
    return peak * min(1, (step + 1) / 100, (steps - step) / (0.4 * steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--every", type=int, default=250, help="steps between measurements and checkpoints")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop, resumable, after this long")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    state_file, log = options.folder / "state.pt", options.folder / "log.jsonl"
    torch.manual_seed(0)
    cv2.setNumThreads(1)
    vae = narrow_vae()
    average = copy.deepcopy(vae).requires_grad_(False)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=options.rate, betas=(0.9, 0.98), weight_decay=0.01)
    first = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        vae.load_state_dict(state["vae"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    began, losses = time.monotonic(), []
    for step in range(first, options.steps):
        torch.manual_seed(step)
        optimizer.param_groups[0]["lr"] = rate(step, options.steps, options.rate)
        value = loss(vae, pixels(range(step * options.batch, (step + 1) * options.batch)))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), vae.parameters(), strict=True):
                slow.lerp_(fast, 1 - min(EMA, (step + 1) / (step + 10)))
        losses.append(value.item())
        late = time.monotonic() - began > options.minutes * 60
        if (step + 1) % options.every == 0 or step + 1 == options.steps or late:
            error, f1 = held_out(average)
            row = {
                "step": step + 1,
                "loss": float(np.mean(losses)),
                "held_out_error": error,
                "held_out_f1": f1,
            }
            losses = []
            with log.open("a") as file:
                file.write(json.dumps(row | {"seconds": round(time.monotonic() - began)}) + "\n")
            state = {"vae": vae.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step + 1}, state_file.with_suffix(".part"))
            os.replace(state_file.with_suffix(".part"), state_file)
        if late:
            return
    average.save_pretrained(options.folder / "vae")


if __name__ == "__main__":
    main()
