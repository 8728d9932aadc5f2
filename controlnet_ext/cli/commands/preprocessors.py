"""List the preprocessors, one line each: all, or those that match a word.

On a terminal that is too narrow for all columns the first ones to go are hash, feeds, weights, alias and licence.
Columns: name; aliases in stable-diffusion-webui; map kind; words in the names of control models that read such maps;
weights, their size (without configuration files of some kilobytes; "about" is to three digits, as the Hub lists it) and
license; whether their sha256 is pinned in this package (otherwise the Hub states it at the download); parameters with
range and default.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from typing import Any

from ...errors import suggest_names
from ...files.disk import check_stdout
from ...files.hub import WeightsFile
from ...maps.control_map import MODEL_NAME_WORDS
from ...maps.fidelity import Measure, NoMeasure
from ...preprocessors.parameters import Parameter
from ...preprocessors.registry import RESOLUTION_PARAMETER, Preprocessor, list_preprocessors
from ..common import add_load_option

COLUMNS = ("name", "alias", "map", "feeds", "weights", "size", "licence", "hash", "parameters")
LEAST_NEEDED = ("hash", "feeds", "weights", "alias", "licence", "size")  # the first to be left out first
MIN_LAST_WIDTH = 28  # columns of the parameters, which are wrapped


def arguments(parser: ArgumentParser, argv: list[str]) -> None:
    """Declare the flags."""
    add_load_option(parser, argv)
    parser.add_argument(
        "words",
        metavar="WORD",
        nargs="*",
        help="list those alone whose name, alias, map or feeds holds every WORD, such as depth",
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON objects, with the repository, path and hash of each file too"
    )


def run(options: Namespace) -> int:
    """Print the table, or the JSON. Raises ValueError where no preprocessor matches."""
    check_stdout()
    specs = [spec for spec in list_preprocessors() if _matches(spec, options.words)]
    if not specs:
        words = " ".join(options.words)
        raise ValueError(
            suggest_names(f"no preprocessor matches {words!r:.80}", words, map(_get_name, list_preprocessors()))
        )
    if options.json:
        print(json.dumps([describe_spec(entry) for entry in specs], indent=1))
        return 0
    width = _get_terminal_width()
    print("\n".join(_format_table([COLUMNS, *map(_format_row, specs)], width)))
    bounds = RESOLUTION_PARAMETER.range
    words = f"Each takes resolution {bounds} too: the short side in pixels, by default that of the image."
    print("", *textwrap.wrap(words, width or len(words)), sep="\n")
    return 0


def _get_name(spec: Preprocessor) -> str:
    return spec.name


def _matches(spec: Preprocessor, words: Iterable[str]) -> bool:
    """Return True if each word is part of a name, of the map kind, or of the words of control models."""
    text = " ".join((spec.name, *_list_aliases(spec), spec.makes, *MODEL_NAME_WORDS[spec.makes])).casefold()
    return all(word.casefold() in text for word in words)


def _get_terminal_width() -> int | None:
    """Return the columns of the terminal, or of the variable COLUMNS; None where stdout goes elsewhere."""
    if not (os.environ.get("COLUMNS", "").isdecimal() or sys.stdout.isatty()):
        return None
    return shutil.get_terminal_size().columns


def _format_table(rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Return the lines of a table, its first row the heads, in at most `width` columns where that is possible.

    Columns are left out as the list `LEAST_NEEDED` has them; then the last one, the parameters, is wrapped.
    """
    widths = {name: max(map(len, column)) for name, column in zip(COLUMNS, zip(*rows, strict=True), strict=True)}
    columns = list(COLUMNS)
    *_, last = COLUMNS
    narrow = min(widths[last], MIN_LAST_WIDTH)
    for name in LEAST_NEEDED:
        if width is None or sum(widths[each] + 2 for each in columns if each != last) + narrow <= width:
            break
        columns.remove(name)
    before = sum(widths[name] + 2 for name in columns if name != last)
    room = None if width is None else max(width - before, narrow)
    lines = []
    for row in rows:
        cells = dict(zip(COLUMNS, row, strict=True))
        parts = [cells[last]] if room is None else textwrap.wrap(cells[last], room) or [""]
        lines.append("".join(cells[name].ljust(widths[name] + 2) for name in columns if name != last) + parts[0])
        lines += [" " * before + part for part in parts[1:]]
    if len(columns) < len(COLUMNS):
        missing = ", ".join(name for name in COLUMNS if name not in columns)
        lines += [
            "",
            *textwrap.wrap(f"Not shown, for want of room: {missing} (--json, or a wider terminal).", width or 80),
        ]
    return [line.rstrip() for line in lines]


def describe_spec(spec: Preprocessor) -> dict[str, Any]:
    """Return the description of a preprocessor in JSON types."""
    return {
        "name": spec.name,
        "aliases": _list_aliases(spec),
        "makes": spec.makes,
        "feeds": list(MODEL_NAME_WORDS[spec.makes]),
        "masked": spec.needs_mask,
        "fidelity": _describe_fidelity(spec.fidelity),
        "parameters": [_describe_parameter(parameter) for parameter in (*spec.parameters, RESOLUTION_PARAMETER)],
        "weights": [_describe_file(file) for file in spec.weights],
    }


def _describe_fidelity(fidelity: Measure | NoMeasure) -> dict[str, Any]:
    if isinstance(fidelity, NoMeasure):
        return {"measure": None, "reason": fidelity.reason}
    return {
        "measure": fidelity.name,
        "score": fidelity.score,
        "is_better_higher": fidelity.is_better_higher,
        "perfect": fidelity.perfect,
        "unit": fidelity.unit,
        "figures": dict(fidelity.figures),
        "source": fidelity.source,
    }


def _list_aliases(spec: Preprocessor) -> list[str]:
    return [name for name in (spec.label, *spec.aliases) if name != spec.name]


def _describe_parameter(parameter: Parameter) -> dict[str, Any]:
    span = {"least": parameter.range.low, "most": parameter.range.high} if parameter.range else {}
    return {"name": parameter.name, "type": parameter.type.__name__, "default": parameter.default, **span}


def _describe_file(file: WeightsFile) -> dict[str, Any]:
    where = {"url": file.url} if file.url else {"repo": file.repo, "path": file.path}
    facts = {"size": file.size, "about": file.approx_size, "sha256": file.sha256, "source": file.source or None}
    commercial = "non-commercial" not in file.license
    return {**where, "licence": file.license, "non_commercial": not commercial, **facts}


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
    sizes = [size for file in weights if (size := file.size or file.approx_size)]
    if not sizes:
        return "not stated" if weights else ""
    is_approximate = any(file.size is None and file.approx_size for file in weights)
    words = ("over " if len(sizes) < len(weights) else "") + ("about " if is_approximate else "")
    megabytes = sum(sizes) / 1e6
    if not is_approximate:
        return f"{words}{megabytes:.1f} MB"
    return f"{words}{megabytes:.3g} MB" if megabytes < 999.5 else f"{words}{megabytes / 1000:.3g} GB"


def _format_hash(files: tuple[WeightsFile, ...]) -> str:
    hash_count = sum(file.sha256 is not None for file in files)
    if hash_count in (0, len(files)):
        return "" if not files else "pinned" if hash_count else "not pinned"
    return f"{hash_count} of {len(files)} pinned"


def _format_parameter(parameter: Parameter) -> str:
    span = f" {parameter.range}" if parameter.range else ""
    return f"{parameter.name}{span} ({str(parameter.default).lower()})"
