"""Depth by tiny random networks: the same as transformers' pipeline, its image typed out, 16 bits, and refusals."""

import json

import depth_models
import numpy as np
import pytest
import torch
import transformers
from controlnet_ext.preprocessors import find, list_preprocessors, preprocess
from controlnet_ext.preprocessors.backends.torch import Device
from controlnet_ext.preprocessors.backends.transformers import make_model_files
from controlnet_ext.preprocessors.depth.depth_models import DEPTH_PRO_FILES, MIDAS_FILES, ZOE_INDOOR_FILES
from controlnet_ext.preprocessors.depth.shades import encode_inverse_depth, encode_metric_depth, encode_zoe_depth
from controlnet_ext.preprocessors.depth.transformers_depth import TransformersDepth
from controlnet_ext.preprocessors.library import Library
from PIL import Image

from controlnet_ext.cli import main
from controlnet_ext.files.image_reader import read_image

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8).repeat(10, 0).repeat(10, 1)
FILES = {
    "dpt": make_model_files("some/dpt", "MIT"),
    "hybrid": MIDAS_FILES,
    "depth_anything": find("depth_anything_v2").weights,
    "metric": find("depth_anything_v2_indoor").weights,
    "zoe": ZOE_INDOOR_FILES,
    "depth_pro": DEPTH_PRO_FILES,
}
METRIC = {"metric", "zoe", "depth_pro"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return root, {name: depth_models.put(root, files, getattr(depth_models, name)()) for name, files in FILES.items()}


@pytest.mark.parametrize("name", FILES)
def test_depth_is_that_of_transformers_pipeline(models, name):
    root, made = models
    module, prepare = made[name]
    if prepare is None or (name == "zoe" and not depth_models.find_spec("torchvision")):
        pytest.skip("transformers' pipeline for it needs torchvision")
    pipe = transformers.pipeline("depth-estimation", model=module, image_processor=prepare, device="cpu")
    images = np.stack([IMAGE, IMAGE[::-1]])
    depth = TransformersDepth("cpu", Library([root], download=False), FILES[name])
    assert depth.is_metric is (name in METRIC)
    for image, result in zip(images, depth(images), strict=True):
        expected = pipe(Image.fromarray(image))["predicted_depth"].numpy()
        assert expected.std() > 0.01
        # two images at once, channels last: float32's last bits, 4e-6 of the values measured
        np.testing.assert_allclose(result, expected, atol=2e-5 * np.abs(expected).max(), rtol=0)


def test_depth_pro_is_sized_and_scaled_as_transformers_does(models):
    root, made = models
    x = (torch.from_numpy(IMAGE).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        found = made["depth_pro"][0](torch.nn.functional.interpolate(x, (32, 32), mode="bilinear"))
    focal = 0.5 * 120 / torch.tan(torch.deg2rad(found.field_of_view) / 2)
    inverse = torch.nn.functional.interpolate((found.predicted_depth * 120 / focal)[None], (90, 120), mode="bilinear")
    (result,) = TransformersDepth("cpu", Library([root], download=False), DEPTH_PRO_FILES)(IMAGE[None])
    np.testing.assert_allclose(result, 1 / inverse[0, 0].clamp(1e-4, 1e4).numpy(), rtol=2e-5)


@pytest.mark.parametrize("name", FILES)
def test_every_size_has_depth(models, name):
    depth = TransformersDepth("cpu", Library([models[0]], download=False), FILES[name])
    for height, width in ((1, 1), (2, 300), (300, 3), (57, 31)):
        result = depth(np.resize(IMAGE, (1, height, width, 3)))
        assert result.shape == (1, height, width) and result.dtype == np.float32


def test_near_is_white():
    inverse = np.array([[1.0, 2, 5]], np.float32)
    assert encode_inverse_depth(inverse).tolist() == [[0, 16383, 65535]]
    assert encode_metric_depth(np.array([[0.05, 0.2, 1000]])).tolist() == [
        [65535, int((5 - 1 / 250) / (10 - 1 / 250) * 65535), 0]
    ]
    metres = np.arange(1.0, 102)[None]  # percentile 2 is 3, percentile 85 is 86
    assert encode_zoe_depth(metres)[0, [0, 2, 44, 85, 100]].tolist() == [
        65535,
        65535,
        int((86 - 45) / 83 * 65535),
        0,
        0,
    ]
    for flat in (encode_inverse_depth, encode_metric_depth, encode_zoe_depth):
        assert not flat(np.full((2, 3), 4.0)).any()


def test_a_map_has_the_images_shades_and_the_depth_itself(models):
    library = Library([models[0]], download=False)
    made = preprocess("depth_midas", IMAGE, library=library)
    expected = (made.values - made.values.min()) / np.ptp(made.values)
    assert made.kind == "depth" and made.values.dtype == np.float32
    assert np.abs(made.pixels16 - expected * 65535).max() < 1.01
    np.testing.assert_array_equal(made.pixels[..., 1], made.pixels16 // 257)
    assert np.abs(made.pixels[..., 0] - (expected * 255).astype(np.uint8)).max() <= 1
    # the edge pixels that a resolution adds are not kept, and count for nothing in least and largest
    cut = preprocess("depth_midas", IMAGE, library=library, resolution=80)
    assert cut.pixels.shape == (80, 107, 3) and cut.values.shape == cut.pixels16.shape == (80, 107)
    assert cut.pixels16.min() == 0 and cut.pixels16.max() == 65535


def test_metres_are_kept(models):
    library = Library([models[0]], download=False)
    for name in ("depth_zoe", "depth_pro", "depth_anything_v2_indoor"):
        made = preprocess(name, IMAGE, library=library)
        near, far = made.values < np.quantile(made.values, 0.1), made.values > np.quantile(made.values, 0.9)
        assert made.pixels16[near].min() > made.pixels16[far].max()


def test_the_command_writes_sixteen_bits(models, tmp_path, capsys):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    options = ["--library", str(models[0]), "--no-download"]
    command = ["preprocess", "depth_zoe", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), "--sixteen-bit"]
    assert main([*command, *options]) == 0
    with Image.open(tmp_path / "b.png") as image:
        assert image.mode == "I;16"
        fine = np.array(image)
    made = preprocess("depth_zoe", IMAGE, library=Library([models[0]], download=False))
    np.testing.assert_array_equal(fine, made.pixels16)
    np.testing.assert_array_equal(
        read_image(tmp_path / "b.png"), np.repeat((fine >> 8).astype(np.uint8)[..., None], 3, 2)
    )
    for name, out in (("canny", "c.png"), ("canny,depth_zoe", "d/"), ("depth_zoe", "e.jpg")):
        capsys.readouterr()
        given = options if "depth" in name else []
        assert (
            main(["preprocess", name, str(tmp_path / "a.png"), "-o", str(tmp_path / out), "--sixteen-bit", *given]) == 2
        )
        assert "--sixteen-bit" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_the_command_takes_a_folder_of_any_of_these_networks(models, tmp_path, capsys):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    folder = models[0] / DEPTH_PRO_FILES[0].repo
    command = ["preprocess", "depth_anything_v2", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png")]
    assert main([*command, "--weights", str(folder), "--no-download"]) == 0
    expected = preprocess("depth_pro", IMAGE, library=Library([models[0]], download=False))
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), expected.pixels)
    (tmp_path / "empty").mkdir()
    assert main([*command, "--weights", str(tmp_path / "empty"), "--overwrite"]) == 2
    assert "config.json' does not exist" in capsys.readouterr().err


def test_a_folder_of_another_network_or_of_none_is_refused(models, tmp_path):
    root, _ = models
    library = Library([tmp_path], download=False)
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there.*Intel/zoedepth-nyu"):
        preprocess("depth_zoe", IMAGE, library=library)
    place = tmp_path / ZOE_INDOOR_FILES[0].repo
    place.mkdir(parents=True)
    for file in ZOE_INDOOR_FILES:
        (place / file.name).write_bytes((root / ZOE_INDOOR_FILES[0].repo / file.name).read_bytes())
    for architectures in (["BertModel"], [], None):
        config = json.loads((place / "config.json").read_text()) | {"architectures": architectures}
        (place / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="expected one of: DPTForDepthEstimation"):
            preprocess("depth_zoe", IMAGE, library=library)


def test_depth_that_is_no_number_is_refused(models):
    depth = TransformersDepth(Device("cpu", "bfloat16"), Library([models[0]], download=False), MIDAS_FILES)
    assert np.isfinite(depth(IMAGE[None])).all()
    depth.infer_depth = lambda images: torch.full((1, 90, 120), float("nan"))
    with pytest.raises(ValueError, match="no number: compute in float32"):
        depth(IMAGE[None])


def test_names_are_those_of_sd_webui_controlnet():
    made = {entry.name: entry for entry in list_preprocessors() if entry.makes == "depth"}
    names = {"depth_midas", "depth_zoe", "depth_anything", "depth_anything_v2", "depth_leres", "depth_leres++"}
    assert names | {"depth_pro"} <= made.keys()
    assert all(entry.weights for entry in made.values())
    for name in ("depth_leres", "depth_leres++"):
        assert [parameter.name for parameter in made[name].parameters] == ["remove_near", "remove_background"]
