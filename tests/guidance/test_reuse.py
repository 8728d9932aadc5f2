"""Residuals that serve several steps: which steps call the network, and what is added in the others."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from fakes import GREY, WHITE, Plus, Pushes, run

from controlnet_ext import PerSample, Residuals, Span, Step, Unit, Window, guide
from controlnet_ext.guidance.hints import HintImages
from controlnet_ext.guidance.run import GuidanceRun
from controlnet_ext.models.kinds.controlnet import ControlNet


@pytest.fixture
def pipe() -> Any:
    return tiny.pipeline(StableDiffusionPipeline)


class Counts(Pushes):
    """Its residuals are the number of its calls, so far."""

    def __call__(self, step: Step, hint: torch.Tensor) -> Residuals:
        super().__call__(step, hint)
        push = torch.full((len(step.x), 1, 1, 1), float(len(self.steps)))
        return Residuals((push,) * self.skips, push)


class Size:
    pixel_size = (64, 64)


SPANS = [Span(i / 6, (i + 1) / 6) for i in range(6)]


def step(i: int, **changes: Any) -> Step:
    """Step i of six, two rows for one image; x turns by 0.1 of its norm a step."""
    x = torch.ones(2, 4, 8, 8)
    x[:, 0] += 0.2 * i
    given = {"x": x, "t": torch.full((2,), 900.0 - i), "context": torch.zeros(2, 3, 3), "span": SPANS[i]}
    given |= {"positive": torch.tensor([False, True]), "samples": torch.tensor([0, 0])}
    return Step(**{**given, **changes})


def added(steps: list[Step], **given: Any) -> list[list[float] | None]:
    """What a unit adds to each row's middle block in these steps."""
    unit = Unit(Counts(), GREY, **given)
    host: Any = Size()
    one = GuidanceRun([unit], [HintImages(unit)], SPANS, host)
    found: list[list[float] | None] = []
    for each in steps:
        residuals = list(one.compute_residuals(each))
        found.append(residuals[0].middle.flatten().tolist() if residuals else None)  # type: ignore[union-attr]
    return found


STEPS = [step(i) for i in range(6)]


@pytest.mark.parametrize(
    ("given", "calls"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"reuse": 1}, [1, 2, 3, 4, 5, 6]),
        ({"reuse": 2}, [1, 1, 2, 2, 3, 3]),
        ({"reuse": 4}, [1, 1, 1, 1, 2, 2]),
        ({"reuse": 1000}, [1] * 6),
        ({"reuse": 2, "window": Window(1 / 6, 1)}, [None, 1, 1, 2, 2, 3]),
        ({"reuse": 6, "reuse_tolerance": 0.0}, [1, 2, 3, 4, 5, 6]),
        ({"reuse": 6, "reuse_tolerance": 0.11}, [1, 1, 2, 2, 3, 3]),  # 0.1, then 0.2 of the norm, which grows
        ({"reuse": 6, "reuse_tolerance": 0.25}, [1, 1, 1, 2, 2, 2]),
    ],
)
def test_residuals_serve_as_many_steps_as_the_unit_says(given: dict[str, Any], calls: list[int | None]) -> None:
    assert added(STEPS, **given) == [None if call is None else [call, call] for call in calls]


def test_weights_and_modes_are_those_of_the_step() -> None:
    assert added(STEPS, reuse=3, weight="1@0, 0@1") == [
        pytest.approx([call * (1 - i / 6)] * 2) for i, call in enumerate([1, 1, 1, 2, 2, 2])
    ]
    assert added(STEPS, reuse=3, mode="control") == [[0, call] for call in [1, 1, 1, 2, 2, 2]]


def test_what_is_not_the_same_is_made_anew() -> None:
    prompt = torch.ones(2, 3, 3)
    assert added([STEPS[0], step(1, context=prompt), step(2, context=prompt)], reuse=6) == [[1, 1], [2, 2], [2, 2]]
    vector = torch.ones(2, 5)
    assert added([STEPS[0], step(1, added=vector)], reuse=6) == [[1, 1], [2, 2]]
    large = torch.ones(2, 4, 8, 16)
    assert added([STEPS[0], step(1, x=large), STEPS[2]], reuse=6) == [[1, 1], [2, 2], [1, 1]]
    assert added([STEPS[3], STEPS[0]], reuse=6) == [[1, 1], [2, 2]]  # backwards: another run through the same hook


def test_parts_of_a_step_have_residuals_of_their_own() -> None:
    """A host that calls the UNet twice a step, with the rows without the prompt first."""

    def part(i: int, row: int) -> Step:
        whole = STEPS[i]
        one = slice(row, row + 1)
        assert whole.positive is not None and whole.samples is not None
        return Step(
            whole.x[one], whole.t[one], whole.context[one], whole.span, whole.positive[one], None, whole.samples[one]
        )

    calls = [part(i, row) for i in range(4) for row in (0, 1)]
    assert added(calls, reuse=2) == [[1], [2], [1], [2], [3], [4], [3], [4]]


def test_without_known_rows_it_is_refused() -> None:
    with pytest.raises(ValueError, match="unit 1: residuals are reused by row, and the host cannot tell whose row"):
        added([step(0, positive=None)], reuse=2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reuse": 0}, "reuse 0, expected for how many steps"),
        ({"reuse": 2.0}, "reuse 2.0, expected"),
        ({"reuse": True}, "reuse True, expected"),
        ({"reuse": 2, "reuse_tolerance": -0.1}, "reuse_tolerance -0.1, expected a part"),
        ({"reuse": 2, "reuse_tolerance": float("nan")}, "reuse_tolerance nan, expected a part"),
        ({"reuse": 2, "reuse_tolerance": "1"}, "reuse_tolerance '1', expected a part"),
        ({"reuse_tolerance": 0.1}, "reuse_tolerance 0.1 without reuse"),
        ({"reuse": 2, "model": Plus()}, "reuse 2 of pushes, which gives no residuals"),
    ],
)
def test_nonsense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Unit(**{"model": Pushes(), "image": GREY} | given)


def test_a_reuse_of_1_is_none_to_the_bit_and_one_of_2_halves_the_calls(pipe: Any) -> None:
    theirs = tiny.control()
    net = ControlNet.load(theirs.state_dict(), theirs.config)
    calls: list[int] = []
    net.register_forward_hook(lambda *_: calls.append(1))
    found, counts = [], []
    for reuse in (None, 1, 2):
        calls.clear()
        given = {} if reuse is None else {"reuse": reuse}
        with guide(pipe, [Unit(net, tiny.random_image(), weight=0.8, mode="control", **given)]):
            found.append(run(pipe))
        counts.append(len(calls))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert counts == [4, 4, 2]


def test_each_image_has_its_own_and_a_run_its_own(pipe: Any) -> None:
    unit = Unit(Pushes(), PerSample([GREY, WHITE]), reuse=4)
    with guide(pipe, [unit]):
        first = run(pipe, ["a cat", "a dog"])
        assert torch.equal(run(pipe, ["a cat", "a dog"]), first)
    assert len(unit.model.steps) == 2  # type: ignore[attr-defined]
    with guide(pipe, [Unit(Pushes(), PerSample([GREY, WHITE]))]):
        assert torch.equal(run(pipe, ["a cat", "a dog"]), first)  # what it pushes does not depend on the step
