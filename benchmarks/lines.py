"""Networks for lines beside controlnet_aux's on the same weights, images in files to maps in files.

    python -W ignore benchmarks/lines.py --weights ASSETS/weights [--runs 5] [--images 4] [--size 512] [NAME ...]

Each run takes all images, size x size, through one preprocessor: read, computed, written as PNG. Ours and
controlnet_aux's runs alternate; the first of each is warm-up. Where --weights has no file of that name both compute on
the same random weights. The maps are compared, and ours in bfloat16 with ours in float32. With --profile: how much of
the time torch's convolutions are. Needs controlnet_aux.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import controlnet_aux
import cv2
import numpy as np
import torch
from controlnet_aux.hed import ControlNetHED_Apache2
from controlnet_aux.lineart import Generator
from controlnet_aux.mlsd.models.mbv2_mlsd_large import MobileV2_MLSD_Large
from controlnet_aux.pidi.model import pidinet
from controlnet_aux.teed.ted import TED
from controlnet_ext.preprocessors import find
from controlnet_ext.preprocessors.backends.torch import Device, Network

from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.image_writer import write_image
from controlnet_ext.files.weights import read_weights

# preprocessor: controlnet_aux's network, its detector around it, a file of weights
THEIRS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], str]] = {
    "pidinet": (pidinet, controlnet_aux.PidiNetDetector, "table5_pidinet.pth"),
    "softedge_teed": (TED, controlnet_aux.TEEDdetector, "teed_7_model.pth"),
    "mlsd": (MobileV2_MLSD_Large, controlnet_aux.MLSDdetector, "mlsd_large_512_fp32.pth"),
    "hed": (ControlNetHED_Apache2, controlnet_aux.HEDdetector, "ControlNetHED.pth"),
    "lineart": (partial(Generator, 3, 1, 3), lambda net: controlnet_aux.LineartDetector(net, net), "sk_model.pth"),
}


class Shelf:
    """A library whose one file is these tensors."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        self.tensors = tensors

    def load_network(self, file: Any, build: Callable[[Any], Any], device: Any) -> Network:
        return Network.from_module(build(dict(self.tensors)), Device.coerce(device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", metavar="NAME", nargs="*", default=list(THEIRS)[:3])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{platform.machine()}, {options.threads} thread(s), torch {torch.__version__}, OpenCV {cv2.__version__}, "
        f"{options.images} images of {options.size}x{options.size} a run, {options.device}; median (least to most) "
        f"of {options.runs} runs in turn, after 1"
    )
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder), options.images, options.size)
        for name in options.names:
            compare_networks(name, images, options)


def write_images(folder: Path, count: int, size: int) -> list[Path]:
    """Images of noise of all scales, discs and lines."""
    numbers, paths = np.random.default_rng(0), []
    for i in range(count):
        pixels = np.full((size, size, 3), 110, np.float32)
        for cells in (4, 16, 64):
            noise = numbers.normal(0, 90 / cells**0.5, (cells, cells, 3)).astype(np.float32)
            pixels += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
        for x, y, r, *colour in numbers.integers(
            (0, 0, 9, 0, 0, 0), (size, size, size // 6, 256, 256, 256), (24, 6)
        ).tolist():
            cv2.circle(pixels, (x, y), r, colour, -1, cv2.LINE_AA)
            cv2.line(pixels, (y, x), (x, size - y), colour, 3, cv2.LINE_AA)
        paths.append(folder / f"{i}.png")
        write_image(paths[-1], pixels.clip(0, 255).astype(np.uint8))
    return paths


def compare_networks(name: str, images: list[Path], options: argparse.Namespace) -> None:
    make, detector, file = THEIRS[name]
    torch.manual_seed(0)
    net = make().eval()
    real = options.weights is not None and (options.weights / file).is_file()
    if real:
        state = {key.removeprefix("module."): t for key, t in read_weights(options.weights / file).tensors.items()}
        net.load_state_dict(state)
    state = net.state_dict()
    entry, theirs = find(name), detector(net.to(options.device))
    size = {"detect_resolution": options.size} | ({} if name == "softedge_teed" else {"image_resolution": options.size})
    functions: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "controlnet_aux": lambda image: theirs(image, output_type="np", **size),
        "ours": partial(pixels, entry.load(options.device, Shelf(state))),  # type: ignore[arg-type]
        "ours, bfloat16": partial(pixels, entry.load(Device(options.device, "bfloat16"), Shelf(state))),  # type: ignore[arg-type]
    }
    seconds: dict[str, list[tuple[float, float]]] = {who: [] for who in functions}
    for _ in range(options.runs + 1):
        for who, compute in functions.items():
            seconds[who].append(time_function(compute, images, who))
    print(f"\n{name}, {'the published' if real else 'random'} weights, seconds an image")
    base = tuple(zip(*seconds["controlnet_aux"][1:], strict=True))
    maps = {who: np.stack([read_image(target(path, who)).astype(int) for path in images]) for who in functions}
    for who, pairs in seconds.items():
        clocks, processors = (np.array(column) / len(images) for column in zip(*pairs[1:], strict=True))
        ratios = [
            statistics.median(b / c / len(images) for b, c in zip(them, us, strict=True))
            for them, us in zip(base, (clocks, processors), strict=True)
        ]
        off = np.abs(maps[who] - maps["controlnet_aux" if who == "ours" else "ours"])
        print(
            f"  {who:15} {np.median(clocks):.3f} ({clocks.min():.3f} to {clocks.max():.3f}), of the processor "
            f"{np.median(processors):.3f}; {ratios[0]:.2f} times as fast, {ratios[1]:.2f} by the processor"
            + ("" if who == "controlnet_aux" else f"; off by {off.max()} of 255 at most, {off.mean():.4f} on average")
            + (f"; {convolutions(functions[who], images[0]):.0%} convolutions" if options.profile else "")
        )


def convolutions(compute: Callable[[np.ndarray], np.ndarray], image: Path) -> float:
    """How much of the operators' time on the CPU convolutions are."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        compute(read_image(image))
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    return sum(time for name, time in times.items() if "conv" in name) / sum(times.values())


def pixels(run: Callable[..., Any], image: np.ndarray) -> np.ndarray:
    return run(image).pixels


def target(image: Path, who: str) -> Path:
    return image.with_name(f"{image.stem}_{who.split()[-1].strip(',')}.png")


def time_function(compute: Callable[[np.ndarray], np.ndarray], images: list[Path], who: str) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    for path in images:
        write_image(target(path, who), compute(read_image(path)), overwrite=True)
    return time.perf_counter() - clock, time.process_time() - processor


if __name__ == "__main__":
    main()
