"""LaMa: the paper's formula typed out, the fill and its borders, sizes, masks, strict loading."""

import numpy as np
import pytest
import torch
from controlnet_ext.annotators import lama
from controlnet_ext.preprocessors import preprocess
from controlnet_ext.preprocessors.backends.torch import Device, Network
from fakes import Pushes
from lines import Shelf, random_state
from torch.nn import functional as F

from controlnet_ext import Unit, cli
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.image_writer import write_image
from controlnet_ext.files.safetensors import write_weights
from controlnet_ext.guidance.hints import HintImages

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8).repeat(10, 0).repeat(10, 1)
MASK = np.zeros((90, 120), np.uint8)
MASK[30:60, 40:90] = 255


@pytest.fixture(scope="module")
def state():
    with torch.device("meta"):
        shapes = lama.LaMa(8, 2).state_dict()
    state = random_state(shapes)
    state["model.18.weight"] *= 0.2  # or all is 0 or 1
    return state


def typed_out(state, x):
    """The generator of the paper, section 2.1 and appendix, on tensors by their published names."""

    def conv(name, x, stride=1):
        weight = state[f"{name}.weight"]
        side = weight.shape[-1] // 2
        x = F.pad(x, (side,) * 4, mode="reflect") if side else x
        return F.conv2d(x, weight, state.get(f"{name}.bias"), stride)

    def norm(name, x):
        mean, var, weight, bias = (state[f"{name}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias).relu()

    def spectral(name, x):
        x = norm(f"{name}.conv1.1", conv(f"{name}.conv1.0", x))
        real = torch.view_as_real(torch.fft.rfftn(x, dim=(2, 3), norm="ortho"))  # (B, C, h, w, 2)
        flat = real.permute(0, 1, 4, 2, 3).reshape(len(x), -1, *real.shape[2:4])
        flat = norm(f"{name}.fu.bn", conv(f"{name}.fu.conv_layer", flat))
        waves = flat.reshape(len(x), -1, 2, *flat.shape[2:]).permute(0, 1, 3, 4, 2).contiguous()
        back = torch.fft.irfftn(torch.view_as_complex(waves), s=x.shape[2:], dim=(2, 3), norm="ortho")
        return conv(f"{name}.conv2", x + back)

    def block(name, near, whole):
        f = f"{name}.ffc."
        x = conv(f + "convl2l", near) + conv(f + "convg2l", whole)
        y = conv(f + "convl2g", near) + spectral(f + "convg2g", whole)
        return norm(f"{name}.bn_l", x), norm(f"{name}.bn_g", y)

    x = norm("model.1.bn_l", conv("model.1.ffc.convl2l", x))
    for i in (2, 3):
        x = norm(f"model.{i}.bn_l", conv(f"model.{i}.ffc.convl2l", x, 2))
    near, whole = (norm(f"model.4.bn_{to}", conv(f"model.4.ffc.convl2{to}", x, 2)) for to in "lg")
    for i in (5, 6):
        x, y = block(f"model.{i}.conv2", *block(f"model.{i}.conv1", near, whole))
        near, whole = near + x, whole + y
    x = torch.cat([near, whole], 1)
    for i in (8, 11, 14):
        weight, bias = state[f"model.{i}.weight"], state[f"model.{i}.bias"]
        x = norm(f"model.{i + 1}", F.conv_transpose2d(x, weight, bias, 2, padding=1, output_padding=1))
    return conv("model.18", x).sigmoid()


def test_the_network_is_the_papers_formula(state):
    draw = torch.Generator().manual_seed(0)
    images, mask = torch.rand(2, 3, 64, 96, generator=draw), (torch.rand(2, 1, 64, 96, generator=draw) > 0.7).float()
    expected = typed_out(state, torch.cat([images * (1 - mask), mask], 1))
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 0.1)):  # bfloat16 has 8 bits; its spectrum has 24
        net = Network.from_module(lama.load({f"generator.{key}": t for key, t in state.items()}), Device("cpu", dtype))
        found = net(images, mask)
        assert 0.1 < expected.std() < 0.4 and found.shape == (2, 3, 64, 96)
        assert (found - expected).abs().mean() < tolerance / 3 and (found - expected).abs().max() < tolerance * 5


def test_the_published_networks_names_and_sizes():
    with torch.device("meta"):
        net = lama.LaMa()
    assert sum(p.numel() for p in net.parameters()) == 50_975_875  # of the original's class too
    shapes = {key: tuple(t.shape) for key, t in net.state_dict().items()}
    assert shapes["model.4.ffc.convl2g.weight"] == (384, 256, 3, 3)
    assert shapes["model.22.conv2.ffc.convg2g.fu.conv_layer.weight"] == (384, 384, 1, 1)
    assert shapes["model.24.weight"] == (512, 256, 3, 3) and shapes["model.34.weight"] == (3, 64, 7, 7)


def test_only_what_the_mask_covers_is_filled(state):
    made = preprocess("inpaint_only+lama", IMAGE, mask=MASK, library=Shelf(state))
    assert made.kind == "inpaint"
    np.testing.assert_array_equal(made.pixels[MASK == 0], IMAGE[MASK == 0])
    assert (made.pixels != IMAGE).any(axis=2)[MASK == 255].mean() > 0.95
    # what was there before does not show through
    painted = IMAGE.copy()
    painted[MASK == 255] = (255, 0, 255)
    other = preprocess("inpaint_only+lama", painted, mask=MASK, library=Shelf(state), fill_resolution=90)
    again = preprocess("inpaint_only+lama", IMAGE, mask=MASK, library=Shelf(state), fill_resolution=90)
    np.testing.assert_array_equal(other.pixels, again.pixels)


def test_the_fill_is_the_networks_at_its_resolution(state):
    padded = np.pad(IMAGE, ((0, 38), (0, 8), (0, 0)), mode="edge")  # to multiples of 64
    x = torch.from_numpy(np.dstack([padded, np.pad(MASK, ((0, 38), (0, 8)), mode="edge")])).permute(2, 0, 1)[None] / 255
    expected = typed_out(state, torch.cat([x[:, :3] * (1 - x[:, 3:]), x[:, 3:]], 1))[0, :, :90, :120]
    made = preprocess("inpaint_only+lama", IMAGE, mask=MASK, library=Shelf(state), fill_resolution=90)
    inside = expected.permute(1, 2, 0).numpy()[MASK == 255] * 255
    assert np.abs(made.pixels[MASK == 255] - inside).max() < 1.01  # cut to whole numbers


def test_grey_mixes_and_a_map_has_a_resolution(state):
    library = Shelf(state)
    whole = preprocess("inpaint_only+lama", IMAGE, mask=np.full_like(MASK, 255), library=library).pixels.astype(float)
    half = preprocess("inpaint_only+lama", IMAGE, mask=np.full_like(MASK, 128), library=library).pixels
    assert np.abs(half - (whole * 128 + IMAGE * 127.0) / 255).max() < 2
    made = preprocess("inpaint_only+lama", IMAGE, mask=MASK, library=library, resolution=180)
    assert made.pixels.shape == (180, 240, 3)


def test_every_size_is_filled(state):
    for height, width in ((1, 1), (1, 9000), (300, 3), (57, 31)):
        image = np.resize(IMAGE, (height, width, 3))
        made = preprocess("inpaint_only+lama", image, mask=image[..., 0] > 127, library=Shelf(state))
        assert made.pixels.shape == image.shape


def test_masks_are_asked_for_and_checked(state):
    library = Shelf(state)
    with pytest.raises(ValueError, match=r"inpaint_only\+lama needs a mask, white where to paint"):
        preprocess("inpaint_only+lama", IMAGE, library=library)
    with pytest.raises(ValueError, match="the mask is 60x90 pixels, but the image 120x90"):
        preprocess("inpaint_only+lama", IMAGE, mask=MASK[:, :60], library=library)
    with pytest.raises(ValueError, match="canny takes no mask"):
        preprocess("canny", IMAGE, mask=MASK)


def test_weights_are_loaded_strictly(state):
    training = {"discriminator.model0.0.weight": torch.ones(1), "loss_resnet_pl.impl.x": torch.ones(1)}
    lama.load({f"generator.{key}": tensor for key, tensor in state.items()} | training)
    for wrong in (state | {"extra": torch.ones(1)}, dict(list(state.items())[1:]), {}):
        with pytest.raises(RuntimeError, match="LaMa"):
            lama.load(wrong)


def test_the_command_takes_a_mask(state, tmp_path, capsys):
    write_image(tmp_path / "a.png", IMAGE)
    write_image(tmp_path / "m.png", MASK)
    write_weights(tmp_path / "ControlNetLama.pth", state)
    options = ["--weights", str(tmp_path / "ControlNetLama.pth"), "--no-download"]
    command = ["preprocess", "inpaint_only+lama,canny", str(tmp_path / "a.png"), "-o", f"{tmp_path}/out/"]
    assert cli.main([*command, "--mask", str(tmp_path / "m.png"), *options]) == 0
    expected = preprocess("inpaint_only+lama", IMAGE, mask=MASK, library=Shelf(state))
    np.testing.assert_array_equal(read_image(tmp_path / "out" / "a_inpaint_only+lama.png"), expected.pixels)
    for words, refusal in (
        ([*command, *options, "--overwrite"], "inpaint_only+lama needs --mask FILE"),
        ([*command, *options, "--mask", "none.png", "--overwrite"], "none.png' does not exist"),
        (["preprocess", "canny", str(tmp_path / "a.png"), "-o", "-", "--mask", "m.png"], "canny takes no --mask"),
        (["preprocess", "inpaint_only+lama", str(tmp_path), "-o", f"{tmp_path}/o/", "--mask", "m.png"], "one image"),
    ):
        capsys.readouterr()
        assert cli.main(words) == 2
        assert refusal in capsys.readouterr().err


def test_a_units_mask_is_the_fills(state, tmp_path, monkeypatch):
    write_weights(tmp_path / "ControlNetLama.pth", state)
    monkeypatch.setenv("CONTROLNET_EXT_MODELS", str(tmp_path))
    for parameters in ({}, {"resolution": "match"}):
        unit = Unit(Pushes(), IMAGE, preprocessor="inpaint_only+lama", inpaint=MASK, parameters=parameters)
        (hint,) = HintImages(unit).fit_to_size(90, 120)
        assert (hint[0][:, MASK == 255] == -1).all() and (hint[0][:, MASK == 0] >= 0).all()
    with pytest.raises(ValueError, match="inpaint_only changes what an inpaint mask covers"):
        HintImages(Unit(Pushes(), IMAGE, preprocessor="inpaint_only+lama"))
