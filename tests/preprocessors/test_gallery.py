"""The gallery: every preprocessor is on its page, what may not be shown is not shown, and commands are given."""

import cv2
import numpy as np
import pytest
from controlnet_ext.preprocessors import find, list_preprocessors
from lines import assets

from benchmarks import gallery
from controlnet_ext import cli
from controlnet_ext.files.image_reader import read_image


def test_the_page_names_every_preprocessor():
    """Also one that is added, with no change to the gallery."""
    page = gallery.page(dict.fromkeys(gallery.PANELS))
    assert [e.name for e in list_preprocessors() if e.name not in page] == []


def test_the_command_makes_a_page_and_a_sheet(tmp_path, capsys):
    gallery.main(["-o", str(tmp_path)])
    page = (tmp_path / "gallery.md").read_text()
    sheet = read_image(tmp_path / "gallery.jpg")
    count = sum(not find(panel.name).weights for panel in gallery.PANELS)
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'gallery.md'}: {count} maps")
    assert "(gallery.jpg)" in page and "| canny | edges | none |" in page and "| softedge_teed |" not in page
    assert (tmp_path / "gallery.jpg").stat().st_size < 600_000
    rows, columns = -(-(count + 4) // gallery.COLUMNS), gallery.COLUMNS
    height, width = 256 + gallery.LINE + gallery.GAP, 384 + gallery.GAP
    assert sheet.shape == (gallery.GAP + rows * height, gallery.GAP + columns * width, 3)
    for i in range(count + 4):
        y, x = gallery.GAP + i // columns * height, gallery.GAP + i % columns * width
        assert sheet[y : y + 256, x : x + 384].std() > 3, i


def test_the_pages_commands_make_the_sheets_maps(tmp_path, monkeypatch):
    monkeypatch.chdir(gallery.PHOTO.parents[1])
    for panel in (panel for panel in gallery.PANELS if panel.name in ("color", "shuffle", "tile_resample")):
        words = gallery.command(panel).strip("`").split()[1:]
        words[words.index("map.png")] = str(tmp_path / f"{panel.name}.png")
        assert cli.main(words) == 0
        np.testing.assert_array_equal(read_image(tmp_path / f"{panel.name}.png"), gallery.draw_panel(panel, None))


@pytest.mark.weights
def test_maps_whose_weights_are_there_are_shown_unless_they_are_non_commercial(monkeypatch):
    folder = assets() / "weights"
    teed = next(panel for panel in gallery.PANELS if panel.name == "softedge_teed")
    assert gallery.draw_panel(teed, folder).std() > 10
    assert gallery.draw_panel(teed, folder / "none") is None
    closed = gallery.Panel("pidinet", file="table5_pidinet.pth")
    with pytest.raises(ValueError, match="research only, non-commercial: it may not be shown"):
        gallery.draw_panel(closed, folder)


def test_the_committed_page_names_the_sheet_and_its_maps():
    docs = gallery.PHOTO.parents[1] / "docs" / "reference"
    page = (docs / "gallery.md").read_text()
    assert all(f"| {panel.name} |" in page for panel in gallery.PANELS)
    sheet = cv2.imread(str(docs / "gallery.jpg"))
    assert sheet is not None and (docs / "gallery.jpg").stat().st_size <= 600_000
