"""What CONTRIBUTING.md adds really works: its files are written into a copy of the package, and its commands run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from docs_pages import ROOT, Block, read_blocks

PAGE = ROOT / "CONTRIBUTING.md"
FOLDERS = ("controlnet_ext", "preprocessors", "annotators", "examples")


def section(title: str) -> list[Block]:
    """The blocks below a heading of CONTRIBUTING.md, up to the next one."""
    text = PAGE.read_text(encoding="utf-8")
    begins = text[: text.index(f"\n## {title}\n")].count("\n") + 2
    following = re.search(r"\n## ", text[text.index(f"\n## {title}\n") + 4 :])
    ends = begins + text[text.index(f"\n## {title}\n") + 4 :][: following.start()].count("\n") if following else 10**9
    return [block for block in read_blocks(PAGE) if begins <= block.line <= ends]


@pytest.mark.parametrize("title", ["A preprocessor", "A kind of control model", "A host", "A route"])
def test_what_contributing_adds_works(title: str, tmp_path: Path, warm_python: str) -> None:
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder)  # compiled files too, which spare a second
    shim = tmp_path / "bin"
    shim.mkdir()
    for name, words in {"controlnet-ext": "-m controlnet_ext.cli ", "python3": ""}.items():
        (shim / name).write_text(f'#!/bin/sh\nexec "{warm_python}" {words}"$@"\n')
        (shim / name).chmod(0o755)
    path = f"{shim}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    commands = 0
    for block in section(title):
        if block.language == "diff":
            apply = ["git", "apply", "-"]
            done = subprocess.run(apply, input=block.text, text=True, cwd=tmp_path, capture_output=True)
            assert done.returncode == 0, f"{done.stderr}: the code has moved; write the change anew"
        elif block.title.endswith(".py"):
            assert not (tmp_path / block.title).exists(), f"{block.title} is there already"
            (tmp_path / block.title).write_text(block.text)
        elif block.language == "sh" and not block.title:
            done = subprocess.run(
                ["bash", "-e", "-o", "pipefail", "-c", block.text],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr[-2000:]
            commands += 1
    assert commands
