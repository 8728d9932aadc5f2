"""The control models that a server offers, by the names that sd-webui-controlnet lists."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..embedded import get_map_kind, list_controls
from ..errors import suggest_names
from ..files.disk import open_regular_file
from ..generation.recipe import find_control_files
from ..guidance.contract import ControlModel, UNet
from ..models import is_weights_name
from ..preprocessors.cache import LRUCache

if TYPE_CHECKING:
    import torch

MAX_LOADED_NETWORKS = 3  # networks that stay loaded, unless said otherwise


class ModelCatalog:
    """Control models in files of folders and their subfolders, and the ControlNets of an embedded model.

    Only these can be named in a request. `max_loaded` models stay loaded. Raises FileNotFoundError for a folder that
    does not exist.
    """

    def __init__(self, folders: Sequence[str], embedded_model: str, max_loaded: int = MAX_LOADED_NETWORKS):
        for folder in folders:
            if not Path(folder).is_dir():
                raise FileNotFoundError(f"the folder of control models {folder!r} does not exist")
        self._folders, self._embedded_models = (
            tuple(map(Path, folders)),
            tuple(list_controls(embedded_model).values()) if embedded_model else (),
        )
        self._networks = LRUCache[ControlModel](max_loaded)
        self._probes: dict[str, tuple[Any, Any]] = {}  # models without their numbers, by name
        self.rescan()

    def rescan(self) -> None:
        """Search the folders again."""
        paths = {
            _make_listed_name(own, path): path
            for own in self._embedded_models
            for path in [find_control_files(own)["weights"]]
        }
        kinds = {name: get_map_kind(name.rpartition(" [")[0]) for name in paths}
        self._kinds = {name: kind for name, kind in kinds.items() if kind is not None}
        for folder in self._folders:
            for path in sorted(p for p in folder.rglob("*") if is_weights_name(p.name) and p.is_file()):
                stem = path.name.partition(".")[0] if path.suffix == ".json" else path.stem  # of weights in parts
                paths.setdefault(_make_listed_name(stem, path), path)
        self._paths = paths

    @property
    def names(self) -> list[str]:
        """Listed names, such as "control_v11p_sd15_canny [d14c016b]"."""
        return list(self._paths)

    def can_guide(self, name: str, unet: UNet) -> bool:
        """Return True if the model of a listed name fits the UNet, by the names and shapes of its tensors; also for a
        file that does not load, since `load` explains why."""
        path = self._paths[name]
        status = path.stat() if path.exists() else None
        stamp = status and (status.st_mtime_ns, status.st_size)
        if name not in self._probes or self._probes[name][0] != stamp:
            self._probes[name] = stamp, _probe(path)
        net = self._probes[name][1]
        return net is None or _is_compatible(net, unet)

    def resolve_name(self, name: str) -> str:
        """Return the listed name of a model. Case, and either the hash or the name before it, may differ. Raises
        ValueError with the closest names."""
        stem = re.sub(r"\s*\[[0-9a-fA-F]{4,64}\]\s*$", "", name).strip().casefold()
        whole = name.strip().casefold()
        alike = [name_in_list for name_in_list in self._paths if name_in_list.rpartition(" [")[0].casefold() == stem]
        exact = [name_in_list for name_in_list in alike if name_in_list.casefold() == whole]
        if not alike:
            sentence = f"unknown control model {name!r:.80}"
            raise ValueError(
                suggest_names(sentence, stem, self._paths) if self._paths else f"{sentence}, this server has none"
            )
        return (exact or alike)[0]

    def load(self, name: str, device: str, dtype: torch.dtype) -> ControlModel:
        """Return the model of a listed name on this device; the last few stay loaded. Raises ValueError or
        FileNotFoundError in one line."""
        from .. import models

        path = self._paths[name]
        model = self._networks.get_or_create((path, device, dtype), lambda: models.load(path, device, dtype))
        return model.restrict_maps(self._kinds[name]) if name in self._kinds else model


def _probe(path: Path) -> Any:
    """Load the model of a file on torch's meta device; return None if it does not load."""
    from ..models import ControlFile

    try:
        return ControlFile.read(path, with_values=False).load()
    except (ValueError, OSError, RuntimeError):  # the last: something looks at numbers
        return None


def _is_compatible(net: ControlModel, unet: UNet) -> bool:
    try:
        net.check_compatible(unet)
    except ValueError:
        return False
    return True


def _make_listed_name(stem: str, path: Path) -> str:
    """Return the stem with the webui's old hash: 64 KiB from 1 MiB on (AUTOMATIC1111, modules/sd_models.py,
    model_hash)."""
    with open_regular_file(path) as file:
        file.seek(0x100000)
        return f"{stem} [{hashlib.sha256(file.read(0x10000)).hexdigest()[:8]}]"
