"""DensePose by a program that stands in for the published one: parts and places typed out, colours, and what is run."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from controlnet_ext.preprocessors import find, preprocess
from controlnet_ext.preprocessors.library import Library
from controlnet_ext.preprocessors.segmentation import densepose
from PIL import Image

from controlnet_ext.cli import main
from controlnet_ext.files.image_reader import read_image

try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
    pytest.skip(f"torchvision does not import: {error}", allow_module_level=True)
IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
BOXES = [[10.6, 5.2, 40.9, 50.7], [30.0, 20.0, 70.0, 55.0], [-4.0, 50.0, 20.0, 66.0], [5.0, 5.0, 5.4, 30.0]]


class Program(torch.nn.Module):
    """Four boxes, the last with no width, and random parts and places in them, whatever the image."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("boxes", torch.tensor(BOXES))
        self.register_buffer("coarse", torch.randn(4, 2, 7, 7, generator=generator))
        self.register_buffer("fine", torch.randn(4, 25, 7, 7, generator=generator))
        self.register_buffer("u", torch.rand(4, 25, 7, 7, generator=generator))
        self.register_buffer("v", torch.rand(4, 25, 7, 7, generator=generator))

    def forward(self, image: torch.Tensor):
        assert image.dtype == torch.uint8 and image.shape[0] == 3
        return self.boxes, self.coarse, self.fine, self.u, self.v


@pytest.fixture
def folder(tmp_path, monkeypatch):
    path = tmp_path / densepose.DENSEPOSE_WEIGHTS.name
    with pytest.warns():  # torch.jit is deprecated
        torch.jit.script(Program()).save(path)
    known = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(densepose, "DENSEPOSE_WEIGHTS", replace(densepose.DENSEPOSE_WEIGHTS, sha256=known))
    return tmp_path


def typed_out():
    """Labels and places, box by box, as DensePose's code resamples them."""
    net, labels, uv = Program(), np.zeros((60, 80), np.uint8), np.zeros((60, 80, 2), np.float32)
    for i, (x0, y0, x1, y1) in enumerate(BOXES[:3]):
        x, y, w, h = int(x0), int(y0), int(x1 - x0), int(y1 - y0)

        def large(tensor, i=i, w=w, h=h):
            return torch.nn.functional.interpolate(tensor[i : i + 1], (h, w), mode="bilinear", align_corners=False)[0]

        parts = (large(net.fine).argmax(0) * (large(net.coarse).argmax(0) > 0)).numpy()
        places = np.stack([np.take_along_axis(large(one).numpy(), parts[None], 0)[0] for one in (net.u, net.v)], -1)
        for row in range(h):
            for column in range(w):
                if parts[row, column] and 0 <= y + row < 60 and 0 <= x + column < 80:
                    labels[y + row, x + column] = parts[row, column]
                    uv[y + row, x + column] = places[row, column]
    return labels, uv


def test_a_map_has_the_parts_of_all_people_the_later_on_the_earlier(folder):
    library = Library([folder], download=False)
    labels, uv = typed_out()
    made = preprocess("densepose", IMAGE, library=library)
    assert len(np.unique(labels)) > 15
    np.testing.assert_array_equal(made.values.labels, labels)
    np.testing.assert_allclose(made.values.uv, uv, atol=1e-6)
    assert made.kind == "segmentation" and made.values.names[23] == "head"
    np.testing.assert_array_equal(made.pixels, densepose.make_viridis_colors()[labels])
    other = preprocess("densepose_parula", IMAGE, library=library)
    np.testing.assert_array_equal(other.pixels, densepose.make_parula_colors()[labels])
    cut = preprocess("densepose", IMAGE, library=library, resolution=64)
    assert cut.pixels.shape == (64, 85, 3) and cut.values.uv.shape == (64, 85, 2)
    for height, width in ((1, 1), (1, 300), (300, 2)):
        small = preprocess("densepose", np.resize(IMAGE, (height, width, 3)), library=library)
        assert small.pixels.shape == (height, width, 3)


def test_colours_are_matplotlibs_viridis_and_matlabs_parula():
    viridis, parula = densepose.make_viridis_colors(), densepose.make_parula_colors()
    assert viridis.shape == parula.shape == (25, 3)
    assert viridis[[0, 1, 12, 24]].tolist() == [[68, 1, 84], [71, 16, 99], [33, 144, 141], [253, 231, 37]]
    assert parula[[0, 1, 12, 24]].tolist() == [[0, 0, 0], [37, 60, 163], [55, 185, 159], [249, 251, 14]]
    # sd-webui-controlnet replaces zeros of each channel by the ground's; no colour of a part has any
    assert (viridis > 0).all()
    matplotlib = pytest.importorskip("matplotlib")
    levels = (np.arange(25) * 255 / 24).astype(int)
    theirs = np.array([matplotlib.colormaps["viridis"](level)[:3] for level in levels]) * 255
    assert np.abs(viridis - theirs).max() <= 1


def test_only_the_known_program_is_run(folder, monkeypatch):
    library = Library([folder], download=False)
    path = folder / densepose.DENSEPOSE_WEIGHTS.name
    path.write_bytes(path.read_bytes() + b"\0")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was run"))
    with pytest.raises(ValueError, match=r"is refused: its sha256 is [0-9a-f]{64}, expected"):
        preprocess("densepose", IMAGE, library=library)
    with pytest.raises(FileNotFoundError, match="LayerNorm/DensePose"):
        preprocess("densepose", IMAGE, library=Library([], download=False))


def test_a_program_that_fails_says_so_in_a_line(folder):
    run = find("densepose").load(library=Library([folder], download=False))
    network = run.run.network
    with pytest.raises(ValueError, match="cannot look at an image of 9x8") as refusal:
        network(np.zeros((8, 9, 4), np.uint8))
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="cannot be used on the device 'nowhere'"):
        preprocess("densepose", IMAGE, device="nowhere", library=Library([folder], download=False))


def test_the_command_makes_a_map(folder):
    Image.fromarray(IMAGE).save(folder / "a.png")
    command = ["preprocess", "densepose_parula", str(folder / "a.png"), "-o", str(folder / "b.png")]
    assert main([*command, "--library", str(folder), "--no-download"]) == 0
    np.testing.assert_array_equal(read_image(folder / "b.png"), densepose.make_parula_colors()[typed_out()[0]])
