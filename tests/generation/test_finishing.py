"""What is done to images after their run, and what runs of inpaint_only+lama begin with: over the HTTP API, in the
webui."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import serving
import torch
from controlnet_ext.preprocessors.pixels.recolor import recolor_intensity, recolor_luminance
from controlnet_ext.preprocessors.registry import Preprocessor, find
from fakes import Pushes
from PIL import Image
from serving import Client, photo, white
from webui_host import fresh, install

from controlnet_ext import Unit
from controlnet_ext.generation.inpainting import composite, postprocess_for, replace_lightness
from controlnet_ext.generation.recipe import find_control_files
from controlnet_ext.guidance.after_steps import ColorFix
from controlnet_ext.guidance.hints import HintImages
from controlnet_ext.maps.resize import fit_for_outpainting
from controlnet_ext.sdwebui.build import build_unit, find_initial_noise_image, resolve_unit
from controlnet_ext.sdwebui.units import parse_webui_unit

PHOTO = serving.pixels(photo())
ANY = "any"  # a control model that refuses no kind of map


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client and the desk that answers it, which has the embedded ControlNet as a file of a folder too."""
    folder = tmp_path_factory.mktemp("controls")
    shutil.copy(find_control_files(serving.CANNY)["weights"], folder / f"{ANY}.safetensors")
    with serving.served(folders=(str(folder),)) as served:
        yield served


RED, SMALL = np.uint8((200, 0, 0)), {"width": 64, "height": 64}


class Fills:
    """Stands for LaMa: red where the mask is white; what it was given."""

    def __init__(self) -> None:
        self.spec = SimpleNamespace(needs_mask=True)
        self.seen: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self, image: np.ndarray, mask: np.ndarray, **_: Any) -> Any:
        self.seen.append((image, mask))
        return SimpleNamespace(pixels=np.where(mask > 127, RED, image))


@pytest.mark.parametrize(("make", "channel"), [(recolor_luminance, "lightness"), (recolor_intensity, "value")])
def test_recolor_gives_an_image_the_lightness_of_its_map(make: Any, channel: str) -> None:
    grey = cv2.merge([make(PHOTO)] * 3)
    other = np.full_like(PHOTO, (140, 120, 130))  # of little strength: strong colours have no place at every lightness
    found = replace_lightness(other, grey, channel)
    apart = np.abs(make(found).astype(int) - grey[..., 0])
    assert apart.max() <= 4 and apart.mean() < 0.5  # measured 4 and 0.1: near black and white no colour is left
    again = replace_lightness(PHOTO, grey, channel)  # its own: the rounding to 8 bits, of hues to 2 degrees
    assert np.abs(again.astype(int) - PHOTO).max() <= 5
    assert np.array_equal(replace_lightness(other, grey[:32, :32], channel).shape, other.shape)


def test_most_preprocessors_leave_the_image() -> None:
    for name in ("canny", "inpaint", "tile_resample"):
        assert postprocess_for(find(name), PHOTO, PHOTO, "crop") is None
    assert postprocess_for(find("inpaint_only"), PHOTO, None, "crop") is None


def unit(**said: Any) -> Any:
    found = parse_webui_unit({"image": photo(), "model": "m", **said}, "unit 1")
    assert found is not None
    return found


def test_what_is_added_around_an_image_is_painted_too() -> None:
    """384x384 into 64 x 128: 32 columns are added on both sides, and LaMa sees them white in its mask."""
    fills = Fills()
    its = unit(module="inpaint_only+lama", resize_mode="Resize and Fill")
    made = build_unit(its, "m", Pushes(), lambda name: fills, (64, 128))
    ((image, mask),) = fills.seen
    assert image.shape == mask.shape == (64, 128, 3)
    assert (mask[:, :32] == 255).all() and (mask[:, 32:96] == 0).all() and (mask[:, 96:] == 255).all()
    assert np.array_equal(made.initial_noise_image, made.map_image) and (made.map_image[:, :32] == RED).all()
    assert made.finish is not None
    done = made.finish(np.zeros((64, 128, 3), np.uint8))
    assert np.array_equal(done[:, 40:88], image[:, 40:88]) and not done[:, :32].any()


def test_units_in_python_see_what_is_added_around_too(monkeypatch: pytest.MonkeyPatch) -> None:
    black, fills = np.zeros_like(PHOTO), Fills()
    monkeypatch.setattr(Preprocessor, "load", lambda self: fills)
    maps = HintImages(Unit(Pushes(), PHOTO, preprocessor="inpaint_only+lama", inpaint=black, fit="fill"))
    (hint,) = maps.fit_to_size(64, 128)
    ((image, mask),) = fills.seen
    expected = fit_for_outpainting(PHOTO, black, 64, 128)
    assert np.array_equal(image, expected[0]) and np.array_equal(mask, expected[1])
    assert (hint[0, :, :, :32] == -1).all() and (hint[0, :, :, 40:88] >= 0).all()


def test_a_unit_for_the_second_pass_does_not_begin_the_first() -> None:
    its = {"module": "inpaint_only+lama", "mask": white(384, 384, slice(0, 200))}
    made = [
        build_unit(unit(**its, hr_option=said), "m", Pushes(), lambda name: Fills(), (64, 64))
        for said in ("High res only", "Both")
    ]
    assert (
        find_initial_noise_image(made[:1], has_hires_pass=True) is None
        and find_initial_noise_image([], has_hires_pass=True) is None
    )
    assert (
        find_initial_noise_image(made, has_hires_pass=True) is made[1].initial_noise_image
        and find_initial_noise_image(made, has_hires_pass=False) is made[0].initial_noise_image
    )


def test_a_unit_of_weight_0_does_nothing_in_the_end() -> None:
    its = unit(module="inpaint_only+lama", mask=white(384, 384, slice(0, 200)), weight=0)
    made = build_unit(its, "m", Pushes(), lambda name: Fills(), (64, 64))
    assert made.finish is None and made.initial_noise_image is None


def test_colours_of_a_second_pass_come_from_larger_boxes() -> None:
    its = {"module": "tile_colorfix+sharp", "threshold_a": 4, "threshold_b": 0.5}
    for said, expected in {
        "Both": [("low", 4), ("high", 8)],
        "Low res only": [("low", 4)],
        "High res only": [("high", 8)],
    }.items():
        made = build_unit(unit(**its, hr_option=said), "m", Pushes(), lambda name: find(name).load(), (64, 64))
        found = [(each.hires, each.after) for each in made.split_by_pass(has_hires_pass=True)]
        assert found == [(passes, ColorFix(variation, 0.5)) for passes, variation in expected]
        assert made.split_by_pass(has_hires_pass=False) == [made.unit]
    assert (
        len(
            build_unit(
                unit(module="tile_resample"), "m", Pushes(), lambda name: find(name).load(), (64, 64)
            ).split_by_pass(True)
        )
        == 1
    )


def test_over_the_api_inpaint_only_keeps_the_pixels_around(client: Client) -> None:
    its = {"image": photo(), "mask": white(384, 384, slice(192, 384)), "module": "inpaint_only", "model": ANY}
    (image, shown) = client.images(its, **SMALL)
    assert np.array_equal(image[:, :24], shown[:, :24])
    assert not np.array_equal(image[:, 40:], shown[:, 40:])
    (nothing,) = client.images(**SMALL)
    assert np.array_equal(client.images({**its, "weight": 0}, **SMALL)[0], nothing)


def test_over_the_api_recolor_keeps_the_lightness(client: Client) -> None:
    its = {"image": photo(), "module": "recolor_intensity", "model": ANY, "processor_res": 64}
    (image, shown) = client.images(its, **SMALL)
    assert np.abs(image.max(axis=2).astype(int) - shown[..., 0]).max() <= 2


def test_beside_a_mask_of_img2img_inpaint_only_is_the_whole_images(client: Client) -> None:
    more = {"path": "img2img", "init_images": [photo()], "mask": white(384, 384, slice(192, 384)), **SMALL}
    its = {"model": ANY, "image": "", "processor_res": 64}
    one, other = (client.images({**its, "module": name}, **more)[0] for name in ("inpaint_only", "inpaint"))
    assert np.array_equal(one, other)


def test_over_the_api_a_run_begins_with_what_lama_filled_in(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client, desk = server
    fills, builder = Fills(), desk.engine.unit_builder

    def load(name: str) -> Any:
        return fills if "lama" in name else builder.load_preprocessor(name)

    monkeypatch.setattr(desk.engine, "unit_builder", replace(builder, load_preprocessor=load))
    mask = white(384, 384, slice(100, 300))
    its = {"image": photo(), "mask": mask, "module": "inpaint_only+lama", "model": ANY}
    filled = client.images(its, **SMALL, steps=1)[0]
    assert len(fills.seen) == 1
    begins = []
    monkeypatch.setattr(
        "controlnet_ext.generation.render.make_initial_latents",
        lambda pipe, pixels, height, width, generator: (
            begins.append(pixels) or torch.randn((1, 4, height // 8, width // 8), generator=generator)
        ),
    )
    other = client.images(its, **SMALL, steps=1)[0]
    assert begins[0].shape == (64, 64, 3) and (begins[0][30, 30] == RED).all()
    assert not np.array_equal(filled, other)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    with fresh():
        yield install(monkeypatch, tmp_path, torch.nn.Module())


def test_the_webuis_images_are_finished_in_place_and_cut_to_the_same_numbers(host: Any) -> None:
    from controlnet_ext.webui.script import ControlNetScript

    mask = np.zeros_like(PHOTO)
    mask[:, 200:] = 255
    finish = postprocess_for(find("inpaint_only"), PHOTO, mask, "crop")
    made = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    images = torch.from_numpy(made).permute(0, 3, 1, 2).float() / 255
    request = SimpleNamespace(built_units=[SimpleNamespace(finish=finish), SimpleNamespace(finish=None)])
    ControlNetScript().postprocess_batch(SimpleNamespace(controlnet_ext=request), images=images, batch_number=0)
    cut = (255.0 * images.permute(0, 2, 3, 1).numpy()).astype(np.uint8)  # modules/processing.py
    for found, image in zip(cut, made, strict=True):
        assert np.array_equal(found, composite(image, PHOTO, mask))
    before = images.clone()
    ControlNetScript().postprocess_batch(SimpleNamespace(), images=images, batch_number=0)
    assert torch.equal(images, before)


def test_the_webuis_first_noise_holds_the_image_and_no_other(host: Any) -> None:
    from controlnet_ext.webui.sampling import inject_initial_noise

    class Numbers:
        is_first = True

        def next(self) -> torch.Tensor:
            return torch.full((2, 4, 8, 8), 3.0)

    seen = []
    model = SimpleNamespace(
        alphas_cumprod=torch.tensor([0.9, 0.36]),
        first_stage_model=torch.nn.Linear(1, 1),
        encode_first_stage=lambda pixels: seen.append(pixels) or torch.ones(1, 4, 8, 8),
        get_first_stage_encoding=lambda x: 0.5 * x,
    )
    p = SimpleNamespace(rng=(own := Numbers()), sd_model=model)
    with inject_initial_noise(p, PHOTO):
        assert p.rng.is_first
        first = p.rng.next()
        assert torch.equal(p.rng.next(), own.next())
    torch.testing.assert_close(first, torch.full((2, 4, 8, 8), 0.6 * 0.5 + 0.8 * 3))
    assert seen[0].shape == (1, 3, 64, 64) and p.rng is own
    with pytest.raises(RuntimeError), inject_initial_noise(p, PHOTO):
        raise RuntimeError
    assert p.rng is own
    with inject_initial_noise(p, None):
        assert p.rng is own


def test_the_webuis_setting_is_the_border(host: Any) -> None:
    from controlnet_ext.webui import host as ours

    assert ours.get_inpaint_blur() == 7
    for value, meant in ((0, 0), (5.0, 5), (100, 64)):
        host.options["control_net_inpaint_blur_sigma"] = value
        assert ours.get_inpaint_blur() == meant


def test_a_sampling_of_the_webui_begins_with_what_a_unit_wants(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from controlnet_ext.webui import sampling

    seen: list[Any] = []

    @contextmanager
    def noted(p: Any, pixels: np.ndarray | None) -> Iterator[None]:
        seen.append(pixels)
        yield

    class Asked:
        def sample(self) -> str:
            return "latents"

    monkeypatch.setattr(sampling, "inject_initial_noise", noted)
    monkeypatch.setattr(sampling, "_guide_units", lambda *_: nullcontext())
    its = {"module": "inpaint_only+lama", "mask": white(384, 384, slice(0, 200))}
    for said in ("Both", "High res only"):
        made = build_unit(unit(**its, hr_option=said), "m", Pushes(), lambda name: Fills(), (64, 64))
        for hires in (False, True):
            p: Any = Asked()
            p.enable_hr = hires
            sampling.guide_sampling(p, lambda made=made: [made])
            assert p.sample() == "latents"
            wanted = None if hires and said == "High res only" else made.initial_noise_image
            assert seen.pop() is wanted and not seen


def test_in_the_webui_too_inpaint_only_beside_a_mask_is_the_whole_images(host: Any) -> None:
    from controlnet_ext.webui.inputs import get_host_inputs

    mask = Image.fromarray(np.zeros((64, 64), np.uint8))
    p = SimpleNamespace(init_images=[Image.fromarray(PHOTO)], image_mask=mask, inpainting_mask_invert=0)
    p.height = p.width = 64
    for name, meant in (("inpaint_only", "inpaint"), ("inpaint_only+lama", "inpaint_only+lama"), ("canny", "canny")):
        assert resolve_unit(unit(module=name), get_host_inputs(p)).module.name == meant
    p.image_mask = None
    assert resolve_unit(unit(module="inpaint_only"), get_host_inputs(p)).module.name == "inpaint_only"
