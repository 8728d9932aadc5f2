"""controlnet-ext preprocessors

List the preprocessors: name, kind of map, words in the names of control models that read it, parameters with their
range and default, display name in webui, and the weights they load: file, size, licence, and whether its sha256 is
pinned here or is what the Hub says at the download.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from preprocessors.maps import FEEDS
from preprocessors.parameters import Parameter
from preprocessors.registry import RESOLUTION, registered


def arguments(parser: ArgumentParser, words: list[str]) -> None:
    """None."""


def run(options: Namespace) -> int:
    """Prints the table."""
    rows = [("name", "makes", "feeds", "parameters", "label", "weights")]
    for entry in registered():
        label = entry.label if entry.label != entry.name else ""
        parameters, weights = ", ".join(map(_words, entry.parameters)), ", ".join(map(str, entry.weights))
        rows.append((entry.name, entry.makes, " ".join(FEEDS[entry.makes]), parameters, label, weights))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\nEach takes resolution {RESOLUTION.range} too: the short side in pixels, by default the picture's own.")
    return 0


def _words(parameter: Parameter) -> str:
    span = f" {parameter.range}" if parameter.range else ""
    return f"{parameter.name}{span} ({str(parameter.default).lower()})"
