"""Train the autoencoder: `python -m tools.embedded_model.distill_vae WORLDS TEACHER runs/vae`. Run it again to go on.

The student is a diffusers AutoencoderTiny whose latents are those of Stable Diffusion 1.5, scaled (scaling_factor 1).
The teacher is TAESD (`taesd_encoder.safetensors`, MIT), needed for the training only. For half of each batch the
encoder meets the teacher's latents, and the decoder both the image and what the teacher's decoder makes of the same
latents: that is sharp where the image leaves a choice, so it teaches sharpness without a discriminator. For the other
half encoder and decoder learn together what comes back as an image. Image loss: L1 of the pixels, L1 of their
differences to the right and below, which is what an edge detector sees, and L1 of the mean size of these differences
around each pixel, which blur makes smaller. Weights of convolutions learn with Muon, everything else with Adam.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from tools.embedded_model.vae_data import HELD_OUT_PHOTOS, CropSource
from tools.embedded_model.world_sets import DOMAINS, open_pixels

WIDTH = 64
LATENT_WEIGHT = 0.5
EDGE_WEIGHT = 1.0
TEXTURE_WEIGHT = 1.0
TEACHER_SHARE = 0.6  # of the image loss where the teacher paints too
WARM_UP = 100  # steps
FALL = 0.5  # the last share of the steps, in which the rate falls to zero
CHECKPOINT_SECONDS = 240


def student_vae() -> Any:
    """TAESD's topology with its blocks moved to the coarse levels: 2.1 M parameters, 2.5 times as fast."""
    return AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 4,
        decoder_block_out_channels=(WIDTH,) * 4,
        num_encoder_blocks=(0, 1, 3, 4),
        num_decoder_blocks=(4, 3, 2, 0),
        scaling_factor=1.0,
    )


def load_taesd(folder: Path) -> Any:
    """TAESD as an AutoencoderTiny, from `taesd_encoder.safetensors` and `taesd_decoder.safetensors` in `folder`."""
    vae = AutoencoderTiny(scaling_factor=1.0)
    for part, shift in ((vae.encoder, 0), (vae.decoder, 1)):  # TAESD's decoder begins with a clamp as a layer
        name = "taesd_decoder" if shift else "taesd_encoder"
        tensors = load_file(folder / f"{name}.safetensors")
        keys = {key: key.partition(".") for key in tensors}
        part.load_state_dict(
            {f"layers.{int(n) - shift}.{rest}": tensors[k].float() for k, (n, _, rest) in keys.items()}
        )
    return vae.eval().requires_grad_(False)


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal (Jordan 2024): convolutions (O, I, h, w) count as (O, I h w)."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalize(p.grad.lerp(buffer, group["momentum"]).flatten(1))
                scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                p.add_(update.view_as(p), alpha=-group["lr"] * scale)


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrix with singular values near 1, by Newton-Schulz steps; coefficients of Jordan 2024."""
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if tall else x


def differences(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbours to the right and below."""
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def image_loss(y: Tensor, x: Tensor) -> Tensor:
    """The loss of images y (B, 3, H, W) that should be x."""
    total = F.l1_loss(y, x)
    for a, b in zip(differences(y), differences(x), strict=True):
        texture = (F.avg_pool2d(d.abs().mean(1, keepdim=True), 5, 2) for d in (a, b))
        total = total + EDGE_WEIGHT * F.l1_loss(a, b) + TEXTURE_WEIGHT * F.l1_loss(*texture)
    return total


def distillation_loss(vae: Any, teacher: Any, x: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch (B, 3, H, W) in -1..1, and its parts; B is even."""
    half = len(x) // 2
    with torch.no_grad():
        target = teacher.encode(x[:half]).latents
        teacher_images = teacher.decode(target).sample.float().clamp(-1, 1)
    latents = vae.encode(x).latents
    y = vae.decode(torch.cat([target.to(latents.dtype), latents[half:]])).sample.float()
    toward_teacher, toward_input = (image_loss(y[:half], each) for each in (teacher_images, x[:half]))
    decoder_loss = TEACHER_SHARE * toward_teacher + (1 - TEACHER_SHARE) * toward_input
    image, target = 0.5 * (decoder_loss + image_loss(y[half:], x[half:])), target.float()
    latent = F.smooth_l1_loss(latents[:half].float(), target, beta=0.1)
    return image + LATENT_WEIGHT * latent, {"image": image.item(), "latent": latent.item()}


@torch.no_grad()
def measure_held_out(vae: Any, teacher: Any, x: Tensor) -> dict[str, float]:
    """PSNR in dB of the held-out crops through the student, and the mean distance of its latents to the teacher's."""
    latents = vae.encode(x).latents
    error = (vae.decode(latents).sample.clamp(-1, 1) - x).square().mean((1, 2, 3)) / 4
    return {
        "psnr": (-10 * error.log10()).mean().item(),
        "latent_error": (latents - teacher.encode(x).latents).abs().mean().item(),
    }


def rate_at(step: int, steps: int) -> float:
    """Factor of the learning rates: rises over 100 steps, stays level, falls to zero over the last half."""
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / (FALL * steps))


def make_optimizers(vae: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions inside, Adam for biases and for the first and last layers of either half."""
    inside = [p for name, p in vae.named_parameters() if p.ndim == 4 and min(p.shape[:2]) == WIDTH]
    inner_ids = {id(p) for p in inside}
    others = [p for p in vae.parameters() if id(p) not in inner_ids]
    return [Muon(inside, rate), torch.optim.Adam(others, rate / 10, betas=(0.9, 0.98))]


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(content, part)
    os.replace(part, path)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", type=Path, help="the folder of fetch.py and world_sets.py")
    parser.add_argument(
        "teacher", type=Path, help="folder with taesd_encoder.safetensors and taesd_decoder.safetensors"
    )
    parser.add_argument("folder", type=Path, help="where checkpoint.pt, log.jsonl and vae/ go")
    parser.add_argument("--steps", type=int, default=8000, help="in all; may change when a run goes on")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=96, help="of a crop, in pixels")
    parser.add_argument("--rate", type=float, default=0.01, help="of Muon; Adam has a tenth")
    parser.add_argument("--every", type=int, default=200, help="steps between two rows of log.jsonl")
    parser.add_argument("--start", type=Path, help="a saved autoencoder that learns further, in a new folder")
    return parser.parse_args()


def restore_checkpoint(
    path: Path, vae: nn.Module, average: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> int:
    """Load the state of a training, and return the number of its steps: 0 where there is no checkpoint."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    vae.load_state_dict(state["network"])
    average.load_state_dict(state["averaged"])
    for optimizer, each in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(each)
    return state["step"]


def main() -> None:
    options = parse_options()
    torch.manual_seed(0)
    cv2.setNumThreads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    source = CropSource(options.worlds, options.size)
    held_out = held_out_crops(options.worlds)
    teacher = load_taesd(options.teacher).to(memory_format=torch.channels_last)
    vae = student_vae() if options.start is None else AutoencoderTiny.from_pretrained(options.start)
    vae.to(memory_format=torch.channels_last)
    average = copy.deepcopy(vae).eval().requires_grad_(False)
    optimizers = make_optimizers(vae, options.rate)
    path = options.folder / "checkpoint.pt"
    first = restore_checkpoint(path, vae, average, optimizers)
    sums: dict[str, list[float]] = {}
    last_save, signals = time.monotonic(), []
    for number in (signal.SIGTERM, signal.SIGINT):  # either ends the training at a checkpoint
        signal.signal(number, lambda *_: signals.append(True))
    for step in range(first, options.steps):
        for optimizer, rate in zip(optimizers, (options.rate, options.rate / 10), strict=True):
            optimizer.param_groups[0]["lr"] = rate * rate_at(step, options.steps)
        x = source.crops(step, options.batch).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            loss, parts = distillation_loss(vae, teacher, x)
        vae.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            decay = min(0.998, (step + 1) / (step + 10))
            for slow, fast in zip(average.parameters(), vae.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        for name, value in parts.items():
            sums.setdefault(name, []).append(value)
        count = step + 1
        if count % options.every == 0 or count == options.steps:
            means = {name: sum(values) / len(values) for name, values in sums.items()}
            row = {"step": count, **means, **measure_held_out(average, teacher, held_out)}
            sums = {}
            with (options.folder / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(*(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
        if signals or count == options.steps or time.monotonic() - last_save > CHECKPOINT_SECONDS:
            states = [optimizer.state_dict() for optimizer in optimizers]
            content = {"step": count, "network": vae.state_dict(), "averaged": average.state_dict()}
            save_checkpoint(path, {**content, "optimizers": states})
            average.save_pretrained(options.folder / "vae")
            last_save = time.monotonic()
        if signals:
            break


def held_out_crops(folder: Path) -> Tensor:
    """Middles of the held-out photographs and of some held-out scenes of each domain: (N, 3, 224, 224) in -1..1."""
    images = []
    for name in HELD_OUT_PHOTOS:
        image = cv2.imread(str(folder / "photos" / f"{name}.png"), cv2.IMREAD_COLOR_RGB)
        scale = 256 / min(image.shape[:2])
        images.append(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    for domain in DOMAINS:
        images += [part[i] for part in open_pixels(folder, domain, "held_out")[:1] for i in range(4)]
    cut = []
    for image in images:
        y, x = ((length - 224) // 2 for length in image.shape[:2])
        cut.append(torch.from_numpy(image[y : y + 224, x : x + 224].copy()).permute(2, 0, 1))
    return torch.stack(cut).float() / 127.5 - 1


if __name__ == "__main__":
    main()
