"""Photos' edges through the model: figures of all of them, pictures of the one that may be printed."""

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
PROMPTS = ("", "a white circle on a brown ground", "a blue ring on a yellow ground")  # of the printed pictures


def photos(folder: Path, sampler: Sampler) -> Iterator[tuple[str, Figures]]:
    """F1 within a pixel of each photo, guided and unguided, the mean from four noises, and the VAE's ceiling; the empty
    caption, whose guidance scale does not matter. Then the means of the folder's photos."""
    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES and p.name not in DRAWINGS)
    if not found:
        print(f"no photos in {str(folder)!r}: only {COFFEE.name}", file=sys.stderr)
    paths = [COFFEE, *found]
    pictures = np.stack([fitted(path) for path in paths])
    maps = [edges(each) for each in pictures]
    unguided = Arm([""] * (len(paths) * len(NOISES)), [*NOISES] * len(paths), None, guidance=1.0)
    repeated = [each for each in maps for _ in NOISES]
    guided = Arm(unguided.captions, unguided.noise, repeated, guidance=1.0)
    made = {
        name: sampler.pictures(f"photos {name}", arm)[0]
        for name, arm in zip(("guided", "unguided"), (guided, unguided), strict=True)
    }
    ceiling = through_vae(sampler.vae, pictures)
    rows = []
    for i, path in enumerate(paths):
        own = slice(i * len(NOISES), (i + 1) * len(NOISES))
        figures = {name: edge_figures(repeated[own], each[own])["f1"] for name, each in made.items()}
        figures["VAE"] = edge_figures([maps[i]], [ceiling[i]])["f1"]
        figures["density"] = float((maps[i] > 0).mean())
        yield f"photo {path.name}", figures
        rows.append(figures)
    if found:
        yield (
            "photos",
            {name: float(np.mean([row[name] for row in rows[1:]])) for name in rows[0]} | {"count": len(found)},
        )


def printed(sampler: Sampler, guidance: float) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Caption, photo, guided and unguided picture for each of `PROMPTS`, all from the same noise."""
    photo = fitted(COFFEE)
    noise = [NOISES[0]] * len(PROMPTS)
    unguided = Arm(PROMPTS, noise, None, guidance)
    guided = Arm(PROMPTS, noise, [edges(photo)] * len(PROMPTS), guidance)
    made = [sampler.pictures("coffee", arm)[0] for arm in (guided, unguided)]
    words = [prompt or "the empty caption" for prompt in PROMPTS]
    return list(zip(words, [photo] * len(PROMPTS), *made, strict=True))


def fitted(path: Path) -> np.ndarray:
    return fit(read_image(path), SIDE, SIDE, "crop")
