"""Images of the embedded model, always from the same noise for the same number, kept on disk batch by batch."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from controlnet_ext import Unit, Window, guide
from controlnet_ext.files.disk import write_atomically
from controlnet_ext.guidance.unit import PerSample
from tools.embedded_model.judges import reconstruct

BATCH = 32


@dataclass(frozen=True, eq=False)
class Arm:
    """Images to make: one for each caption, from the noise of each number, guided by each map (H, W, 3) uint8.
    `maps` None leaves them unguided; `guidance` is the scale by which the caption is followed."""

    captions: Sequence[str]
    noise: Sequence[int]
    maps: Sequence[np.ndarray] | None
    guidance: float
    weight: float = 1.0
    window: Window = field(default_factory=Window)

    def part(self, begin: int, end: int) -> Arm:
        maps = None if self.maps is None else self.maps[begin:end]
        return replace(self, captions=self.captions[begin:end], noise=self.noise[begin:end], maps=maps)


class Sampler:
    """Makes the images of arms, and finds again those that were made: a file in `folder` for each batch, named by
    the sha256 of all that it depends on. `made_with` names the weights. `net` None refuses guided arms. `is_bfloat16`
    computes all steps in bfloat16 by autocast."""

    def __init__(
        self, pipe: Any, net: Any, steps: int, made_with: Mapping[str, Any], folder: Path, is_bfloat16: bool = False
    ):
        self._pipe, self._net, self._steps, self.vae = pipe, net, steps, pipe.vae
        self._autocast = torch.autocast(pipe.device.type, torch.bfloat16, enabled=is_bfloat16)
        self._made_with, self._folder = {**made_with, "steps": steps}, folder
        self._pipe.set_progress_bar_config(disable=True)
        folder.mkdir(parents=True, exist_ok=True)

    def sample(self, name: str, arm: Arm) -> tuple[np.ndarray, float]:
        """The arm's images (N, H, W, 3) RGB uint8, and the processor's seconds that each took, the first time."""
        batches, seconds = [], 0.0
        for begin in range(0, len(arm.captions), BATCH):
            part = arm.part(begin, begin + BATCH)
            batch, spent = self._load_or_sample(part)
            batches.append(batch)
            seconds += spent
            count = begin + len(batch)
            print(f"{name}: {count} of {len(arm.captions)}, {seconds / count:.2f} s each", file=sys.stderr, flush=True)
        return np.concatenate(batches), seconds / len(arm.captions)

    def _load_or_sample(self, part: Arm) -> tuple[np.ndarray, float]:
        path = self._folder / f"{self._digest(part)}.npz"
        if not path.exists():
            begin = time.process_time()
            sample = self._sample_batch(part)
            file = io.BytesIO()
            np.savez_compressed(file, images=sample, seconds=time.process_time() - begin)
            write_atomically(path, file.getvalue(), overwrite=True)  # another process may have made it too
        with np.load(path) as archive:
            return archive["images"], float(archive["seconds"])

    def _digest(self, part: Arm) -> str:
        numbers = [part.guidance, *([] if part.maps is None else [part.weight, part.window.start, part.window.end])]
        words = [self._made_with, list(part.captions), list(part.noise), [*map(float, numbers)]]
        digest = hashlib.sha256(json.dumps(words, sort_keys=True).encode())
        for pixels in part.maps or ():
            digest.update(pixels.tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def _sample_batch(self, part: Arm) -> np.ndarray:
        pipe, units = self._pipe, []
        if part.maps is not None:
            if self._net is None:
                raise ValueError("a guided arm without a control model: name one with --control")
            units = [Unit(self._net, PerSample(list(part.maps)), weight=part.weight, window=part.window)]
        with guide(pipe, units), self._autocast:
            latents = pipe(
                list(part.captions),
                latents=torch.stack([self._noise(number) for number in part.noise]).to(pipe.device),
                num_inference_steps=self._steps,
                guidance_scale=part.guidance,
                output_type="latent",
            ).images
        return decode_latents(pipe.vae, latents.float() / pipe.vae.config["scaling_factor"])

    def _noise(self, number: int) -> torch.Tensor:
        config = self._pipe.unet.config
        size = (config["in_channels"], config["sample_size"], config["sample_size"])
        return torch.randn(size, generator=torch.Generator().manual_seed(number))


def decode_latents(vae: Any, latents: torch.Tensor) -> np.ndarray:
    """Images (N, H, W, 3) RGB uint8 of the VAE's own latents (N, C, h, w), unscaled."""
    pixels = torch.cat([vae.decode(part).sample for part in latents.split(BATCH)]).clamp(-1, 1)
    return ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def through_vae(vae: Any, images: np.ndarray) -> np.ndarray:
    """Images (N, H, W, 3) RGB uint8 encoded and decoded: the ceiling of everything that the model makes."""
    return reconstruct(vae, images)
