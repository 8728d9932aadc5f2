"""Reading of training data: how long a training waits for it, and the memory of a stream of shards.

    python -m benchmarks.training_data [--images 96] [--side 768] [--size 512] [--step 0.25] [--samples 10000]

First: JPEGs of --side pixels with canny maps made of them, read without any cache at --size in batches of 4 by 0, 1 and
2 workers, while each step of the training only sleeps for --step seconds, as a processor does that waits for a GPU. The
share of time in which the loop waits for the next batch is printed, after a first epoch of 2 batches. Networks are left
out: latents are not made.

Second: --samples images of 64 x 64 in shards of 1,000, each read once as a stream by this process, and how much
its peak memory grows over that of the first tenth.
"""

from __future__ import annotations

import argparse
import io
import itertools
import platform
import resource
import tarfile
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from controlnet_ext.training.bases import EncodedCaption
from controlnet_ext.training.data import FolderDataset, LoadingSettings, MapMaker, RandomSource, Sampling, Tolerance
from controlnet_ext.training.data.examples import CENTER
from controlnet_ext.training.data.layouts import read_examples
from controlnet_ext.training.data.map_cache import PreprocessorMaps
from controlnet_ext.training.data.rows import USUAL_COLUMNS
from controlnet_ext.training.data.shards import ShardReader, ShardStream, list_shards
from controlnet_ext.training.encoding import ExampleEncoder
from controlnet_ext.training.loading import TrainingBatches

BATCH = 4


class EmptyBase:
    """A frozen model that makes nothing of images and captions."""

    device = torch.device("cpu")
    empty_caption = EncodedCaption(torch.zeros(1, 1))

    def encode_latents(self, pixels: np.ndarray) -> torch.Tensor:
        """Latents (1, 1, 1) without meaning."""
        return torch.zeros(1, 1, 1)

    def encode_caption(self, caption: str) -> EncodedCaption:
        """Text states (1, 1) without meaning."""
        return self.empty_caption

    def build_added(self, *_: object) -> None:
        """None."""

    def encode_extra(self, *_: object) -> None:
        """None."""


def make_jpeg(seed: int, side: int) -> bytes:
    """A JPEG of smooth random colors."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (side // 16 + 1, side // 16 + 1, 3), np.uint8)
    pixels = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def measure_waiting(folder: Path, options: argparse.Namespace) -> None:
    """Print the share of time in which the loop waits, by number of workers."""
    for i in range(options.images):
        (folder / f"{i}.jpg").write_bytes(make_jpeg(i, options.side))
        (folder / f"{i}.txt").write_text("colors")
    source = RandomSource(FolderDataset(read_examples(folder), MapMaker(PreprocessorMaps("canny", {}))))
    sampling = Sampling((options.size, options.size), is_random_crop=True)
    for workers in (0, 1, 2):
        settings = LoadingSettings(Tolerance(0, print), workers, "none")
        encoder = ExampleEncoder(EmptyBase(), settings)  # type: ignore[arg-type]
        iterator = TrainingBatches(source, encoder, sampling, settings, BATCH, 0).iterate(0)
        for _ in itertools.islice(iterator, 2):
            time.sleep(options.step)
        waiting_seconds, began = 0.0, time.perf_counter()
        for _ in range(options.batches):
            start = time.perf_counter()
            next(iterator)
            waiting_seconds += time.perf_counter() - start
            time.sleep(options.step)
        total = time.perf_counter() - began
        iterator.close()
        print(
            f"{workers} workers: {100 * waiting_seconds / total:.1f} % of the time waits, "
            f"{BATCH * options.batches / total:.1f} images/s"
        )


def measure_stream(folder: Path, samples: int) -> None:
    """Print how much the peak memory grows while a stream is read."""
    for first in range(0, samples, 1000):
        with tarfile.open(folder / f"{first // 1000:04d}.tar", "w") as tar:
            for i in range(first, min(first + 1000, samples)):
                for name, content in ((f"{i:06d}.jpg", make_jpeg(i, 64)), (f"{i:06d}.txt", b"colors")):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    paths = tuple(list_shards(str(folder)))
    stream, maps = ShardStream(paths, ShardReader(USUAL_COLUMNS, 0.0)), MapMaker(PreprocessorMaps("canny", {}))
    peaks, began = [], time.perf_counter()
    for i, example in enumerate(itertools.islice(stream.iter_examples(0, Tolerance(0, print)), samples), 1):
        example.decode(64, 64, CENTER, maps)
        if i in (samples // 10, samples):
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    seconds = time.perf_counter() - began
    size = sum(path.stat().st_size for path in paths) / 2**20
    print(
        f"{samples} samples in {len(paths)} shards of {size:.0f} MiB: peak {peaks[0]:.0f} MiB after {samples // 10}, "
        f"{peaks[1] - peaks[0]:+.1f} MiB in the rest; {samples / seconds:.0f} samples/s"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("images", 96), ("side", 768), ("size", 512), ("batches", 24), ("samples", 10_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--step", type=float, default=0.25)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        measure_waiting(Path(first), options)
        measure_stream(Path(second), options.samples)


if __name__ == "__main__":
    main()
