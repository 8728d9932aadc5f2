"""The networks that draw lines: raw outputs of the authors' code, their published maps, controlnet_aux's modules on the
same random weights, and what follows the network typed out."""

from importlib import import_module

import cv2
import numpy as np
import pytest
import torch
from controlnet_ext.annotators import hed, lineart, lineart_anime, manga_line, mlsd, pidinet, teed
from controlnet_ext.preprocessors import find, preprocess
from controlnet_ext.preprocessors.backends.tensors import pad_to_multiple
from controlnet_ext.preprocessors.backends.torch import Device
from controlnet_ext.preprocessors.edges.lineart import lineart_standard
from controlnet_ext.preprocessors.edges.soft_edges import quantize_edges, scribble_from_edges, to_uint8
from controlnet_ext.preprocessors.edges.teed import blend_screen, extract_lines
from controlnet_ext.preprocessors.library import Library
from lines import Shelf, asset_image, assets, aux, controlnets_size, golden, likeness, random_shelf, randomised

from controlnet_ext.files.weights import read_weights

rng = np.random.default_rng(0)
NOISE = cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (90, 70), interpolation=cv2.INTER_CUBIC)
IMAGE = cv2.resize(rng.integers(0, 256, (20, 30, 3), np.uint8), (192, 128), interpolation=cv2.INTER_CUBIC)


def real(name, called=None):
    """A library that finds the assets' weights `name` under the name that a preprocessor asks for."""
    return Library([], download=False, files={called or name: assets() / "weights" / name})


@pytest.fixture
def float64():
    """Two ways to compute the same agree to 1e-9 in it; random weights can make float32's last bits large."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.weights
def test_pidinet_tiny_gives_the_authors_outputs():
    expected, x = golden("table5_pidinet-tiny__bgr_over_255.npz")
    net = pidinet.load(read_weights(assets() / "weights" / "table5_pidinet-tiny.pth").tensors).eval()
    with torch.inference_mode():
        results = net(x / 255)
    # differences are taken in the weights, not after the convolution: float32's last bits, 3e-6 measured
    for result, y in zip(results, expected, strict=True):
        torch.testing.assert_close(result[0, 0], y, atol=2e-5, rtol=0)


@pytest.mark.weights
def test_pidinet_gives_the_published_map():
    image = controlnets_size(asset_image("cyber.png"), 512)
    edges = preprocess("softedge_pidinet", image, library=real("table5_pidinet.pth"))
    assert edges.kind == "soft edges"
    assert likeness(edges.pixels[..., 0], "pidinet_res512.png") > 0.9999


@pytest.mark.weights
def test_pidinet_in_bfloat16_is_nearly_the_same():
    image, library = asset_image("cyber.png", (192, 256)), real("table5_pidinet.pth")
    exact = preprocess("pidinet", image, library=library).pixels.astype(int)
    rounded = preprocess("pidinet", image, library=library, device=Device("cpu", "bfloat16")).pixels.astype(int)
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


def test_networks_take_all_tensors_and_no_others():
    for make, load in (
        (teed.TEED, teed.load),
        (mlsd.MlsdLarge, mlsd.load),
        (mlsd.MlsdTiny, mlsd.load),
        (hed.HED, hed.load),
        (lineart.LineartGenerator, lineart.load),
    ):
        with torch.device("meta"):
            state = make().state_dict()
        state = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in state.items()}
        load(state)
        key = next(iter(state))
        for broken in (state | {"more": torch.zeros(1)}, state | {key: torch.zeros(7)}):
            with pytest.raises(RuntimeError, match=r"more|size mismatch"):
                load(broken)
        del state[key]
        with pytest.raises(RuntimeError, match="Missing key"):
            load(state)


@pytest.mark.parametrize("broken", ["init_block.weight", "block3_2.conv1.weight", "classifier.bias"])
def test_pidinet_needs_every_tensor(broken):
    state = pidinet.PiDiNet(20, 8).state_dict()
    with pytest.raises((ValueError, RuntimeError), match=broken):
        pidinet.load({key: tensor for key, tensor in state.items() if key != broken})
    with pytest.raises(RuntimeError, match="more"):
        pidinet.load(state | {"more": torch.zeros(1)})


NETWORKS = {
    "pidinet": lambda: pidinet.PiDiNet(20, 8),
    "pidinet_safe": lambda: pidinet.PiDiNet(20, 8),
    "pidinet_scribble": lambda: pidinet.PiDiNet(20, 8),
    "pidinet_sketch": lambda: pidinet.PiDiNet(20, 8),
    "softedge_teed": teed.TEED,
    "softedge_anyline": teed.TEED,
    "mlsd": mlsd.MlsdLarge,
    "hed": hed.HED,
    "hed_safe": hed.HED,
    "scribble_hed": hed.HED,
    "lineart": lineart.LineartGenerator,
    "lineart_coarse": lineart.LineartGenerator,
    "lineart_anime": lineart_anime.AnimeLineartUNet,
    "lineart_anime_denoise": manga_line.MangaLineNetwork,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_images_in_a_batch_give_the_maps_of_each_alone(name):
    run = find(name).load(library=random_shelf(NETWORKS[name]))
    images = [NOISE[:60], NOISE[59::-1].copy(), NOISE[:40]]
    assert find(name).batched
    for result, image in zip(run.run_batch(images), images, strict=True):
        difference = np.abs(result.pixels.astype(int) - run(image).pixels)
        # sums in another order: a value at a step may fall on its other side
        assert result.pixels.shape == image.shape and np.median(difference) == 0 and (difference > 1).mean() < 2e-3


def test_an_image_is_worked_on_as_it_is():
    shelf = random_shelf(NETWORKS["pidinet"])
    net = pidinet.load(shelf.tensors).eval()
    x = torch.from_numpy(NOISE[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        edges = net(x)[-1][0, 0].numpy() * 255
    result = preprocess("pidinet", NOISE, library=shelf).pixels[..., 0]
    assert np.abs(result - edges.astype(int)).max() <= 1 and (result != edges.astype(int)).mean() < 0.01


@pytest.mark.parametrize("name", ["pidinet", "softedge_teed", "mlsd", "hed", "lineart", "lineart_anime_denoise"])
def test_the_smallest_and_oddest_images_have_maps(name):
    run = find(name).load(library=random_shelf(NETWORKS[name]))
    for height, width in ((1, 1), (5, 33), (67, 2), (49, 35)):
        assert run(NOISE[:height, :width]).pixels.shape == (height, width, 3)
    assert run(NOISE, resolution=64).pixels.shape == (64, 82, 3)


def test_images_are_extended_by_their_edge():
    image = np.arange(18, dtype=np.uint8).reshape(1, 2, 3, 3)
    result = pad_to_multiple(image, 4)
    assert result.shape == (1, 4, 4, 3) and (result[0, :, 3] == result[0, :, 2]).all()
    assert (result[0, 3] == result[0, 1]).all() and (result[0, :2, :3] == image[0]).all()
    assert pad_to_multiple(image, 1).shape == image.shape and pad_to_multiple(image, 1, min_size=3).shape == (
        1,
        3,
        3,
        3,
    )


@pytest.mark.weights
def test_teed_gives_the_authors_outputs():
    expected, x = golden("teed_5__rgb_0_255.npz")
    net = teed.load(read_weights(assets() / "weights" / "teed_5_model.pth").tensors).eval()
    with torch.inference_mode():
        results = net(x.flip(1))
    # logits; tanh and the logarithm are one fraction here: float32's last bits, 4e-6 measured
    for result, y in zip(results, expected, strict=True):
        torch.testing.assert_close(result[0, 0], y, atol=5e-5, rtol=0)


@pytest.mark.weights
def test_teeds_map_is_the_sigmoid_of_the_mean_in_steps():
    expected, x = golden("teed_5__rgb_0_255.npz")
    image = x[0].flip(0).permute(1, 2, 0).byte().numpy()
    library = real("teed_5_model.pth", "7_model.pth")
    mean = 1 / (1 + np.exp(-np.mean([y.numpy() for y in expected], axis=0, dtype=np.float64)))
    for steps, y in ((0, mean), (2, np.trunc(mean * 3) / 2), (7, np.trunc(mean * 8) / 7)):
        result = preprocess("softedge_teed", image, library=library, safe_steps=steps).pixels[..., 0]
        assert (result == (y * 255).clip(0, 255).astype(np.uint8)).mean() > 0.999  # others: at a step within 1e-5
    assert preprocess("softedge_teed", image, library=library).kind == "soft edges"


@pytest.mark.weights
def test_teed_7_loads_too():
    teed.load(read_weights(assets() / "weights" / "teed_7_model.pth").tensors)


def test_anyline_lays_lines_over_edges_as_light_over_light():
    base, top = np.array([[0, 0, 255, 128, 200]], np.uint8), np.array([[0, 77, 50, 128, 255]], np.uint8)
    # 255 - 127 * 127 / 255 = 191.7
    assert blend_screen(base, top).tolist() == [[0, 77, 255, 191, 255]]


def test_anylines_lines_are_in_its_map():
    image = np.full((64, 128, 3), 255, np.uint8)
    image[32, 16:112] = 0
    state = randomised(teed.TEED())[1] | {"up_block_1.features.2.bias": torch.tensor([-1e4])}  # no edge anywhere
    result = preprocess("softedge_anyline", image, library=Shelf(state))
    np.testing.assert_array_equal(result.pixels[..., 0], extract_lines(image))
    assert extract_lines(image)[32, 16:112].min() > 100


def test_anyline_drops_specks_of_fewer_than_12_pixels_that_touch_side_by_side():
    image = np.full((64, 96, 3), 255, np.uint8)
    image[10, 10:21] = 250  # 11 pixels, faint enough that nothing around them is darker than its surroundings
    image[30, 10:22] = 250
    image[50, 10:16] = image[51, 16:22] = 250  # 12 that touch by a corner
    drawn = lineart_standard(image, sigma=2.0, intensity_threshold=3)
    assert (drawn[10, 10:21] > 0).all() and np.count_nonzero(drawn) == 35
    kept = extract_lines(image)
    assert np.count_nonzero(kept) == 12 and (kept[30, 10:22] == drawn[30, 10:22]).all()


@pytest.mark.weights
def test_mlsd_tiny_gives_the_authors_outputs():
    (expected,), x = golden("mlsd_tiny__rgb1_over127.5_minus1.npz")
    net = mlsd.load(read_weights(assets() / "weights" / "mlsd_tiny_512_fp32.pth").tensors).eval()
    with torch.inference_mode():
        result = net(torch.cat([x.flip(1), torch.ones(1, 1, 256, 256)], dim=1) / 127.5 - 1)[0]
    assert isinstance(net, mlsd.MlsdTiny)
    torch.testing.assert_close(result, expected, atol=2e-3, rtol=0)  # values up to 87; 6e-4 measured


def test_mlsd_finds_the_line_that_is_written_into_its_result():
    found = torch.full((2, 9, 16, 24), -9.0)
    found[:, 1:5] = 0
    found[0, :5, 5, 7] = torch.tensor([2.0, -3, -4, 6, 2.5])  # centre (7, 5): from (4, 1) to (13, 7.5)
    found[0, :5, 5, 8] = torch.tensor([1.9, -3, -4, 6, 2.5])  # beside a surer one
    found[0, :5, 12, 2] = torch.tensor([1.0, -1, 0, 1, 0])  # two pixels long
    found[1, :5, 3, 3] = torch.tensor([-1.0, 0, -3, 0, 3])
    assert [lines.tolist() for lines in mlsd.decode_segments(found, 0.1, 0.1)] == [
        [[8, 2, 26, 15], [2, 24, 6, 24]],
        [[6, 0, 6, 12]],
    ]
    assert [len(lines) for lines in mlsd.decode_segments(found, 0.5, 0.1)] == [2, 0]  # sigmoid(-1) is 0.27
    assert [len(lines) for lines in mlsd.decode_segments(found, 0.1, 2)] == [1, 1]
    assert [len(lines) for lines in mlsd.decode_segments(found, 1.0, 0.1)] == [0, 0]


@pytest.mark.weights
def test_mlsd_draws_the_lines_that_it_gives():
    image = controlnets_size(asset_image("room.png"), 512)
    library = real("mlsd_tiny_512_fp32.pth", "mlsd_large_512_fp32.pth")
    result = preprocess("mlsd", image, library=library, thr_v=0.2, thr_d=20.0)
    canvas = np.zeros(image.shape[:2], np.uint8)
    for x0, y0, x1, y1 in result.values.astype(int).tolist():
        cv2.line(canvas, (x0, y0), (x1, y1), 255, 1)
    assert 20 < len(result.values) < 200 and result.kind == "straight lines"
    np.testing.assert_array_equal(result.pixels[..., 0], canvas)
    lengths = np.hypot(*(result.values[:, :2] - result.values[:, 2:]).T)
    assert lengths.min() > 40  # of the image, twice the map's


def test_a_line_that_leaves_every_bound_is_cut():
    from controlnet_ext.preprocessors.edges.mlsd import render_lines

    lines = np.array([[0, 2, 1e30, 2], [np.nan, 0, 1, 1], [np.inf, 0, 1, 1]], np.float32)
    pixels, kept = render_lines(lines, 5, 5)
    assert len(kept) == 1 and (pixels[2] == 255).all() and not np.delete(pixels, 2, axis=0).any()


@pytest.mark.parametrize("size", ["large", "tiny"])
def test_mlsd_equals_controlnet_auxs(size, float64):
    aux()
    module = import_module(f"controlnet_aux.mlsd.models.mbv2_mlsd_{size}")
    theirs, state = randomised(getattr(module, f"MobileV2_MLSD_{size.title()}")())
    x = torch.rand(2, 4, 64, 96) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(mlsd.load(state).eval()(x), theirs(x), atol=1e-9, rtol=0)
        assert theirs(x).std() > 0.01


@pytest.mark.weights
def test_published_weights_give_controlnet_auxs_outputs_before_rounding():
    aux()
    from controlnet_aux.mlsd.models.mbv2_mlsd_tiny import MobileV2_MLSD_Tiny
    from controlnet_aux.pidi.model import PiDiNet, config_model
    from controlnet_aux.teed.ted import TED

    image = torch.from_numpy(asset_image("room.png", (256, 192))).permute(2, 0, 1)[None].float()
    with_ones = torch.cat([image, torch.ones(1, 1, 192, 256)], dim=1) / 127.5 - 1

    def sides(outputs):  # of TEED, of which the map is the mean's sigmoid
        return torch.cat(outputs, dim=1).mean(dim=1).sigmoid()

    def pidi(channels, reduced):
        return PiDiNet(channels, config_model("carv4"), dil=reduced, sa=True)

    for name, load, theirs, x, soft in (
        ("table5_pidinet", pidinet.load, pidi(60, 24), image / 255, lambda y: y[-1]),
        ("table5_pidinet-tiny", pidinet.load, pidi(20, 8), image / 255, lambda y: y[-1]),
        ("teed_5_model", teed.load, TED(), image, sides),
        ("teed_7_model", teed.load, TED(), image, sides),
        ("mlsd_tiny_512_fp32", mlsd.load, MobileV2_MLSD_Tiny(), with_ones, lambda y: y[:, :1].sigmoid()),
    ):
        state = read_weights(assets() / "weights" / f"{name}.pth").tensors
        theirs.load_state_dict({key.removeprefix("module."): tensor for key, tensor in state.items()})
        with torch.inference_mode():
            result, expected = soft(load(state).eval()(x)), soft(theirs.eval()(x))
        assert expected.std() > 0.01, name
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)  # of 1; 2.6e-6 measured


@pytest.mark.parametrize(
    ("load", "place", "name"),
    [(hed.load, "controlnet_aux.hed", "ControlNetHED_Apache2"), (teed.load, "controlnet_aux.teed.ted", "TED")],
)
def test_networks_with_sides_equal_controlnet_auxs(load, place, name, float64):
    aux()
    theirs, state = randomised(getattr(import_module(place), name)())
    x = torch.rand(2, 3, 48, 80) * 255
    with torch.inference_mode():
        for result, y in zip(load(state).eval()(x), theirs(x), strict=True):
            assert y.std() > 0.01
            torch.testing.assert_close(result, y, atol=1e-9 * max(255, y.abs().max().item()), rtol=0)


def test_lineart_equals_controlnet_auxs(float64):
    aux()
    from controlnet_aux.lineart import Generator

    theirs, state = randomised(Generator(3, 1, 3))
    x = torch.rand(2, 3, 32, 44)
    with torch.inference_mode():
        torch.testing.assert_close(lineart.load(state).eval()(x), theirs(x), atol=1e-9, rtol=0)
        assert theirs(x).std() > 0.01


def test_lineart_anime_equals_controlnet_auxs():
    aux()
    from functools import partial

    from controlnet_aux.lineart_anime import UnetGenerator

    norm = partial(torch.nn.InstanceNorm2d, affine=False, track_running_stats=False)
    theirs, state = randomised(UnetGenerator(3, 1, 8, 64, norm_layer=norm, use_dropout=False))
    ours = lineart_anime.load({f"module.{key}": tensor for key, tensor in state.items()}).eval()
    x = torch.rand(1, 3, 256, 256) * 2 - 1
    with torch.inference_mode():
        y = theirs(x.clone())
        assert y.std() > 0.01
        torch.testing.assert_close(ours(x), y, atol=1e-4, rtol=0)  # float32: in float64 54 million weights take long


def test_safe_steps_are_those_of_the_formula():
    edges = np.array([[0, 0.3333, 0.3334, 0.5, 0.6666, 0.6667, 0.9999, 1]])
    assert quantize_edges(edges).tolist() == [[0, 0, 0.5, 0.5, 0.5, 1, 1, 1.5]]
    assert to_uint8(quantize_edges(edges)).tolist() == [[0, 0, 127, 127, 127, 255, 255, 255]]
    assert to_uint8(quantize_edges(edges, 1)).tolist() == [[0, 0, 0, 255, 255, 255, 255, 255]]
    assert to_uint8(np.array([[0.5, 0.999, 1.0]])).tolist() == [[127, 254, 255]]


def test_a_scribble_covers_a_strong_edge_and_its_surroundings():
    edges = np.zeros((64, 64), np.uint8)
    edges[:, 28:37] = 255
    # Blurred by 3 pixels, columns 28 to 36 are over 127 (144 and 110 at the border). Blurred again, 255 becomes
    # 255 (1 - Phi((k - 1/2) / 3)) at k pixels from the border: 8.5 at 6, 3.9 at 7, and 5 is kept.
    drawn = scribble_from_edges(edges)
    assert (drawn[:, 22:43] == 255).all() and not drawn[:, :22].any() and not drawn[:, 43:].any()


def test_a_scribble_is_thin_where_an_edge_has_a_ridge():
    y, x = np.mgrid[:96, :96]
    edges = np.exp(-(((x - y) / 20) ** 2 + ((x + y - 96) / 40) ** 2)) * 255  # no two pixels alike across or along
    drawn = scribble_from_edges(edges.astype(np.uint8))
    assert 15 < (drawn[48] > 0).sum() < (edges[48] > 127).sum()


def test_a_scribble_leaves_out_what_is_faint():
    assert not scribble_from_edges(np.full((32, 32), 126, np.uint8)).any()
    thin = np.zeros((64, 64), np.uint8)
    thin[:, 32] = 255  # 34 when blurred
    assert not scribble_from_edges(thin).any()


def test_scribbles_are_controlnet_auxs():
    nms = aux().util.nms
    edges = cv2.GaussianBlur(rng.integers(0, 256, (90, 120), np.uint8), (0, 0), 4).astype(np.float32)
    edges = ((edges - edges.min()) / np.ptp(edges) * 255).astype(np.uint8)
    drawn = cv2.GaussianBlur(nms(edges, 127, 3.0), (0, 0), 3.0)
    assert 0.05 < (drawn > 4).mean() < 0.95
    np.testing.assert_array_equal(scribble_from_edges(edges), np.where(drawn > 4, 255, 0))


def test_safe_steps_are_controlnet_auxs():
    x = rng.random((50, 50))
    for steps in (1, 2, 7, 10):
        np.testing.assert_array_equal(quantize_edges(x, steps), aux().util.safe_step(x, steps))


def aux_networks():
    """For each preprocessor: controlnet_aux's detector around a network, that network, and the call's parameters."""
    from functools import partial

    import controlnet_aux as a
    from controlnet_aux.hed import ControlNetHED_Apache2
    from controlnet_aux.lineart import Generator
    from controlnet_aux.lineart_anime import UnetGenerator
    from controlnet_aux.mlsd.models.mbv2_mlsd_large import MobileV2_MLSD_Large
    from controlnet_aux.pidi.model import pidinet as pidi
    from controlnet_aux.teed.ted import TED

    norm = partial(torch.nn.InstanceNorm2d, affine=False, track_running_stats=False)
    anime = partial(UnetGenerator, 3, 1, 8, 64, norm_layer=norm, use_dropout=False)
    return {
        "pidinet": (a.PidiNetDetector, pidi, {}),
        "pidinet_safe": (a.PidiNetDetector, pidi, {"safe": True}),
        "pidinet_scribble": (a.PidiNetDetector, pidi, {"scribble": True}),
        "hed": (a.HEDdetector, ControlNetHED_Apache2, {}),
        "hed_safe": (a.HEDdetector, ControlNetHED_Apache2, {"safe": True}),
        "scribble_hed": (a.HEDdetector, ControlNetHED_Apache2, {"scribble": True}),
        "lineart": (lambda net: a.LineartDetector(net, None), partial(Generator, 3, 1, 3), {}),
        "lineart_coarse": (lambda net: a.LineartDetector(net, net), partial(Generator, 3, 1, 3), {"coarse": True}),
        "lineart_anime": (a.LineartAnimeDetector, anime, {}),
        "mlsd": (a.MLSDdetector, MobileV2_MLSD_Large, {}),
        "softedge_teed": (a.TEEDdetector, TED, {}),
    }


@pytest.mark.parametrize(
    "name", sorted(NETWORKS.keys() - {"pidinet_sketch", "softedge_anyline", "lineart_anime_denoise"})
)
def test_maps_are_controlnet_auxs(name):
    aux()
    detector, make, given = aux_networks()[name]
    net, state = randomised(make())
    if "norm" in state:  # HED would give black and white only
        state |= {key: state[key] / 300 for key in ("norm", "block1.convs.0.weight")}
        net.load_state_dict(state)
    if name != "softedge_teed":
        given["image_resolution"] = 128
    expected = detector(net)(IMAGE, detect_resolution=128, output_type="np", **given)
    result = preprocess(name, IMAGE, library=Shelf(state)).pixels
    assert expected.std() > 5
    # cut to whole numbers after other last bits: 1 apart in 3 of 1000 at most
    difference = np.abs(result.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_manga_line_gives_what_the_authors_code_does():
    # of ljsabc/MangaLineExtraction_PyTorch @ 6ec136d53321, model_torch.py, on these weights in float64
    expected = [-44286.252462, 1392956.808357, 1011181.021417, 796709.040156, 896139.973842, 2130655.257447]
    state = random_shelf(manga_line.MangaLineNetwork).tensors
    x = torch.rand(2, 1, 48, 64, generator=torch.Generator().manual_seed(1)) * 255
    with torch.inference_mode():
        y = manga_line.load(state).eval().double()(x.double())
    assert y[0, 0, ::16, ::16].flatten()[:6].tolist() == pytest.approx(expected, rel=1e-6)


def test_manga_line_reads_grey_and_gives_white_lines():
    class Paper:
        def load_network(self, file, build, device):
            return lambda x: seen.append(x) or x * 1.5 - 30

    seen = []
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    result = preprocess("lineart_anime_denoise", image, library=Paper()).pixels[0, :, 0]
    assert seen[0].shape == (1, 1, 16, 16) and seen[0][0, 0, 0, :5].tolist() == [76, 150, 29, 255, 255]
    assert result.tolist() == [255 - 84, 255 - 195, 255 - 13, 0]


def test_the_license_of_mteed_names_both_sources():
    (file,) = find("softedge_anyline").weights
    assert file.license == "MIT by ComfyUI-Anyline's LICENSE, non-commercial by MistoLine's README"
