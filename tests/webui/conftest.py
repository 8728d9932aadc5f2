"""The stand-in for the webui, with a tiny UNet loaded and a tiny ControlNet in its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ldm import UNetModel
from tiny import control, unet
from webui_host import fresh, install


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SimpleNamespace]:
    folder = tmp_path / "models" / "ControlNet"
    folder.mkdir(parents=True)
    control().save_pretrained(folder / "net")
    with fresh():
        yield install(monkeypatch, tmp_path, UNetModel(unet()))
