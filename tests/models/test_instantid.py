"""InstantID's ControlNet: diffusers' ControlNetModel, given the face's embedding as its context."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import fakes
import pytest
import tiny
import torch
from diffusers import StableDiffusionXLPipeline
from networks import all_of, ours, random_image, reference, step_for, theirs_on

from controlnet_ext import Unit, guide
from controlnet_ext.models.kinds.controlnet import ControlNet
from controlnet_ext.models.kinds.instantid import InstantID


def tokens(width: int, seed: int) -> torch.Tensor:
    return torch.randn(4, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_residuals_are_those_of_diffusers_given_that_context() -> None:
    theirs = reference("SDXL")
    net = ours(theirs)
    face, absent = tokens(64, 1), tokens(64, 2)
    step = replace(step_for(net), positive=torch.tensor([False, True]))
    hint = net.hint(random_image()).expand(2, -1, -1, -1)
    expected = theirs_on(theirs, replace(step, context=torch.stack([absent, face])), random_image())
    for a, b in zip(all_of(InstantID(net, face, absent)(step, hint)), expected, strict=True):
        assert torch.equal(a, b)
    expected = theirs_on(theirs, replace(step, context=torch.stack([face, face])), random_image())
    for a, b in zip(all_of(InstantID(net, face[None])(step, hint)), expected, strict=True):
        assert torch.equal(a, b)


def test_it_guides_a_pipeline_by_the_face_and_not_by_the_prompt() -> None:
    control = tiny.control("SDXL")
    net = ControlNet.load(control.state_dict(), control.config)
    pipe = tiny.pipeline(StableDiffusionXLPipeline, "SDXL")
    made = []
    for face, absent in ((tokens(64, 1), None), (tokens(64, 1), tokens(64, 2)), (tokens(64, 3), None)):
        with guide(pipe, [Unit(InstantID(net, face, absent), tiny.random_image())]):
            made.append(fakes.run(pipe, steps=2))
    assert not any(torch.equal(made[0], other) for other in made[1:])


@pytest.mark.parametrize(
    ("face", "absent", "message"),
    [
        (torch.zeros(4, 63), None, r"face has shape \(1, 4, 63\), expected \(tokens, 64\)"),
        (torch.zeros(2, 4, 64), None, r"face has shape \(2, 4, 64\)"),
        (torch.full((4, 64), float("inf")), None, "face holds values that are not finite"),
        (torch.zeros(4, 64), torch.zeros(5, 64), "absent has 5 tokens, but face has 4"),
        ([1.0], None, "face is list, expected a tensor"),
    ],
)
def test_wrong_embeddings_are_refused(face: Any, absent: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        InstantID(_net(), face, absent)


def _net() -> ControlNet:
    control = tiny.control("SDXL")
    return ControlNet.load(control.state_dict(), control.config)


def test_without_known_rows_it_is_refused() -> None:
    net = _net()
    step, hint = step_for(net), net.hint(random_image()).expand(2, -1, -1, -1)
    with pytest.raises(ValueError, match="cannot tell"):
        InstantID(net, tokens(64, 1), tokens(64, 2))(step, hint)
