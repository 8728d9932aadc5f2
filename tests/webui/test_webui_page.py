"""The panel in a browser, under the gradio that is installed: that of stable-diffusion-webui (3.41.2) or of Forge and
its like (4.40.0). The command: docs/evidence/webui.md."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs gradio 3.41.2 or 4.40.0")
pytest.importorskip("selenium", reason="needs selenium 4, Chromium and its driver")
if shutil.which("chromedriver") is None:
    pytest.skip("needs Chromium's driver on the PATH", allow_module_level=True)

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # benchmarks are not installed

from benchmarks.webui.page import UNIT, Tab  # noqa: E402

PHOTO = ROOT / "examples" / "coffee.jpg"  # 600x400
HOST = """
window.gradioApp = () => document;
window.updateInput = input => input.dispatchEvent(new Event("input", {bubbles: true}));
window.onUiLoaded = call => call();
window.onAfterUiUpdate = call =>
    new MutationObserver(call).observe(document.body, {childList: true, subtree: true, characterData: true});
"""  # javascript of the host's that the panel's calls


@pytest.fixture
def tab(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "tests" / "webui_page.py"), str(tmp_path), str(port)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        while "Running on" not in server.stdout.readline():
            assert server.poll() is None
        opened = Page(f"http://127.0.0.1:{port}")
        try:
            opened.presets = tmp_path / "controlnet_presets.json"
            opened.fresh()
            yield opened
        finally:
            opened.browser.quit()
    finally:
        server.kill()


class Page(Tab):
    def fresh(self):
        super().fresh()
        self.browser.execute_script(HOST + (ROOT / "javascript" / "controlnet.js").read_text())

    def photo(self):
        self.one(f"{UNIT}image_0 input[type=file]").send_keys(str(PHOTO))
        self.until(lambda: self.one(f"{UNIT}enabled_0 input").is_selected())

    def told(self):
        """The unit as a generation would get it."""
        self.write("#told textarea", "")
        self.one("#tell").click()
        return json.loads(self.until(lambda: self.one("#told textarea").get_attribute("value")))


def test_a_photo_becomes_a_map_and_a_unit(tab):
    tab.photo()
    assert tab.one(f"{UNIT}panel .label-wrap > span").text == "ControlNet (1 on)"
    tab.one(f"{UNIT}size_0").click()
    sizes = [tab.one(f"#txt2img_{side} input").get_attribute("value") for side in ("width", "height")]
    assert sizes == ["600", "400"]
    tab.click_word("type", "Canny")
    tab.until(lambda: tab.value("module") == "canny")
    for slider in ("processor_res", "threshold_a", "threshold_b"):
        tab.until(lambda slider=slider: tab.one(f"{UNIT}{slider}_0").is_displayed())
    tab.one(f"{UNIT}run_0").click()
    preview = tab.until(lambda: tab.one(f"{UNIT}preview_0 img"))
    shown = "return arguments[0].complete && [arguments[0].naturalWidth, arguments[0].naturalHeight]"
    assert tab.until(lambda: tab.browser.execute_script(shown, preview)) == [768, 512]
    unit = tab.told()
    assert unit["enabled"] and unit["module"] == "canny" and (unit["threshold_a"], unit["threshold_b"]) == (100, 200)
    assert unit["image"][:2] == [400, 600] and unit["mask"] is None


def test_no_image_is_none(tab):
    tab.one(f"{UNIT}size_0").click()
    tab.click_word("control_mode", "ControlNet is more important")
    unit = tab.told()
    assert not unit["enabled"] and unit["image"] is None and unit["control_mode"] == "ControlNet is more important"
    assert tab.one("#txt2img_width input").get_attribute("value") == "512"


def test_what_is_painted_is_the_mask(tab):
    tab.photo()
    canvas = tab.until(lambda: [c for c in tab.all(f"{UNIT}image_0 canvas") if c.is_displayed()])[-1]
    for brush in tab.all(f"{UNIT}image_0 button[aria-label='Draw button']"):  # gradio 4
        brush.click()

    def painted():
        """The unit once a stroke has come; one before the photo is drawn on the canvas is lost."""
        ActionChains(tab.browser).move_to_element(canvas).click_and_hold().move_by_offset(40, 0).release().perform()
        told = tab.told()
        return told["mask"] and told["mask"][-1] > 0 and told

    unit = tab.until(painted)
    assert unit["image"][:2] == [400, 600]
    assert unit["mask"][:2] == [400, 600] and 0 < unit["mask"][-1] < 128


def test_a_preset_brings_a_unit_back(tab):
    tab.click_word("type", "Canny")
    tab.until(lambda: tab.value("module") == "canny")
    tab.write(f"{UNIT}threshold_a_0 input[type=number]", 60)
    tab.write(f"{UNIT}preset_0 input", "mine")
    tab.one(f"{UNIT}preset_0 input").send_keys(Keys.ENTER)
    tab.one(f"{UNIT}save_0").click()
    tab.until(tab.presets.exists)
    tab.click_word("type", "Depth")
    tab.until(lambda: tab.value("module") not in ("canny", "none"))
    tab.one(f"{UNIT}load_0").click()
    tab.until(lambda: tab.value("threshold_a", "[type=number]") == "60")
    unit = tab.told()
    assert (unit["module"], unit["threshold_a"], unit["threshold_b"]) == ("canny", 60, 200)


def test_infotext_brings_a_unit_back(tab):
    said = "Module: canny, Model: None, Weight: 0.7, Resize Mode: Just Resize, Processor Res: 256, Threshold A: 50, "
    said += "Threshold B: 150, Guidance Start: 0.1, Guidance End: 0.8, Pixel Perfect: False, "
    said += "Control Mode: ControlNet is more important"
    tab.write("#infotext textarea", json.dumps({"ControlNet 0": said}))
    tab.one("#paste").click()
    tab.until(lambda: tab.value("weight", "[type=number]") == "0.7")
    unit = tab.told()
    assert unit["module"] == "canny" and unit["control_mode"] == "ControlNet is more important"
    assert (unit["processor_res"], unit["threshold_a"], unit["threshold_b"]) == (256, 50, 150)
    assert (unit["guidance_start"], unit["guidance_end"], unit["resize_mode"]) == (0.1, 0.8, "Just Resize")
