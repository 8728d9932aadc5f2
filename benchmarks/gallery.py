"""A photo through the preprocessors that work offline: docs/reference/gallery.md and docs/reference/gallery.jpg.

    python -m benchmarks.gallery -o docs/reference [--weights FOLDER]

Of the maps with weights, those whose files are in FOLDER and may be used commercially. Their licenses are those that
`controlnet-ext preprocessors` prints; the photo is in the public domain.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from controlnet_ext.preprocessors import find, list_preprocessors
from controlnet_ext.preprocessors.library import Library
from controlnet_ext.preprocessors.poses.drawing import render_pose
from controlnet_ext.preprocessors.poses.key_points import Person, Poses, key_points_from_pixels

from controlnet_ext.embedded.scenes import make_person
from controlnet_ext.files.disk import write_atomically

PHOTO = Path(__file__).parents[1] / "examples" / "coffee.jpg"
RESOLUTION, COLUMNS, GAP, LINE = 256, 6, 14, 24
PAPER, INK = (250, 249, 246), (38, 38, 42)
QUALITY = 85  # of the JPEG


@dataclass(frozen=True, eq=False)
class Panel:
    """A preprocessor, its parameters, and the file that is loaded in place of the one it names."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    file: str = ""


PANELS = (
    Panel("canny"),
    Panel("scribble_xdog"),
    Panel("lineart_standard"),
    Panel("softedge_teed", file="teed_7_model.pth"),
    Panel("mlsd", {"thr_v": 0.05}, file="mlsd_tiny_512_fp32.pth"),
    Panel("threshold"),
    Panel("invert"),
    Panel("tile_resample", {"down_sampling_rate": 8}),
    Panel("blur_gaussian"),
    Panel("color", {"resolution": 512}),
    Panel("recolor_luminance"),
    Panel("recolor_intensity"),
    Panel("shuffle", {"seed": 3}),
)
WHY_NOT = {
    "inpaint": "the image itself; the unit's mask is made -1 in the hint",
    "inpaint_only": "the same",
    "tile_colorfix": "the image itself",
    "tile_colorfix+sharp": "the same",
    "mediapipe_face": "there is no face in the photo",
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", metavar="FOLDER", type=Path, required=True)
    parser.add_argument("--weights", metavar="FOLDER", type=Path)
    options = parser.parse_args(arguments)
    photo = find("inpaint").load()(PHOTO, resolution=RESOLUTION).pixels
    images = {panel: one for panel in PANELS if (one := draw_panel(panel, options.weights)) is not None}
    sheet = contact_sheet(
        [
            ("the photo", photo),
            *((make_title(panel), one) for panel, one in images.items()),
            ("people drawn from key points", people(*photo.shape[:2])),
            ("a ball's depth", depth := ball(*photo.shape[:2])),
            ("normal_depth of that", find("normal_depth").load()(depth, far=2).pixels),
        ]
    )
    jpeg = cv2.imencode(".jpg", sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
    write_atomically(options.output / "gallery.jpg", jpeg, overwrite=True)
    write_atomically(options.output / "gallery.md", page(images).encode(), overwrite=True)
    print(f"{options.output / 'gallery.md'}: {len(images)} maps, {len(jpeg) / 1e3:.0f} kB")


def draw_panel(panel: Panel, weights: Path | None) -> np.ndarray | None:
    """The panel's map (H, W, 3) at the sheet's resolution, None where its weights are not in the folder."""
    entry, library = find(panel.name), None
    if entry.weights:
        if weights is None or not (weights / panel.file).is_file():
            return None
        (file,) = entry.weights
        if "non-commercial" in file.license:
            raise ValueError(f"{panel.name}'s weights are {file.license}: it may not be shown")
        library = Library([], download=False, files={file.local_name: weights / panel.file})
    return entry.load(library=library)(PHOTO, **{"resolution": RESOLUTION, **panel.parameters}).pixels


def people(height: int, width: int) -> np.ndarray:
    """Three people of the embedded model's scenes, drawn as a map of poses."""
    rng = np.random.default_rng(5)
    some = []
    for i in range(3):
        points = make_person(rng)[1] * 0.46 * height + ((i + 0.5) * width / 3, 0.54 * height)
        some.append(Person(key_points_from_pixels([(x, y, 1) for x, y in points], height, width)))
    return render_pose(Poses(tuple(some), (), width, height), height, width)


def ball(height: int, width: int) -> np.ndarray:
    """A ball before a wall as an image of inverse depth, near white."""
    y, x = np.mgrid[:height, :width] - np.array([height / 2, width / 2])[:, None, None]
    out = np.sqrt(np.clip(1 - (x**2 + y**2) / (0.4 * height) ** 2, 0, None))  # of the wall, in radii
    grey = 60 + 195 * out
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def make_title(panel: Panel) -> str:
    parameters = {name: value for name, value in panel.parameters.items() if name != "resolution"}
    return " ".join([panel.name, *(f"{name}={value}" for name, value in parameters.items())])


def contact_sheet(panels: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """All images, made as large as the first, with their words below."""
    height, width = panels[0][1].shape[:2]
    rows = -(-len(panels) // COLUMNS)
    paper = np.full((GAP + rows * (height + LINE + GAP), GAP + COLUMNS * (width + GAP), 3), PAPER, np.uint8)
    for i, (words, one) in enumerate(panels):
        y, x = GAP + i // COLUMNS * (height + LINE + GAP), GAP + i % COLUMNS * (width + GAP)
        if one.shape[:2] != (height, width):
            one = cv2.resize(one, (width, height), interpolation=cv2.INTER_AREA)
        paper[y : y + height, x : x + width] = one
        cv2.putText(paper, words, (x, y + height + 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, INK, 1, cv2.LINE_AA)
    return paper


def command(panel: Panel) -> str:
    options = {"resolution": RESOLUTION, **panel.parameters}
    words = [f"--{name} {value}" for name, value in options.items()] + ([f"--weights {panel.file}"] * bool(panel.file))
    return f"`controlnet-ext preprocess {panel.name} examples/coffee.jpg -o map.png {' '.join(words)}`"


def page(images: dict[Panel, np.ndarray]) -> str:
    """The page's text."""
    lines = [
        "# Gallery",
        "",
        "`examples/coffee.jpg` (Rachel Michetti, CC0) through preprocessors that work offline. Made by",
        "`python -m benchmarks.gallery -o docs/reference --weights ASSETS/weights`.",
        "",
        "![the maps](gallery.jpg)",
        "",
        "| preprocessor | map | weights | command |",
        "|---|---|---|---|",
    ]
    for panel in images:
        entry = find(panel.name)
        weights = f"{panel.file}, {entry.weights[0].license}" if panel.file else "none"
        lines.append(f"| {panel.name} | {entry.makes} | {weights} | {command(panel)} |")
    lines += [
        "",
        "The people are drawn from key points of the embedded model's scenes, by the module that draws all poses.",
        "The last map (`normal_depth`) shows the normals of the ball beside it, whose depth is computed.",
        "",
        "Not shown:",
        "",
        *(f"- {name}: {why}" for name, why in WHY_NOT.items()),
    ]
    names = {panel.name for panel in images} | set(WHY_NOT) | {"normal_depth"}
    rest = [entry for entry in list_preprocessors() if entry.name not in names]
    non_commercial = [e for e in rest if any("non-commercial" in file.license for file in e.weights)]
    absent = [e for e in rest if e.weights and e not in non_commercial]
    of_bridges = [e for e in rest if not e.weights and ".bridges." in e.factory.__module__]
    others = [e for e in rest if e not in (*non_commercial, *absent, *of_bridges)]
    for why, entries in (
        ("weights that are not for commercial use", non_commercial),
        ("weights that were not available", absent),
        ("detectors of other packages", of_bridges),
        ("not in the gallery yet", others),
    ):
        if entries:
            lines.append(f"- {why}: {', '.join(entry.name for entry in entries)}")
    lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
