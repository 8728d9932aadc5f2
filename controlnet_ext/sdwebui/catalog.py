"""The control models that a server offers, by the names that sd-webui-controlnet lists."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..embedded import controls
from ..files.disk import opened
from ..generation.sources import control_files
from ..guidance.contract import ControlModel
from ..models.state_dict.location import SUFFIXES
from ..preprocessors.parameters import nearest
from .cache import Kept

KEPT = 3  # networks that stay loaded, unless said otherwise


class Shelf:
    """Files of control models in folders and in those within, and the ControlNets that come with `model` (the embedded
    one). Only these can be named in a request."""

    def __init__(self, folders: Sequence[str], model: str, kept: int = KEPT):
        for folder in folders:
            if not Path(folder).is_dir():
                raise FileNotFoundError(f"the folder of control models {folder!r} does not exist")
        self._folders, self._own = tuple(map(Path, folders)), tuple(controls(model).values())
        self._nets = Kept[ControlModel](kept)
        self._glances: dict[str, tuple[Any, Any]] = {}  # models without their numbers, by name
        self.rescan()

    def rescan(self) -> None:
        """Look through the folders anew."""
        found = {_name(own, path): path for own in self._own for path in [control_files(own)["weights"]]}
        for folder in self._folders:
            for path in sorted(p for p in folder.rglob("*") if p.suffix in SUFFIXES and p.is_file()):
                found.setdefault(_name(path.stem, path), path)
        self._paths = found

    @property
    def names(self) -> list[str]:
        """As listed: "control_v11p_sd15_canny [d14c016b]"."""
        return list(self._paths)

    def fits(self, name: str, unet: Any) -> bool:
        """Whether the model of a listed name can guide the UNet, by what its file holds; also True of a file that does
        not load, for then `load` has more to say."""
        path = self._paths[name]
        status = path.stat() if path.exists() else None
        stamp = status and (status.st_mtime_ns, status.st_size)
        if name not in self._glances or self._glances[name][0] != stamp:
            self._glances[name] = stamp, _glance(path)
        net = self._glances[name][1]
        return net is None or _may_guide(net, unet)

    def find(self, name: str) -> str:
        """The listed name, of which case and hash, but not both name and hash, may be left out. ValueError with the
        nearest ones."""
        stem = re.sub(r"\s*\[[0-9a-fA-F]{4,64}\]\s*$", "", name).strip().casefold()
        whole = name.strip().casefold()
        alike = [listed for listed in self._paths if listed.rpartition(" [")[0].casefold() == stem]
        exact = [listed for listed in alike if listed.casefold() == whole]
        if not alike:
            known = f"the nearest are: {nearest(stem, self._paths)}" if self._paths else "this server has none"
            raise ValueError(f"unknown control model {name!r:.80}, {known}")
        return (exact or alike)[0]

    def load(self, name: str, device: str, dtype: Any) -> ControlModel:
        """The model of a listed name; the last few stay loaded. ValueError or FileNotFoundError in one line."""
        from .. import models

        path = self._paths[name]
        return self._nets.get((path, device, dtype), lambda: models.load(path, device, dtype))


def _glance(path: Path) -> Any:
    """The model in a file, on torch's meta device; None where it does not load."""
    from ..models import ControlFile

    try:
        return ControlFile.read(path, values=False).load()
    except (ValueError, OSError, RuntimeError):  # the last: something looks at numbers
        return None


def _may_guide(net: Any, unet: Any) -> bool:
    from ..models.kinds.control_lora import ControlLora
    from ..models.state_dict.compatibility import Layout, misfit

    layout = Layout.of(unet)
    if isinstance(net, ControlLora) or getattr(net, "difference", None) is not None:  # settled they hold the UNet's own
        return misfit(net.layout, layout) is None
    if not hasattr(net, "settle"):
        return layout.family == "sd" or net.family in (layout.family, "sd", "every")
    try:
        net.settle(unet)
    except ValueError:
        return False
    return True


def _name(stem: str, path: Path) -> str:
    """With the webui's old hash: 64 KiB from 1 MiB on (AUTOMATIC1111, modules/sd_models.py, model_hash)."""
    with opened(path) as file:
        file.seek(0x100000)
        return f"{stem} [{hashlib.sha256(file.read(0x10000)).hexdigest()[:8]}]"
