"""What reuse of residuals costs in fidelity, and what it saves: the embedded model guided by canny maps.

    python -m benchmarks.reuse [--scenes 48] [--steps 20] [--device cuda]

The first of the scenes that the embedded model's figures are taken on, with the same captions, noise and scale. F1
within a pixel of the asked map, mean and its standard error; the mean difference of F1 from reuse 1 on the same scenes,
and its standard error; calls of the network an image; the processor's seconds an image.
"""

from __future__ import annotations

import argparse
import platform
import time
from typing import Any

import diffusers
import numpy as np
import torch

from controlnet_ext import PerSample, Unit, guide, load
from controlnet_ext.embedded import EMBEDDED_FOLDER
from controlnet_ext.embedded.scenes import draw_scene
from controlnet_ext.generation.pipeline_folder import PipelineFolder, silence_libraries
from controlnet_ext.maps.fidelity import canny_f1

from .embedded.sampling import decode_latents
from .embedded.scenes import EVALUATION_SEEDS, edges

BATCH = 16
ARMS: list[dict[str, Any]] = [
    *({"reuse": k} for k in (1, 2, 3, 4)),
    *({"reuse": 20, "reuse_tolerance": tolerance} for tolerance in (0.2, 0.4)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenes", type=int, default=48)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with silence_libraries():
        folder = PipelineFolder.find("embedded")
        pipe = folder.load(torch.float32, folder.make_scheduler(None)).to(options.device)
    pipe.set_progress_bar_config(disable=True)
    net = load(EMBEDDED_FOLDER / "controlnet_canny", options.device)
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}, Python {platform.python_version()}")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, {options.device}, float32")
    print(
        f"{options.scenes} scenes, {options.steps} steps of {type(pipe.scheduler).__name__}, scale {options.guidance:g}"
    )
    print("| | F1 | beside reuse 1 | calls an image's run | seconds |\n|---|---|---|---|---|")
    first: np.ndarray | None = None
    for arm in ARMS:
        scores, calls, seconds = measure_arm(pipe, net, options, arm)
        first = scores if first is None else first
        difference = scores - first
        cells = [f"{x.mean():.3f} ± {x.std(ddof=1) / len(x) ** 0.5:.3f}" for x in (scores, difference)]
        words = ", ".join(f"{name} {value:g}" for name, value in arm.items())
        print(f"| {words} | {cells[0]} | {cells[1]} | {calls:.1f} | {seconds:.2f} |", flush=True)


def measure_arm(
    pipe: Any, net: Any, options: argparse.Namespace, arm: dict[str, Any]
) -> tuple[np.ndarray, float, float]:
    """F1 within a pixel of each scene, calls of the network in a run, seconds an image."""
    scores, calls, spent, runs = [], 0, 0.0, 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    handle = net.register_forward_hook(count)
    for begin in range(0, options.scenes, BATCH):
        seeds = EVALUATION_SEEDS[begin : min(begin + BATCH, options.scenes)]
        scenes = [draw_scene(seed) for seed in seeds]
        maps = [edges(each.pixels) for each in scenes]
        start, runs = time.process_time(), runs + 1
        with guide(pipe, [Unit(net, PerSample(maps), **arm)]):
            latents = pipe(
                [each.caption for each in scenes],
                latents=torch.stack([noise(pipe, seed) for seed in seeds]).to(options.device),
                num_inference_steps=options.steps,
                guidance_scale=options.guidance,
                output_type="latent",
            ).images
        spent += time.process_time() - start
        with torch.no_grad():
            images = decode_latents(pipe.vae, latents / pipe.vae.config["scaling_factor"])
        pairs = zip(maps, images, strict=True)
        scores += [canny_f1(edge_map[..., 0], image).within_1px for edge_map, image in pairs if edge_map.any()]
    handle.remove()
    return np.array(scores), calls / runs, spent / options.scenes


def noise(pipe: Any, seed: int) -> torch.Tensor:
    """As in the other figures."""
    config = pipe.unet.config
    size = config["in_channels"], config["sample_size"], config["sample_size"]
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


if __name__ == "__main__":
    main()
