"""Units' own pictures, saved beside those they guided, so that PNG info brings them back.

PNG info names them by their content, and the names are looked for in one folder within each of the host's folders of
results, so a text from elsewhere makes nothing else be read.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..files.image_in import read_image
from ..files.image_writer import write_image
from ..sdwebui.units import WebuiUnit
from . import settings

FOLDER = "controlnet"  # within a folder of results
WORDS = {"image": "Image File", "mask": "Mask File", "effective_region_mask": "Region File"}  # fields in PNG info
NAME = r"[0-9a-f]{32}\.png"


def saved(pixels: np.ndarray, folder: Path) -> str:
    """The name, by its content, of a picture (H, W, 3) uint8 as a PNG in this folder; one that is there already is not
    written again."""
    shape = "x".join(map(str, pixels.shape))
    path = folder / f"{hashlib.sha256(shape.encode() + pixels.tobytes()).hexdigest()[:32]}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_image(path, pixels)
    return path.name


def keep(unit: WebuiUnit, p: Any) -> str:
    """What PNG info says of a unit's pictures, which are saved beside the results of the request `p`: ", Image File:
    ….png". Nothing where results are not saved, the settings say no, or the unit has several images."""
    if not settings.value("controlnet_save_unit_images", True) or not p.save_samples() or len(unit.images) > 1:
        return ""
    image, mask = unit.images[0] if unit.images else (None, None)
    own = {"image": image, "mask": mask, "effective_region_mask": unit.region}
    folder = Path(p.outpath_samples) / FOLDER
    return "".join(f", {WORDS[field]}: {saved(each, folder)}" for field, each in own.items() if each is not None)


def brought(text: str, field: str) -> np.ndarray | None:
    """The picture (H, W, 3) uint8 RGB that a unit's text names for this field; None where it names none, or there is no
    such picture in the host's folders."""
    found = re.search(rf"(?:^|, ){WORDS[field]}: ({NAME})(?:,|$)", text)
    if found is None:
        return None
    for folder in settings.result_folders():
        path = folder / FOLDER / found[1]
        if path.is_file() and not path.is_symlink():
            return _read(path)
    return None


def _read(path: Path) -> np.ndarray | None:
    try:
        return read_image(path)
    except ValueError:
        return None
