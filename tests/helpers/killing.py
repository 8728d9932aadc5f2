"""Commands as processes that are killed."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from controlnet_ext import cli

ROOT = Path(cli.__file__).parents[2]


def contents(path):
    """Every file in a folder, hidden ones too, with its bytes."""
    return {str(p.relative_to(path)): p.read_bytes() for p in Path(path).rglob("*") if p.is_file()}


def command(words):
    """`controlnet-ext preprocess` with these words, begun."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-m", "controlnet_ext.cli", "preprocess", *words.split()]
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)


def ended(words, seconds):
    """The exit code of the command, which is killed after so many seconds, and what it said."""
    process = command(words)
    try:
        said = process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        said = process.communicate()[1]
    return process.returncode, said


def killed_often(words, out, count, same):
    """Kills the command and runs it again until `count` kills came while files were being written in the folder `out`.
    Whenever it ends by itself its exit code must be 0 and `same()` hold; then what it made is removed. Gives the number
    of kills in all, and of jobs that came to their end."""
    moments, kills, hits, jobs = random.Random(0), 0, 0, 0
    began = time.monotonic()
    assert ended(f"{words} {out}", None)[0] == 0
    half = (time.monotonic() - began) / 2
    shutil.rmtree(out)
    while hits < count or Path(out).exists():
        before = _size(out)
        code, said = ended(f"{words} {out}", moments.uniform(0, half) if hits < count else None)
        if code < 0:
            kills, hits = kills + 1, hits + (_size(out) != before)
        else:
            assert code == 0 and same(), f"after {kills} kills: exit code {code}, {said}"
            jobs += 1
            shutil.rmtree(out)
    return kills, jobs


def _size(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob("*"))
