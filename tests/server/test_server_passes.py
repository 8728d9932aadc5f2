"""Passes of the HTTP API's images: hires fix, and repainting a part of an initial image."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving
from limits import wait_until
from serving import CANNY, Client, photo, white

from controlnet_ext.files.image_writer import read_png_text
from controlnet_ext.generation.inpainting import InpaintArea, fill_from_surroundings
from controlnet_ext.generation.recipe import UPSCALERS
from controlnet_ext.guidance.hints import fit_and_crop
from controlnet_ext.sdwebui.requests import HiresFields, InpaintFields, parse_hires_fix, parse_inpaint_area
from controlnet_ext.server.service import Service

pytest.importorskip("starlette", reason="needs controlnet-ext[serve]")
pytest.importorskip("uvicorn", reason="needs controlnet-ext[serve]")
UNIT = {"image": photo(), "module": "canny", "model": CANNY}
SMALL = {"width": 64, "height": 64}


@pytest.mark.parametrize(
    ("said", "size", "over"),
    [
        ({}, (96, 128), (96, 128)),
        ({"hr_scale": 1.5}, (72, 96), (72, 96)),
        ({"hr_resize_x": 100}, (72, 96), (72, 96)),
        ({"hr_resize_y": 100}, (96, 128), (96, 128)),
        ({"hr_resize_x": 96, "hr_resize_y": 96}, (96, 96), (96, 128)),
        ({"hr_resize_x": 128, "hr_resize_y": 72, "hr_scale": 3}, (72, 128), (96, 128)),
    ],
)
def test_the_second_pass_is_as_large_as_the_webuis(said: Any, size: Any, over: Any) -> None:
    """Of a first pass of 64x48; both sides given: enlarged to cover them, and cut."""
    found = parse_hires_fix(HiresFields({"enable_hr": True, **said}, "the request"), 48, 64, 20)
    assert found is not None and (found.size, found.canvas_size) == (size, over)
    assert (found.upscaler, found.steps, found.strength) == ("Latent", 20, 0.75)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"hr_scale": 8}, "hr_scale is 8, expected a number 1..4"),
        ({"hr_scale": 4, "width": 1024}, "the second pass makes 4096x1024, expected sides of 64..2048"),
        ({"hr_upscaler": "R-ESRGAN 4x+"}, "hr_upscaler is 'R-ESRGAN 4x.', expected one of 'Latent', "),
        ({"hr_prompt": "other"}, "hr_prompt is not offered by this server"),
    ],
)
def test_what_a_second_pass_cannot_be_is_said(said: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^the request: {words}"):
        parse_hires_fix(HiresFields({"enable_hr": 1, **said}, "the request"), 256, said.get("width", 64), 20)


def test_every_upscaler_enlarges_and_each_unit_keeps_to_its_pass(client: Client) -> None:
    hires = {**SMALL, "enable_hr": True, "hr_scale": 1.25, "hr_second_pass_steps": 3}
    images = [client.images(hr_upscaler=name, **hires)[0] for name in UPSCALERS]
    assert {image.shape for image in images} == {(80, 80, 3)}
    assert len({image.tobytes() for image in images}) >= len(UPSCALERS) - 2  # None is Lanczos; nearest by 5/4
    plain = images[0]
    asked = ("Low res only", "High res only", "Both")
    shown = [client.images({**UNIT, "hr_option": said}, **hires) for said in asked]
    low, high, both = (results[0] for results in shown)
    sides = [[len(each) for each in maps] for _, *maps in shown]
    assert sides == [[64], [80], [64, 80]]  # the maps of the passes in which the unit acts
    assert all(np.abs(a.astype(int) - b).max() > 3 for a in (low, high, both) for b in (plain,))
    assert len({each.tobytes() for each in (plain, low, high, both)}) == 4
    assert np.array_equal(client.images({**UNIT, "weight": 0}, **hires)[0], plain)


def test_without_a_second_pass_hr_option_says_nothing(client: Client) -> None:
    one, other = (client.images({**UNIT, "hr_option": said}, **SMALL)[0] for said in ("Both", "High res only"))
    assert np.array_equal(one, other)


def test_the_text_says_the_second_pass(client: Client, tmp_path: Path) -> None:
    hires = {"enable_hr": True, "hr_resize_x": 96, "hr_second_pass_steps": 4, "denoising_strength": 0.5}
    status, answer = client.draw(UNIT, **SMALL, **hires)
    assert status == 200 and len(answer["images"]) == 3
    (tmp_path / "p.png").write_bytes(base64.b64decode(answer["images"][0]))
    text = read_png_text(tmp_path / "p.png")["parameters"]
    assert "Size: 64x64" in text
    assert "Denoising strength: 0.5, Hires resize: 96x96, Hires steps: 4, Hires upscaler: Latent, ControlNet 0:" in text


def repaint(mask: np.ndarray, image: np.ndarray | None = None, **said: Any) -> InpaintArea:
    height, width = mask.shape
    canvas = np.zeros((height, width, 3), np.uint8) if image is None else image
    fields = InpaintFields({"mask_blur": 0, **said}, "the request")
    found = parse_inpaint_area(fields, canvas, np.dstack([mask] * 3), 64, 128, "stretch")
    assert found is not None
    return found


def patch(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((100, 200), np.uint8)
    mask[rows, columns] = 255
    return mask


@pytest.mark.parametrize(
    ("rows", "columns", "padding", "box"),
    [
        (slice(40, 60), slice(90, 110), 0, (80, 40, 120, 60)),  # 20x20 becomes 40x20, as 128x64
        (slice(40, 60), slice(90, 110), 5, (70, 35, 130, 65)),
        (slice(0, 10), slice(0, 60), 0, (0, 0, 60, 30)),  # moved into the image
        (slice(95, 100), slice(190, 200), 0, (190, 95, 200, 100)),
        (slice(0, 100), slice(0, 20), 0, (0, 0, 200, 100)),
    ],
)
def test_the_part_around_the_mask_has_the_shape_of_the_image(rows: Any, columns: Any, padding: int, box: Any) -> None:
    found = repaint(patch(rows, columns), inpaint_full_res_padding=padding)
    assert found.crop_box == box and found.only_masked
    assert found.image.shape == (64, 128, 3) and found.mask.shape == (64, 128)


def test_the_result_comes_back_to_its_place_and_nothing_else_changes() -> None:
    image = np.random.default_rng(0).integers(0, 255, (100, 200, 3), np.uint8)
    mask = patch(slice(40, 60), slice(80, 120))
    found = repaint(mask, image)
    result = found.paste_into_canvas(np.full((64, 128, 3), 7, np.uint8))
    assert (result[40:60, 80:120] == 7).all() and result.shape == image.shape
    assert np.array_equal(result[mask == 0], image[mask == 0])
    assert np.array_equal(fit_and_crop(image, 100, 200, "stretch", found.crop_box), image[40:60, 80:120])
    whole = repaint(mask, image, inpaint_full_res=False)
    assert whole.canvas.shape == (64, 128, 3) and not whole.only_masked


def test_what_is_masked_begins_in_the_colours_around_it() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 32:] = 200
    pixels[24:40, 24:40] = (255, 0, 255)
    mask = np.zeros((64, 64), np.uint8)
    mask[24:40, 24:40] = 255
    found = fill_from_surroundings(pixels, mask)
    assert np.array_equal(found[mask == 0], pixels[mask == 0])
    inside = found[24:40, 24:40].astype(int)
    assert np.ptp(inside, axis=2).max() <= 1 and inside[:, 0].max() < 60 and inside[:, -1].min() > 140
    assert (fill_from_surroundings(pixels, np.full((64, 64), 255, np.uint8)) == 127).all()


def test_a_blank_mask_repaints_nothing_or_everything() -> None:
    blank = np.zeros((64, 128, 3), np.uint8)
    assert parse_inpaint_area(InpaintFields({}, "the request"), blank, blank, 64, 128, "crop") is None
    kept = parse_inpaint_area(InpaintFields({"inpaint_full_res": 0}, "the request"), blank, blank, 64, 128, "crop")
    assert kept is not None and not kept.blend_mask.any()


@pytest.mark.parametrize("only_masked", [False, True])
def test_outside_of_its_mask_an_inpainted_image_is_the_initial_one(client: Client, only_masked: bool) -> None:
    more = {"path": "img2img", "init_images": [photo()], "mask_blur": 0, "resize_mode": 1, **SMALL}
    more |= {"inpaint_full_res": only_masked, "mask": white(128, 128, slice(64, 128))}
    images = {fill: client.images(UNIT, **more, inpainting_fill=fill)[0].astype(int) for fill in range(4)}
    side = 384 if only_masked else 64  # the initial image's size, or the one asked for
    for image in images.values():
        assert image.shape == (side, side, 3)
        assert np.array_equal(image[:, : side // 2], images[1][:, : side // 2])
    assert len({image.tobytes() for image in images.values()}) == 4
    other = client.images(**{**more, "mask": white(128, 128, slice(0, 64)), "inpainting_mask_invert": 1})[0]
    assert np.array_equal(other[:, : side // 2], images[0][:, : side // 2])


def test_a_control_image_is_seen_where_the_image_is_repainted(client: Client) -> None:
    more = {"path": "img2img", "init_images": [photo()], "mask": white(128, 128, slice(64, 128)), "width": 64}
    shown = {crops: client.images({**UNIT, "inpaint_crop_input_image": crops}, **more)[1] for crops in (True, False)}
    own = client.images({**UNIT, "image": ""}, **more)[1]
    assert np.array_equal(own, shown[True]) and not np.array_equal(shown[True], shown[False])
    text = json.loads(client.draw(UNIT, **more, inpaint_full_res_padding=8)[1]["info"])["infotexts"][0]
    assert "Mask blur: 4, Inpaint area: Only masked, Masked area padding: 8, Masked content: fill" in text


def test_layers_of_the_text_encoder_are_skipped(client: Client) -> None:
    one, same, two = (
        client.images(**SMALL, override_settings={"CLIP_stop_at_last_layers": n} if n else {})[0] for n in (0, 1, 2)
    )
    assert np.array_equal(one, same) and not np.array_equal(one, two)
    assert client.images(
        **SMALL, path="img2img", init_images=[photo()], mask=photo(), override_settings={"CLIP_stop_at_last_layers": 2}
    )
    status, answer = client.draw(override_settings={"CLIP_stop_at_last_layers": 9})
    assert (status, answer["detail"]) == (422, "CLIP_stop_at_last_layers is 9, expected up to 3")


def test_progress_shows_the_image_and_the_time_that_is_left(server: tuple[Client, Service]) -> None:
    client, _ = server
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(client.draw(UNIT, steps=150, batch_size=16, **SMALL)))
    thread.start()
    seen: list[Any] = []
    wait_until(lambda: seen.append(client("/sdapi/v1/progress")[1]) or seen[-1]["current_image"])
    assert serving.pixels(seen[-1]["current_image"]).shape == (64, 64, 3)
    assert seen[-1]["eta_relative"] > 0 and 0 < seen[-1]["progress"] < 1
    assert seen[-1]["state"]["sampling_steps"] == 150
    assert client("/sdapi/v1/interrupt", {}) == (200, {})
    thread.join()
    assert client("/sdapi/v1/progress?skip_current_image=true")[1]["current_image"] is None
