"""The embedded model by its names, which mean the same on every machine: `embedded`, and for the ControlNet of a
control `embedded/<control>`, as in `embedded/canny`. A folder of one's own that is called so is `./embedded`.

What the model has, it says itself: its folder holds a `controlnet_<control>` for each control, where one network that
serves several is `controlnet_<control>+<control>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.disk import read_json
from ..maps.control_map import MAP_KINDS, MODEL_NAME_WORDS

if TYPE_CHECKING:
    from ..guidance.contract import ControlModel

EMBEDDED_NAME = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "model"  # as diffusers saves it, with the folders of its ControlNets
SAMPLE_PHOTO = Path(__file__).parent / "coffee.jpg"  # Rachel Michetti, CC0: the middle of examples/coffee.jpg
SAMPLE_DEPTH = Path(__file__).parent / "landscape_depth.png"  # of tools/embedded_model/landscapes, white is near
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
        names = ", ".join(folders) or "nothing"
        raise FileNotFoundError(f"{name!r}: the embedded model has a ControlNet for {names} only")
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
    return it. A model of another name stays as it is."""
    kind = get_map_kind(name)
    if kind is not None:
        model.map_type, model.refuses_other_maps = kind, True
    return model


def get_map_kind(name: str) -> str | None:
    """The kind of maps that the control model of a name such as "embedded/canny" reads; None for other names."""
    match = re.fullmatch(rf"{EMBEDDED_NAME}/(\w+)", name)
    return get_control_kind(match[1]) if match else None


def _find_control_folders() -> dict[str, Path]:
    """The folders of the ControlNets by control, in the order of the names."""
    folders = sorted(EMBEDDED_FOLDER.glob(f"{CONTROL_PREFIX}*"))
    by_kind = {name: folder for folder in folders for name in folder.name.removeprefix(CONTROL_PREFIX).split("+")}
    return dict(sorted(by_kind.items()))


ABOUT_FILE = "about.json"  # in the model's folder: its version, those before it, and its words
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"  # whose sha256 tells versions apart


def describe_other_version(sha256: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    """Return a sentence on the versions of the embedded model, unless files of these sha256, by their names in its
    folder, are of the one that has those `here`."""
    if UNET_WEIGHTS not in sha256 or sha256[UNET_WEIGHTS] == here.get(UNET_WEIGHTS):
        return None
    about = read_about(EMBEDDED_FOLDER)
    version = about.get("earlier", {}).get(sha256[UNET_WEIGHTS])
    made_with = "another version" if version is None else f"version {version}"
    return (
        f"the recipe was made with the embedded model of {made_with}, this package has version "
        f"{about.get('version', 'unknown')}, which draws other images: repeat it with the controlnet-ext that made it, "
        "or generate a new image"
    )


def read_about(folder: Path) -> dict[str, Any]:
    """Return what `ABOUT_FILE` in a model's folder says; nothing where there is none."""
    path = folder / ABOUT_FILE
    return read_json(path) if path.exists() else {}


def read_demo_choices(folder: Path) -> dict[str, Any]:
    """The prompts of the demo that the model in this folder draws well, for "edges" and for "depth", and the scale of
    "guidance"; those that are lacking are nobody's choice."""
    choices: dict[str, Any] = read_about(folder).get("demo", {})
    return choices
