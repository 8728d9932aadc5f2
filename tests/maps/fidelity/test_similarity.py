"""Structural similarity and PSNR: equal to torchmetrics, perfect on the same map, symmetric."""

import math

import numpy as np
import pytest

from controlnet_ext import ControlMap
from controlnet_ext.maps.fidelity import get_measure
from controlnet_ext.maps.fidelity.similarity import MAX_PSNR, compute_ms_ssim, compute_psnr, compute_ssim, to_gray


def make_pair(height: int, width: int, noise: float = 20.0) -> tuple[np.ndarray, np.ndarray]:
    """A gray image of soft shapes, and the same with noise."""
    y, x = np.mgrid[:height, :width]
    a = 127 + 80 * np.sin(x / 9) * np.cos(y / 7) + 40 * ((x // 31 + y // 23) % 2)
    b = a + noise * np.random.default_rng(height + width).standard_normal(a.shape)
    return tuple(np.clip(each, 0, 255).astype(np.uint8) for each in (a, b))


# of torchmetrics 1.9.0: structural_similarity_index_measure and multiscale_structural_similarity_index_measure of
# make_pair(height, width) as float64, data_range=255
RECORDED = {
    (64, 48): (0.4901113348208986, None),
    (176, 200): (0.5067251375581306, 0.9442403674534043),
    (257, 193): (0.5160195501765884, 0.9446984885173659),
}


@pytest.mark.parametrize("size", RECORDED)
def test_similarity_is_what_torchmetrics_computes(size):
    ssim, ms_ssim = RECORDED[size]
    a, b = make_pair(*size)
    assert compute_ssim(a, b) == pytest.approx(ssim, abs=1e-6)
    assert compute_ms_ssim(a, b) == pytest.approx(ms_ssim or ssim, abs=1e-6)


@pytest.mark.long  # torchmetrics takes seconds to import
@pytest.mark.parametrize("size", [*RECORDED, (512, 512), (176, 176), (40, 11)])
def test_similarity_and_noise_ratio_equal_torchmetrics(size):
    torch, metrics = pytest.importorskip("torch"), pytest.importorskip("torchmetrics.functional.image")
    a, b = make_pair(*size)
    x, y = (torch.from_numpy(each).double()[None, None] for each in (a, b))
    ssim = metrics.structural_similarity_index_measure(x, y, data_range=255.0).item()
    assert compute_ssim(a, b) == pytest.approx(ssim, abs=1e-6)
    if min(size) >= 176:  # torchmetrics takes none under 176
        ms_ssim = metrics.multiscale_structural_similarity_index_measure(x, y, data_range=255.0).item()
        assert compute_ms_ssim(a, b) == pytest.approx(ms_ssim, abs=1e-6)
    psnr = metrics.peak_signal_noise_ratio(x, y, data_range=255.0).item()
    assert compute_psnr(a, b) == pytest.approx(psnr, abs=1e-4)


@pytest.mark.long
def test_exact_edges_equal_torchmetrics_binary_f1():
    torch = pytest.importorskip("torch")
    f1 = pytest.importorskip("torchmetrics.functional.classification").binary_f1_score
    from controlnet_ext.maps.fidelity import edge_f1

    numbers = np.random.default_rng(0)
    for share in (0.02, 0.1, 0.5):
        a, b = (numbers.random((50, 70)) < share for _ in range(2))
        assert edge_f1(a, b).exact == pytest.approx(
            f1(torch.from_numpy(b), torch.from_numpy(a).long()).item(), abs=1e-6
        )


def test_a_short_side_of_160_pixels_has_one_scale_and_of_161_five():
    a, b = make_pair(160, 300)
    assert compute_ms_ssim(a, b) == compute_ssim(a, b)
    a, b = make_pair(161, 300)
    assert compute_ms_ssim(a, b) != compute_ssim(a, b)
    assert 0 < compute_ms_ssim(a, b) < 1


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (170, 165)])
def test_similarity_is_perfect_on_the_same_image_and_symmetric(size):
    a, b = make_pair(*size)
    assert compute_ms_ssim(a, a) == pytest.approx(1, abs=1e-12)
    assert compute_ms_ssim(a, b) == pytest.approx(compute_ms_ssim(b, a), abs=1e-12)


def test_more_noise_is_less_similar():
    scores = [compute_ms_ssim(*make_pair(180, 180, noise)) for noise in (0, 5, 20, 80)]
    assert scores == sorted(scores, reverse=True) and scores[0] == 1 and scores[-1] < 0.8


def test_the_noise_ratio_of_one_pixel_of_25_that_is_off_by_50():
    """MSE 2500 / 25 = 100: 10 log10(65025 / 100) = 28.13 dB."""
    a = np.full((5, 5), 100, np.uint8)
    b = a.copy()
    b[2, 3] = 150
    assert compute_psnr(a, b) == pytest.approx(28.1308, abs=1e-4) == compute_psnr(b, a)
    assert compute_psnr(a, a) == MAX_PSNR


def test_gray_maps_stay_exactly_what_they_are():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    assert np.array_equal(to_gray(ramp)[0], np.arange(256))


def test_lines_that_are_not_there_have_no_score():
    lines = get_measure("lines")
    black = ControlMap(np.zeros((9, 9, 3), np.uint8), "lines")
    white = ControlMap(np.full((9, 9, 3), 255, np.uint8), "lines")
    assert all(math.isnan(figure) for figure in lines.compare(black, white).values())
    marked = ControlMap(np.pad(np.full((1, 9, 3), 255, np.uint8), ((4, 4), (0, 0), (0, 0))), "lines")
    assert lines.compare(marked, marked) == {"ms_ssim": pytest.approx(1), "rmse": 0}
    assert lines.compare(marked, black)["ms_ssim"] < 0.9


def test_tiles_are_compared_at_the_resolution_of_the_map():
    """A map of 8x8 of an image of 64x64: what the image has beyond it does not count."""
    image = get_measure("image")
    small = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    large = np.kron(small, np.ones((8, 8, 1), np.uint8))
    fine = large.astype(np.int16)
    fine[::2, ::2], fine[1::2, ::2] = fine[::2, ::2] + 20, fine[1::2, ::2] - 20
    expected, found = ControlMap(small, "tile"), ControlMap(fine.clip(0, 255).astype(np.uint8), "tile")
    assert image.compare(expected, found, (64, 64))["psnr"] > 30
    assert image.compare(ControlMap(large, "tile"), found)["psnr"] < 26
    assert image.compare(expected, ControlMap(large, "tile")) == {"psnr": MAX_PSNR, "rmse": 0.0}


def test_shares_of_decibels_are_taken_of_the_error():
    """Floor 40 levels off, ceiling 0: half way is 20 levels off, however many decibels that is."""
    image, a = get_measure("image"), ControlMap(np.full((4, 4, 3), 100, np.uint8), "tile")
    floor, score, ceiling = (
        image.compare(a, ControlMap(np.full((4, 4, 3), level, np.uint8), "tile")) for level in (140, 120, 100)
    )
    assert image.compute_share(score, floor, ceiling) == pytest.approx(0.5)
