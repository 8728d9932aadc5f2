"""The embedded model by its names, which mean the same on every machine: `embedded`, and for its ControlNet that reads
canny maps `embedded/canny`. A folder of one's own that is called so is `./embedded`."""

from __future__ import annotations

import re
from pathlib import Path

EMBEDDED_NAME = "embedded"
EMBEDDED_FOLDER = (
    Path(__file__).parent / "model"
)  # as diffusers saves it, with a controlnet_<preprocessor> for each ControlNet
SAMPLE_PHOTO = Path(__file__).parent / "coffee.jpg"  # Rachel Michetti, CC0: the middle of examples/coffee.jpg


def resolve_embedded(name: str) -> str:
    """The folder that one of its names means; any other name as it is. FileNotFoundError when the weights are not
    installed, or there is no such ControlNet."""
    match = re.fullmatch(rf"{EMBEDDED_NAME}(?:/(\w+))?", name)
    if match is None:
        return name
    index = EMBEDDED_FOLDER / "model_index.json"
    if not index.exists():
        raise FileNotFoundError(
            f"the embedded model's weights are not installed: {str(index)!r} does not exist; generate takes another "
            "model with --model"
        )
    if match[1] is None:
        return str(EMBEDDED_FOLDER)
    if name not in (own := list_controls(EMBEDDED_NAME)).values():
        raise FileNotFoundError(f"{name!r}: the embedded model has a ControlNet for {', '.join(own) or 'nothing'} only")
    return str(EMBEDDED_FOLDER / f"controlnet_{match[1]}")


def list_controls(model: str) -> dict[str, str]:
    """The names of the ControlNets that come with a model, by the preprocessor whose maps they read; of any but the
    embedded one none."""
    if model != EMBEDDED_NAME:
        return {}
    names = sorted(folder.name.removeprefix("controlnet_") for folder in EMBEDDED_FOLDER.glob("controlnet_*"))
    return {name: f"{EMBEDDED_NAME}/{name}" for name in names}


# Words of captions, as `scenes` and `grounds` have them, which take longer to import
THING_WORDS = ("circle", "square", "triangle", "star", "heart", "ring", "moon", "cross", "blob", "curve", "person")
COLOR_WORDS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white", "black", "grey", "brown")
GROUND_WORDS = ("striped", "checked", "dotted", "wavy", "mosaic", "mottled")
OTHER_WORDS = ("plain", "ground", "and", "an", "on", "a")
