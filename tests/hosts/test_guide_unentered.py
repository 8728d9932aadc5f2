"""A guide that is thrown away unentered, and images that are taken for maps: warnings in Python."""

import gc
import warnings
from contextlib import ExitStack

import numpy as np
import pytest
import tiny
from diffusers import StableDiffusionPipeline
from fakes import Pushes

from controlnet_ext import ControlMap, PerSample, Unit, guide
from controlnet_ext.hosts.ldm.guide import guide_ldm

PHOTO = np.asarray(tiny.random_image(seed=1))


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline(StableDiffusionPipeline)


def test_a_guide_without_with_warns_that_it_does_nothing(pipe):
    with pytest.warns(
        UserWarning, match=r"^guide\(\.\.\.\) was not entered and does nothing: with guide\(\.\.\.\): …$"
    ):
        guide(pipe, [])
        gc.collect()
    with pytest.warns(UserWarning, match=r"^guide_ldm\(\.\.\.\) was not entered"):
        guide_ldm(pipe.unet, [])
        gc.collect()


def test_a_guide_that_is_used_warns_of_nothing(pipe):
    calls = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with guide(pipe, []):
            pass
        with ExitStack() as stack:
            stack.enter_context(guide(pipe, []))
        guide(pipe, [])(lambda: calls.append(1))()  # as a decorator
        with pytest.raises(ValueError, match="has no UNet"), guide(object(), []):
            pass
        gc.collect()
    assert calls == [1]


@pytest.fixture
def edges():
    """A model that was trained with edges."""
    model = Pushes()
    model.map_type = "edges"
    return model


def test_a_photo_that_is_taken_for_a_map_warns(pipe, edges):
    reason = "the image that is taken for a map has colors, which maps of edges have not: name the preprocessor"
    for image in (PHOTO, PerSample([np.zeros((64, 64, 3), np.uint8), PHOTO]), (PHOTO, PHOTO)):
        with pytest.warns(UserWarning, match=reason), guide(pipe, [Unit(edges, image)]):
            pass


def test_maps_and_images_with_a_preprocessor_warn_of_nothing(pipe, edges):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for unit in (
            Unit(edges, PHOTO, preprocessor="canny"),
            Unit(edges, ControlMap(PHOTO, "edges")),
            Unit(edges, np.zeros((64, 64, 3), np.uint8)),
            Unit(Pushes(), PHOTO),
        ):
            with guide(pipe, [unit]):
                pass


def test_a_tensor_is_an_image_of_a_unit(pipe, edges):
    import torch

    planes = torch.from_numpy(PHOTO.copy()).permute(2, 0, 1) / 255
    reason = "the image that is taken for a map has colors"
    for image in (planes, PerSample([planes, planes])):
        with pytest.warns(UserWarning, match=reason), guide(pipe, [Unit(edges, image)]):
            pass
    with pytest.raises(TypeError, match=r"image is a batch of 1 tensors: PerSample\(list\(batch\)\)"):
        Unit(edges, planes[None])
