"""`controlnet-ext demo` beside what it cannot do without: the imports, and the UNet's own steps.

    python benchmarks/demo.py [--steps 20] [--rounds 3]

Both are whole processes and take turns. The second imports what any diffusers pipeline imports, loads the embedded UNet
and calls it once a step on as many rows as the demo: of each prompt four, with and without a map, with and without the
prompt; once for each map. One call before is its warm-up. Seconds of the processor too, which other work on the machine
does not add to.
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

from controlnet_ext.cli.commands.demo import PROMPTS
from controlnet_ext.embedded import EMBEDDED_FOLDER, EMBEDDED_NAME, list_controls, read_demo_choices

ROWS_OF_A_PROMPT = 4
BARE = """
import json, sys, time
clocks = lambda: (time.perf_counter(), time.process_time())
start = clocks()
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel
imported = clocks()
unet = UNet2DConditionModel.from_pretrained(sys.argv[1])
side, width = unet.config.sample_size, unet.config.cross_attention_dim
batches = [(torch.randn(int(n), 4, side, side), torch.randn(int(n), 77, width)) for n in sys.argv[3:]]
with torch.no_grad():
    for x, words in batches:
        unet(x, 500, words)
    loaded = clocks()
    for _ in range(int(sys.argv[2])):
        for x, words in batches:
            unet(x, 500, words)
done = clocks()
print(json.dumps([[b - a for a, b in zip(*pair)] for pair in ((start, imported), (loaded, done))]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {torch.get_num_threads()} threads")
    print(f"{options.steps} steps on {count_rows()} rows, fp32; median (least to most) of {options.rounds}")
    rounds = [measure_runs(options.steps) for _ in range(options.rounds)]
    for k, words in enumerate(("on the clock", "of the processor")):
        demo, imports, steps = ([one[part][k] for one in rounds] for part in range(3))
        print(f"seconds {words}:")
        for name, times in (("the demo", demo), ("imports", imports), ("bare steps", steps)):
            print(f"  {name:10} {statistics.median(times):6.2f} ({min(times):.2f} to {max(times):.2f})")
        whole = statistics.median(d / (i + s) for d, i, s in zip(demo, imports, steps, strict=True))
        own = statistics.median((d - i) / s for d, i, s in zip(demo, imports, steps, strict=True))
        print(f"  the demo takes {whole:.2f} x imports and bare steps; without the imports {own:.2f} x the bare steps")


def count_rows() -> list[int]:
    """Rows of the UNet's batches in the demo, one batch for each map."""
    choices = read_demo_choices(EMBEDDED_FOLDER)
    prompts = [choices.get("edges", PROMPTS)]
    if "depth" in list_controls(EMBEDDED_NAME):
        prompts.append(choices.get("depth", ()))
    return [ROWS_OF_A_PROMPT * len(some) for some in prompts if some]


def measure_runs(steps: int) -> list[tuple[float, float]]:
    """Seconds on the clock and of the processor: the demo, the imports, the bare steps."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "sheet.png"
        begin, times_before = time.perf_counter(), os.times()
        subprocess.run(command("-m", "controlnet_ext.cli", "demo", "--steps", str(steps), "-o", str(out)), check=True)
        after = os.times()
        processor = (
            after.children_user + after.children_system - times_before.children_user - times_before.children_system
        )
        demo = time.perf_counter() - begin, processor
    bare = subprocess.run(
        command("-c", BARE, str(EMBEDDED_FOLDER / "unet"), str(steps), *map(str, count_rows())),
        check=True,
        stdout=subprocess.PIPE,
    )
    return [demo, *json.loads(bare.stdout)]


def command(*words: str) -> list[str]:
    return [sys.executable, "-W", "ignore", *words]


if __name__ == "__main__":
    main()
