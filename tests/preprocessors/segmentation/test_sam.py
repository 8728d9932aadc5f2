"""Segment Anything on tiny random networks: the same masks as transformers' pipeline, duplicates, colours, the
layout of published files, and refusals."""

from importlib.util import find_spec

import numpy as np
import pytest
import sam_models as made
import segmentation_models
import torch
import transformers
from controlnet_ext.preprocessors import find, preprocess
from controlnet_ext.preprocessors.backends.transformers import import_transformers_class
from controlnet_ext.preprocessors.library import Library
from controlnet_ext.preprocessors.segmentation.masks import (
    ObjectMask,
    mask_from_logits,
    non_max_suppression,
    render_masks,
)
from controlnet_ext.preprocessors.segmentation.sam import TransformersSam
from PIL import Image

from controlnet_ext.cli import main
from controlnet_ext.files.image_reader import read_image

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8).repeat(10, 0).repeat(10, 1)
SAM, SAM2 = find("sam_base").weights, find("sam2").weights


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    sam = made.randomised(made.sam())
    segmentation_models.put(root, SAM, sam, {})
    if not hasattr(transformers, "Sam2VideoModel"):
        return root, sam, None
    video = made.randomised(made.sam2_video())
    segmentation_models.put(root, SAM2, video, {})
    network = TransformersSam("cpu", Library([root], download=False), SAM2).module
    return root, sam, network


def pipeline(module, prepare, image, **settings):
    if not find_spec("torchvision"):
        pytest.skip("transformers' pipeline for it needs torchvision")
    pipe = transformers.pipeline("mask-generation", model=module, image_processor=prepare, device="cpu")
    return pipe(Image.fromarray(image), points_per_crop=5, **settings)


def whole(mask, height, width):
    result = np.zeros((height, width), bool)
    h, w = mask.segmentation.shape
    result[mask.top : mask.top + h, mask.left : mask.left + w] = mask.segmentation
    return result


def same(found, expected, shape):
    assert len(found) == len(expected["masks"]) > 3
    for mask, theirs, score in zip(found, expected["masks"], expected["scores"].tolist(), strict=True):
        assert abs(mask.score - score) < 1e-4
        # a logit of 0 within float32's last bits may fall on either side
        assert (whole(mask, *shape) != np.asarray(theirs)).mean() < 1e-3


@pytest.mark.parametrize("shape", [(90, 120), (120, 50), (64, 64)])
def test_sams_masks_are_those_of_transformers_pipeline(models, shape, monkeypatch):
    root, sam, _ = models
    sizes = {"height": made.SIDE, "width": made.SIDE}
    prepare = import_transformers_class("SamImageProcessor")(
        size={"longest_edge": made.SIDE}, pad_size=sizes, mask_size={"longest_edge": 64}, mask_pad_size=sizes
    )
    image = np.resize(IMAGE, (*shape, 3))
    expected = pipeline(sam, prepare, image, crops_nms_thresh=1.0)
    monkeypatch.setattr(
        "controlnet_ext.preprocessors.segmentation.sam._MAX_BOX_IOU", 1.0
    )  # random masks all fill the image
    run = TransformersSam("cpu", Library([root], download=False), SAM)
    found = run(image, 5, 0.88, 0.95)
    same(found, expected, shape)
    monkeypatch.setattr("controlnet_ext.preprocessors.segmentation.sam._POINTS_PER_BATCH", 7)
    monkeypatch.setattr("controlnet_ext.preprocessors.segmentation.sam._LOGITS_PER_BATCH", 1)
    for one, other in zip(found, run(image, 5, 0.88, 0.95), strict=True):
        assert abs(one.score - other.score) < 1e-4 and (whole(one, *shape) != whole(other, *shape)).mean() < 1e-3


def test_sam2s_masks_are_those_of_transformers_pipeline_on_a_square(models, monkeypatch):
    root, _, sam2 = models
    if sam2 is None or not find_spec("torchvision"):
        pytest.skip("needs SAM2 of transformers and torchvision")
    sizes = {"height": made.SIDE, "width": made.SIDE}
    image = np.ascontiguousarray(IMAGE[:64, :64])
    prepare = transformers.Sam2ImageProcessor(size=sizes, mask_size={"height": 16, "width": 16})
    expected = pipeline(sam2, prepare, image, crops_nms_thresh=1.0, pred_iou_thresh=0.6, stability_score_thresh=0.5)
    monkeypatch.setattr("controlnet_ext.preprocessors.segmentation.sam._MAX_BOX_IOU", 1.0)
    run = TransformersSam("cpu", Library([root], download=False), SAM2)
    same(run(image, 5, 0.6, 0.5), expected, (64, 64))


def test_sam2_sees_a_square_and_its_points_lie_on_all_of_it(models):
    root, _, sam2 = models
    if sam2 is None:
        pytest.skip(f"transformers {transformers.__version__} has no SAM2")
    run = TransformersSam("cpu", Library([root], download=False), SAM2)
    square = np.asarray(Image.fromarray(IMAGE).resize((64, 64), Image.Resampling.BILINEAR))
    with torch.inference_mode():
        results = [run._propose_masks(image, (64, 64), 4, -9.0) for image in (IMAGE, square)]
    for (one, score), (other, same_score) in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(score, same_score)


def test_duplicates_are_found_as_torchvision_does():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 40, (300, 2))
    boxes = np.concatenate([corners, corners + rng.integers(0, 30, (300, 2))], axis=1).astype(np.float32)
    scores = rng.random(300).astype(np.float32)
    if find_spec("torchvision"):
        from torchvision.ops import nms

        expected = nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.7).tolist()
        assert non_max_suppression(boxes, scores, 0.7) == expected and 100 < len(expected) < 290
    assert non_max_suppression(
        np.array([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 6]]), np.array([0.1, 0.9, 0.5]), 0.7
    ) == [1]
    assert non_max_suppression(np.zeros((0, 4)), np.zeros(0), 0.7) == []


def test_the_small_lie_on_the_large_in_the_seeds_colours():
    large, small = np.zeros((6, 8)), np.zeros((6, 8))
    large[1:, 2:7], small[2:4, 3] = 1, 1
    masks = [mask_from_logits(small, 0.9, 1.0), mask_from_logits(large, 0.8, 1.0)]
    assert (masks[0].left, masks[0].top, masks[0].area) == (3, 2, 2) and masks[1].area == 25
    image = render_masks(masks, 6, 8, seed=3)
    first, second = np.random.default_rng(3).integers(0, 255, (2, 3))
    expected = np.zeros((6, 8, 3), int)
    expected[1:, 2:7], expected[2:4, 3] = first, second
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(render_masks(masks[1:], 6, 8, seed=3)[1:, 2:7], np.broadcast_to(first, (5, 5, 3)))
    assert not render_masks([], 6, 8, seed=3).any()
    cut = masks[1].crop(3, 4)
    assert (cut.left, cut.top, cut.segmentation.shape) == (2, 1, (2, 2)) and masks[1].crop(1, 8).area == 0
    assert ObjectMask(7, 0, np.ones((2, 2), bool), 1, 1).crop(6, 3).area == 0


def test_a_map_has_the_masks_colours_and_is_the_same_again(models):
    library = Library([models[0]], download=False)
    made_ = preprocess("sam_base", IMAGE, library=library, points=4)
    assert made_.kind == "segmentation" and made_.values and made_.pixels.shape == IMAGE.shape
    assert [mask.area for mask in made_.values] == sorted((mask.area for mask in made_.values), reverse=True)
    np.testing.assert_array_equal(made_.pixels, render_masks(list(made_.values), 90, 120, 0))
    again = preprocess("sam_base", IMAGE, library=library, points=4)
    np.testing.assert_array_equal(made_.pixels, again.pixels)
    other = preprocess("sam_base", IMAGE, library=library, points=4, seed=1)
    assert (other.pixels != made_.pixels).any() and len(other.values) == len(made_.values)
    none = preprocess("sam_base", IMAGE, library=library, points=4, least_score=1, least_stability=1)
    assert none.values == () and not none.pixels.any()
    cut = preprocess("sam_base", IMAGE, library=library, points=4, resolution=80)
    assert cut.pixels.shape == (80, 107, 3)
    assert all(mask.top + len(mask.segmentation) <= 80 for mask in cut.values)
    for height, width in ((1, 1), (1, 300), (300, 2)):
        small = preprocess("sam_base", np.resize(IMAGE, (height, width, 3)), library=library, points=2)
        assert small.pixels.shape == (height, width, 3)


def test_scores_that_are_no_numbers_and_other_networks_are_refused(models, tmp_path, monkeypatch):
    run = TransformersSam("cpu", Library([models[0]], download=False), SAM)
    with torch.no_grad():
        run.module.mask_decoder.iou_prediction_head.proj_out.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="no numbers: compute in float32"):
        run(IMAGE, 2, 0.5, 0.5)
    for kind in ("bert", None, ["sam"]):
        segmentation_models.put(tmp_path, SAM, models[1], {}, settings={"model_type": kind})
        with pytest.raises(ValueError, match="expected one of: sam, sam2"):
            preprocess("sam_base", IMAGE, library=Library([tmp_path], download=False))
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there.*facebook/sam-vit-huge"):
        preprocess("sam", IMAGE, library=Library([tmp_path], download=False))


def test_the_command_makes_a_map_of_masks(models, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    command = ["preprocess", "sam_base", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), "--points", "4"]
    assert main([*command, "--library", str(models[0]), "--no-download", "--seed", "5"]) == 0
    expected = preprocess("sam_base", IMAGE, library=Library([models[0]], download=False), points=4, seed=5)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), expected.pixels)
