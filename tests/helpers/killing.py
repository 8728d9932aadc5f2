"""Commands as processes that are killed."""

import builtins
import io
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from controlnet_ext import cli
from controlnet_ext.batch.results import list_record_files

ROOT = Path(cli.__file__).parents[2]


def contents(path):
    """Every file in a folder, hidden ones too, with its bytes; without the records of results, which hold times."""
    files = (p for p in Path(path).rglob("*") if p.is_file() and p not in list_record_files(p.parent))
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


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


class Killed(BaseException):
    """The end of a process that is killed, as far as this process can play it."""


@contextmanager
def killed_at(count, monkeypatch):
    """Raise `Killed` at the operation on files with this number, from 0, and at every later one: a process that is
    killed tidies nothing up. Operations are those that change a folder or a file; writes in a row are one.

    Gives the list of what was done, which is complete when no kill came. Nothing is flushed to the disk."""
    done = []

    def perform(name, function, *given, **options):
        if not (done[-1:] == [name] == ["write"] and len(done) <= count):
            if len(done) >= count:
                raise Killed
            done.append(name)
        return function(*given, **options)

    def dying(name, function, is_change=lambda *given: True):
        def call(*given, **options):
            return perform(name, function, *given, **options) if is_change(*given) else function(*given, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("write", "link", "replace", "unlink", "mkdir", "rmdir", "truncate", "ftruncate"):
            patch.setattr(os, name, dying(name, getattr(os, name)))
        patch.setattr(os, "fsync", dying("fsync", lambda descriptor: None))
        patch.setattr(os, "open", dying("os.open", os.open, lambda path, flags, *_: flags & (os.O_WRONLY | os.O_RDWR)))
        for module in (builtins, io):
            patch.setattr(module, "open", dying("open", open, lambda path, mode="r", *_: mode not in ("r", "rb")))
        yield done


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
