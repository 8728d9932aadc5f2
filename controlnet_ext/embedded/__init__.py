"""The embedded model by its names, which mean the same on every machine: `embedded`, and for the ControlNet of a
control `embedded/<control>`, as in `embedded/canny`. A folder of one's own that is called so is `./embedded`.

What the model has, it says itself: its folder holds a `controlnet_<control>` for each control, where one network that
serves several is `controlnet_<control>+<control>`.
"""

from __future__ import annotations

import re
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

from ..maps.control_map import MAP_KINDS, MODEL_NAME_WORDS

if TYPE_CHECKING:
    from ..guidance.contract import ControlModel

EMBEDDED_NAME = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "model"  # as diffusers saves it, with the folders of its ControlNets
SAMPLE_PHOTO = Path(__file__).parent / "coffee.jpg"  # Rachel Michetti, CC0: the middle of examples/coffee.jpg
CONTROL_PREFIX = "controlnet_"  # of the folder of a ControlNet


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
    folders = _find_control_folders()
    if match[1] not in folders:
        known = ", ".join(folders) or "nothing"
        raise FileNotFoundError(f"{name!r}: the embedded model has a ControlNet for {known} only")
    return str(folders[match[1]])


def list_controls(model: str) -> dict[str, str]:
    """The names of the ControlNets that come with a model, by their controls, as in {"canny": "embedded/canny"}; of any
    model but the embedded one none."""
    return {name: f"{EMBEDDED_NAME}/{name}" for name in _find_control_folders()} if model == EMBEDDED_NAME else {}


def get_control_kind(control: str) -> str | None:
    """The kind of maps that the ControlNet of a control reads: "edges" for "canny"; None where the name does not say
    it."""
    if control in MAP_KINDS:
        return control
    return next((kind for kind, words in MODEL_NAME_WORDS.items() if control in words), None)


def restrict_map_kind(model: ControlModel, name: str) -> ControlModel:
    """Let a control model that was just loaded by a name such as "embedded/canny" refuse maps of other kinds, and
    return it; a copy of it where it serves another control already. A model of another name stays as it is."""
    match = re.fullmatch(rf"{EMBEDDED_NAME}/(\w+)", name)
    kind = get_control_kind(match[1]) if match else None
    if kind is None or (model.refuses_other_maps and model.map_type == kind):
        return model
    restricted = copy(model) if model.refuses_other_maps else model
    restricted.map_type, restricted.refuses_other_maps = kind, True
    return restricted


def _find_control_folders() -> dict[str, Path]:
    """The folders of the ControlNets by control, in the order of the names."""
    folders = sorted(EMBEDDED_FOLDER.glob(f"{CONTROL_PREFIX}*"))
    found = {name: folder for folder in folders for name in folder.name.removeprefix(CONTROL_PREFIX).split("+")}
    return dict(sorted(found.items()))


# Words of captions, as `scenes` and `grounds` have them, which take longer to import
THING_WORDS = ("circle", "square", "triangle", "star", "heart", "ring", "moon", "cross", "blob", "curve", "person")
COLOR_WORDS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white", "black", "grey", "brown")
GROUND_WORDS = ("striped", "checked", "dotted", "wavy", "mosaic", "mottled")
OTHER_WORDS = ("plain", "ground", "and", "an", "on", "a")
