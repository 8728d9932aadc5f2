"""Weights of residuals, typed out. A model that gives ones makes each residual the factor it was multiplied with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from controlnet_ext import ControlModel, PerSample, Residuals, Span, Step, Unit, Window
from controlnet_ext.guidance.hints import HintImages
from controlnet_ext.guidance.run import GuidanceRun
from controlnet_ext.guidance.weighting import WeightSchedule, all_finite

SD15 = [0.0994, 0.1205, 0.1461, 0.177, 0.2146, 0.2601, 0.3153, 0.3822, 0.4633, 0.5615, 0.6806, 0.825, 1.0]
SDXL = [0.177, 0.2146, 0.2601, 0.3153, 0.3822, 0.4633, 0.5615, 0.6806, 0.825, 1.0]
GREY = np.full((64, 64, 3), 128, np.uint8)


class Ones(ControlModel):
    """Residuals of 1 in the layers of SD1.5, or of as many skips as asked for."""

    architecture, family = "ones", "sd15"

    def __init__(self, skips: int = 12, value: float = 1.0):
        self.skips, self.value = skips, value
        self.rows: list[int] = []
        self.hints: list[tuple[int, ...]] = []

    def hint(self, image: Any) -> torch.Tensor:
        self.hints.append(tuple(image.shape))
        return torch.as_tensor(image).float().flatten(1).mean(dim=1)  # one number a row

    def __call__(self, step: Step, hint: torch.Tensor) -> Residuals:
        self.rows.append(len(step.x))
        value = self.value * torch.ones(len(step.x), 2, 8, 8)
        return Residuals((value,) * self.skips, value)


class Host:
    unet, generator = None, torch.Generator()
    pixel_size = (64, 64)


WHOLE = Span(0.0, 1.0)


def step(rows: int = 2, positive: list[bool] | None = None, span: Span = WHOLE, **others: Any) -> Step:
    known = None if positive is None else torch.tensor(positive)
    return Step(torch.zeros(rows, 4, 8, 8), torch.zeros(rows), torch.zeros(rows, 5, 6), span, known, **others)


def residuals(unit: Unit, at: Step, spans: list[Span] | None = None) -> Residuals:
    (only,) = GuidanceRun([unit], [HintImages(unit)], spans or [at.span], Host()).compute_residuals(at)
    return only


def factors(unit: Unit, positive: list[bool] | None = None) -> list[list[float]]:
    """For each row the factor of each layer."""
    result = residuals(unit, step(len(positive or [1, 1]), positive))
    assert all(torch.equal(h, h[:, :1, :1, :1].expand(h.shape)) for h in result.tensors)
    return torch.stack([h[:, 0, 0, 0] for h in result.tensors], dim=1).tolist()


def rounded(rows: list[list[float]]) -> list[list[float]]:
    return [[round(factor, 4) for factor in row] for row in rows]


def test_balanced_mode_multiplies_all_layers_and_rows_by_the_weight() -> None:
    assert rounded(factors(Unit(Ones(), GREY, weight=0.7))) == [[0.7] * 13] * 2


def test_a_negative_weight_turns_residuals_around() -> None:
    assert factors(Unit(Ones(), GREY, weight=-1.5)) == [[-1.5] * 13] * 2


def test_prompt_mode_has_soft_weights_on_both_halves() -> None:
    assert rounded(factors(Unit(Ones(), GREY, mode="prompt"), [False, True])) == [SD15, SD15]


def test_soft_weights_of_sdxl_end_at_one() -> None:
    assert rounded(factors(Unit(Ones(skips=9), GREY, mode="prompt"))) == [SDXL, SDXL]


def test_control_mode_has_soft_weights_on_the_rows_of_the_prompt() -> None:
    model = Ones()
    rows = factors(Unit(model, GREY, mode="control", weight=2.0), [False, False, True, True])
    assert rows[:2] == [[0.0] * 13] * 2
    assert rounded([[factor / 2 for factor in row] for row in rows[2:]]) == [SD15, SD15]
    assert model.rows == [2]  # the net runs on no other rows


def test_control_mode_without_guidance_acts_on_all_rows() -> None:
    assert rounded(factors(Unit(Ones(), GREY, mode="control"), [True, True])) == [SD15, SD15]


def test_control_mode_is_refused_where_rows_are_unknown() -> None:
    with pytest.raises(ValueError, match="unit 1 acts on the prompt's rows only, and the host cannot tell which"):
        factors(Unit(Ones(), GREY, mode="control"), None)


def test_control_mode_rests_in_a_call_without_the_prompt() -> None:
    unit = Unit(Ones(), GREY, mode="control")
    assert (
        list(GuidanceRun([unit], [HintImages(unit)], [Span(0, 1)], Host()).compute_residuals(step(2, [False, False])))
        == []
    )


def test_a_net_that_pools_globally_acts_on_the_rows_of_the_prompt() -> None:
    class Pooled(Ones):
        prompt_rows_only = True

    assert factors(Unit(Pooled(), GREY), [False, True]) == [[0.0] * 13, [1.0] * 13]


def test_layers_multiply_weight_and_mode() -> None:
    layers = [0.0, 2.0] + [1.0] * 10 + [-1.0]
    (row, _) = factors(Unit(Ones(), GREY, weight=0.5, mode="prompt", layers=layers))
    assert [round(factor, 4) for factor in (row[0], row[1], row[11], row[12])] == [0.0, 0.1205, 0.4125, -0.5]


@pytest.mark.parametrize("count", [1, 10, 12, 14])
def test_layers_of_another_number_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"unit 1: layers has {count} entries, but the model has 13"):
        factors(Unit(Ones(), GREY, layers=[1.0] * count))


def test_images_that_act_together_share_the_weight() -> None:
    model = Ones()
    assert factors(Unit(model, (GREY, GREY, GREY, GREY), weight=2.0)) == [[2.0] * 13] * 2
    assert model.rows == [2, 2, 2, 2]


def test_a_region_is_bilinear_at_the_size_of_each_layer() -> None:
    region = np.zeros((4, 4), np.float32)
    region[:, 2:] = 1
    h = residuals(Unit(Ones(), GREY, weight=2.0, region=region), step()).middle
    assert h is not None
    # eight columns from four: each takes 3/4 of its own and 1/4 of the neighbour on its side
    assert h[0, 0, 3].tolist() == [0.0, 0.0, 0.0, 0.5, 1.5, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (512, 8), (721, 1283)])
def test_a_region_may_have_any_size(size: tuple[int, int]) -> None:
    h = residuals(Unit(Ones(), GREY, region=np.ones(size, bool)), step()).middle
    assert h is not None and torch.equal(h, torch.ones(2, 2, 8, 8))


def test_a_schedule_is_lines_between_its_points() -> None:
    weight = WeightSchedule.parse("0.2@0.1, 1@0.3, 0@0.8")
    at = [0.0, 0.1, 0.2, 0.3, 0.55, 0.8, 0.9, 1.0]
    assert [round(weight(f), 6) for f in at] == [0.2, 0.2, 0.6, 1.0, 0.5, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected"),
        ("1", "expected"),
        ("1@", "expected"),
        ("1@0@0", "expected"),
        ("1@0,", "expected"),
        ("1@1.5", "fraction 1.5 is outside 0..1"),
        ("1@nan", "fraction nan is outside 0..1"),
        ("3@0", "weight 3.0 is outside -2..2"),
        ("inf@0", "weight inf is outside -2..2"),
        ("1@0.5, 0@0.5", "fractions must rise, 0.5 follows 0.5"),
    ],
)
def test_a_schedule_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Unit(Ones(), GREY, weight=text)


def test_weights_over_the_run_are_taken_where_steps_begin() -> None:
    spans = [Span(i / 4, (i + 1) / 4) for i in range(4)]
    for weight in ("0@0, 1@0.5, 0@1", lambda fraction: 2 * min(fraction, 1 - fraction)):
        model = Ones()
        unit = Unit(model, GREY, weight=weight)
        run = GuidanceRun([unit], [HintImages(unit)], spans, Host())
        got = [[h.middle[0, 0, 0, 0].item() for h in run.compute_residuals(step(span=span))] for span in spans]
        assert got == [[], [0.5], [1.0], [0.5]]
        assert model.rows == [2, 2, 2]  # where the weight is 0 the net is not called


def test_a_window_holds_whole_steps_only() -> None:
    spans = [Span(i / 10, (i + 1) / 10) for i in range(10)]
    assert [i for i, span in enumerate(spans) if Window(0.3, 0.8).contains(span)] == [3, 4, 5, 6, 7]
    assert [i for i, span in enumerate(spans) if Window(0.25, 0.79).contains(span)] == [3, 4, 5, 6]
    points = [Span(i / 10, i / 10) for i in range(10)]  # webui's rule: a step acts if it begins in the window
    assert [i for i, span in enumerate(points) if Window(0.2, 0.8).contains(span)] == [2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ({"window": Window(0.4, 0.6)}, "window 0.4..0.6 of unit 2 holds none of 4 steps"),
        ({"window": Window(0.5, 0.5)}, "window 0.5..0.5 of unit 2 holds none of 4 steps"),
        ({"weight": "1@0.8, 0@0.9", "window": Window(0.9, 1)}, "window 0.9..1 of unit 2 holds none"),
        ({"weight": "0@0"}, "the weight of unit 2 is 0 in all 4 steps that its window 0..1 holds"),
        ({"weight": "0@0.7, 1@0.8", "window": Window(0, 0.5)}, "the weight of unit 2 is 0 in all 2 steps"),
        ({"weight": lambda _: 3.0}, "unit 2: weight 3.0 is outside -2..2"),
        ({"weight": lambda _: None}, "unit 2: weight None is NoneType, expected a number -2..2"),
    ],
)
def test_a_unit_that_cannot_act_is_refused_before_the_run(unit: dict[str, Any], message: str) -> None:
    units = [Unit(Ones(), GREY), Unit(Ones(), GREY, **unit)]
    with pytest.raises(ValueError, match=message):
        GuidanceRun(units, [HintImages(u) for u in units], [Span(i / 4, (i + 1) / 4) for i in range(4)], Host())


def test_a_unit_of_weight_0_is_off_whatever_its_window() -> None:
    unit = Unit(Ones(), GREY, weight=0, window=Window(0.4, 0.6))
    assert list(GuidanceRun([unit], [HintImages(unit)], [Span(0, 1)], Host()).compute_residuals(step())) == []


@pytest.mark.parametrize(("hires", "acts"), [("both", [1, 1, 1]), ("low", [1, 0, 0]), ("high", [0, 1, 1])])
def test_hires_chooses_the_runs(hires: Any, acts: list[int]) -> None:
    unit = Unit(Ones(), GREY, hires=hires)
    runs = [GuidanceRun([unit], [HintImages(unit)], [Span(0, 1)], Host(), turn) for turn in range(3)]
    assert [len(list(run.compute_residuals(step()))) for run in runs] == acts


class Means(Ones):
    """Residuals of the hint's mean, to see which map a row had."""

    def __call__(self, step: Step, hint: torch.Tensor) -> Residuals:
        return Residuals((), hint[:, None, None, None].expand(len(step.x), 1, 1, 1))


def per_row(unit: Unit, at: Step) -> list[float]:
    middle = residuals(unit, at).middle
    assert middle is not None
    return middle.flatten().tolist()


MAPS = [np.full((64, 64, 3), value, np.uint8) for value in (10, 20, 30, 40)]


def test_each_image_has_its_map() -> None:
    unit = Unit(Means(), PerSample(MAPS[:2]))
    assert per_row(unit, step(4, [False, False, True, True], samples=torch.tensor([0, 1, 0, 1]))) == [10, 20, 10, 20]


def test_each_image_has_its_map_on_the_rows_of_the_prompt() -> None:
    unit = Unit(Means(), PerSample(MAPS[:2]), mode="control")
    assert per_row(unit, step(4, [False, False, True, True], samples=torch.tensor([0, 1, 0, 1]))) == [0, 0, 10, 20]


def test_each_video_or_each_frame_has_its_map() -> None:
    at = step(8, [False] * 4 + [True] * 4, samples=torch.tensor([0, 0, 1, 1] * 2), frames=2)
    assert per_row(Unit(Means(), PerSample(MAPS[:2])), at) == [10, 10, 20, 20] * 2
    assert per_row(Unit(Means(), PerSample(MAPS)), at) == [10, 20, 30, 40] * 2


def test_another_number_of_maps_is_refused() -> None:
    at = step(4, [False, False, True, True], samples=torch.tensor([0, 1, 0, 1]))
    for images in (MAPS[:1], MAPS[:3]):
        with pytest.raises(ValueError, match=f"unit 1 has {len(images)} maps for 2 images"):
            residuals(Unit(Means(), PerSample(images)), at)
    with pytest.raises(
        ValueError, match="unit 1 has a map for each image, and the host cannot tell whose row is whose"
    ):
        residuals(Unit(Means(), PerSample(MAPS[:2])), step(4))


def test_finite_is_told_by_sums_that_may_overflow() -> None:
    big, small = torch.full((100,), 3e38), torch.full((100,), 6e4, dtype=torch.float16)
    assert all_finite([]) and all_finite([big, small]) and all_finite([torch.cat([big, -big])])
    for bad in (float("nan"), float("inf"), -float("inf")):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            assert not all_finite([small, torch.tensor([1, bad], dtype=dtype)])
    assert not all_finite([torch.tensor([float("inf"), -float("inf")])])
