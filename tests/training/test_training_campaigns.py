"""Campaigns with whole trainings: kills at random moments, and two processes of `accelerate launch`."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from limits import wait_until
from networks import randomised

from controlnet_ext import cli
from controlnet_ext.cli.commands import train  # noqa: F401  forked processes have it then, and what it imports
from controlnet_ext.training import job  # noqa: F401

pytestmark = [pytest.mark.long, pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")]
ROOT = Path(cli.__file__).parents[2]
KILLS = 50
FLAGS = "--map canny,low=50 --rate 3e-3 --validation 0.3 --draws 8 --fidelity-images 0"
LAUNCH = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a narrow Stable Diffusion with random weights and six photos with captions."""
    folder = tmp_path_factory.mktemp("shelf")
    shape = {**tiny.SHAPES["SD1.5"], "block_out_channels": (32,) * 4, "layers_per_block": 1}
    unet = randomised(UNet2DConditionModel(sample_size=tiny.SIZE // 8, **shape), seed=1)
    tiny.pipeline(StableDiffusionPipeline, unet=unet).save_pretrained(folder / "sd")
    (folder / "photos").mkdir()
    for i in range(6):
        tiny.random_image(seed=i, size=96).save(folder / f"photos/{i}.png")
        (folder / f"photos/{i}.txt").write_text(f"image {'abcdef'[i]}")
    return folder


def words(out: str, more: str) -> list[str]:
    return f"train --model ../sd --data ../photos {FLAGS} {more} -o {out}".split()


def start(folder: Path, arguments: list[str]) -> int:
    """Fork a process that runs the command in a folder, and return its number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            os.chdir(folder)
            sys.stderr = open("stderr.txt", "a")  # noqa: SIM115
            code = cli.main(arguments)
        finally:
            os._exit(code)
    return child


def has_ended(child: int) -> bool:
    return os.waitpid(child, os.WNOHANG)[0] == child


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def read_results(folder: Path) -> dict[str, bytes]:
    """All that a training leaves behind but its report: the network, its checkpoint, its log, its best weights."""
    files = [folder / "out.safetensors", *sorted((folder / "out.safetensors.training").iterdir())]
    return {path.name: path.read_bytes() for path in files if path.suffix in (".safetensors", ".jsonl")}


def test_fifty_trainings_killed_at_random_moments_go_on_to_the_same_curve(shelf: Path) -> None:
    arguments = words("out.safetensors", "--steps 12 --every 2 --batch 2")
    (shelf / "whole").mkdir()
    began = time.monotonic()
    assert wait(start(shelf / "whole", arguments)) == 0
    length, whole = time.monotonic() - began, read_results(shelf / "whole")
    assert len(whole["log.jsonl"].splitlines()) == 6
    rng, killed, steps = random.Random(7), 0, []
    for i in range(KILLS):
        folder = shelf / f"killed_{i}"
        folder.mkdir()
        while True:  # until a kill comes before the end
            child, end = start(folder, arguments), time.monotonic() + rng.uniform(0, length)
            while time.monotonic() < end and not (ended := has_ended(child)):
                time.sleep(0.001)
            if not ended:
                os.kill(child, signal.SIGKILL)
                killed += wait(child) == -signal.SIGKILL
                break
            (folder / "out.safetensors").unlink()
        log = folder / "out.safetensors.training/log.jsonl"
        steps.append(len(log.read_bytes().splitlines()) if log.exists() else 0)
        assert wait(start(folder, arguments)) == 0, (folder / "stderr.txt").read_text()
        assert read_results(folder) == whole, f"killed after {steps[-1]} rows"
    print(f"{killed} of {KILLS} killed, after rows: {sorted(steps)}")
    assert killed == KILLS


def launch(folder: Path, more: str) -> subprocess.Popen[str]:
    """Start two processes with `accelerate launch`."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH.split(), "-m", "controlnet_ext.cli"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *words("out.safetensors", more)], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )


def read_rows(folder: Path) -> list[dict[str, float]]:
    log = folder / "out.safetensors.training/log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_two_launched_processes_have_the_curve_of_one_with_the_doubled_batch(shelf: Path) -> None:
    flags = "--steps 8 --every 1 --precision fp32"
    for name in ("one", "two"):
        (shelf / name).mkdir()
    assert wait(start(shelf / "one", words("out.safetensors", f"{flags} --batch 4"))) == 0
    process = launch(shelf / "two", f"{flags} --batch 2")
    assert process.communicate()[1].count("step 8 ") == 1 and process.returncode == 0  # one process prints
    one, two = read_rows(shelf / "one"), read_rows(shelf / "two")
    for a, b in zip(one, two, strict=True):
        print(f"step {a['step']}", *(f"{name} {a[name]:.7f} {b[name]:.7f}" for name in ("loss", "held_out")))
        assert b == pytest.approx(a, rel=1e-5, abs=1e-5)  # float32, summed in another order
    assert (shelf / "two/out.safetensors").exists()


def test_ctrl_c_stops_both_processes_at_a_checkpoint_from_which_they_go_on(shelf: Path, sigint: None) -> None:
    (shelf / "stopped").mkdir()
    flags = "--steps 3000 --every 2 --precision fp32 --batch 2"
    process = launch(shelf / "stopped", flags)
    wait_until(lambda: len(read_rows(shelf / "stopped")) >= 2, process)
    process.send_signal(signal.SIGINT)  # the launcher passes it on
    said = process.communicate()[1]
    rows = read_rows(shelf / "stopped")
    assert (
        process.returncode != 0
        and "controlnet-ext: interrupted" in said
        and not (shelf / "stopped/out.safetensors").exists()
    )
    assert (shelf / "stopped/out.safetensors.training/checkpoint.safetensors").exists()
    again = launch(shelf / "stopped", flags)
    wait_until(lambda: len(read_rows(shelf / "stopped")) > len(rows), again)
    again.send_signal(signal.SIGINT)
    again.communicate()
    assert read_rows(shelf / "stopped")[: len(rows)] == rows
