"""List the preprocessors, one line each.

Columns: name; aliases in stable-diffusion-webui; map kind; words in the names of control models that read such maps;
weights, their size (without configuration files of some kilobytes; "about" is to three digits, as the Hub lists it) and
license; whether their sha256 is pinned in this package (otherwise the Hub states it at the download); parameters with
range and default.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from typing import Any

from ...files.hub import WeightsFile
from ...maps.control_map import MODEL_NAME_WORDS
from ...preprocessors.parameters import Parameter
from ...preprocessors.registry import RESOLUTION_PARAMETER, Preprocessor, list_preprocessors
from ..generation_options import add_load_option

COLUMNS = ("name", "alias", "map", "feeds", "weights", "size", "licence", "hash", "parameters")


def arguments(parser: ArgumentParser, argv: list[str]) -> None:
    """Declare the flags."""
    add_load_option(parser, argv)
    parser.add_argument(
        "--json", action="store_true", help="print JSON objects, with the repository, path and hash of each file too"
    )


def run(options: Namespace) -> int:
    """Print the table, or the JSON."""
    if options.json:
        print(json.dumps([describe_spec(entry) for entry in list_preprocessors()], indent=1))
        return 0
    rows = [COLUMNS, *(_format_row(entry) for entry in list_preprocessors())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(
        f"\nEach takes resolution {RESOLUTION_PARAMETER.range} too: the short side in pixels, by default "
        "that of the image."
    )
    return 0


def describe_spec(spec: Preprocessor) -> dict[str, Any]:
    """Return the description of a preprocessor in JSON types."""
    return {
        "name": spec.name,
        "aliases": _list_aliases(spec),
        "makes": spec.makes,
        "feeds": list(MODEL_NAME_WORDS[spec.makes]),
        "masked": spec.needs_mask,
        "parameters": [_describe_parameter(parameter) for parameter in (*spec.parameters, RESOLUTION_PARAMETER)],
        "weights": [_describe_file(file) for file in spec.weights],
    }


def _list_aliases(spec: Preprocessor) -> list[str]:
    return [name for name in (spec.label, *spec.aliases) if name != spec.name]


def _describe_parameter(parameter: Parameter) -> dict[str, Any]:
    span = {"least": parameter.range.low, "most": parameter.range.high} if parameter.range else {}
    return {"name": parameter.name, "type": parameter.type.__name__, "default": parameter.default, **span}


def _describe_file(file: WeightsFile) -> dict[str, Any]:
    where = {"url": file.url} if file.url else {"repo": file.repo, "path": file.path}
    stated = {"size": file.size, "about": file.approx_size, "sha256": file.sha256, "source": file.source or None}
    commercial = "non-commercial" not in file.license
    return {**where, "licence": file.license, "non_commercial": not commercial, **stated}


def _format_row(spec: Preprocessor) -> tuple[str, ...]:
    files = spec.weights
    return (
        spec.name,
        ", ".join(_list_aliases(spec)),
        spec.makes,
        " ".join(MODEL_NAME_WORDS[spec.makes]),
        " + ".join(_deduplicate(file.group for file in files)),
        _format_size(files),
        "; ".join(_deduplicate(file.license for file in files)),
        _format_hash(files),
        ", ".join(map(_format_parameter, spec.parameters)),
    )


def _deduplicate(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _format_size(files: tuple[WeightsFile, ...]) -> str:
    weights = [file for file in files if not file.path.endswith(".json")]
    known = [size for file in weights if (size := file.size or file.approx_size)]
    if not known:
        return "not stated" if weights else ""
    rounded = any(file.size is None and file.approx_size for file in weights)
    words = ("over " if len(known) < len(weights) else "") + ("about " if rounded else "")
    megabytes = sum(known) / 1e6
    if not rounded:
        return f"{words}{megabytes:.1f} MB"
    return f"{words}{megabytes:.3g} MB" if megabytes < 999.5 else f"{words}{megabytes / 1000:.3g} GB"


def _format_hash(files: tuple[WeightsFile, ...]) -> str:
    pinned = sum(file.sha256 is not None for file in files)
    if pinned in (0, len(files)):
        return "" if not files else "pinned" if pinned else "not pinned"
    return f"{pinned} of {len(files)} pinned"


def _format_parameter(parameter: Parameter) -> str:
    span = f" {parameter.range}" if parameter.range else ""
    return f"{parameter.name}{span} ({str(parameter.default).lower()})"
