"""List the rendered worlds for the trainings of controls: `python -m tools.embedded_model.control_lists WORLDS`.

WORLDS/images/canny.jsonl, depth.jsonl, segmentation.jsonl and pose.jsonl mix the domains and are what
`controlnet-ext train --data` reads: images with their captions, and in the column `map` the map, but for canny, whose
maps the training makes. A scene without a map is in no list of that map. together.jsonl has the rows of all four, for
one network that reads all maps. Held-out scenes are in none: figures are taken on them, so no training may be chosen
by them.
"""

from __future__ import annotations

import argparse
import json
from itertools import chain, zip_longest
from pathlib import Path

from tools.embedded_model.render_worlds import read_rows
from tools.embedded_model.world_sets import DOMAINS, RENDERED

MAPS = {"canny": None, "depth": "depth", "segmentation": "segmentation", "pose": "pose"}  # columns of rendered sets


def list_control(worlds: Path, control: str, domains: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the rows of the training scenes of these domains that have the map of a control, one of each in turn."""
    column, lists = MAPS[control], []
    for domain in domains:
        rows = read_rows(worlds, domain, "training")
        lists.append(
            [
                {"file_name": f"{domain}/{row['file_name']}", "text": row["text"]}
                | ({} if column is None else {"map": f"{domain}/{row[column]}"})
                for row in rows
                if column is None or column in row
            ]
        )
    return take_in_turn(lists)


def take_in_turn(lists: list[list[dict[str, str]]]) -> list[dict[str, str]]:
    """Return the rows of all lists, one of each in turn."""
    return [row for row in chain.from_iterable(zip_longest(*lists)) if row is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", type=Path, help="what render_worlds filled")
    parser.add_argument("--count", type=int, help="so many rows of each list, for a trial")
    options = parser.parse_args()
    lists = {name: list_control(options.worlds, name, RENDERED if name == "pose" else DOMAINS) for name in MAPS}
    for control, rows in {**lists, "together": take_in_turn([*lists.values()])}.items():
        path = options.worlds / "images" / f"{control}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[: options.count]))
        print(f"{len(rows[: options.count])} rows in {path}")


if __name__ == "__main__":
    main()
