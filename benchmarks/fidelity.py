"""What the measures of control maps cost, and what images score by their own maps.

    python -m benchmarks.fidelity speed
    python -m benchmarks.fidelity ceiling PHOTOS --weights FOLDER [--file NAME=PATH …] [--taesd FOLDER] [--only NAME …]

`speed`: milliseconds of each measure on maps of 512x512 pixels, and of torchmetrics, scikit-image and pycocotools where
they have it and are installed, one thread each; the median of some runs, and the ratio.

`ceiling`: for each preprocessor whose weights are in the folder, the score of a photo of 512x512 pixels by the map made
of the photo at its full size; of the photo after TAESD has encoded and decoded it, which is what a latent model could
reach; and of the next photo, which knows nothing of the map. Means over the photos, and how many of them have a score.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
from controlnet_ext.preprocessors.library import Library
from controlnet_ext.preprocessors.poses.key_points import KeyPoint, Person, Poses
from controlnet_ext.preprocessors.registry import list_preprocessors

from controlnet_ext import ControlMap
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.maps.fidelity import MEASURES, Measure
from controlnet_ext.maps.resize import fit

SIDE, RUNS = 512, 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("speed")
    ceiling = commands.add_parser("ceiling")
    ceiling.add_argument("photos", type=Path)
    ceiling.add_argument("--weights", type=Path, required=True)
    ceiling.add_argument("--file", action="append", default=[], metavar="NAME=PATH")
    ceiling.add_argument("--taesd", type=Path)
    ceiling.add_argument("--only", action="append", default=[], metavar="NAME")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, OpenCV {cv2.__version__}")
    print(f"maps of {SIDE}x{SIDE} pixels, one thread\n")
    if options.command == "speed":
        print_speed()
    else:
        library = Library([options.weights], download=False, files=dict(x.split("=", 1) for x in options.file))
        print_ceilings(options.photos, library, options.taesd, options.only)


def make_pair(kind: str) -> tuple[ControlMap, ControlMap]:
    """Two maps of a kind, alike but not equal, with values."""
    numbers = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    soft = (127 + 100 * np.sin(x / 23) * np.cos(y / 31)).astype(np.float32)
    noisy = np.clip(soft + numbers.normal(0, 15, soft.shape), 0, 255).astype(np.float32)
    grays = [np.repeat(each.astype(np.uint8)[..., None], 3, 2) for each in (soft, noisy)]
    values: list[Any] = [soft / 50 + 0.1, noisy / 50 + 0.1]
    if kind in ("edges", "scribble"):
        grays, values = [np.uint8(255) * (gray > 120) for gray in grays], [None, None]
    elif kind == "straight lines":
        lines = numbers.uniform(0, SIDE, (200, 4))
        values = [lines, lines + numbers.normal(0, 3, lines.shape)]
    elif kind == "normals":
        values = [np.dstack([np.sin(v), np.zeros_like(v), np.cos(v)]) for v in values]
    elif kind in ("pose", "face"):
        people = [numbers.uniform(0.1, 0.9, (6, 18, 2)) for _ in range(2)]
        values = [Poses([Person([KeyPoint(*p) for p in body]) for body in group], (), SIDE, SIDE) for group in people]
        if kind == "face":
            values = [tuple(numbers.uniform(0, 1, (3, 478, 2))) for _ in range(2)]
    elif kind == "segmentation":
        palette = numbers.integers(0, 256, (20, 3), np.uint8)
        grays, values = [palette[gray[..., 0] // 13] for gray in grays], [None, None]
    elif kind == "color":
        grays, values = list(numbers.integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)), [None, None]
    a, b = (ControlMap(gray, kind, value) for gray, value in zip(grays, values, strict=True))
    return a, b


KINDS = {  # of maps that show what a measure costs, where that is not its name
    "metric depth": "depth",
    "objects": "segmentation",
    "foreground": "depth",
    "image": "color",
    "color distribution": "color",
    "lightness": "depth",
    "embedding": "depth",
}


def print_speed() -> None:
    """Print a table: milliseconds of each measure and of the other library, and how many times as long that takes."""
    print("| measure | ms | the same by | ms | times |\n|---|---|---|---|---|")
    others = dict(list_others())
    for name, measure in MEASURES.items():
        a, b = make_pair(KINDS.get(name, name))
        own = time_calls(lambda measure=measure, a=a, b=b: measure.compare(a, b))
        library, call = others.get(name, ("", None))
        other = time_calls(call) if call else None
        print(
            f"| {name} | {own:.1f} | {library} | {'' if other is None else f'{other:.1f}'} | "
            f"{'' if other is None else f'{other / own:.1f}'} |",
            flush=True,
        )


def time_calls(call: Callable[[], Any]) -> float:
    """The median milliseconds of the processor that a call takes, after one to warm up."""
    call()
    times = []
    for _ in range(RUNS):
        start = time.process_time()
        call()
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times)


def list_others() -> Iterator[tuple[str, tuple[str, Callable[[], Any]]]]:
    """Calls of other libraries, by the measure that they compute on the same maps."""
    try:
        import torch
        import torchmetrics.functional as functional
        from torchmetrics.functional import classification, image
    except ImportError:
        return
    torch.set_num_threads(1)

    def gray(kind: str) -> list[Any]:
        return [torch.from_numpy(each.pixels[..., 0].astype(np.float32))[None, None] for each in make_pair(kind)]

    a, b = (each > 127 for each in gray("edges"))
    yield "edges", ("torchmetrics BinaryF1Score, exact alone", lambda: classification.binary_f1_score(b, a.long()))
    c, d = gray("depth")
    multiscale = image.multiscale_structural_similarity_index_measure
    yield "lines", ("torchmetrics MS-SSIM", lambda: multiscale(d, c, data_range=255.0))
    yield "depth", ("torchmetrics MSE, plain alone", lambda: functional.mean_squared_error(d, c))
    x, y = (torch.from_numpy(each.pixels.astype(np.float32)) for each in make_pair("color"))
    yield "image", ("torchmetrics PSNR", lambda: image.peak_signal_noise_ratio(y, x, data_range=255.0))
    p, q = (torch.from_numpy(each.pixels[..., 0].astype(np.int64) % 20) for each in make_pair("segmentation"))
    jaccard = classification.multiclass_jaccard_index
    yield "segmentation", ("torchmetrics Jaccard, of numbers of 20 classes", lambda: jaccard(q, p, num_classes=20))
    try:
        from skimage import color
    except ImportError:
        return
    m, n = (each.pixels for each in make_pair("color"))
    yield "color", ("scikit-image deltaE_cie76", lambda: color.deltaE_cie76(color.rgb2lab(m), color.rgb2lab(n)))


def print_ceilings(photos: Path, library: Library, taesd: Path | None, only: list[str]) -> None:
    """Print a table of the scores of photos by their own maps, for each preprocessor, or those named, that can be
    loaded."""
    decode = load_taesd(taesd) if taesd else None
    paths = sorted(path for path in photos.iterdir() if path.suffix in (".png", ".jpg", ".jpeg"))
    full = [read_image(path) for path in paths]
    small = [fit(image, SIDE, SIDE) for image in full]
    decoded = [decode(image) for image in small] if decode else []
    print(f"{len(full)} photos\n")
    print("| preprocessor | score | itself | of its full size | through TAESD | another photo | with a score |")
    print("|---|---|---|---|---|---|---|")
    for spec in list_preprocessors():
        if spec.needs_mask or (only and spec.name not in only) or not isinstance(spec.fidelity, Measure):
            continue
        try:
            run = spec.load("cpu", library)
            run(small[0])
        except (FileNotFoundError, ValueError):
            continue
        own = [run(image) for image in small]
        rows = [
            score_all(spec.fidelity, own, own),
            score_all(spec.fidelity, [run(image) for image in full], own),
            score_all(spec.fidelity, own, [run(image) for image in decoded]),
            score_all(spec.fidelity, own, own[1:] + own[:1]),
        ]
        cells = " | ".join(f"{np.nanmean(row):.3f}" if np.isfinite(row).any() else "" for row in rows)
        with_score = int(np.isfinite(rows[0]).sum())
        print(f"| {spec.name} | {spec.fidelity.name}: {spec.fidelity.score} | {cells} | {with_score} |", flush=True)


def score_all(measure: Measure, expected: list[ControlMap], actual: list[ControlMap]) -> list[float]:
    """The score of each found map by the expected one of its place; of no found maps none."""
    pairs = zip(expected, actual, strict=bool(actual))
    return [measure.compare(a, b, (SIDE, SIDE))[measure.score] for a, b in pairs]


def load_taesd(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A function that encodes and decodes an image (H, W, 3) uint8 by the tiny autoencoder of a folder with
    taesd_encoder.safetensors and taesd_decoder.safetensors."""
    import torch
    from diffusers import AutoencoderTiny
    from safetensors.torch import load_file

    state = {}
    for part, shift in (("encoder", 0), ("decoder", -1)):  # the decoder's first layer has no tensors, and is not there
        for key, tensor in load_file(folder / f"taesd_{part}.safetensors").items():
            number, rest = key.split(".", 1)
            state[f"{part}.layers.{int(number) + shift}.{rest}"] = tensor.float()
    vae = AutoencoderTiny()
    vae.load_state_dict(state)

    @torch.inference_mode()
    def decode(image: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        y = vae.decode(vae.encode(x).latents).sample[0].permute(1, 2, 0)
        return ((y + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()

    return decode


if __name__ == "__main__":
    main()
