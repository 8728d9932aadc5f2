"""Curves of a training as an SVG, and a sentence on whether it over- or underfits.

python -m benchmarks.embedded.training runs/base/log.jsonl docs/evidence/embedded_base.svg --title "The base"
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from controlnet_ext.files.disk import write_atomically
from controlnet_ext.training.verdict import SIGNIFICANT_CHANGE, describe_fit

from .chart import chart

Rows = Sequence[dict[str, float]]
WORDS = {
    "loss": "steps' own loss",
    "training": "training",
    "held_out": "held out",
    "training_unguided": "unguided",
    "held_out_unguided": "held out, unguided",
}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("svg", type=Path)
    parser.add_argument("--title", default="Training")
    options = parser.parse_args(words)
    rows = read(options.log)
    lines = {name: [(row["step"], row[key]) for row in rows] for key, name in WORDS.items() if key in rows[-1]}
    svg = chart(options.title, "steps", "loss (logarithmic)", lines, log=True)
    write_atomically(options.svg, svg.encode(), overwrite=True)
    print(describe_fit(rows) if "training_unguided" in rows[-1] else fitting(rows))


def read(log: Path) -> Rows:
    """The rows of a log.jsonl by step; of a step that was measured again, the last."""
    rows = {row["step"]: row for row in map(json.loads, log.read_text().splitlines())}
    if not rows:
        raise ValueError(f"{str(log)!r} holds no rows yet")
    return [rows[step] for step in sorted(rows)]


def fitting(rows: Rows) -> str:
    """The sentence for a base, whose rows have the steps' own `loss`, on training scenes, and `held_out` of the
    averaged weights. The two are not of the same noise; those that are come from the group `losses`."""
    last, lowest = rows[-1], min(rows, key=lambda row: row["held_out"])
    earlier = next(row for row in rows if row["step"] >= 0.75 * last["step"])
    figures = f"held-out loss {last['held_out']:.4g}, steps' own loss {last['loss']:.4g}"
    if last["held_out"] > (1 + SIGNIFICANT_CHANGE) * lowest["held_out"]:
        where = f"was lowest, {lowest['held_out']:.4g}, after {lowest['step']:.0f} steps"
        return f"overfits: the held-out loss {where}; {figures}"
    if last["held_out"] < (1 - SIGNIFICANT_CHANGE) * earlier["held_out"]:
        return f"underfits: the held-out loss fell from {earlier['held_out']:.4g} in the last quarter; {figures}"
    return f"fits: neither over- nor underfits; {figures}"


if __name__ == "__main__":
    main()
