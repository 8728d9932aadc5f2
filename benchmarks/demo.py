"""`controlnet-ext demo` beside what it cannot do without: the imports, and the UNet's own steps.

    python benchmarks/demo.py [--steps 20] [--rounds 3]

Both are whole processes and take turns. The second imports what any diffusers pipeline imports, loads the embedded UNet
and calls it once a step on as many rows as the demo: three prompts, with and without a map, with and without the
prompt. One call before is its warm-up. Seconds of the processor too, which other work on the machine does not add to.
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

import torch

from controlnet_ext.embedded import EMBEDDED_FOLDER

ROWS = 12
BARE = """
import json, sys, time
clocks = lambda: (time.perf_counter(), time.process_time())
start = clocks()
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel
imported = clocks()
unet = UNet2DConditionModel.from_pretrained(sys.argv[1])
x, t, words = torch.randn(ROWS, 4, 16, 16), torch.tensor(500), torch.randn(ROWS, 77, 128)
with torch.no_grad():
    unet(x, t, words)
    loaded = clocks()
    for _ in range(int(sys.argv[2])):
        unet(x, t, words)
done = clocks()
print(json.dumps([[b - a for a, b in zip(*pair)] for pair in ((start, imported), (loaded, done))]))
""".replace("ROWS", str(ROWS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {torch.get_num_threads()} threads")
    print(f"{options.steps} steps on {ROWS} rows of 16x16 latents, fp32; median (least to most) of {options.rounds}")
    rounds = [measured(options.steps) for _ in range(options.rounds)]
    for k, words in enumerate(("on the clock", "of the processor")):
        demo, imports, steps = ([one[part][k] for one in rounds] for part in range(3))
        print(f"seconds {words}:")
        for name, times in (("the demo", demo), ("imports", imports), ("bare steps", steps)):
            print(f"  {name:10} {statistics.median(times):6.2f} ({min(times):.2f} to {max(times):.2f})")
        whole = statistics.median(d / (i + s) for d, i, s in zip(demo, imports, steps, strict=True))
        own = statistics.median((d - i) / s for d, i, s in zip(demo, imports, steps, strict=True))
        print(f"  the demo takes {whole:.2f} x imports and bare steps; without the imports {own:.2f} x the bare steps")


def measured(steps: int) -> list[tuple[float, float]]:
    """Seconds on the clock and of the processor: the demo, the imports, the bare steps."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "sheet.png"
        begin, worked = time.perf_counter(), os.times()
        subprocess.run(command("-m", "controlnet_ext.cli", "demo", "--steps", str(steps), "-o", str(out)), check=True)
        after = os.times()
        processor = after.children_user + after.children_system - worked.children_user - worked.children_system
        demo = time.perf_counter() - begin, processor
    bare = subprocess.run(
        command("-c", BARE, str(EMBEDDED_FOLDER / "unet"), str(steps)), check=True, stdout=subprocess.PIPE
    )
    return [demo, *json.loads(bare.stdout)]


def command(*words: str) -> list[str]:
    return [sys.executable, "-W", "ignore", *words]


if __name__ == "__main__":
    main()
