"""The networks that draw lines: raw outputs of the authors' code, their published maps, controlnet_aux's modules on the
same random weights, and what follows the network typed out."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from annotators import pidinet
from preprocessors import find, preprocess
from preprocessors.files import Device, Library, read_image, read_weights, write_weights
from preprocessors.soft_edges import extended, grey, safe, scribble

ASSETS = Path(os.environ.get("CONTROLNET_EXT_ASSETS", Path(__file__).parents[2] / "shared" / "assets"))
rng = np.random.default_rng(0)
NOISE = cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (90, 70), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def assets():
    if not ASSETS.is_dir():
        pytest.skip(f"no test assets at {ASSETS}")
    return ASSETS


@pytest.fixture
def weights(assets):
    return Library([assets / "weights"], download=False)


def aux():
    try:
        import controlnet_aux
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision built for another torch
        pytest.skip(f"controlnet_aux does not import: {error}")
    return controlnet_aux


def randomised(net, seed=0):
    """Every tensor of a network random: weights so that the signal keeps its size, variances positive."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, tensor in net.state_dict().items():
        if not tensor.is_floating_point():
            state[key] = tensor
        elif key.endswith("running_var"):
            state[key] = torch.rand(tensor.shape, generator=generator) + 0.5
        else:
            fan = tensor[0].numel() if tensor.ndim > 1 else 4
            state[key] = torch.randn(tensor.shape, generator=generator) * (2 / fan) ** 0.5
    net.load_state_dict(state)
    return net.eval(), state


@pytest.fixture
def float64():
    """Two ways to compute the same agree to 1e-9 in it; random weights can make float32's last bits large."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def golden(assets, name):
    """(the authors' outputs, their input BGR (1, 3, 256, 256) in 0..255)"""
    image = read_image(assets / "golden" / "input_256_bgr.png")[..., ::-1]  # a PNG's colours are RGB
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    return [torch.from_numpy(y) for y in np.load(assets / "golden" / name).values()], x


def correlation(one, other):
    """Of two maps, the first brought to the second's size, which is a browser's and smaller."""
    small = cv2.resize(one, other.shape[::-1], interpolation=cv2.INTER_AREA)
    return np.corrcoef(small.ravel(), other.ravel())[0, 1]


def controlnets_size(image, resolution):
    """ControlNet's demo, which made the published maps, takes both sides to multiples of 64."""
    k = resolution / min(image.shape[:2])
    height, width = (64 * round(side * k / 64) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LANCZOS4 if k > 1 else cv2.INTER_AREA)


def published(assets, name):
    return read_image(assets / "maps" / name)[..., 0]


@pytest.mark.weights
def test_pidinet_tiny_gives_the_authors_outputs(assets):
    expected, x = golden(assets, "table5_pidinet-tiny__bgr_over_255.npz")
    net = pidinet.load(read_weights(assets / "weights" / "table5_pidinet-tiny.pth").tensors).eval()
    with torch.inference_mode():
        results = net(x / 255)
    # differences are taken in the weights, not after the convolution: float32's last bits, 3e-6 measured
    for result, y in zip(results, expected, strict=True):
        torch.testing.assert_close(result[0, 0], y, atol=2e-5, rtol=0)


@pytest.mark.weights
def test_pidinet_gives_the_published_map(assets, weights):
    image = controlnets_size(read_image(assets / "images" / "cyber.png"), 512)
    edges = preprocess("softedge_pidinet", image, library=weights)
    assert edges.kind == "soft edges"
    assert correlation(edges.pixels[..., 0], published(assets, "pidinet_res512.png")) > 0.9999


@pytest.mark.weights
def test_pidinet_in_bfloat16_is_nearly_the_same(assets, weights):
    image = cv2.resize(read_image(assets / "images" / "cyber.png"), (192, 256), interpolation=cv2.INTER_AREA)
    exact = preprocess("pidinet", image, library=weights).pixels.astype(int)
    rounded = preprocess("pidinet", image, library=weights, device=Device("cpu", "bfloat16")).pixels.astype(int)
    assert 0 < np.abs(exact - rounded).max() <= 25 and np.abs(exact - rounded).mean() < 1  # of 255; 8 bits of mantissa


@pytest.mark.parametrize(("channels", "reduced"), [(60, 24), (30, 12), (20, 8)])
def test_pidinet_equals_controlnet_auxs(channels, reduced, float64):
    aux()
    from controlnet_aux.pidi.model import PiDiNet, config_model

    theirs, state = randomised(PiDiNet(channels, config_model("carv4"), dil=reduced, sa=True))
    ours = pidinet.load({f"module.{key}": tensor for key, tensor in state.items()}).eval()
    converted = pidinet.load(ours.state_dict()).eval()
    x = torch.rand(2, 3, 53, 70)
    with torch.inference_mode():
        for result, other, y in zip(ours(x), converted(x), theirs(x), strict=True):
            assert y.std() > 0.01
            torch.testing.assert_close(result, y, atol=1e-9, rtol=0)
            torch.testing.assert_close(other, y, atol=1e-9, rtol=0)


@pytest.mark.parametrize("broken", ["init_block.weight", "block3_2.conv1.weight", "classifier.bias"])
def test_pidinet_needs_every_tensor(broken):
    state = pidinet.PiDiNet(20, 8).state_dict()
    with pytest.raises((ValueError, RuntimeError), match=broken):
        pidinet.load({key: tensor for key, tensor in state.items() if key != broken})
    with pytest.raises(RuntimeError, match="more"):
        pidinet.load(state | {"more": torch.zeros(1)})


def tiny_pidinet(folder):
    """A library whose PiDiNet is random."""
    _, state = randomised(pidinet.PiDiNet(20, 8))
    write_weights(folder / "table5_pidinet.pth", state)
    return Library([folder], download=False, keep=2**20)


def test_pictures_in_a_batch_give_the_maps_of_each_alone(tmp_path):
    library = tiny_pidinet(tmp_path)
    images = [NOISE, NOISE[::-1].copy(), NOISE[:40]]
    for name in ("pidinet", "pidinet_safe", "pidinet_scribble", "pidinet_sketch"):
        run = find(name).ready(library=library)
        for result, image in zip(run.batch(images), images, strict=True):
            difference = np.abs(result.pixels.astype(int) - run(image).pixels)
            # sums in another order: an edge at a step may fall on its other side
            assert result.pixels.shape == image.shape and np.median(difference) == 0 and (difference > 1).mean() < 1e-3


def test_a_picture_of_any_size_is_worked_on_as_at_its_resolution(tmp_path):
    library = tiny_pidinet(tmp_path)
    own = preprocess("pidinet", NOISE, library=library).pixels
    np.testing.assert_array_equal(own, preprocess("pidinet", NOISE, library=library, resolution=70).pixels)
    assert preprocess("pidinet", NOISE[:1, :1], library=library).pixels.shape == (1, 1, 3)


def test_pictures_are_extended_by_their_edge():
    image = np.arange(18, dtype=np.uint8).reshape(1, 2, 3, 3)
    result = extended(image, 4)
    assert result.shape == (1, 4, 4, 3) and (result[0, :, 3] == result[0, :, 2]).all()
    assert (result[0, 3] == result[0, 1]).all() and (result[0, :2, :3] == image[0]).all()
    assert extended(image, 1).shape == image.shape


def test_safe_steps_are_those_of_the_formula():
    edges = np.array([[0, 0.3333, 0.3334, 0.5, 0.6666, 0.6667, 0.9999, 1]])
    assert safe(edges).tolist() == [[0, 0, 0.5, 0.5, 0.5, 1, 1, 1.5]]
    assert grey(safe(edges)).tolist() == [[0, 0, 127, 127, 127, 255, 255, 255]]
    assert grey(safe(edges, 1)).tolist() == [[0, 0, 0, 255, 255, 255, 255, 255]]
    assert grey(np.array([[0.5, 0.999, 1.0]])).tolist() == [[127, 254, 255]]


def test_a_scribble_covers_a_strong_edge_and_its_surroundings():
    edges = np.zeros((64, 64), np.uint8)
    edges[:, 28:37] = 255
    # Blurred by 3 pixels, columns 28 to 36 are over 127 (144 and 110 at the border). Blurred again, 255 becomes
    # 255 (1 - Phi((k - 1/2) / 3)) at k pixels from the border: 8.5 at 6, 3.9 at 7, and 5 is kept.
    drawn = scribble(edges)
    assert (drawn[:, 22:43] == 255).all() and not drawn[:, :22].any() and not drawn[:, 43:].any()


def test_a_scribble_is_thin_where_an_edge_has_a_ridge():
    y, x = np.mgrid[:96, :96]
    edges = np.exp(-(((x - y) / 20) ** 2 + ((x + y - 96) / 40) ** 2)) * 255  # no two pixels alike across or along
    drawn = scribble(edges.astype(np.uint8))
    assert 15 < (drawn[48] > 0).sum() < (edges[48] > 127).sum()


def test_a_scribble_leaves_out_what_is_faint():
    assert not scribble(np.full((32, 32), 126, np.uint8)).any()
    thin = np.zeros((64, 64), np.uint8)
    thin[:, 32] = 255  # 34 when blurred
    assert not scribble(thin).any()


def test_scribbles_are_controlnet_auxs():
    nms = aux().util.nms
    edges = cv2.GaussianBlur(rng.integers(0, 256, (90, 120), np.uint8), (0, 0), 4).astype(np.float32)
    edges = ((edges - edges.min()) / np.ptp(edges) * 255).astype(np.uint8)
    drawn = cv2.GaussianBlur(nms(edges, 127, 3.0), (0, 0), 3.0)
    assert 0.05 < (drawn > 4).mean() < 0.95
    np.testing.assert_array_equal(scribble(edges), np.where(drawn > 4, 255, 0))


def test_safe_steps_are_controlnet_auxs():
    x = rng.random((50, 50))
    for steps in (1, 2, 7, 10):
        np.testing.assert_array_equal(safe(x, steps), aux().util.safe_step(x, steps))
