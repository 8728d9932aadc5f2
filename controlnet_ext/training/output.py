"""What a training writes: one .safetensors file, or a folder that diffusers reads; and a model card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.disk import Content, check_target_folder, make_temporary_name, write_together
from ..models import WEIGHTS_FILE
from .targets import TrainingTarget

if TYPE_CHECKING:
    from ..models.nn.execution import LayerwiseOffload

CARD_FILE = "README.md"  # in a folder, where the Hugging Face Hub shows it


@dataclass(frozen=True)
class TrainingOutput:
    """A file, or a folder, that a training writes. `path` is that of either."""

    path: Path
    is_folder: bool

    @classmethod
    def parse(cls, text: str) -> TrainingOutput:
        """Return the output that a text means: a folder if it ends in / or there is one, else a file.

        Raises ValueError for a file that does not end in .safetensors.
        """
        path = Path(text)
        if path.name in ("", ".."):
            path = path.resolve()
        if path.suffix == ".safetensors" and not text.endswith(("/", os.sep)):
            return cls(path, False)
        if not text.endswith(("/", os.sep)) and not path.is_dir():
            raise ValueError(f"{text!r} does not end in .safetensors, nor in / as a folder that diffusers reads")
        return cls(path, True)

    @property
    def work_folder(self) -> Path:
        """The folder of checkpoint and log, unless another is named."""
        return self.path.with_name(f"{self.path.name}.training")

    @property
    def card(self) -> Path:
        """The file of the model card: inside of a folder, beside a file."""
        return self.path / CARD_FILE if self.is_folder else self.path.with_name(f"{self.path.name}.md")

    @property
    def temp_prefix(self) -> str:
        """The prefix of temporary files, which tells those of a killed training from others."""
        return f"{self.path.name}."

    def check(self, target: TrainingTarget, overwrite: bool, is_resumed: bool) -> None:
        """Check that it can be written; `is_resumed` if there is a work folder already, of which the card may be.

        Raises FileExistsError where something would be replaced, without `overwrite`, and ValueError where it cannot
        be written, or diffusers reads no such folder.
        """
        name = repr(str(self.path))
        check_target_folder(self.path.parent)
        if self.is_folder:
            if target.diffusers_class is None:
                raise ValueError(
                    f"diffusers reads no {target.name} from a folder: name a .safetensors file, not {name}"
                )
            if os.path.lexists(self.path) and not self.path.is_dir():
                raise FileExistsError(f"{name} is a file, expected a folder")
            if self.path.is_dir():
                check_target_folder(self.path)
                if not overwrite and any(self.path.iterdir()):
                    raise FileExistsError(f"{name} holds files already; --overwrite replaces a model in it")
                if self.card.exists() and not (self.path / WEIGHTS_FILE).exists():
                    raise FileExistsError(f"{str(self.card)!r} is of no model, and the model card goes there")
            return
        if os.path.lexists(self.path) and (self.path.is_dir() or not overwrite):
            raise FileExistsError(f"{name} exists; --overwrite replaces a file")
        if os.path.lexists(self.card) and not (overwrite or is_resumed):
            raise FileExistsError(f"{str(self.card)!r} exists, where the model card goes; --overwrite replaces it")

    def write(self, net: LayerwiseOffload, metadata: Mapping[str, str], card: str, overwrite: bool = False) -> None:
        """Write the network with these metadata, whole or not at all, and the text of its card unless it is empty.

        Raises FileExistsError where there is such a file or a model already, without `overwrite`.
        """
        from ..models.state_dict.saving import build_diffusers_files, build_ldm_file

        cards: dict[Path, Content] = {self.card: card.encode()} if card else {}
        if not self.is_folder:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # The weights come last: a card without them is of a training that was killed
            files = {**cards, self.path: build_ldm_file(net, metadata)}
            write_together(files, {*cards, *([self.path] if overwrite else [])}, self.temp_prefix)
            return
        files = {self.path / name: content for name, content in build_diffusers_files(net, metadata).items()}
        self._write_folder({**cards, **files}, overwrite)

    def _write_folder(self, files: Mapping[Path, Content], overwrite: bool) -> None:
        """Write the files; where there is no folder yet, or an empty one, it appears with all of them."""
        if self.path.is_dir() and any(self.path.iterdir()):
            if not overwrite:
                raise FileExistsError(f"{str(self.path)!r} holds files already; --overwrite replaces a model in it")
            write_together(files, files, self.temp_prefix)
            return
        temporary = self.path.with_name(make_temporary_name(self.temp_prefix))
        temporary.mkdir(parents=True)
        try:
            write_together({temporary / path.name: content for path, content in files.items()})
            if self.path.is_dir():
                self.path.rmdir()
            temporary.rename(self.path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
