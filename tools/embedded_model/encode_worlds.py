"""Encode the rendered worlds once, for the base: `python -m tools.embedded_model.encode_worlds WORLDS VAE --size 192`.

WORLDS/latents192/DOMAIN/training-000000.npz holds `latents` (128, 4, 24, 24) float16 and `captions` (128,) of the first
128 scenes, and so on. Parts that are there are kept, so a run that was stopped goes on, also with more scenes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import AutoencoderTiny

from tools.embedded_model.distill_vae import load_taesd
from tools.embedded_model.render_worlds import list_file, read_rows
from tools.embedded_model.world_sets import DOMAINS, PART, SEEDS


@torch.no_grad()
def encode_images(vae: Any, images: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Return latents (N, 4, size / 8, size / 8) float16 of images (H, W, 3) RGB uint8, scaled down first."""
    small = np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in images])
    x = torch.from_numpy(small).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.autocast("cpu", torch.bfloat16):
        parts = [vae.encode(part.contiguous(memory_format=torch.channels_last)).latents.float() for part in x.split(8)]
    return (torch.cat(parts) * vae.config["scaling_factor"]).half().numpy()


def read_latents(worlds: Path, domain: str, split: str, size: int) -> tuple[np.ndarray, list[str]]:
    """Return latents (N, 4, h, w) float16 and captions of a set. FileNotFoundError if there are none."""
    parts = sorted((worlds / f"latents{size}" / domain).glob(f"{split}-*.npz"))
    if not parts:
        raise FileNotFoundError(f"no latents of {domain}, {split}, in {worlds}: run encode_worlds first")
    archives = [np.load(part) for part in parts]
    captions = [str(caption) for part in archives for caption in part["captions"]]
    return np.concatenate([part["latents"] for part in archives]), captions


def encode_set(worlds: Path, vae: Any, domain: str, split: str, size: int) -> None:
    """Encode the parts of 128 rendered scenes that are not encoded yet."""
    folder, rows = list_file(worlds, domain, split).parent, read_rows(worlds, domain, split)
    target = worlds / f"latents{size}" / domain
    target.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(rows) - PART + 1, PART):
        path = target / f"{split}-{first:06d}.npz"
        if not path.exists():
            part = rows[first : first + PART]
            images = [cv2.imread(str(folder / row["file_name"]), cv2.IMREAD_COLOR_RGB) for row in part]
            latents = encode_images(vae, images, size)
            with path.with_suffix(".part").open("wb") as file:
                np.savez(file, latents=latents, captions=np.array([row["text"] for row in part]))
            path.with_suffix(".part").rename(path)
            print(f"{domain} {path.name}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", type=Path, help="what render_worlds filled")
    parser.add_argument("vae", type=Path, help="what distill_vae has written, or TEACHER for the latents of TAESD")
    parser.add_argument("--size", type=int, default=192, help="pixels, a multiple of 8")
    options = parser.parse_args()
    is_teacher = (options.vae / "taesd_encoder.safetensors").exists()
    vae = load_taesd(options.vae) if is_teacher else AutoencoderTiny.from_pretrained(options.vae).eval()
    vae.to(memory_format=torch.channels_last)
    for domain in DOMAINS:
        for split in SEEDS:
            encode_set(options.worlds, vae, domain, split, options.size)


if __name__ == "__main__":
    main()
