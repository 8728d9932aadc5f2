"""What is known of a published file of weights before it is here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

# Who states hashes of published files, sha256 and in the second also sizes
HORDE = "Haidra-Org/horde-model-reference @ 418cf00b4d24, src/horde_model_reference/annotator_catalog.py"
DINKSTER = "Kosinkadink/Dinkster @ 4258cb557cb6, tools/gen_line_edge_goldens.py"
# The Hub's own pages of a revision: its list of files, sizes to three digits, and what was added in it, with hashes
LIST, ADDED = "the Hub's list of its files @", "the Hub's page of the commit"


@dataclass(frozen=True)
class WeightsFile:
    """A published file of weights: what a preprocessor declares, and `Library` finds.

    `repo` on the Hugging Face Hub and `path` in it; `folder` is what sd-webui-controlnet calls its place below
    annotator/downloads; `size` in bytes, None where no source states it; `about` is the size to three digits, where no
    more is stated; `sha256` in hex, None where the Hub's own record is what a download is compared with. `source` is
    who states these. `url` is where a file is that is not on the Hub; it has size and sha256."""

    repo: str
    path: str
    folder: str
    licence: str
    size: int | None = None
    about: int | None = None
    sha256: str | None = None
    source: str = ""
    url: str = ""

    @property
    def name(self) -> str:
        """The file's own name, such as "table5_pidinet.pth"."""
        return PurePosixPath(self.path).name

    @property
    def short(self) -> str:
        """Where it lies in a folder that was made for it: by its name, as a part of a whole model by its path there."""
        return self.path if self.folder.startswith(self.repo) else self.name

    @property
    def whole(self) -> str:
        """What it is a part of: the repository of a whole model, else its own name."""
        return self.repo if self.folder.startswith(self.repo) else self.name

    @property
    def address(self) -> str:
        """Where it is at the Hub, after the host."""
        return quote(f"{self.repo}/resolve/main/{self.path}")

    def instructions(self, target: Path) -> str:
        """What a user can do by hand, in one line: which file to put where."""
        return f"put {self.url or f'https://huggingface.co/{self.address}'} at {str(target)!r}"
