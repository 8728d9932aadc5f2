"""controlnet-ext inspect FILE... [--json]

Say what a file of control weights is, without running anything in it: architecture, family, layout, dtype, number of
parameters, sha256, and which kind of map it reads, where the file's metadata or its published hash tell, else
"map: unknown". FILE may be a folder or owner/name in the local Hugging Face cache. Of any other file it says what that
is.

    --json   one JSON object a line

Exit code 0: all were read; 1: one is a control model that does not load, with the reason; 2: one cannot be read.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import Any


def arguments(parser: ArgumentParser, argv: list[str]) -> None:
    """Declares what the docstring says."""
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--json", action="store_true")


def run(options: Namespace) -> int:
    """Prints one file after the other."""
    from ...models.inspection import inspect

    failed = False
    for i, name in enumerate(options.files):
        found = asdict(inspect(name))
        if options.json:
            print(json.dumps(found))
        else:
            print("\n" * bool(i) + "\n".join(_format_lines(found)))
        failed |= found["problem"] is not None
    return int(failed)


def _format_lines(summary: dict[str, Any]) -> list[str]:
    source, details = summary.pop("map_source"), summary.pop("details")
    if summary["what"]:
        del summary["map"]
    elif source:
        summary["map"] += f" (from {source})"
    rows = {**{name: value for name, value in summary.items() if value is not None}, **details}
    rows["file"] = repr(rows["file"])
    for name in ("bytes", "parameters"):
        rows[name] = f"{rows[name]:,}"
    return [f"{name}: {value}" for name, value in rows.items()]
