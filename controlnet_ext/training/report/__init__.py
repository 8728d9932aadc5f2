"""The report of a training: curves, images, and a verdict, as a page and as an image, from its work folder alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ...files.disk import write_atomically
from .contents import ReportContents
from .page import render_page

REPORT_PAGE, REPORT_IMAGE = "report.html", "report.png"


def write_report(work_folder: Path) -> list[Path]:
    """Write report.html, and where matplotlib is installed report.png, each complete or not at all; return their paths.

    Loads no network and no torch. Raises ValueError for a folder in which nothing was measured.
    """
    contents = ReportContents.read(work_folder)
    paths = [work_folder / REPORT_PAGE]
    write_atomically(paths[0], render_page(contents).encode(), overwrite=True)
    if importlib.util.find_spec("matplotlib") is not None:
        from .figure import render_figure

        paths.append(work_folder / REPORT_IMAGE)
        write_atomically(paths[1], render_figure(contents), overwrite=True)
    return paths
