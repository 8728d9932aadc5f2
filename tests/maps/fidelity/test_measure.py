"""The measure of an image against its map: sizes, what is refused, what a preprocessor brings."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from controlnet_ext.preprocessors import registry
from controlnet_ext.preprocessors.registry import find, list_preprocessors

from controlnet_ext import ControlMap, preprocess
from controlnet_ext.maps.fidelity import (
    MEASURES,
    Measure,
    NoMeasure,
    bootstrap_interval,
    compute_share,
    get_measure,
    get_measure_of_kind,
    measure,
    require_measure,
)

EDGES = get_measure("edges")


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    image = np.full((48, 64, 3), 40, np.uint8)
    image[10:30, 12:40] = (200, 120, 60)
    return image


def canny(image):
    return preprocess("canny", image)


def test_the_source_of_a_map_is_perfect(photo):
    figures = measure(canny(photo), photo, canny)
    assert figures[EDGES.score] == EDGES.perfect and figures["f1_1px"] == 1


def test_an_expected_map_of_another_size_is_fitted_as_guidance_fits_it(photo):
    """Cropped to the square in the middle, of which the photo's map is then the same part."""
    expected = canny(photo)
    figures = measure(expected, np.ascontiguousarray(photo[:, 8:56]), canny)
    assert figures == {"f1": 1.0, "f1_1px": 1.0}
    assert measure(expected, photo[:, 8:56], canny, fit_mode="stretch")["f1"] < 0.9


def test_a_found_map_of_another_size_shows_the_whole_image(photo):
    blown = np.repeat(np.repeat(photo, 2, 0), 2, 1)
    figures = measure(canny(photo), blown, lambda image: preprocess("canny", image, resolution=192))
    assert figures["f1_1px"] > 0.3  # of 96x128 both, no error about sizes


def test_an_image_of_another_type_is_refused(photo):
    with pytest.raises(TypeError, match="uint8"):
        measure(canny(photo), photo / 255, canny)
    with pytest.raises(TypeError, match="not str"):
        measure(canny(photo), "photo.png", canny)


WITHOUT_WEIGHTS = [
    spec.name
    for spec in list_preprocessors()
    if not spec.weights and isinstance(spec.fidelity, Measure) and "bridges" not in spec.factory.__module__
]


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_the_source_of_a_map_is_perfect_by_each_preprocessor(name, photo):
    """And one in which every pixel is another is not."""
    spec = find(name)
    run = spec.load()
    image = cv2.resize(photo, (128, 96))
    cv2.circle(image, (90, 50), 20, (255, 240, 200), -1)
    cv2.line(image, (5, 90), (100, 5), (0, 0, 0), 3)
    found = measure(run(image), image, run, by=spec.fidelity)
    assert found[spec.fidelity.score] == pytest.approx(spec.fidelity.perfect, abs=1e-9)
    other = measure(run(image), 255 - image[:, ::-1] // 2, run, by=spec.fidelity)[spec.fidelity.score]
    assert (other < spec.fidelity.perfect) if spec.fidelity.is_better_higher else (other > spec.fidelity.perfect)


def test_a_preprocessor_of_another_kind_is_refused(photo):
    with pytest.raises(ValueError, match="of edges, but the preprocessor makes color"):
        measure(canny(photo), photo, lambda image: preprocess("color", image))


def test_a_kind_without_a_measure_says_why(photo):
    fidelity = get_measure_of_kind("other")
    assert isinstance(fidelity, NoMeasure)
    with pytest.raises(ValueError, match="measure"):
        require_measure(fidelity)
    with pytest.raises(ValueError, match="kind 'drawing' is none of"):
        get_measure_of_kind("drawing")
    with pytest.raises(ValueError, match=r"'f2' is none of: .*edges"):
        get_measure("f2")


def test_a_preprocessor_has_its_kinds_measure():
    assert find("canny").fidelity is EDGES


def test_a_map_that_needs_values_is_refused_or_measured_by_the_fallback(photo):
    needy = Measure("needy", lambda a, b: {"x": 2.0}, score="x", needs_values=True)
    with pytest.raises(ValueError, match="pixels alone cannot be measured by 'needy'"):
        measure(canny(photo), photo, canny, by=needy)
    both = Measure("both", lambda a, b: {"x": 2.0}, score="x", needs_values=True, fallback=EDGES)
    assert measure(canny(photo), photo, canny, by=both)["f1"] == 1
    with_values = ControlMap(canny(photo).pixels, "edges", values=(1,))
    assert both.compare(with_values, with_values) == {"x": 2.0}
    with pytest.raises(ValueError, match="the found map of edges has no values"):
        measure(with_values, photo, canny, by=both)


def test_a_measure_without_its_score_says_so(photo):
    lost = Measure("lost", lambda a, b: {"x": 2.0}, score="y")
    with pytest.raises(ValueError, match="'lost' returned no figure 'y'"):
        measure(canny(photo), photo, canny, by=lost)


def test_a_share_is_the_way_from_floor_to_ceiling_in_either_direction():
    assert compute_share(0.5, 0.2, 0.8) == pytest.approx(0.5)
    assert compute_share(30, 50, 10) == 0.5
    assert compute_share(0.1, 0.2, 0.7) == pytest.approx(-0.2)


@pytest.mark.parametrize("numbers", [(0.5, 0.3, 0.3), (math.nan, 0, 1), (1, math.nan, 1), (1, 0, math.inf)])
def test_a_share_of_nothing_is_not_a_number(numbers):
    assert math.isnan(compute_share(*numbers))


def test_a_ceiling_below_the_floor_gives_no_share():
    assert math.isnan(EDGES.compute_share({"f1": 0.3}, {"f1": 0.5}, {"f1": 0.4}))
    assert EDGES.compute_share({"f1": 0.45}, {"f1": 0.4}, {"f1": 0.5}) == pytest.approx(0.5)
    lower = Measure("error", lambda a, b: {"e": 0.0}, score="e", is_better_higher=False, perfect=0)
    assert lower.compute_share({"e": 20}, {"e": 30}, {"e": 10}) == 0.5
    assert math.isnan(lower.compute_share({"e": 20}, {"e": 10}, {"e": 30}))


def test_an_interval_holds_the_mean_repeats_and_leaves_out_what_is_no_number():
    scores = [0.2, 0.41, 0.9, math.nan, 0.49, *np.linspace(0.1, 0.9, 20)]
    found = bootstrap_interval(scores)
    assert found.mean == pytest.approx(0.5) and found.low < 0.5 < found.high
    assert (found.used, found.left_out) == (24, 1)
    assert found == bootstrap_interval(scores) != bootstrap_interval(scores, seed=1)
    assert bootstrap_interval(scores, level=0.5).low > found.low
    assert bootstrap_interval([0.25])[:3] == (0.25, 0.25, 0.25)
    assert math.isnan(bootstrap_interval([]).mean)


def test_an_interval_covers_the_mean_as_often_as_it_says():
    """95 % within what 300 trials of 40 normal numbers leave open; a percentile interval is a little narrow."""
    numbers = np.random.default_rng(0)
    trials = [bootstrap_interval(numbers.normal(0, 1, 40), samples=200) for _ in range(300)]
    assert 0.90 < np.mean([each.low < 0 < each.high for each in trials]) < 0.98


@pytest.mark.parametrize("wrong", [{"level": 1}, {"level": 0}, {"samples": 0}])
def test_an_impossible_interval_is_refused(wrong):
    with pytest.raises(ValueError, match=r"level|samples"):
        bootstrap_interval([1, 2], **wrong)


def test_every_preprocessor_names_a_measure_or_says_why_not():
    """And what to measure by instead."""
    specs = list_preprocessors()
    without = {spec.name: spec.fidelity.reason for spec in specs if isinstance(spec.fidelity, NoMeasure)}
    assert {*without} == {"inpaint", "inpaint_only", "inpaint_only+lama", "invert", "normal_depth"}
    assert all("measure by" in reason for reason in without.values())
    for spec in specs:
        if isinstance(spec.fidelity, Measure):
            assert spec.fidelity is get_measure(spec.fidelity.name)
    assert {spec.fidelity.name for spec in specs if isinstance(spec.fidelity, Measure)} == {*MEASURES} - {"embedding"}


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_describes_itself(name):
    chosen = MEASURES[name]
    assert chosen.score in chosen.figures and chosen.unit and chosen.source
    assert chosen.share_figure in (None, *chosen.figures)


def test_a_preprocessor_of_another_package_brings_its_own_measure(monkeypatch):
    monkeypatch.setattr(registry, "_specs_by_name", dict(registry._specs_by_name))
    brightness = Measure(
        "brightness",
        lambda expected, found: {"off": abs(float(expected.pixels.mean()) - float(found.pixels.mean()))},
        score="off",
        is_better_higher=False,
        perfect=0,
    )

    @registry.preprocessor("own_light", makes="other", fidelity=brightness)
    def own_light(image):
        return image.max(axis=2)

    @registry.preprocessor("own_edges", makes="other", fidelity="edges")
    def own_edges(image):
        return image.max(axis=2)

    assert find("own_light").fidelity is brightness and find("own_edges").fidelity is EDGES
    image = np.full((4, 4, 3), 100, np.uint8)
    expected = ControlMap(image + 20, "other")
    assert measure(expected, image, find("own_light").load(), brightness) == {"off": 20}


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [("f2", ValueError, "own: fidelity: measure 'f2' is none of"), (3, TypeError, "own: fidelity: 3 is no Measure")],
)
def test_a_preprocessor_with_an_unknown_measure_is_not_registered(wrong, error, message, monkeypatch):
    monkeypatch.setattr(registry, "_specs_by_name", dict(registry._specs_by_name))
    with pytest.raises(error, match=message):
        registry.preprocessor("own", makes="edges", fidelity=wrong)(lambda image: image)
    with pytest.raises(ValueError, match="unknown preprocessor"):
        find("own")


def test_every_measure_stands_in_the_reference_with_its_figures():
    page = (Path(__file__).parents[3] / "docs/reference/score.md").read_text()
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `")}
    for name, each in MEASURES.items():
        assert [figure for figure in each.figures if f"`{figure}`" not in rows[name]] == []
        assert f"| {'higher' if each.is_better_higher else 'lower'} | {each.perfect:g} |" in rows[name]
