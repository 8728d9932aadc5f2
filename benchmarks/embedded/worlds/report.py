"""The figures of the worlds as a Markdown table with the goals, and contact sheets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..report import table

Arms = Mapping[str, Mapping[str, Any]]
COLUMNS = 8  # of a contact sheet
GAP = 4  # pixels
PAPER = 255


class Row(NamedTuple):
    """One figure of an arm, and its goal: at least (positive) or at most (negative) so much; 0 has none. With `over`
    the figure is divided by that arm's."""

    words: str
    arm: str
    figure: str
    goal: float = 0.0
    over: str = ""


def list_canny_rows(domain: str, goal: float) -> list[Row]:
    """Return the rows of edges in a domain."""
    return [
        Row(f"{domain}: canny F1, guided", f"{domain}, canny", "f1", goal),
        Row(f"{domain}: canny F1, guided, against another scene's map", f"{domain}, canny", "other_f1", -0.30),
        Row(f"{domain}: canny F1, unguided", f"{domain}, unguided", "f1"),
        Row(f"{domain}: canny F1, the VAE's ceiling", f"{domain}, VAE", "f1"),
    ]


def list_depth_rows(domain: str) -> list[Row]:
    """Return the rows of depth in a domain."""
    return [
        Row(f"{domain}: depth error, guided", f"{domain}, depth", "depth"),
        Row(f"{domain}: depth error, guided, against another scene's map", f"{domain}, depth", "other_depth"),
        Row(f"{domain}: depth error, unguided", f"{domain}, unguided", "depth"),
        Row(f"{domain}: depth error, the VAE's ceiling", f"{domain}, VAE", "depth"),
        Row(f"{domain}: depth error, the judge's own on scenes", f"{domain}, scenes", "depth"),
        Row(f"{domain}: depth error, guided / unguided", f"{domain}, depth", "depth", -0.5, f"{domain}, unguided"),
    ]


def list_pair_rows(words: str, domain: str, control: str, figure: str) -> list[Row]:
    """Return the rows of a figure of a control without a goal."""
    return [
        Row(f"{domain}: {words}, guided", f"{domain}, {control}", figure),
        Row(f"{domain}: {words}, guided, against another scene's map", f"{domain}, {control}", f"other_{figure}"),
        Row(f"{domain}: {words}, unguided", f"{domain}, unguided", figure),
        Row(f"{domain}: {words}, the VAE's ceiling", f"{domain}, VAE", figure),
        Row(f"{domain}: {words}, of the scenes themselves", f"{domain}, scenes", figure),
    ]


ROWS = (
    *list_canny_rows("shapes", 0.85),
    *list_canny_rows("things", 0.85),
    *list_canny_rows("landscapes", 0.75),
    *(row for domain in ("shapes", "things", "landscapes") for row in list_depth_rows(domain)),
    *list_pair_rows("mIoU of classes", "landscapes", "segmentation", "miou"),
    *list_pair_rows("overlap of the person", "people", "pose", "person"),
    *list_pair_rows("limbs in place", "people", "pose", "limbs"),
    Row("objects right, one thing asked, unguided", "things, single", "thing", 0.85),
    Row("objects right, the VAE's ceiling", "things, VAE", "thing"),
    Row("season right, unguided", "landscapes, unguided", "season", 0.90),
    Row("season right, the VAE's ceiling", "landscapes, VAE", "season"),
    Row("time of day right, unguided", "landscapes, unguided", "time", 0.90),
    Row("time of day right, the VAE's ceiling", "landscapes, VAE", "time"),
    Row("color words right, guided by canny", "shapes, canny", "colors", 0.90),
    Row("color words, the VAE's ceiling", "shapes, VAE", "colors"),
    Row("named colors anywhere in the image, unguided", "shapes, unguided", "seen"),
    Row("photos: canny F1, guided, empty caption", "photos", "guided", 0.60),
    Row("photos: canny F1, unguided", "photos", "unguided"),
    Row("photos: canny F1, the VAE's ceiling", "photos", "VAE"),
)


def draw_report(arms: Arms) -> str:
    """Return the tables of all arms that are there."""
    rows = [_describe(row, arms) for row in ROWS if row.figure in arms.get(row.arm, {})]
    rows = [row for row in rows if row is not None]
    parts = [table(("figure", "mean (95 % interval)", "of", "goal", "reached"), rows)] if rows else []
    seconds = [(name, f"{each['seconds']:.2f}") for name, each in arms.items() if "seconds" in each]
    if seconds:
        parts.append(table(("arm", "CPU seconds an image"), seconds))
    photos = [(name, each) for name, each in arms.items() if name.startswith("photo ")]
    if photos:
        keys = ("guided", "unguided", "VAE", "density")
        lines = [(name.removeprefix("photo "), *(f"{each[key]:.3f}" for key in keys)) for name, each in photos]
        parts.append(table(("photo", "F1 guided", "unguided", "the VAE's ceiling", "edge density"), lines))
    return "\n".join(parts)


def _describe(row: Row, arms: Arms) -> tuple[str, str, str, str, str] | None:
    figure = arms[row.arm][row.figure]
    value = figure["mean"]
    text = f"{value:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
    if row.over:
        if row.figure not in arms.get(row.over, {}):
            return None
        value /= arms[row.over][row.figure]["mean"]
        text = f"{value:.3f}"
    goal = reached = ""
    if row.goal:
        goal = f"{'≥' if row.goal > 0 else '≤'} {abs(row.goal):.2f}"
        reached = "yes" if (value >= row.goal if row.goal > 0 else value <= -row.goal) else "**no**"
    return row.words, text, str(figure["count"]), goal, reached


def draw_contact_sheet(images: np.ndarray, maps: np.ndarray | None) -> np.ndarray:
    """Return the images (N, S, S, 3) uint8 RGB in rows of eight, each with its map (S, S, 3) on its left if given."""
    tiles = images if maps is None else np.concatenate([maps, images], 2)
    tiles = np.pad(tiles, ((0, -len(tiles) % COLUMNS), (0, GAP), (0, GAP), (0, 0)), constant_values=PAPER)
    _, height, width, _ = tiles.shape
    return tiles.reshape(-1, COLUMNS, height, width, 3).swapaxes(1, 2).reshape(-1, COLUMNS * width, 3)
