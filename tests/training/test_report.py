"""The report and the model card of a training, from a work folder that is typed out."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_stopping import make_rows

from controlnet_ext.cli import main
from controlnet_ext.training.report import write_report
from controlnet_ext.training.report.card import build_model_card
from controlnet_ext.training.report.charts import Chart, Line, build_charts, compute_ticks
from controlnet_ext.training.report.contents import MAX_STEP_STRIPS, ReportContents
from controlnet_ext.training.verdict import compute_gap

HOSTILE = "<script>alert(1)</script>.safetensors"


def write_work_folder(folder: Path, count: int = 3) -> Path:
    """A work folder of a training that overfits: two held-out images, measured `count` times."""
    held_out = [0.6, 0.5, *(0.55 + 0.02 * i for i in range(count - 2))]
    more = {f"gain_q{i}": [0.1 * i * (1 - each) for each in held_out] for i in range(1, 5)}
    rows = make_rows(held_out, [0.5 / (i + 1) for i in range(count)], **more, fidelity_share=[0.25] * count)
    images = folder / "images"
    images.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "arguments.json").write_text(json.dumps({"steps": 800, "map": "canny", "model": "ab" * 32, "seed": 0}))
    facts = {"output": HOSTILE, "command": "controlnet-ext train --data 'a & <b>'", "training_images": 24}
    facts |= {"held_out_images": 2, "version": "1", "stop": "gain:5", "model": "embedded", "license": "mit"}
    (folder / "run.json").write_text(json.dumps(facts))
    bounds = {"measure": "edges", "score": "f1", "floor": {"f1": 0.1}, "ceiling": {"f1": 0.9}}
    (images / "fidelity.json").write_text(json.dumps(bounds))
    names = ["sources", "maps", "unguided", *(f"step_{int(row['step']):08}" for row in rows)]
    for i, name in enumerate(names):
        Image.fromarray(np.full((8, 16, 3), 5 * i, np.uint8)).save(images / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with its report."""
    folder = write_work_folder(tmp_path_factory.mktemp("report") / "out.training")
    assert [path.name for path in write_report(folder)] == ["report.html", "report.png"]
    return folder


def test_the_page_holds_all_that_it_shows_and_says_what_happened(work):
    page = (work / "report.html").read_text()
    sources = re.findall(r'(?:src|href|url)\s*=?\s*["(]([^")]*)', page)
    assert len(sources) == 6 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in page and "http" not in page and "@import" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.safetensors" in page and "a &amp; &lt;b&gt;" in page
    assert "Overfitting since step 600: training 0.1667, held-out 0.55 and rising; best was step 400." in page
    assert "high variance" in page and "step 400" in page and page.count('role="img"') == 4
    for title in ("Losses", "Gain by noise level", "The gap", "Fidelity of generated held-out images", "SHA-256 abab"):
        assert title in page


def test_the_image_is_a_png_and_the_report_is_a_function_of_the_folder(work, tmp_path, monkeypatch):
    assert Image.open(work / "report.png").size[0] == 1200
    shutil.copytree(work, tmp_path / "again", ignore=shutil.ignore_patterns("report.*"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # a second image takes as long as all other tests here
    (page,) = write_report(tmp_path / "again")
    assert page.read_bytes() == (work / "report.html").read_bytes()


def test_the_report_is_drawn_again_without_torch_and_without_networks(tmp_path, monkeypatch, capsys):
    folder = write_work_folder(tmp_path / "w")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["train", "--report-only", str(folder)]) == 0
    assert (folder / "report.html").stat().st_size > 5000 and not (folder / "report.png").exists()
    assert capsys.readouterr().err == f"{folder / 'report.html'}: written\n"


def test_folders_without_a_measurement_are_refused(tmp_path, capsys):
    assert main(["train", "--report-only", str(tmp_path)]) == 2
    assert "holds no measurement of a training" in capsys.readouterr().err
    assert main(["train", "--report-only", str(tmp_path / "absent")]) == 2
    assert "is not a folder; expected the work folder of a training" in capsys.readouterr().err


def test_a_log_of_earlier_versions_has_a_report_too(tmp_path, monkeypatch):
    row = {"step": 250, "loss": 0.5, "training": 0.5, "held_out": 0.5, "training_unguided": 1, "held_out_unguided": 1}
    (tmp_path / "log.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Too early to tell" in page and "Gain by noise level" not in page


def test_few_of_many_measurements_are_shown_as_images_the_best_among_them(tmp_path):
    strips = ReportContents.read(write_work_folder(tmp_path / "w", 30)).strips[3:]
    assert len(strips) <= MAX_STEP_STRIPS and [strip.label for strip in strips if strip.is_best] == ["step 400"]
    assert (strips[0].label, strips[-1].label) == ("step 200", "step 6,000")


def test_losses_without_control_are_words_where_they_would_flatten_the_curves(tmp_path):
    folder = write_work_folder(tmp_path / "w")
    near = build_charts(ReportContents.read(folder))[0]
    assert [line.is_dashed for line in near.lines] == [False, False, True, True]
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    rows = [row | {"training_unguided": 5.0, "held_out_unguided": 4.0} for row in rows]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    far = build_charts(ReportContents.read(folder))[0]
    assert len(far.lines) == 2 and far.subtitle == "fixed noise; without control they are 5 and 4"


def test_the_gap_is_what_is_gained_on_training_images_alone():
    row = {"training_unguided": 1.0, "training": 0.25, "held_out_unguided": 2.0, "held_out": 1.5}
    assert compute_gap(row) == 0.25


def test_ticks_are_round_numbers_within_the_range():
    assert compute_ticks(0, 400) == [0, 100, 200, 300, 400]
    assert compute_ticks(-0.011, 0.051) == pytest.approx([-0.01, 0, 0.01, 0.02, 0.03, 0.04, 0.05])
    assert Chart("", "", [Line("", "", [(1, 2.0)])]).value_range == (1.8, 2.2)


def test_the_model_card_states_data_steps_license_scores_and_command(work):
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    _, header, text = build_model_card(work).split("---\n", 2)
    stated = yaml.safe_load(header)
    assert stated["license"] == "mit" and stated["base_model"] == "embedded" and "controlnet" in stated["tags"]
    assert "<script" not in text and "- step 400 of 600 that were trained" in text
    assert "| **400** | **0.25** | **0.5** |" in text and "```sh\ncontrolnet-ext train --data 'a & <b>'\n```" in text
    assert "held-out loss  █▁▅  0.6 to 0.55" in text
    assert "images without control (0.1), 1 for the source images (0.9)" in text


@pytest.mark.long
def test_the_page_opens_in_chromium_without_a_network(work):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium 4, Chromium and its driver")
    if shutil.which("chromedriver") is None:
        pytest.skip("needs Chromium's driver on the PATH")
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1250,2000"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(work.joinpath("report.html").as_uri())
        sizes = browser.execute_script("return [...document.images].map(image => [image.complete, image.naturalWidth])")
        assert sizes == [[True, 16]] * 6
        charts = browser.execute_script(
            "return [...document.querySelectorAll('figure > svg')].map(s => [s.clientWidth, s.clientHeight])"
        )
        assert len(charts) == 4 and all(width > 400 and height > 200 for width, height in charts)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
        assert browser.find_element("tag name", "h1").text == HOSTILE and browser.get_log("browser") == []
    finally:
        browser.quit()
