"""Markdown pages of the repository: their fenced blocks, links and headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GENERATED = {  # by docs/hooks.py
    "docs/reference/command.md",
    "docs/reference/preprocessors.md",
    "docs/reference/http-schema.md",
    "docs/contributing.md",
    "docs/changelog.md",
}
FENCE = re.compile(r'^```(?P<language>\w*)(?: title="(?P<title>[^"]*)")?[^\n]*\n(?P<text>.*?)^```$', re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its title ("" without), its text, and the line at which it begins."""

    language: str
    title: str
    text: str
    line: int


def list_pages() -> list[Path]:
    """All pages that people read."""
    tops = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")]
    return [*tops, *sorted((ROOT / "docs").rglob("*.md"))]


def read_blocks(page: Path, *languages: str) -> list[Block]:
    """The page's fenced blocks in these languages, or in all."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(match["language"], match["title"] or "", match["text"], text.count("\n", 0, match.start()) + 1)
        for match in FENCE.finditer(text)
    ]
    return [block for block in found if not languages or block.language in languages]


def iter_links(page: Path) -> Iterator[str]:
    """Targets of the page's links and images, outside of code."""
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


def list_anchors(page: Path) -> set[str]:
    """The ids that headings have in the built page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    plain = (re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower() for heading in headings)
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


def iter_commands(text: str) -> Iterator[str]:
    """The `controlnet-ext` command lines of a shell block, continued lines joined."""
    for line in text.replace("\\\n", " ").splitlines():
        start = re.search(r"(?:^|&& |\| )(controlnet-ext .*)", line.split("  #")[0])
        if start:
            yield re.split(r" (?:\||&&|&)(?: |$)", start[1])[0]
