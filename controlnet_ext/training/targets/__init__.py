"""What can be trained: a file a target, found by being there. The file `t2i_adapter.py` is the target `t2i-adapter`.

A module of a target defines `TARGET`, a `TrainingTarget`. Importing this module loads no torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import error_prefix, suggest_names
from ...models import ControlFile

if TYPE_CHECKING:
    from ...guidance.contract import UNet
    from ...models.nn.execution import LayerwiseOffload

DEFAULT_TARGET = "controlnet"
DEFAULT_RANK = 128  # of the smaller of Stability's two sets of Control-LoRAs


@dataclass(frozen=True)
class TargetSettings:
    """Settings of a network: the file `control` to train further, None for a fresh one; its `rank` where the target has
    one (None: its default); and whether network and model are compiled."""

    control: Path | None = None
    rank: int | None = None
    is_compiled: bool = False


class TrainingTarget:
    """A kind of network that can be trained; the base class of every target.

    The network is one of our control models, so that the same object guides in a training and in `guide`. A target
    overrides `create_fresh`, and `check_unet` where not every UNet will do.
    """

    kind: str
    """The kind of control model, as `ModelKind.name`; with hyphens it is the target's name."""
    diffusers_class: str | None = None
    """The class of diffusers that reads it from a folder, None if there is none."""
    has_rank: bool = False
    """It has a rank to choose."""
    can_compile: bool = True
    """It is trained beside a compiled UNet too."""

    @property
    def name(self) -> str:
        """Its name, as in "t2i-adapter"."""
        return self.kind.replace("_", "-")

    def check_unet(self, unet: UNet, settings: TargetSettings) -> None:
        """Check that a network can be trained beside a UNet, which may have no weights. Raises ValueError if not."""

    def create_fresh(self, unet: UNet, settings: TargetSettings) -> LayerwiseOffload:
        """Return a new network, in float32. Random numbers come from torch's global generator."""
        raise NotImplementedError(f"{type(self).__name__} creates nothing")

    def check(self, unet: UNet, settings: TargetSettings) -> None:
        """Check all that can be known before weights are read; the UNet may have none.

        Raises ValueError, or FileNotFoundError, in one line: a rank where there is none to choose, a compilation that
        would not notice the network, a file of another kind or for another family of models, and what `check_unet`
        refuses.
        """
        if settings.rank is not None and not self.has_rank:
            raise ValueError(f"rank {settings.rank}: a {self.name} has none to choose")
        if settings.rank is not None and settings.control is not None:
            raise ValueError(f"rank {settings.rank}: {str(settings.control)!r}, which is trained further, has its own")
        if settings.is_compiled and not self.can_compile:
            raise ValueError(
                f"a {self.name} acts inside the model's layers, which compiled ones do not notice: train it "
                "without --compile"
            )
        self.check_unet(unet, settings)
        if settings.control is not None:
            file = self._read_control(settings.control, with_values=False)
            with error_prefix(repr(str(file.path))):
                file.load().check_compatible(unet)

    def create(self, unet: UNet, settings: TargetSettings) -> LayerwiseOffload:
        """Return the network, in float32, bound to a UNet with weights and on its device, all of it to be trained.

        Raises ValueError as `check` does.
        """
        import torch

        from ...models.base_unet import get_layer

        net: Any = (
            self.create_fresh(unet, settings)
            if settings.control is None
            else self._read_control(settings.control).load()
        )
        net = net.to(get_layer(unet, "conv_in").weight.device, torch.float32)
        net.bind(unet)
        network: LayerwiseOffload = net.requires_grad_(True)
        return network

    def _read_control(self, path: Path, with_values: bool = True) -> ControlFile:
        file = ControlFile.read(path, with_values)
        if file.kind is None or file.kind.name != self.kind:
            description = file.describe_foreign() if file.kind is None else f"a {file.kind.name.replace('_', '-')}"
            raise ValueError(f"{str(path)!r} is {description}, expected a {self.name}, which is to be trained")
        return file


def list_targets() -> list[str]:
    """Return the names of all targets, the default first."""
    names = [module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)]
    return sorted(names, key=lambda name: (name != DEFAULT_TARGET, name))


def find_target(name: str | None, control: Path | None = None) -> TrainingTarget:
    """Return the target of a name; without one that of a file to train further, else the default.

    Raises ValueError with the nearest names if there is none of the name, or the file is of no target's kind.
    """
    names = list_targets()
    if name is None and control is not None:
        file = ControlFile.read(control, with_values=False)
        name = "" if file.kind is None else file.kind.name.replace("_", "-")
        if name not in names:
            description = file.describe_foreign() if file.kind is None else f"a {name}"
            raise ValueError(f"{str(control)!r} is {description}, expected one of: {', '.join(names)}")
    name = name or DEFAULT_TARGET
    if name not in names:
        raise ValueError(suggest_names(f"unknown target {name!r:.80}", name, names))
    target: TrainingTarget = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").TARGET
    return target
