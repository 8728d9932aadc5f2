"""UniFormer with its UPerNet head, random weights: the authors' backbone, transformers' head, sizes, strict loading."""

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import transformers
from controlnet_ext.annotators import uniformer
from controlnet_ext.preprocessors import find, preprocess
from controlnet_ext.preprocessors.segmentation.palettes import ADE20K_PALETTE
from controlnet_ext.preprocessors.segmentation.uniformer import UNIFORMER_WEIGHTS
from lines import Shelf, random_state, randomised
from PIL import Image

from controlnet_ext.cli import main
from controlnet_ext.files.image_reader import read_image

IMAGE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8).repeat(40, 0).repeat(40, 1)


@pytest.fixture(scope="module")
def state():
    with torch.device("meta"):
        shapes = uniformer.UperNet().state_dict()
    return random_state(shapes)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """512 and 2048 pixels take 10 s."""
    monkeypatch.setattr("controlnet_ext.preprocessors.segmentation.uniformer._SHORT_SIDE", 64)
    monkeypatch.setattr("controlnet_ext.preprocessors.segmentation.uniformer._MAX_LONG_SIDE", 160)


@pytest.fixture(scope="module")
def ready(state):
    return find("segmentation").load(library=Shelf(state))


def authors():
    """Sense-X/UniFormer's file of the backbone; what it registers itself with is left out."""
    path = os.environ.get("CONTROLNET_EXT_UNIFORMER")
    if path is None:
        pytest.skip("CONTROLNET_EXT_UNIFORMER is not set to Sense-X/UniFormer's uniformer.py for segmentation")
    pytest.importorskip("timm")
    decorator = SimpleNamespace(register_module=lambda: lambda kind: kind)
    names = {"mmseg.utils": "get_root_logger", "mmseg.models.builder": "BACKBONES", "mmcv_custom": "load_checkpoint"}
    for name in (
        "mmseg",
        "mmseg.models",
        "annotator",
        "annotator.uniformer",
        "annotator.uniformer.mmcv_custom",
        *names,
    ):
        sys.modules.setdefault(name, ModuleType(name))
        setattr(sys.modules[name], names.get(name, "load_checkpoint"), decorator)
    module = ModuleType("authors")
    exec(compile(Path(path).read_text(), path, "exec"), module.__dict__)
    return module


def test_the_backbone_equals_its_authors():
    theirs, state = randomised(authors().UniFormer(layers=[3, 4, 8, 3]))
    ours = uniformer.UniFormer().eval()
    ours.load_state_dict(state)
    for shape in ((1, 3, 64, 96), (2, 3, 70, 61)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            for one, other in zip(ours(x), theirs(x), strict=True):
                assert other.std() > 0.1
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_head_equals_transformers():
    from transformers.models.upernet.modeling_upernet import UperNetHead

    config = transformers.UperNetConfig(hidden_size=512, id2label={i: str(i) for i in range(150)})
    theirs, state = randomised(UperNetHead(config, in_channels=list(uniformer.UNIFORMER_WIDTHS)))
    names = {"classifier.": "conv_seg.", "batch_norm.": "bn."}
    renamed = {}
    for key, tensor in state.items():
        for theirs_, ours_ in names.items():
            key = key.replace(theirs_, ours_)
        renamed[key] = tensor
    ours = uniformer._UperHead().eval()
    ours.load_state_dict(renamed)
    generator = torch.Generator().manual_seed(0)
    features = [
        torch.randn(1, width, 32 >> i, 40 >> i, generator=generator)
        for i, width in enumerate(uniformer.UNIFORMER_WIDTHS)
    ]
    with torch.inference_mode():
        one, other = ours(features), theirs(features)
    assert one.shape == (1, 150, 32, 40) and other.std() > 0.1
    torch.testing.assert_close(one, other, atol=2e-5 * other.abs().max().item(), rtol=0)


def test_classes_are_those_of_the_scores_at_the_images_size(state, ready):
    net = uniformer.load(state).eval()
    mean, deviation = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    for image, (height, width) in ((IMAGE, (64, 90)), (np.tile(IMAGE, (1, 3, 1)), (38, 160))):
        large = cv2.resize(image, (width, height))
        x = ((torch.from_numpy(large) - mean) / deviation).permute(2, 0, 1)[None]
        with torch.inference_mode():
            scores = net(x)
            for size in ((height, width), image.shape[:2]):
                scores = torch.nn.functional.interpolate(scores, size, mode="bilinear", align_corners=False)
        expected = scores.argmax(dim=1)[0].numpy()
        made = ready(image)
        assert len(np.unique(expected)) > 1
        assert (made.values.labels != expected).mean() < 1e-3  # the larger of two classes within float32's last bits
        np.testing.assert_array_equal(made.pixels, np.array(ADE20K_PALETTE.colors, np.uint8)[made.values.labels])
        assert made.kind == "segmentation" and made.values.names == ADE20K_PALETTE.names


def test_every_size_has_a_map(ready):
    for height, width in ((1, 1), (1, 300), (90, 3)):
        assert ready(np.resize(IMAGE, (height, width, 3))).values.labels.shape == (height, width)
    assert ready(IMAGE, resolution=64).pixels.shape == (64, 90, 3)


def test_all_tensors_are_wanted_but_those_for_training(state):
    uniformer.load(state | {"auxiliary_head.conv_seg.weight": torch.zeros(1)})
    key = "decode_head.conv_seg.bias"
    for broken in (state | {"more": torch.zeros(1)}, state | {key: torch.zeros(7)}):
        with pytest.raises(RuntimeError, match=r"more|size mismatch"):
            uniformer.load(broken)
    with pytest.raises(RuntimeError, match="Missing key"):
        uniformer.load({name: tensor for name, tensor in state.items() if name != key})


def test_scores_that_are_no_numbers_are_refused(state):
    broken = Shelf(state | {"decode_head.conv_seg.bias": torch.full((150,), float("nan"))})
    with pytest.raises(ValueError, match="no numbers: compute in float32"):
        preprocess("seg_ufade20k", IMAGE[:40, :40], library=broken)


def test_the_command_reads_a_file_as_mmsegmentation_writes_it(state, ready, tmp_path):
    meta = {"CLASSES": ("wall", "building"), "PALETTE": [[120, 120, 120]], "epoch": 4, "mmseg_version": "0.12.0"}
    torch.save({"meta": meta, "state_dict": state}, tmp_path / UNIFORMER_WEIGHTS.name)
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    command = ["preprocess", "SEG_UFADE20K", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png")]
    assert main([*command, "--library", str(tmp_path), "--no-download"]) == 0
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), ready(IMAGE).pixels)
