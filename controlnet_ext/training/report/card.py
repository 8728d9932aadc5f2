"""The model card of a trained network, as the Hugging Face Hub reads it: YAML between dashes, then Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..stopping import Row
from .contents import ReportContents

UNKNOWN_LICENSE = "unknown"
MAX_CURVE_ROWS, MAX_CURVE_BLOCKS = 12, 60  # measurements in the card's table, and in its curves
BLOCKS = "▁▂▃▄▅▆▇█"
CARD_COLUMNS = {
    "step": "step",
    "training": "training loss",
    "held_out": "held-out loss",
    "gain": "gain",
    "fidelity": "fidelity",
    "fidelity_share": "share",
}


def build_model_card(work_folder: Path) -> str:
    """Return the card of a training from its work folder. Raises ValueError where nothing was measured there."""
    return render_card(ReportContents.read(work_folder))


def render_card(contents: ReportContents) -> str:
    """Return the card: data, steps, license, curves, scores and the command."""
    facts, arguments, published_row = contents.facts, contents.arguments, contents.published
    target = str(arguments.get("target") or "controlnet")
    tags = ["diffusers", "stable-diffusion", target, "controlnet-ext", *([facts["kind"]] if "kind" in facts else [])]
    header = {
        "license": facts.get("license") or UNKNOWN_LICENSE,
        "base_model": facts.get("model"),
        "tags": list(dict.fromkeys(tags)),
        "inference": False,
    }
    lines = ["---"]
    lines += [f"{name}: {json.dumps(value)}" for name, value in header.items() if value is not None]  # JSON is YAML
    which = "last" if facts.get("publishes_last") else "best"
    lines += ["---", "", f"# {_escape(contents.name)}", ""]
    lines += [
        f"A {target} for maps made by `{arguments.get('map', 'unknown')}`, the {which} weights of its training.",
        "",
    ]
    lines += ["## Data and steps", "", *_list_data(contents), ""]
    lines += ["## How it fits", "", *(f"{_escape(sentence)}\n" for sentence in contents.sentences)]
    lines += [
        "Losses are on noise that never changes; the gain is the held-out loss without control minus that with it."
    ]
    if contents.bounds:
        bounds = contents.bounds
        score = bounds["score"]
        lines += [
            f"Fidelity is the {score} ({bounds['measure']}) of generated held-out images against their maps; its share "
            f"is 0 for images without control ({bounds['floor'][score]:.4g}), 1 for the source images "
            f"({bounds['ceiling'][score]:.4g})."
        ]
    lines += ["", *_draw_table(contents.rows, published_row), ""]
    lines += [
        "Curves, each from its lowest to its highest value:",
        "",
        "```text",
        *_draw_curves(contents.rows),
        "```",
        "",
    ]
    if "command" in facts:
        lines += ["## Command", "", "```sh", str(facts["command"]), "```", ""]
    return "\n".join(lines)


def _list_data(contents: ReportContents) -> list[str]:
    arguments = contents.arguments
    lines = [f"- step {contents.published['step']:,.0f} of {contents.last['step']:,.0f} that were trained"]
    if contents.image_counts:
        lines.append(f"- {contents.image_counts}")
    names = {"batch": "images a batch", "rate": "learning rate", "size": "size", "seed": "seed"}
    lines += [f"- {title}: {arguments[name]}" for name, title in names.items() if name in arguments]
    hashes = {"data": "images and captions", "model": "base model"}
    lines += [f"- {title}: `{arguments[name]}`" for name, title in hashes.items() if name in arguments]
    return lines


def _draw_table(rows: Sequence[Row], published_row: Row) -> list[str]:
    keys = [key for key in CARD_COLUMNS if key in published_row]
    step = max(1, -(-len(rows) // MAX_CURVE_ROWS))
    selection = [row for i, row in enumerate(rows) if i % step == 0 or row is published_row or row is rows[-1]]
    table = ["| " + " | ".join(CARD_COLUMNS[key] for key in keys) + " |", "|" + " --- |" * len(keys)]
    for row in selection:
        cells = [f"{row[key]:,.0f}" if key == "step" else f"{row[key]:.4g}" if key in row else "" for key in keys]
        bold_cells = [f"**{cell}**" if row is published_row and cell else cell for cell in cells]
        table.append("| " + " | ".join(bold_cells) + " |")
    return table


def _draw_curves(rows: Sequence[Row]) -> list[str]:
    """Return a line of blocks for each figure, as high as its values, of at most `MAX_CURVE_BLOCKS` measurements."""
    keys = [key for key in CARD_COLUMNS if key != "step" and all(key in row for row in rows)]
    stride = -(-len(rows) // MAX_CURVE_BLOCKS)
    lines = []
    for key in keys:
        values = [row[key] for row in rows[::stride]]
        low, high = min(values), max(values)
        levels = [round((len(BLOCKS) - 1) * (value - low) / (high - low)) if high > low else 0 for value in values]
        curve = "".join(BLOCKS[level] for level in levels)
        lines.append(f"{CARD_COLUMNS[key]:14} {curve}  {values[0]:.4g} to {rows[-1][key]:.4g}")
    return lines


def _escape(text: str) -> str:
    """Return text without what Markdown would read as HTML."""
    return text.replace("<", "&lt;")
