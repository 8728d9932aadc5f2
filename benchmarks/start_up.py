"""What a command costs to start, beside a bare `import torch`.

    python benchmarks/start_up.py [--runs 5] [--only generate,load]

Each is a whole process, with its end; all take turns. Prints the least of the processor's seconds (user and system) of
the runs, which other work on the machine does not add to, and their ratio to `import torch` in the same runs.
`diffusers` imports what a script with a StableDiffusionPipeline imports. One run before is a warm-up, for the page
cache and the compiled modules.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
PHOTO = str(ROOT / "examples" / "coffee.jpg")
GUIDED = ["--control", "canny", "--steps", "1", "--seed", "3"]
CLI = ["-m", "controlnet_ext.cli"]
PROCESSES = {
    "import torch": ["-c", "import torch"],
    "diffusers": ["-c", "from diffusers import StableDiffusionPipeline"],
    "load": ["-c", "import controlnet_ext; controlnet_ext.load('embedded/canny')"],
    "preprocess": [*CLI, "preprocess", "canny", PHOTO, "-o", "map.png", "--overwrite"],
    "generate": [*CLI, "generate", "a red circle", "--image", PHOTO, *GUIDED, "-o", "image.png", "--overwrite"],
    "demo": [*CLI, "demo", "--steps", "1", "-o", "sheet.png", "--overwrite"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default=",".join(PROCESSES))
    options = parser.parse_args()
    names = ["import torch", *(name for name in options.only.split(",") if name != "import torch")]
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, one thread")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            measure(PROCESSES[name], folder)
        for _ in range(options.runs):
            for name in names:
                seconds[name].append(measure(PROCESSES[name], folder))
    bare = min(seconds["import torch"])
    for name in names:
        print(f"{name:12} {min(seconds[name]):5.2f} s  {min(seconds[name]) / bare:4.2f}", flush=True)


def measure(words: list[str], folder: str) -> float:
    """Run Python with these words and return the processor's seconds of the process. Raises CalledProcessError."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, *words], env=environment, cwd=folder, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
