"""Describe files of control weights without running anything in them.

The description names architecture, family, layout, dtype, number of parameters, sha256 and the map kind that the model
reads, where metadata or a published hash state it, else "map: unknown". Other files are named for what they are.

Exit code 0: all were read; 1: one is a control model that does not load, with the reason; 2: one cannot be read.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import Any

from ...errors import escape_unprintable


def arguments(parser: ArgumentParser, argv: list[str]) -> None:
    """Declare the flags."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="file, folder, or owner/name in the local Hugging Face cache"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def run(options: Namespace) -> int:
    """Print one description after the other."""
    from ...models.inspection import inspect

    has_problem = False
    for i, name in enumerate(options.files):
        description = asdict(inspect(name))
        if options.json:
            print(json.dumps(description))
        else:
            print("\n" * bool(i) + "\n".join(_format_lines(description)))
        has_problem |= description["problem"] is not None
    return int(has_problem)


def _format_lines(summary: dict[str, Any]) -> list[str]:
    source, details = summary.pop("map_source"), summary.pop("details")
    if summary["what"]:
        del summary["map"]
    elif source:
        summary["map"] += f" (from {source})"
    if summary["files"] == 1:
        del summary["files"]
    if summary["prefix"]:
        summary["prefix"] += " (of all names of tensors; left out)"
    rows = {**{name: value for name, value in summary.items() if value is not None}, **details}
    rows["file"] = repr(rows["file"])
    for name in ("bytes", "parameters"):
        rows[name] = f"{rows[name]:,}"
    return [escape_unprintable(f"{name}: {value}") for name, value in rows.items()]
