"""The documentation holds together: short guides, links that resolve, blocks whose commands, flags and names exist."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from controlnet_ext.preprocessors.registry import find
from docs_pages import GENERATED, ROOT, Block, iter_commands, iter_links, list_anchors, list_pages, read_blocks

from controlnet_ext import cli

PAGES = list_pages()
GUIDES = [page for page in PAGES if page.parent.name == "guides"]
RUN = [ROOT / "README.md", ROOT / "docs" / "quickstart.md", *GUIDES]  # pages whose untitled blocks run offline
MEASURED = re.compile(r"\d (?:ms|s|seconds|milliseconds|MiB|GiB|MB|GB|%)(?:\W|$)")


def relative(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_there_are_pages_of_each_sort() -> None:
    names = {relative(page) for page in PAGES}
    assert {"docs/index.md", "docs/quickstart.md", "docs/concepts.md", "docs/evidence/index.md"} <= names
    assert len(GUIDES) >= 10


@pytest.mark.parametrize("page", GUIDES, ids=relative)
def test_guides_are_short_and_hold_no_measurement(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(text.split()) < 600
    assert [line for line in text.splitlines() if MEASURED.search(line)] == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_internal_links_resolve(page: Path) -> None:
    broken = []
    for link in iter_links(page):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        known = target.exists() or (target.is_relative_to(ROOT) and relative(target) in GENERATED)
        source = ROOT / target.name.upper().replace(".MD", ".md") if relative(target) in GENERATED else target
        if not known or (anchor and source.is_file() and anchor not in list_anchors(source)):
            broken.append(link)
    assert broken == []


def test_every_file_of_the_evidence_is_linked() -> None:
    linked = {(page.parent / link.partition("#")[0]).resolve() for page in PAGES for link in iter_links(page)}
    assert {path for path in (ROOT / "docs" / "evidence").iterdir() if path not in linked} == set()


def python_blocks() -> list[tuple[Path, Block]]:
    return [(page, block) for page in PAGES for block in read_blocks(page, "python")]


@pytest.mark.parametrize(("page", "block"), python_blocks(), ids=lambda x: x.name if isinstance(x, Path) else x.line)
def test_python_blocks_are_python_and_import_names_that_exist(page: Path, block: Block) -> None:
    own = block.title.endswith(".py")  # a new file of CONTRIBUTING.md, which test_contributing.py runs
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and not own:
            name = node.module or ""
            if name.split(".")[0] == "controlnet_ext":
                module = importlib.import_module(name)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def shell_blocks() -> list[tuple[Path, Block]]:
    return [(page, block) for page in PAGES for block in read_blocks(page, "sh")]


@pytest.mark.parametrize(("page", "block"), shell_blocks(), ids=lambda x: x.name if isinstance(x, Path) else x.line)
def test_shell_blocks_are_shell_and_use_flags_that_exist(page: Path, block: Block) -> None:
    checked = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    for command in iter_commands(block.text):
        _, name, *words = shlex.split(command)
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert sorted(flags - flags_of(name, words)) == [], command


def flags_of(name: str, words: list[str]) -> set[str]:
    """The flags in the help of a command, with those of the preprocessors that it names."""
    named = name == "preprocess" and words[:1] and not words[0].startswith("-")
    known = set(re.findall(r"--[\w.+-]+", help_of(name, words[0] if named else "")))
    return known | {"--help", "--version"} | ({"--level"} if "two_tone" in words else set())


@functools.cache
def help_of(name: str, preprocessors: str = "") -> str:
    """The help of a command; "" for a preprocessor that CONTRIBUTING.md adds."""
    if preprocessors:
        with contextlib.suppress(ValueError):
            return help_of(name) + printed(name, *find_all(preprocessors), "--help")
    return "" if name.startswith("-") else printed(name, "--help")


def find_all(names: str) -> list[str]:
    """The names as one word. Raises ValueError if a preprocessor is unknown."""
    for name in names.split(","):
        find(name)
    return [names]


def printed(*words: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        assert cli.main(list(words)) == 0
    return out.getvalue()


def test_ci_finds_the_readmes_test_command() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert 'pip install ".[test]" && pytest -q' in lines
    assert re.search(r"grep .*README\.md", (ROOT / ".ci" / "run").read_text())


DRIVER = """
import json, os, re, subprocess, sys

names, variables = {"__name__": "__main__"}, ""
for language, text in json.load(sys.stdin):
    if language == "python":
        exec(compile(text, "<block>", "exec"), names)
    else:
        subprocess.run(["bash", "-e", "-c", variables + text], check=True)
        variables += "".join(f"{line}\\n" for line in text.splitlines() if re.match(r"[A-Z]+=", line))
"""


@pytest.mark.long
@pytest.mark.parametrize("page", RUN, ids=relative)
def test_blocks_without_a_title_run_as_they_stand(page: Path, tmp_path: Path) -> None:
    """In a folder with examples/, offline; `pip` and `pytest` do nothing here."""
    import json

    bin_folder, work = tmp_path / "bin", tmp_path / "work"
    bin_folder.mkdir()
    for name, line in {
        "controlnet-ext": f'exec "{sys.executable}" -m controlnet_ext.cli "$@"',
        "python3": f'exec "{sys.executable}" "$@"',
        "pip": "exit 0",
        "pytest": "exit 0",
    }.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (bin_folder / name).chmod(0o755)
    (work / "examples").mkdir(parents=True)
    (work / "examples" / "coffee.jpg").write_bytes((ROOT / "examples" / "coffee.jpg").read_bytes())
    subprocess.run(["git", "init", "--quiet", str(work)], check=True)
    blocks = [(b.language, b.text) for b in read_blocks(page, "sh", "python") if not b.title]
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(blocks),
        text=True,
        cwd=work,
        env=environment,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
