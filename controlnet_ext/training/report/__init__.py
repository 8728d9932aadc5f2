"""The report of a training: curves, images, and a verdict, as a page and as an image, from its work folder alone."""

from __future__ import annotations

from pathlib import Path


def write_report(work_folder: Path) -> None:
    """Write report.html and report.png into the work folder, each complete or not at all."""
