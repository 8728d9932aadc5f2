"""Figures as Markdown tables with the goals, and as curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .arms import ENDS, SCALES, WEIGHTS, Figures
from .chart import chart

Arms = Mapping[str, Figures]


class Row(NamedTuple):
    """One figure of an arm, and its goal: at least (positive) or at most (negative) so much; 0 has none."""

    words: str
    arm: str
    figure: str
    goal: float = 0.0


ROWS = (
    Row("F1 within 1 px, guided", "guided", "f1", 0.80),
    Row("F1 exact, guided", "guided", "f1_exact"),
    Row("F1, guided, against another scene's map", "guided, another scene's map", "f1", -0.30),
    Row("F1, unguided", "unguided", "f1"),
    Row("F1, the VAE's ceiling", "VAE", "f1", 0.92),
    Row("F1 exact, the VAE's ceiling", "VAE", "f1_exact"),
    Row("F1 of the maps of two scenes (chance)", "another scene", "f1"),
    Row("F1, guided, with other colours in the caption", "guided, colours swapped", "f1"),
    Row("edge density, scenes", "scenes", "density"),
    Row("edge density, guided", "guided", "density"),
    Row("edge density, unguided", "unguided", "density"),
    Row("empty maps, left out of F1", "guided", "empty"),
    Row("colour words right, guided", "guided", "colours", 0.90),
    *(Row(f"colour words right, scenes of {n} thing{'s' * (n > 1)}", "guided", f"colours_of_{n}") for n in (1, 2, 3)),
    Row("wrong colours that are another thing's", "guided", "mistaken"),
    Row("colour words of the scene, other colours in the caption", "guided, colours swapped", "colours", -0.30),
    Row("colour words of that caption", "guided, colours swapped", "colours_asked"),
    Row("colour words of the scene, another scene's caption", "guided, another scene's caption", "colours", -0.30),
    Row("colour words where the things are, unguided", "unguided", "colours"),
    Row("colour words, the VAE's ceiling", "VAE", "colours"),
    Row("named colours anywhere in the image, unguided", "unguided", "seen"),
    Row("as many that are not named, unguided", "unguided", "seen_unnamed"),
    Row("processor's seconds an image, guided", "guided", "seconds"),
    Row("processor's seconds an image, unguided", "unguided", "seconds"),
)
AXES = {  # the arms of a curve: what its axis shows, and the value and arm of each point
    "weights": ("weight of the unit", [(value, f"weight {value:g}") for value in WEIGHTS]),
    "windows": ("x of the window 0..x", [(value, f"window 0..{value:g}") for value in ENDS]),
    "guidance": ("guidance scale", [(value, f"guidance {value:g}") for value in SCALES]),
}


def report(arms: Arms) -> str:
    """Tables of all arms that are there."""
    goals = [_row(row, arms[row.arm]) for row in ROWS if row.figure in arms.get(row.arm, {})]
    parts = [table(("figure", "measured", "goal", "reached"), goals)] if goals else []
    for axis, points in AXES.values():
        there = [(value, arms[name]) for value, name in points if name in arms]
        if there:
            rows = [(f"{v:g}", *(f"{each[k]:.3f}" for k in ("f1", "f1_exact", "colours"))) for v, each in there]
            parts.append(table((axis, "F1 within 1 px", "exact", "colour words right"), rows))
    photos = {name: figures for name, figures in arms.items() if name.startswith("photo")}
    if photos:
        keys = ("guided", "unguided", "VAE", "density")
        rows = [(name.removeprefix("photo "), *(f"{each[key]:.3f}" for key in keys)) for name, each in photos.items()]
        parts.append(table(("photo", "F1 guided", "unguided", "the VAE's ceiling", "edge density"), rows))
    losses = {name: figures for name, figures in arms.items() if name.startswith("loss")}
    if losses:
        rows = [(name, f"{each['training']:.4f}", f"{each['held_out']:.4f}") for name, each in losses.items()]
        parts.append(table(("", "training scenes", "held-out scenes"), rows))
    return "\n".join(parts)


def curves(arms: Arms) -> dict[str, str]:
    """An SVG by name for each curve that is whole."""
    svgs = {}
    for name, (axis, points) in AXES.items():
        if all(arm in arms for _, arm in points):
            lines = {
                words: [(value, arms[arm][figure]) for value, arm in points]
                for words, figure in (("F1 within 1 px", "f1"), ("F1 exact", "f1_exact"), ("colour words", "colours"))
            }
            svgs[name] = chart(f"Fidelity by {axis}", axis, "share", lines)
    return svgs


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _row(row: Row, figures: Figures) -> tuple[str, str, str, str]:
    value = figures[row.figure]
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    if row.figure == "f1":
        text += f" ± {figures['f1_error']:.3f}"
    if not row.goal:
        return row.words, text, "", ""
    is_reached = value >= row.goal if row.goal > 0 else value <= -row.goal
    return row.words, text, f"{'≥' if row.goal > 0 else '≤'} {abs(row.goal):.2f}", "yes" if is_reached else "**no**"
