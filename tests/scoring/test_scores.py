"""Scores of an image by its units: what is compared, what is stored, and which of several images is the best."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from controlnet_ext.preprocessors.registry import Preprocessor, find

from controlnet_ext.files.hub import WeightsFile
from controlnet_ext.generation.recipe import GenerationRecipe, ModelRef, RecipeUnit
from controlnet_ext.maps.control_map import ControlMap
from controlnet_ext.maps.fidelity import Measure, canny_f1
from controlnet_ext.scoring.scores import (
    SCORE_KEYWORD,
    RecipeScorer,
    UnitScore,
    UnitScorer,
    UnitTarget,
    encode_scores,
    find_default_preprocessor,
    format_score,
    rank_scores,
    read_scores,
)

CANNY = find("canny")


def photo(seed: int = 0) -> np.ndarray:
    """Blocks of 8x8 pixels of random colors, 64x64."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def scorer(**fields) -> UnitScorer:
    source = photo()
    target = UnitTarget(1, CANNY.load()(source, low=50), CANNY, {"low": 50, "resolution": "match"}, source=source)
    return UnitScorer(replace(target, **fields), CANNY.load())


def score(number: int = 1, value: float = 0.5, ceiling: float | None = None, higher: bool = True) -> UnitScore:
    return UnitScore(
        number,
        "canny",
        "edges",
        "edges",
        "f1",
        higher,
        {"f1": value},
        None,
        None if ceiling is None else {"f1": ceiling},
    )


def test_the_score_is_the_measure_of_the_map_found_with_the_units_parameters():
    image, unguided = photo(1), photo(2)
    unit = scorer()
    found = unit.score(image, unguided)
    expected = canny_f1(unit.target.control_map.pixels, image, 50, 200)
    assert (found.figures["f1"], found.figures["f1_1px"]) == pytest.approx(expected, abs=1e-6)
    assert found.ceiling == {"f1": 1, "f1_1px": 1}
    floor = canny_f1(unit.target.control_map.pixels, unguided, 50, 200).exact
    assert found.share == pytest.approx((expected.exact - floor) / (1 - floor), abs=1e-5)


def test_without_its_source_a_unit_has_the_recorded_ceiling_or_none():
    assert scorer(source=None).score(photo(1)).ceiling is None
    assert scorer(source=None, recorded_ceiling={"f1": 0.9}).score(photo(1)).ceiling == {"f1": 0.9}


def test_in_a_region_only_what_lies_in_it_counts():
    half = np.zeros((64, 64), np.float32)
    half[:, :32] = 1
    image = photo()
    image[:, 34:] = 0  # right of the region, but for the edge's own pixels
    assert scorer().score(image).score < 0.8
    assert scorer(region=half).score(image).score == 1
    assert scorer(region=1 - half).score(image).score < 0.6


def test_a_map_of_another_size_is_fitted_as_guidance_fits_it():
    wide = ControlMap(np.pad(scorer().target.control_map.pixels, ((0, 0), (32, 32), (0, 0))), "edges")
    assert scorer(control_map=wide).score(photo()).score == 1
    assert scorer(control_map=wide, fit="stretch").score(photo()).score < 0.9


def test_figures_of_a_score_come_back_from_the_text_of_a_png():
    scores = (
        UnitScore(
            2, "canny", "edges", "edges", "f1", True, {"f1": 0.5, "f1_1px": math.nan}, None, {"f1": 1.0, "f1_1px": 1.0}
        ),
        score(3, 0.25, higher=False),
    )
    texts = encode_scores(scores)
    first, second = read_scores(texts)
    assert second == scores[1] and math.isnan(first.figures["f1_1px"]) and encode_scores((first, second)) == texts
    assert encode_scores(()) == {} and read_scores({}) == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("[]", "holds a JSON list"),
        ({"format": 2}, "expected format 1"),
        ({"units": [1]}, "lacks one of"),
        ({"units": 17 * [1]}, "up to 16 units"),
        ({"unit": 1.5}, "no number of a unit"),
        ({"score": "f2"}, "no figure of its score"),
        ({"better": "\x1b"}, "no direction"),
        ({"figures": [1]}, "figures are list"),
        ({"figures": {"f1": "1"}}, "'1' is no finite number"),
        ({"figures": {"f1": True}}, "True is no finite number"),
        ({"ceiling": {"f2": 1}}, "are not those of the image"),
        ({"share": 1e999}, "inf is no finite number"),
    ],
)
def test_a_hostile_score_is_refused_in_one_line(change, reason):
    text = encode_scores([score()])[SCORE_KEYWORD]
    if isinstance(change, dict):
        fields = json.loads(text)
        (fields if change.keys() & fields.keys() else fields["units"][0]).update(change)
        change = json.dumps(fields)
    with pytest.raises(ValueError, match=reason) as error:
        read_scores({SCORE_KEYWORD: change})
    assert str(error.value).isprintable()


def test_images_are_ranked_by_the_share_of_the_way_from_the_worst_to_the_ceiling():
    assert rank_scores([[score(value=0.2)], [score(value=0.6)], [score(value=0.4)]]) == pytest.approx([0, 1, 0.5])
    assert rank_scores([[score(value=v, ceiling=1)] for v in (0.2, 0.6)]) == pytest.approx([0, 0.5])
    assert rank_scores([[score(value=v, higher=False)] for v in (30, 10)]) == [0, 1]
    assert rank_scores([[score()], [score()]]) == [1, 1]


def test_of_several_units_each_counts_by_its_own_share():
    errors = (40, 20)  # of the second unit, whose ceiling is an error of 0
    scores = [[score(1, f1, 1), score(2, error, 0, False)] for f1, error in zip((0.5, 0.4), errors, strict=True)]
    assert rank_scores(scores) == pytest.approx([(0.1 / 0.6) / 2, 0.5 / 2])


def test_a_unit_without_a_score_on_one_image_does_not_count():
    nothing = score(2, math.nan)
    assert rank_scores([[score(1, 0.1), nothing], [score(1, 0.2), score(2, 0.9)]]) == [0, 1]
    assert rank_scores([[score(1, 0.1)], [score(1, 0.2), score(2, 0.9)]]) == [0, 1]
    assert rank_scores([[nothing], [nothing]]) == [0, 0]


def test_a_preprocessor_without_a_measure_has_no_scorer():
    with pytest.raises(ValueError, match="nothing to obey"):
        scorer(spec=find("inpaint"))


def test_the_default_preprocessor_stands_for_a_kind():
    assert find_default_preprocessor("edges") is CANNY
    with pytest.raises(ValueError, match="no preprocessor stands for maps of kind 'face'"):
        find_default_preprocessor("face")


def brightest(image: np.ndarray) -> tuple[np.ndarray, int]:
    """The image, and its brightest red as the value of the map."""
    return image, int(image[..., 0].max())


def compare_values(expected: ControlMap, found: ControlMap) -> dict[str, float]:
    return {"off": abs(expected.values - found.values)}


def test_values_that_pixels_lack_come_from_the_source():
    by_values = Measure("values", compare_values, "off", False, 0.0, needs_values=True)
    spec = Preprocessor("brightest", "other", "brightest", brightest, (), own_fidelity=by_values)
    source, image = np.full((8, 8, 3), 7, np.uint8), np.full((8, 8, 3), 5, np.uint8)
    target = UnitTarget(1, ControlMap(source, "other"), spec, source=source)
    found = UnitScorer(target, spec.load()).score(image)
    assert (found.figures, found.ceiling) == ({"off": 2}, {"off": 0})
    with pytest.raises(ValueError, match="pixels alone"):
        UnitScorer(replace(target, source=None), spec.load()).score(image)


def test_a_preprocessor_that_fails_costs_its_score_and_not_the_image():
    def fail(image: np.ndarray) -> np.ndarray:
        raise LookupError("no such thing")

    scorer = RecipeScorer(recipe_of(ControlMap(photo(), "edges")))
    assert [found.figure for found in scorer.score(photo())] == ["f1"]
    (unit,) = scorer._scorers
    unit._run = fail
    assert scorer.score(photo(1)) == () and scorer.describe(()) == ["unit 1: no score, no such thing"]


def recipe_of(control_map: ControlMap, **fields) -> GenerationRecipe:
    """A recipe of 64x64 pixels with a canny unit, or one with these fields."""
    model = ModelRef("m")
    unit = RecipeUnit(**{"model": model, "control_map": control_map, "preprocessor": "canny", **fields})
    numbers = {"seed": 0, "steps": 1, "width": 64, "height": 64, "guidance_scale": 1, "threads": 1}
    words = {"prompt": "", "negative_prompt": "", "dtype": "float32", "device": "cpu"}
    return GenerationRecipe(**words, **numbers, model=model, units=(unit,))


@pytest.mark.parametrize(("needs_values", "ceiling", "calls"), [(False, None, 1), (True, {"off": 0}, 2)])
def test_generate_runs_a_network_on_the_source_only_for_values(needs_values, ceiling, calls, monkeypatch):
    seen = []
    fidelity = Measure("values", compare_values if needs_values else lambda a, b: {"off": 2}, "off", False, 0.0)
    fidelity = replace(fidelity, needs_values=needs_values)

    def run(image: np.ndarray) -> tuple[np.ndarray, int]:
        seen.append(image)
        return brightest(image)

    weights = (WeightsFile("owner/repository", "a.safetensors", webui_folder="a", license="MIT"),)
    spec = Preprocessor("network", "other", "network", run, (), weights, own_fidelity=fidelity)
    monkeypatch.setattr("controlnet_ext.scoring.scores.find_unit_spec", lambda unit: spec)
    source = np.full((64, 64, 3), 7, np.uint8)
    recipe = recipe_of(ControlMap(source, "other"), preprocessor="network", source=source)
    (found,) = RecipeScorer(recipe).score(source - 2)
    assert (found.figures, found.ceiling, len(seen)) == ({"off": 2}, ceiling, calls)


def test_a_score_in_words_names_what_is_known():
    assert format_score(score(value=0.5)) == "f1 0.500"
    assert format_score(score(value=123.456, ceiling=math.inf)) == "f1 123.5 (ceiling inf)"
    assert format_score(score(value=math.nan)) == "f1 -"
