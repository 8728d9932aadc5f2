"""Commands as processes that are killed."""

import os
import subprocess
import sys
from pathlib import Path

from controlnet_ext import cli

ROOT = Path(cli.__file__).parents[1]


def contents(path):
    """Every file in a folder, hidden ones too, with its bytes."""
    return {str(p.relative_to(path)): p.read_bytes() for p in Path(path).rglob("*") if p.is_file()}


def command(words):
    """`controlnet-ext preprocess` with these words, begun."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-m", "controlnet_ext.cli", "preprocess", *words.split()]
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)


def killed(words, seconds):
    """Whether the command was killed after so many seconds, or had come to its end."""
    process = command(words)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()
    return process.returncode < 0
