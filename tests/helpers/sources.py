"""The project's files and their syntax trees, which the tests of the house share: to parse all takes half a second."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("annotators", "preprocessors", "controlnet_ext")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@functools.cache
def parse(path: Path) -> ast.Module:
    """The tree of a file, made once a process; leave it as it is."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def parse_all() -> dict[str, ast.Module]:
    """The tree of each file by its path in the repository."""
    return {path.relative_to(ROOT).as_posix(): parse(path) for path in FILES}
