"""BiRefNet by random weights: its authors' code, deformable convolutions, files of any Swin, maps, refusals."""

import os
import sys
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from controlnet_ext.annotators import birefnet
from controlnet_ext.annotators.swin import SwinTransformer
from controlnet_ext.preprocessors import find, preprocess
from lines import Shelf, random_state
from PIL import Image

IMAGE = cv2.resize(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8), (140, 90))
NAMES = ("remove_background_birefnet", "remove_background_birefnet_lite", "remove_background_rmbg2")
SIZES = (6, (1, 2, 1, 1), (1, 2, 3, 6), 3)  # a Swin Transformer


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr("controlnet_ext.preprocessors.segmentation.background.MATTING_INPUT_SIZE", 64)


@pytest.fixture(scope="module")
def state():
    with torch.device("meta"):
        shapes = birefnet.BiRefNet(SwinTransformer(*SIZES), SIZES[0]).state_dict()
    return random_state(shapes)


@pytest.fixture
def authors(monkeypatch):
    """A function that gives the authors' network by the name of its backbone."""
    folder = os.environ.get("CONTROLNET_EXT_BIREFNET")
    if folder is None:
        pytest.skip("CONTROLNET_EXT_BIREFNET is not set to a checkout of ZhengPeng7/BiRefNet")
    for name in ("torchvision", "timm", "einops"):
        pytest.importorskip(name)
    monkeypatch.syspath_prepend(folder)
    for name in ("kornia", "kornia.filters", "dataset"):  # for training
        module = ModuleType(name)
        module.laplacian, module.class_labels_TR_sorted = None, []
        monkeypatch.setitem(sys.modules, name, module)
    import config

    def network(backbone, width):
        class Config(config.Config):
            def __init__(self):
                super().__init__()
                self.bb = backbone
                self.lateral_channels_in_collection = [2 * width << i for i in (3, 2, 1, 0)]
                self.cxt = [2 * width << i for i in (0, 1, 2)]

        monkeypatch.setattr(config, "Config", Config)
        from models.birefnet import BiRefNet

        return BiRefNet(bb_pretrained=False).eval()

    return network


@pytest.mark.parametrize("backbone, width", [("swin_v1_t", 96), pytest.param("swin_v1_l", 192, marks=pytest.mark.long)])
def test_the_network_equals_its_authors(authors, backbone, width):
    theirs = authors(backbone, width)
    shapes = theirs.state_dict()
    state = {key: shapes[key] if "index" in key else tensor for key, tensor in random_state(shapes).items()}
    theirs.load_state_dict(state)
    ours = birefnet.load(state).eval()
    for shape in ((2, 3, 64, 128), (1, 3, 192, 64)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected, result = theirs(x)[-1], ours(x)
        assert expected.std() > 0.1
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


def test_a_deformable_convolution_looks_where_it_is_told():
    torch.manual_seed(0)
    convolution = birefnet.DeformableConv2d(3, 4, 1).requires_grad_(False)
    x = torch.randn(2, 3, 8, 11)
    for part in (convolution.offset_conv, convolution.modulator_conv):
        part.weight.zero_(), part.bias.zero_()
    plain = torch.nn.functional.conv2d(x, convolution.regular_conv.weight)
    torch.testing.assert_close(convolution(x), plain, atol=1e-5, rtol=1e-5)  # twice the sigmoid of 0 is 1
    convolution.offset_conv.bias[:] = torch.tensor([1.0, -2.0])  # a pixel down, two to the left
    moved = convolution(x)
    torch.testing.assert_close(moved[:, :, :-1, 2:], plain[:, :, 1:, :-2], atol=1e-5, rtol=1e-5)
    assert moved[:, :, -1].abs().max() < 1e-5 and moved[:, :, :, :2].abs().max() < 1e-5  # outside there is nothing


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_deformable_convolution_is_torchvisions(size):
    ops = pytest.importorskip("torchvision.ops")
    torch.manual_seed(1)
    convolution = birefnet.DeformableConv2d(3, 4, size).requires_grad_(False)
    convolution.offset_conv.weight *= 9  # some look outside
    x = torch.randn(2, 3, 9, 14)
    expected = ops.deform_conv2d(
        x,
        convolution.offset_conv(x),
        convolution.regular_conv.weight,
        padding=size // 2,
        mask=2 * convolution.modulator_conv(x).sigmoid(),
    )
    torch.testing.assert_close(convolution(x), expected, atol=1e-5, rtol=1e-5)


def test_a_map_is_the_image_by_its_matte_on_the_ground(state):
    net = birefnet.load(state).eval()
    for name, image in zip(NAMES, (IMAGE, IMAGE.transpose(1, 0, 2).copy(), IMAGE[:1]), strict=True):
        made = preprocess(name, image, library=Shelf(state), ground=40)
        square = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR), np.float32) / 255
        x = (square - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
        with torch.inference_mode():
            matte = net(torch.from_numpy(x).permute(2, 0, 1)[None]).sigmoid()
            matte = torch.nn.functional.interpolate(matte, image.shape[:2], mode="bilinear")[0, 0].numpy()
        assert made.values.std() > 0.01
        np.testing.assert_allclose(made.values, matte, atol=1e-4)
        assert np.abs(made.pixels - (image * matte[..., None] + 40 * (1 - matte[..., None]))).max() <= 0.52


def test_batches_are_singles(state):
    run = find(NAMES[0]).load(library=Shelf(state))
    images = [IMAGE, IMAGE[::-1].copy()]
    for one, image in zip(run.run_batch(images), images, strict=True):
        np.testing.assert_allclose(one.values, run(image).values, atol=1e-4)


def test_files_of_training_and_of_other_sizes_are_read_and_no_others(state):
    training = {
        "decoder.conv_ms_spvn_4.weight": torch.zeros(1),
        "decoder.gdt_convs_pred_2.0.bias": torch.zeros(1),
        "bb.layers.0.blocks.0.attn.relative_position_index": torch.zeros(81, 81, dtype=torch.int64),
    }
    birefnet.load({f"module._orig_mod.{key}": tensor for key, tensor in (state | training).items()})
    with torch.device("meta"):
        shapes = birefnet.BiRefNet(SwinTransformer(4, (1, 1, 3, 2), (1, 1, 2, 2), 5), 4).state_dict()
    net = birefnet.load(random_state(shapes))
    assert [len(stage.blocks) for stage in net.bb.layers] == [1, 1, 3, 2] and net.bb.layers[0].window == 5
    with pytest.raises(RuntimeError, match="more"):
        birefnet.load(state | {"more": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="Missing key"):
        birefnet.load({key: tensor for key, tensor in state.items() if key != "decoder.conv_out1.0.bias"})
    for broken in ({}, {"bb.patch_embed.proj.weight": torch.zeros(())}, {"conv_in.weight": torch.zeros(1)}):
        with pytest.raises(ValueError, match="of a BiRefNet"):
            birefnet.load(broken)


def test_half_precision_comes_near(state):
    from controlnet_ext.preprocessors.backends.torch import Device

    whole = preprocess(NAMES[1], IMAGE, library=Shelf(state)).values
    half = preprocess(NAMES[1], IMAGE, library=Shelf(state), device=Device("cpu", "bfloat16")).values
    assert 0 < np.abs(whole - half).mean() < 0.05
