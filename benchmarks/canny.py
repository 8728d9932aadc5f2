"""The canny command beside its floor: whole processes, from start to exit, time and peak memory.

    python benchmarks/canny.py [--image photo.jpg] [--runs 21]

The floor is a Python process that imports cv2, reads the image, runs cv2.Canny and writes a PNG. Ours also checks
the image, looks the preprocessor up, writes three channels, and flushes the file to the disk before it gets its name:
that flush is measured apart. controlnet_aux, where it is installed, makes the same edges.
Without --image the image is 1024x768, noise of all scales and discs. Runs alternate; the first of each is warm-up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NOISE_IMAGE = """
import sys, cv2, numpy as np
rng = np.random.default_rng(0)
image = np.full((768, 1024, 3), 110, np.float32)
for cells in (4, 16, 64, 256):
    noise = rng.normal(0, 100 / cells**0.5, (cells * 3 // 4, cells, 3))
    image += cv2.resize(noise.astype(np.float32), (1024, 768), interpolation=cv2.INTER_CUBIC)
for _ in range(60):
    x, y, r, *colour = rng.integers((0, 0, 5, 0, 0, 0), (1024, 768, 90, 256, 256, 256)).tolist()
    cv2.circle(image, (x, y), r, colour, -1, cv2.LINE_AA)
cv2.imwrite(sys.argv[1], image.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
"""
FLOOR = "import sys, cv2; cv2.imwrite(sys.argv[2], cv2.Canny(cv2.imread(sys.argv[1]), 100, 200))"
OURS = "from controlnet_ext.cli import program; program()"  # what pip installs as controlnet-ext
AUX = """
import sys, cv2
from controlnet_aux import CannyDetector
image = cv2.cvtColor(cv2.imread(sys.argv[1]), cv2.COLOR_BGR2RGB)
size = min(image.shape[:2])
cv2.imwrite(sys.argv[2], CannyDetector()(image, detect_resolution=size, image_resolution=size))
"""
FLUSH = """
import json, os, sys, time
content, file, folder = open(sys.argv[1], "rb").read(), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT), os.open(".", 0)
def flush():
    os.pwrite(file, content, 0)
    begin = time.perf_counter()
    os.fsync(file), os.fsync(folder)
    return time.perf_counter() - begin
print(json.dumps([flush() for _ in range(int(sys.argv[3]))]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--image", type=Path)
    parser.add_argument("--runs", type=int, default=21)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        image, out, flushed = (str(Path(folder) / name) for name in ("image.jpg", "edges.png", "flushed"))
        if options.image:
            image = str(options.image.resolve())
        else:
            python(NOISE_IMAGE, image)
        commands = {
            "floor": [FLOOR, image, out],
            "controlnet-ext": [OURS, "preprocess", "canny", image, "-o", out, "--overwrite"],
            "controlnet_aux": [AUX, image, out],
        }
        try:
            python(AUX, image, out)
        except subprocess.CalledProcessError as error:
            print(f"controlnet_aux is left out: {error.stderr.strip().splitlines()[-1]}")
            del commands["controlnet_aux"]
        print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, ", end="")
        print(python("import cv2, numpy; print(f'OpenCV {cv2.__version__}, numpy {numpy.__version__}')", ""), end="")
        report(commands, options.runs)
        flushes = json.loads(python(FLUSH, out, flushed, str(options.runs)))
        print(f"flush to disk, part of ours  {statistics.median(flushes) * 1e3:6.1f} ms")


def python(code: str, *arguments: str) -> str:
    """What the code prints, run from the repository's root."""
    root = Path(__file__).resolve().parents[1]
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=root, capture_output=True, text=True, check=True
    )
    return process.stdout


def report(commands: dict[str, list[str]], runs: int) -> None:
    measurements: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(runs + 1):
        for name, arguments in commands.items():
            measurements[name].append(once(arguments))
    print(f"median (least to most) of {runs} runs in turn, after 1; the ratio is the median of each run's")
    floor = tuple(zip(*measurements["floor"][1:], strict=True))
    for name, samples in measurements.items():
        times, peaks = zip(*samples[1:], strict=True)
        slower, larger = (
            statistics.median(mine / its for mine, its in zip(column, other, strict=True))
            for column, other in zip((times, peaks), floor, strict=True)
        )
        print(
            f"{name:15} {statistics.median(times) * 1e3:6.0f} ms ({min(times) * 1e3:.0f} to {max(times) * 1e3:.0f}), "
            f"{slower:.2f} of the floor; {statistics.median(peaks):6.1f} MiB, {larger:.2f} of the floor"
        )


def once(arguments: list[str]) -> tuple[float, float]:
    """Seconds and peak MiB of one process. Its peak counts ours before exec too, so this one imports nothing large."""
    root = Path(__file__).resolve().parents[1]
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", *arguments], cwd=root, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode} of {arguments}")
    return seconds, usage.ru_maxrss / 1024  # KiB on Linux


if __name__ == "__main__":
    main()
