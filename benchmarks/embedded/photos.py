"""Photos' edges through the model: figures of all of them, images of the one that may be printed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from controlnet_ext.files.image_reader import read_image
from controlnet_ext.maps.resize import fit

from .arms import Figures
from .sampling import Arm, Sampler, through_vae
from .scenes import edges
from .scores import edge_figures

COFFEE = Path(__file__).parents[2] / "examples" / "coffee.jpg"
DRAWINGS = ("house_line.png", "user_1.png")  # in the folder of photos, and none
SUFFIXES = (".jpg", ".jpeg", ".png")
NOISES = range(4)  # for each photo
SIDE = 128
PROMPTS = ("", "a white circle on a brown ground", "a blue ring on a yellow ground")  # of the printed images


def photos(folder: Path, sampler: Sampler, side: int = SIDE) -> Iterator[tuple[str, Figures]]:
    """F1 within a pixel of each photo, guided and unguided, the mean from four noises, and the VAE's ceiling; the empty
    caption, whose guidance scale does not matter. Then the means of the folder's photos."""
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES and p.name not in DRAWINGS)
    if not files:
        print(f"no photos in {str(folder)!r}: only {COFFEE.name}", file=sys.stderr)
    paths = [COFFEE, *files]
    originals = np.stack([read_photo(path, side) for path in paths])
    maps = [edges(each) for each in originals]
    unguided_arm = Arm([""] * (len(paths) * len(NOISES)), [*NOISES] * len(paths), None, guidance=1.0)
    targets = [each for each in maps for _ in NOISES]
    guided_arm = Arm(unguided_arm.captions, unguided_arm.noise, targets, guidance=1.0)
    images = {
        name: sampler.sample(f"photos {name}", arm)[0]
        for name, arm in zip(("guided", "unguided"), (guided_arm, unguided_arm), strict=True)
    }
    ceiling = through_vae(sampler.vae, originals)
    rows = []
    for i, path in enumerate(paths):
        own = slice(i * len(NOISES), (i + 1) * len(NOISES))
        figures = {name: edge_figures(targets[own], each[own])["f1"] for name, each in images.items()}
        figures["VAE"] = edge_figures([maps[i]], [ceiling[i]])["f1"]
        figures["density"] = float((maps[i] > 0).mean())
        yield f"photo {path.name}", figures
        rows.append(figures)
    if files:
        yield (
            "photos",
            {name: float(np.mean([row[name] for row in rows[1:]])) for name in rows[0]} | {"count": len(files)},
        )


def sample_prompts(sampler: Sampler, guidance: float) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Caption, photo, guided and unguided image for each of `PROMPTS`, all from the same noise."""
    photo = read_photo(COFFEE)
    noise = [NOISES[0]] * len(PROMPTS)
    unguided_arm = Arm(PROMPTS, noise, None, guidance)
    guided_arm = Arm(PROMPTS, noise, [edges(photo)] * len(PROMPTS), guidance)
    images = [sampler.sample("coffee", arm)[0] for arm in (guided_arm, unguided_arm)]
    words = [prompt or "the empty caption" for prompt in PROMPTS]
    return list(zip(words, [photo] * len(PROMPTS), *images, strict=True))


def read_photo(path: Path, side: int = SIDE) -> np.ndarray:
    return fit(read_image(path), side, side, "crop")
