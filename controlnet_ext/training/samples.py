"""Held-out images that are generated during a training, and how well they obey their maps."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files.disk import list_temporary_files, read_json, write_atomically
from ..files.image_writer import write_image
from ..guidance.unit import PerSample, Unit
from ..hosts.diffusers.guide import guide
from ..maps.control_map import ControlMap
from ..maps.fidelity import measure
from ..models.nn.execution import LayerwiseOffload
from .bases import FrozenBase
from .data import ControlDataset
from .monitoring import FidelitySettings
from .work_folder import BOUNDS_FILE, IMAGES_FOLDER, MAPS_STRIP, SOURCES_STRIP, UNGUIDED_STRIP, name_step_strip

SAMPLING_STEPS = 10  # denoising steps of an image
SAMPLE_GUIDANCE = 3.0  # classifier-free
MAX_TRIES = 20  # images that are tried in place of broken ones
FIRST_SEED = 20_000  # of the noise, one for each image


class FidelityImages:
    """Held-out images, generated with the network at each measurement, and their fidelity.

    Their maps, the images that these are of, and images of the same noise without control are made once, and kept in
    the folder `images` of the work folder, as strips: images side by side. Each score is put between floor, that of the
    images without control, and ceiling, that of the source images.
    """

    def __init__(
        self,
        frozen: FrozenBase,
        dataset: ControlDataset,
        size: tuple[int, int],
        settings: FidelitySettings,
        work_folder: Path,
    ):
        self._frozen, self._settings, self._size = frozen, settings, size
        self._folder = work_folder / IMAGES_FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in list_temporary_files(self._folder):
            path.unlink(missing_ok=True)
        examples = _read_examples(dataset, settings.count, size)
        self._sources = [pixels for pixels, _, _ in examples]
        self._maps = [self._make_map(pixels, control) for pixels, control, _ in examples]
        self._captions = [caption for _, _, caption in examples]
        self._floor, self._ceiling = self._measure_bounds()

    def __call__(self, net: LayerwiseOffload, step: int) -> dict[str, float]:
        """Generate the images and write their strip; return `fidelity` and `fidelity_share` where they are known."""
        images = self._draw(net)
        _write_strip(self._folder / name_step_strip(step), images)
        figures = self._score(images)
        share = self._settings.by.compute_share(figures, self._floor, self._ceiling)
        scores = {"fidelity": figures[self._settings.by.score], "fidelity_share": share}
        return {name: value for name, value in scores.items() if math.isfinite(value)}

    def _make_map(self, pixels: np.ndarray, control: np.ndarray) -> ControlMap:
        """Return the map of an example, with the values that no pixels hold where it is made from the image."""
        own = self._settings.preprocess(pixels)
        return own if np.array_equal(own.pixels, control) else ControlMap(control, self._settings.kind)

    def _measure_bounds(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the figures of floor and ceiling, which are measured once."""
        path = self._folder / BOUNDS_FILE
        if path.exists():
            old_bounds = read_json(path)
            return old_bounds["floor"], old_bounds["ceiling"]
        unguided_images = self._draw(None)
        _write_strip(self._folder / MAPS_STRIP, [each.pixels for each in self._maps])
        _write_strip(self._folder / SOURCES_STRIP, self._sources)
        _write_strip(self._folder / UNGUIDED_STRIP, unguided_images)
        floor, ceiling = self._score(unguided_images), self._score(self._sources)
        by = self._settings.by
        bounds = {"measure": by.name, "score": by.score, "unit": by.unit, "width": self._size[1]}
        content = json.dumps({**bounds, "floor": floor, "ceiling": ceiling}, indent=2) + "\n"
        write_atomically(path, content.encode(), overwrite=True)  # last: what it says of is there
        return floor, ceiling

    def _score(self, images: Sequence[np.ndarray]) -> dict[str, float]:
        """Return the mean figures of images, without those of maps that ask for nothing."""
        settings = self._settings
        figures: list[Mapping[str, float]] = [
            measure(expected, image, settings.preprocess, settings.by)
            for expected, image in zip(self._maps, images, strict=True)
        ]
        means = {}
        for name in figures[0]:
            finite = [each[name] for each in figures if math.isfinite(each[name])]
            means[name] = sum(finite) / len(finite) if finite else math.nan
        return means

    @torch.no_grad()
    def _draw(self, net: LayerwiseOffload | None) -> list[np.ndarray]:
        """Return an image (H, W, 3) RGB uint8 for each map; the pipeline and the network stay as they are."""
        pipe = copy.copy(self._frozen.pipe)  # what it remembers of a run stays out of the original
        pipe.scheduler = copy.deepcopy(pipe.scheduler)
        pipe.set_progress_bar_config(disable=True)
        arguments: dict[str, Any] = {
            "prompt": self._captions,
            "height": self._size[0],
            "width": self._size[1],
            "num_inference_steps": SAMPLING_STEPS,
            "guidance_scale": SAMPLE_GUIDANCE,
            "generator": [torch.Generator().manual_seed(FIRST_SEED + i) for i in range(len(self._maps))],
            "output_type": "np",
        }
        units = [] if net is None else [Unit(net, PerSample(self._maps))]
        device, dtype = self._frozen.device.type, self._frozen.unet.dtype
        with torch.autocast(device, dtype, enabled=dtype != torch.float32), guide(pipe, units):
            images = pipe(**arguments).images
        return [np.rint(np.clip(np.nan_to_num(image), 0, 1) * 255).astype(np.uint8) for image in images]


def _read_examples(
    dataset: ControlDataset, count: int, size: tuple[int, int]
) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """Return up to `count` examples from all over a dataset, as `read` does; broken ones give way to the next.

    Raises ValueError where none can be read.
    """
    total, examples, last_error = len(dataset), [], ""
    count = min(count, total)
    for i in range(count):
        first, end = i * total // count, (i + 1) * total // count
        for j in range(first, min(end, first + MAX_TRIES)):
            try:
                examples.append(dataset.read(j, *size))
                break
            except (ValueError, OSError) as error:  # the losses report it
                last_error = str(error)
    if not examples:
        raise ValueError(f"no held-out image can be read to measure the fidelity of images by its map: {last_error}")
    return examples


def _write_strip(path: Path, images: Sequence[np.ndarray]) -> None:
    write_image(path, np.ascontiguousarray(np.concatenate(list(images), axis=1)), overwrite=True)
