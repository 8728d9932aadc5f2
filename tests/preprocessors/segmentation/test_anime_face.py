"""Parts of anime faces by a network of random weights: torchvision's MobileNetV2, the authors' decoder typed out."""

import numpy as np
import pytest
import torch
from controlnet_ext.annotators import anime_face
from controlnet_ext.preprocessors import find, preprocess
from controlnet_ext.preprocessors.segmentation.anime_face import ANIME_FACE_PALETTE, ANIME_FACE_WEIGHTS
from lines import Shelf, aux, random_state
from PIL import Image

from controlnet_ext.cli import main
from controlnet_ext.files.image_reader import read_image

IMAGE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8).repeat(20, 0).repeat(20, 1)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """512 pixels take a second."""
    monkeypatch.setattr("controlnet_ext.preprocessors.segmentation.anime_face._SHORT_SIDE", 96)


@pytest.fixture(scope="module")
def state():
    with torch.device("meta"):
        shapes = anime_face.AnimeFace().state_dict()
    return random_state(shapes)


def test_the_encoder_is_torchvisions_and_its_names_those_of_the_file(state):
    aux()  # skips where torchvision does not import
    from torchvision.models import mobilenet_v2

    blocks = list(mobilenet_v2(weights=None).features)
    ends = (0, 2, 4, 7, 14, 17)
    theirs = torch.nn.ModuleDict(
        {f"en_block{i}": torch.nn.Sequential(*blocks[ends[i] : ends[i + 1]]) for i in range(5)}
    ).eval()
    theirs.load_state_dict({key: tensor for key, tensor in state.items() if key.startswith("en_")})
    ours = anime_face.load(state).eval()
    x = torch.rand(2, 3, 96, 70, generator=torch.Generator().manual_seed(0))
    other = x
    with torch.inference_mode():
        for i in range(5):
            x, other = getattr(ours, f"en_block{i}")(x), theirs[f"en_block{i}"](other)
            torch.testing.assert_close(x, other)
    decoder = sorted(key for key in state if key.startswith("de_"))
    assert decoder == [f"de_block{i}.1.{part}" for i in range(5) for part in ("bias", "weight")]


def typed_out(net, x):
    """The decoder as its authors wrote it, dropout and softmax left out."""
    functional = torch.nn.functional
    features = []
    for i in range(5):
        x = getattr(net, f"en_block{i}")(x)
        features.append(x)
    for i in (4, 3, 2, 1, 0):
        convolution = getattr(net, f"de_block{i}")[1]
        x = functional.conv2d(
            x.repeat_interleave(2, 2).repeat_interleave(2, 3), convolution.weight, convolution.bias, padding=1
        )
        if i:
            x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
            x = torch.where(x < 0, 0.1 * x, x)
            size = features[i - 1].shape[2:]
            x = torch.cat([functional.interpolate(x, size, mode="bilinear", align_corners=True), features[i - 1]], 1)
    return x


def test_classes_are_those_of_the_network_at_96_pixels(state):
    net = anime_face.load({f"module.{key}": tensor for key, tensor in state.items()}).eval()
    run = find("anime_face_segment").load(library=Shelf(state))
    for image, (height, width) in ((IMAGE, (96, 134)), (IMAGE[:, :67], (143, 96))):
        seen = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        with torch.inference_mode():
            scores = typed_out(net, torch.from_numpy(seen.copy()).permute(2, 0, 1)[None] / 255)
        size = image.shape[:2]
        large = torch.nn.functional.interpolate(scores[..., :height, :width], size, mode="bilinear")
        expected = large.argmax(dim=1)[0].numpy()
        assert len(np.unique(expected)) > 2
        made = run(image)
        assert (made.values.labels != expected).mean() < 1e-3  # the larger of two within float32's last bits
        np.testing.assert_array_equal(made.pixels, np.array(ANIME_FACE_PALETTE.colors, np.uint8)[made.values.labels])
        assert made.kind == "segmentation" and made.values.names[1] == "hair"


def test_batches_are_singles_and_every_size_has_a_map(state):
    run = find("seg_anime_face").load(library=Shelf(state))
    both = run.run_batch([IMAGE, IMAGE[::-1].copy()])
    for one, image in zip(both, (IMAGE, IMAGE[::-1].copy()), strict=True):
        assert (one.values.labels != run(image).values.labels).mean() < 0.01
    for height, width in ((1, 1), (1, 50), (50, 2), (33, 31)):
        assert run(np.resize(IMAGE, (height, width, 3))).values.labels.shape == (height, width)
    assert run(IMAGE, resolution=64).pixels.shape == (64, 90, 3)
    with pytest.raises(ValueError, match="over the limit of 64"):
        run(np.zeros((1, 60000, 3), np.uint8))


def test_other_tensors_and_scores_that_are_no_numbers_are_refused(state):
    for broken in (state | {"more": torch.zeros(1)}, state | {"de_block0.1.bias": torch.zeros(8)}):
        with pytest.raises(RuntimeError, match=r"more|size mismatch"):
            anime_face.load(broken)
    with pytest.raises(RuntimeError, match="Missing key"):
        anime_face.load({key: tensor for key, tensor in state.items() if key != "de_block0.1.bias"})
    broken = Shelf(state | {"de_block0.1.bias": torch.full((7,), float("nan"))})
    with pytest.raises(ValueError, match="no numbers: compute in float32"):
        preprocess("anime_face_segment", IMAGE, library=broken)


def test_the_command_finds_the_file_in_webuis_folder(state, tmp_path):
    (tmp_path / "anime_face_segment").mkdir()
    torch.save(state, tmp_path / "anime_face_segment" / ANIME_FACE_WEIGHTS.name)
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    command = ["preprocess", "seg_anime_face", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png")]
    assert main([*command, "--library", str(tmp_path), "--no-download"]) == 0
    expected = preprocess("anime_face_segment", IMAGE, library=Shelf(state))
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), expected.pixels)
