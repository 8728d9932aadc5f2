"""Maps of a thousand images, files in and out, beside a loop around controlnet_aux's CannyDetector and Pillow.

    python benchmarks/dataset.py [--images 1000] [--runs 3] [--memory 10000] [--steps]

Whole processes, one thread each, in turn: ours with --jobs 1 and --jobs 2, theirs in one process. Their loop is also
timed alone, without the seconds that its imports take: the ratios are to that, by the clock, and by the time of
processors, which other work on the machine changes less. The maps are compared, all pixels of all
images. These are JPEGs of 512x512, noise of all scales and discs. We flush every file to the disk before it gets its
name, they do not: with --disk /dev/shm nobody waits for a disk. With --memory, instead, the largest memory of all our
processes together in each tenth of so many images. With --steps, instead, what an image's steps take of the
processor, each over a hundred images: as a job takes them, and where freed memory goes back to the system.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

STEPS = ("JPEG", "canny", "PNG")
ROOT = Path(__file__).resolve().parents[1]
ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
OURS = "import sys, cv2; cv2.setNumThreads(1); from controlnet_ext.cli import main; sys.exit(main())"
AUX = """
import sys, time, cv2
from pathlib import Path
from PIL import Image
from controlnet_aux import CannyDetector
cv2.setNumThreads(1)
detector, out = CannyDetector(), Path(sys.argv[2])
out.mkdir()
clock, processor = time.perf_counter(), time.process_time()
for path in sorted(Path(sys.argv[1]).iterdir()):
    detector(Image.open(path), 100, 200, 512, 512).save(out / f"{path.stem}_canny.png")
print(time.perf_counter() - clock, time.process_time() - processor)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--memory", type=int)
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--disk", type=Path, help="a folder to work in, by default the system's for temporary files")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, OpenCV {cv2.__version__}")
    with tempfile.TemporaryDirectory(dir=options.disk) as folder:
        images, out = Path(folder, "in"), Path(folder, "out")
        draw(images, 100 if options.steps else options.memory or options.images)
        if options.steps:
            steps(sorted(images.iterdir()))
        elif options.memory:
            for jobs in (1, 2):
                print(f"--jobs {jobs}: MiB in each tenth:", *(f"{peak:.0f}" for peak in peaks(images, out, jobs)))
                subprocess.run(["rm", "-r", str(out)], check=True)
        else:
            compare(images, out, options.runs)


def draw(folder: Path, count: int) -> None:
    """Images, of which a hundred are different; the others are links to these."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i:06}.jpg"
        if i >= 100:
            os.link(folder / f"{i % 100:06}.jpg", path)
            continue
        image = np.full((512, 512, 3), 110, np.float32)
        for cells in (4, 16, 64, 256):
            noise = rng.normal(0, 100 / cells**0.5, (cells, cells, 3)).astype(np.float32)
            image += cv2.resize(noise, (512, 512), interpolation=cv2.INTER_CUBIC)
        for _ in range(60):
            x, y, r, *colour = rng.integers((0, 0, 5, 0, 0, 0), (512, 512, 70, 256, 256, 256)).tolist()
            cv2.circle(image, (x, y), r, colour, -1, cv2.LINE_AA)
        cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])


def compare(images: Path, out: Path, runs: int) -> None:
    commands = {f"--jobs {jobs}": ours(images, out, jobs) for jobs in (1, 2)}
    commands["controlnet_aux"] = [AUX, str(images), str(out)]
    measurements: dict[str, list[tuple[float, float]]] = {name: [] for name in (*commands, "its loop alone")}
    expected: dict[str, np.ndarray] = {}
    for _ in range(runs):
        for name, command in commands.items():
            seconds, work, output = once(command)
            measurements[name].append((seconds, work))
            if output.strip():
                clock, processor = map(float, output.split())
                measurements["its loop alone"].append((clock, processor))
            same(out, expected)
            subprocess.run(["rm", "-r", str(out)], check=True)
    count = len(list(images.iterdir()))
    loops = measurements["its loop alone"]
    for name, samples in measurements.items():
        times, work = (np.array(column) / count * 1e3 for column in zip(*samples, strict=True))
        by_clock, by_work = (
            statistics.median(loop[i] / mine[i] for loop, mine in zip(loops, samples, strict=True)) for i in (0, 1)
        )
        print(
            f"{name:15} {np.median(times):6.2f} ms an image ({times.min():.2f} to {times.max():.2f}), "
            f"{np.median(work):.2f} ms of processors; {by_clock:.2f} times as fast as its loop alone, {by_work:.2f} by "
            "the processors"
        )


def steps(paths: list[Path]) -> None:
    """Prints the milliseconds of each step."""
    from controlnet_ext.preprocessors.edges.canny import canny
    from PIL import Image

    from controlnet_ext.batch.engines import keep_heap
    from controlnet_ext.files.image_reader import read_image
    from controlnet_ext.files.image_writer import encode_image

    cv2.setNumThreads(1)

    def save_map(edges: np.ndarray) -> bytes:
        Image.fromarray(cv2.cvtColor(edges, cv2.COLOR_GRAY2RGB)).save(file := io.BytesIO(), "png")
        return file.getvalue()

    chains: dict[str, list[Callable[[Any], Any]]] = {
        "ours": [read_image, canny, lambda edges: encode_image("a.png", edges)],
        "theirs": [lambda path: np.array(Image.open(path)), lambda image: cv2.Canny(image, 100, 200), save_map],
    }
    for memory in ("given back", "kept"):
        if memory == "kept":
            keep_heap()
        for name, chain in chains.items():
            spent = np.zeros(len(chain))
            for path in paths:
                result: Any = path
                for i, step in enumerate(chain):
                    begin = time.thread_time()
                    result = step(result)
                    spent[i] += time.thread_time() - begin
            times = ", ".join(f"{words} {ms:.2f}" for words, ms in zip(STEPS, spent / len(paths) * 1e3, strict=True))
            print(f"{name:6}, memory {memory}: {times} ms")


def ours(images: Path, out: Path, jobs: int) -> list[str]:
    return [OURS, "preprocess", "canny", str(images), "-o", f"{out}/", "--jobs", str(jobs)]


def once(command: list[str]) -> tuple[float, float, str]:
    """Seconds on the clock, seconds of processors with all child processes, and what is printed."""
    before, begin = os.times(), time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", *command],
        env=ALONE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        text=True,
    )
    seconds, after = time.perf_counter() - begin, os.times()
    work = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, work, process.stdout


def same(out: Path, expected: dict[str, np.ndarray]) -> None:
    """Compares the maps with those of the first run."""
    for path in out.iterdir():
        pixels = cv2.imread(str(path))
        if not np.array_equal(pixels, expected.setdefault(path.name, pixels)):
            raise SystemExit(f"{path.name} differs")
    if len(list(out.iterdir())) != len(expected):
        raise SystemExit("some maps are missing")


def peaks(images: Path, out: Path, jobs: int) -> list[float]:
    """The largest memory that our processes have together (MiB of their own and their share) in each tenth."""
    import psutil

    count, peak_values = len(list(images.iterdir())), [0.0] * 10
    process = subprocess.Popen(
        [sys.executable, "-c", *ours(images, out, jobs)], env=ALONE, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    while process.poll() is None:
        file_count = len(os.listdir(out)) if out.is_dir() else 0
        total = 0.0
        for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            try:
                total += each.memory_full_info().pss / 2**20
            except psutil.Error:
                continue
        tenth = min(9, file_count * 10 // count)
        peak_values[tenth] = max(peak_values[tenth], total)
        time.sleep(0.2)
    return peak_values


if __name__ == "__main__":
    main()
