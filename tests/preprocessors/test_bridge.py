"""The bridge to other packages' detectors: their own results, parameters off their source, nothing imported before a
call, and one line where a package is missing, old or broken."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from controlnet_ext.annotators import hed
from controlnet_ext.preprocessors import find, list_preprocessors, preprocess, registry
from controlnet_ext.preprocessors.backends.torch import Device
from controlnet_ext.preprocessors.bridges import base
from controlnet_ext.preprocessors.bridges.base import Detector, Package
from controlnet_ext.preprocessors.edges.hed import HED_WEIGHTS
from controlnet_ext.preprocessors.library import Library
from lines import assets, aux, random_state

from controlnet_ext.files.hub import WeightsFile
from controlnet_ext.files.safetensors import write_weights

ROOT = Path(__file__).parents[2]
IMAGE = np.full((128, 192, 3), (200, 180, 140), np.uint8)
cv2.circle(IMAGE, (60, 60), 40, (20, 60, 150), -1)
cv2.rectangle(IMAGE, (110, 30), (180, 110), (150, 20, 30), -1)


def detector(module, name):
    aux()
    return getattr(__import__(f"controlnet_aux.{module}", fromlist=[name]), name)


def test_a_safe_scribble_of_hed_is_controlnet_auxs(tmp_path):
    kind = detector("hed", "HEDdetector")
    with torch.device("meta"):
        shapes = hed.HED().state_dict()
    torch.save(random_state(shapes), tmp_path / HED_WEIGHTS.name)
    theirs = kind.from_pretrained(str(tmp_path), HED_WEIGHTS.name)
    expected = theirs(IMAGE, scribble=True, safe=True, detect_resolution=128, image_resolution=128, output_type="np")
    made = preprocess("scribble_hedsafe", IMAGE, library=Library([tmp_path], download=False))
    assert made.kind == "scribble" and 0 < expected.mean() < 255
    np.testing.assert_array_equal(made.pixels, expected)


@pytest.mark.weights
def test_a_safe_scribble_of_pidinet_is_controlnet_auxs():
    kind, folder = detector("pidi", "PidiNetDetector"), assets() / "weights"
    theirs = kind.from_pretrained(str(folder), "table5_pidinet.pth")
    expected = theirs(IMAGE, scribble=True, safe=True, detect_resolution=128, image_resolution=128, output_type="np")
    library = Library([folder], download=False)
    made = preprocess("scribble_pidsafe", IMAGE, library=library)
    assert 0 < expected.mean() < 255
    np.testing.assert_array_equal(made.pixels, expected)
    cut = preprocess("scribble_pidsafe", IMAGE[:100, :150], library=library)  # theirs would make it 128x192
    assert cut.pixels.shape == (100, 150, 3)


@pytest.mark.parametrize(("name", "theirs"), [("color", "ColorShuffleDetector"), ("downsample", "DownSampleDetector")])
def test_what_draws_is_theirs_of_that_seed_and_leaves_no_trace(name, theirs):
    kind = detector("shuffle", theirs)
    state = np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(7)  # noqa: NPY002
        expected = kind()(IMAGE)
        np.random.seed(3)  # noqa: NPY002
        after = np.random.random()  # noqa: NPY002
        np.random.seed(3)  # noqa: NPY002
        made = preprocess(f"shuffle_{name}", IMAGE, seed=7)
        assert np.random.random() == after  # noqa: NPY002
    finally:
        np.random.set_state(state)  # noqa: NPY002
    np.testing.assert_array_equal(made.pixels, expected)
    assert (preprocess(f"shuffle_{name}", IMAGE, seed=8).pixels != expected).any()


PACK = [
    ("binary", "binary", "BinaryDetector", {"bin_threshold": 90}),
    ("pyracanny", "pyracanny", "PyraCannyDetector", {"high_threshold": 150}),
    ("scribble", "scribble", "ScribbleDetector", {}),
    ("tile_pyramid", "tile", "TileDetector", {"pyrUp_iters": 2}),
    ("ttplanet_tile_simple", "tile", "TTPLanet_Tile_Detector_Simple", {"scale_factor": 2.0, "blur_strength": 3.0}),
]


@pytest.mark.parametrize(("name", "module", "kind", "given"), PACK)
def test_the_packs_maps_are_its_own(name, module, kind, given):
    pytest.importorskip("custom_controlnet_aux", reason="the ComfyUI pack's src is not on PYTHONPATH")
    call = getattr(pytest.importorskip(f"custom_controlnet_aux.{module}"), kind)()
    expected = call(IMAGE.copy(), detect_resolution=128, output_type="np", **given)
    assert expected.std() > 10
    np.testing.assert_array_equal(preprocess(name, IMAGE, **given).pixels, expected)


@pytest.mark.long
def test_mobile_sam_is_controlnet_auxs(tmp_path):
    kind = detector("segment_anything", "SamDetector")
    from controlnet_aux.segment_anything import sam_model_registry

    torch.manual_seed(0)
    torch.save(sam_model_registry["vit_t"]().state_dict(), tmp_path / "mobile_sam.pt")
    theirs = kind.from_pretrained(str(tmp_path), "vit_t", "mobile_sam.pt")
    for made in (theirs.mask_generator, ready := find("mobile_sam").load("cpu", Library([tmp_path], download=False))):
        generator = made if made is theirs.mask_generator else made.run.loaded.call.mask_generator
        generator.pred_iou_thresh, generator.stability_score_thresh = -9, -9  # a random network is not sure
        generator.point_grids = [points[::97] for points in generator.point_grids]
    np.random.seed(5)  # noqa: NPY002
    expected = theirs(IMAGE, detect_resolution=128, image_resolution=128, output_type="np")
    made = ready(IMAGE, seed=5)
    assert expected.std() > 1
    np.testing.assert_array_equal(made.pixels, expected)


SOURCE = """
print("imported")
import random
import numpy as np

class Striped:
    def __call__(self, input_image, every=4, weight=0.5, twice=False, words="a", detect_resolution=512, **others):
        print("working")
        assert detect_resolution == min(input_image.shape[:2]) and words == "a"
        result = input_image.copy()
        result[::every] = int(255 * weight)
        return result[:, ::2] if twice else result

class Loaded:
    @classmethod
    def from_pretrained(cls, folder, filename):
        made = cls()
        made.place, made.device = (folder, filename), None
        return made

    def to(self, device):
        self.device = device

    def __call__(self, input_image):
        self.called = True
        return (input_image, input_image[..., 0])

class Broken:
    def __call__(self, input_image, kind="key"):
        raise {"key": KeyError("depth"), "name": NameError("name 'random' is not defined")}[kind]

class Floats:
    def __call__(self, input_image):
        return input_image / 2
"""
STRIPES = WeightsFile("some/repo", "stripes.safetensors", webui_folder="stripes", license="MIT")


@pytest.fixture
def package(tmp_path, monkeypatch):
    list_preprocessors()
    monkeypatch.setattr(registry, "_specs_by_name", dict(registry._specs_by_name))
    place = tmp_path / "somebody_aux"
    (place / "lines").mkdir(parents=True)
    (place / "__init__.py").write_text("")
    (place / "lines" / "__init__.py").write_text(SOURCE)
    (place / "needy.py").write_text("import absent_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield Package("somebody_aux", "pip install somebody-aux")
    for name in [name for name in sys.modules if name.startswith("somebody_aux")]:
        del sys.modules[name]


def entered(name, *rest, **settings):
    base.bridge_detector(name, Detector(*rest, **settings), makes="other")
    return find(name)


def test_parameters_are_read_off_the_source_without_an_import(package):
    entry = entered("striped", package, "lines", "Striped", call_arguments={"twice": False})
    assert [(p.name, p.type, p.default) for p in entry.parameters] == [("every", int, 4), ("weight", float, 0.5)]
    assert "somebody_aux" not in sys.modules
    with pytest.raises(ValueError, match="striped has no parameter 'words'"):
        entry.check({"words": "b"})
    with pytest.raises(ValueError, match=r"every -1 is outside 0\.\."):
        entry.check({"every": -1})


def test_a_detector_is_fed_and_its_map_has_the_images_size(package, capsys):
    entry = entered("striped", package, "lines", "Striped")
    made = entry.load()(IMAGE[:50, :70], every=2)
    expected = IMAGE[:50, :70].copy()
    expected[::2] = 127
    np.testing.assert_array_equal(made.pixels, expected)
    assert entry.load()(IMAGE[:50, :70], twice=True).pixels.shape == (50, 70, 3)  # resized
    out, err = capsys.readouterr()
    assert out == "" and "working" in err  # stdout is for maps


def test_weights_come_from_the_library_and_are_read_before(package, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    write_weights(folder / STRIPES.name, {"a": torch.ones(1)})
    entry = entered("loaded", package, "lines", "Loaded", (STRIPES,), map_index=1)
    ready = entry.load(Device("cpu"), Library([folder], download=False))
    assert ready.run.loaded.call.place == (str(folder), str(folder / STRIPES.name))
    assert ready.run.loaded.call.device == "cpu"
    np.testing.assert_array_equal(ready(IMAGE).pixels, np.dstack([IMAGE[..., 0]] * 3))
    (folder / STRIPES.name).write_bytes(b"\x80\x02cos\nsystem\n.")
    with pytest.raises(ValueError, match="is refused"):
        entry.load("cpu", Library([folder], download=False))
    with pytest.raises(ValueError, match="loaded computes in float32, not in float16"):
        entry.load(Device("cpu", "float16"), Library([folder], download=False))


def test_what_is_missing_old_or_broken_is_one_line(package):
    absent = Package("nobody_aux", "pip install nobody-aux")
    cases = [
        ((absent, "lines", "Striped"), "nobody_aux, which has Striped, is not installed: pip install nobody-aux"),
        ((package, "lines", "Later"), "this somebody_aux has no Later: pip install somebody-aux"),
        ((package, "other", "Striped"), "this somebody_aux has no Striped: pip install"),
        ((package, "needy", "Striped"), "somebody_aux needs absent_package, which is not installed"),
        ((package, "lines", "Broken"), "somebody_aux's Broken fails: KeyError: 'depth'"),
        ((package, "lines", "Floats"), r"somebody_aux's Floats gives \(128, 192, 3\) of float64, no image"),
    ]
    for i, (rest, words) in enumerate(cases):
        with pytest.raises(ValueError, match=words) as caught:
            entered(f"case{i}", *rest).load()(IMAGE)
        assert "\n" not in str(caught.value)
    fixed = entered("named", package, "lines", "Broken", call_arguments={"kind": "name"})
    with pytest.raises(ValueError, match="fails: NameError"):
        fixed.load()(IMAGE)


def test_listing_imports_neither_package():
    code = "import sys; from controlnet_ext.preprocessors import registry as r; print("
    code += "len(r.list_preprocessors()) > 60, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names = done.stdout.split()
    assert names[0] == "True" and not {"controlnet_aux", "custom_controlnet_aux", "torch"} & set(names)
    assert {"mobile_sam", "scribble_hedsafe", "depth_metric3d"} <= {entry.name for entry in map(find, BRIDGED)}


BRIDGED = ("mobile_sam", "scribble_hedsafe", "scribble_pidsafe", "depth_metric3d", "normal_metric3d", "pyracanny")
