"""The report of scores in a browser without a network. The command: docs/evidence/fidelity.md."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from controlnet_ext.cli import main
from controlnet_ext.files.image_writer import write_image

pytestmark = pytest.mark.long


@pytest.mark.parametrize("width", [1280, 500])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_opens_offline_with_all_its_images(scheme: str, width: int, tmp_path: Path) -> None:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium 4, Chromium and its driver")
    if shutil.which("chromedriver") is None:
        pytest.skip("needs Chromium's driver on the PATH")
    for i in range(3):
        image = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8).repeat(16, axis=0).repeat(16, axis=1)
        for folder, pixels in (("images", image), ("maps", cv2.Canny(image, 100, 200)), ("sources", image)):
            (tmp_path / "pairs" / folder).mkdir(parents=True, exist_ok=True)
            write_image(tmp_path / "pairs" / folder / f"{i}.png", pixels)
    report = tmp_path / "report.html"
    assert main(["score", str(tmp_path / "pairs"), "--control", "canny", "--report", str(report)]) == 0
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"):
        options.add_argument(word)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    if scheme == "dark":
        options.add_argument("--force-dark-mode")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options)
    try:
        browser.get(report.as_uri())
        assert browser.title == "Score of 3 images"
        sizes = browser.execute_script("return [...document.images].map(i => [i.complete, i.naturalWidth])")
        assert sizes == [[True, 128]] * 12
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        assert browser.get_log("browser") == []
        asked = [entry["message"] for entry in browser.get_log("performance")]
        assert not [message for message in asked if '"url":"http' in message]
    finally:
        browser.quit()
