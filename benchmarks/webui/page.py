"""The panel in headless Chromium, worked by selenium 4 (`pip install selenium`; chromium and chromedriver of one
version on the PATH)."""

from __future__ import annotations

import io
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from controlnet_ext.embedded import SAMPLE_PHOTO

from .calls import REQUEST, SIDE, Check, Webui, apart

UNIT = "#script_txt2img_controlnet_"
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,2200")
MODE = "My prompt is more important"
SECONDS = 90  # that anything may take


def page(webui: Webui, shot: Path) -> Iterator[Check]:
    tab = Tab(webui.url)
    try:
        yield from _check_work(tab)
        first, text = tab.generate(), tab.text()
        tab.browser.save_screenshot(str(shot))
        yield Check("Generate", f"an image of {first.shape[:2]}, with its unit's text", "ControlNet 0:" in text)
        yield from _check_paste(tab, first, text)
        yield _check_refusal(tab)
    finally:
        tab.browser.quit()


class Tab:
    """A browser with the webui's txt2img, and the first unit open."""

    def __init__(self, url: str):
        options = Options()
        for argument in ARGUMENTS:
            options.add_argument(argument)
        options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
        self.browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        self._url = url

    def fresh(self) -> None:
        self.browser.get(self._url)
        self.until(lambda: self.one(f"{UNIT}panel .label-wrap").is_displayed())
        self.until(lambda: not self.all("#txt2img_generate[disabled]"))
        time.sleep(3)  # the page's own scripts
        self.one(f"{UNIT}panel .label-wrap").click()
        self.until(lambda: self.one(f"{UNIT}run_0").is_displayed())

    def one(self, selector: str) -> Any:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def until(self, true: Callable[[], Any]) -> Any:
        """What it gives once that is something. TimeoutError after SECONDS."""
        for _ in range(2 * SECONDS):
            try:
                if value := true():
                    return value
            except WebDriverException:
                pass
            time.sleep(0.5)
        raise TimeoutError(f"not so after {SECONDS} s")

    def click_word(self, part: str, word: str) -> None:
        """Choose a radio's word."""
        labels = self.all(f"{UNIT}{part}_0 label")
        next(label for label in labels if label.text == word).click()

    def value(self, part: str, kind: str = "") -> str:
        return str(self.one(f"{UNIT}{part}_0 input{kind}").get_attribute("value"))

    def choices(self, part: str) -> list[str]:
        labels = self.all(f"{UNIT}{part}_0 label")
        return [label.text for label in labels if label.find_element(By.TAG_NAME, "input").is_selected()]

    def write(self, selector: str, value: Any) -> None:
        script = "arguments[0].value = arguments[1]; updateInput(arguments[0])"
        self.browser.execute_script(script, self.one(selector), value)

    def generate(self) -> np.ndarray:
        """The first image after a click on Generate."""
        self.one("#txt2img_generate").click()
        self.until(lambda: self.one("#html_log_txt2img").text.count("Time taken"))
        address = self.until(lambda: self.one("#txt2img_gallery img").get_attribute("src"))
        with urllib.request.urlopen(address) as answer:
            return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"))

    def text(self) -> str:
        """What PNG info says of it."""
        return str(self.one("#html_info_txt2img").text)


def _check_work(tab: Tab) -> Iterator[Check]:
    """From an image's upload to all that Generate needs."""
    tab.fresh()
    tab.one(f"{UNIT}image_0 input[type=file]").send_keys(str(SAMPLE_PHOTO))
    on = tab.until(lambda: tab.one(f"{UNIT}enabled_0 input").is_selected())
    yield Check("page: an upload switches the unit on", str(on), on)
    tab.click_word("type", "Canny")
    tab.until(lambda: tab.value("module") == "canny")
    words = f"canny, {tab.value('model')}"
    yield Check("control type Canny: preprocessor and model", words, tab.value("model") != "None")
    tab.one(f"{UNIT}run_0").click()
    tab.until(lambda: tab.one(f"{UNIT}preview_0 img").is_displayed())
    tab.one(f"{UNIT}size_0").click()
    sizes = [tab.one(f"#txt2img_{side} input[type=number]").get_attribute("value") for side in ("width", "height")]
    yield Check("preview, and the image's size taken over", "x".join(sizes), sizes[0] != "512")
    values = {"steps": REQUEST["steps"], "cfg_scale": REQUEST["cfg_scale"], "width": SIDE, "height": SIDE}
    for name, value in values.items():
        tab.write(f"#txt2img_{name} input[type=number]", value)
    tab.write("#txt2img_seed input[type=number]", REQUEST["seed"])
    tab.write("#txt2img_prompt textarea", REQUEST["prompt"])
    tab.write(f"{UNIT}weight_0 input[type=number]", 0.9)
    tab.write(f"{UNIT}threshold_a_0 input[type=number]", 60)
    tab.click_word("control_mode", MODE)


def _check_paste(tab: Tab, first: np.ndarray, text: str) -> Iterator[Check]:
    """An image's text, pasted into a new page."""
    tab.fresh()
    tab.write("#txt2img_prompt textarea", text)
    time.sleep(1)
    tab.one("#paste").click()
    tab.until(lambda: tab.value("weight", "[type=number]") == "0.9")
    there = tab.until(lambda: tab.all(f"{UNIT}image_0 img, {UNIT}image_0 canvas"))
    time.sleep(2)  # what a change of the module would do
    low = tab.value("threshold_a", "[type=number]")
    values = tab.value("module"), tab.value("model"), low, *tab.choices("control_mode")
    right = bool(there) and values[-2:] == ("60", MODE)
    yield Check("pasted into a new page", f"{', '.join(values)}, and the image", right)
    far = apart(first, tab.generate())
    yield Check("Generate there", "equal" if far == 0 else f"{far} of 255 apart", far == 0)


def _check_refusal(tab: Tab) -> Check:
    tab.fresh()
    tab.one(f"{UNIT}enabled_0 input").click()
    tab.click_word("type", "Canny")
    tab.until(lambda: tab.value("module") == "canny")
    tab.one("#txt2img_generate").click()
    words = "unit 1: it is on and has no image"
    text = tab.until(lambda: words in tab.one("#txt2img_results").text and tab.one("#txt2img_results").text)
    return Check(
        "a unit without an image: the page says", next(line for line in text.splitlines() if words in line), True
    )
