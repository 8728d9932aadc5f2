"""The one reader of masks, and every door through which a mask comes in."""

import base64
import io

import numpy as np
import pytest
import torch
from fakes import Pushes
from PIL import Image

from controlnet_ext import ControlMap, Unit
from controlnet_ext.batch.stages import InputImage, ReadStage
from controlnet_ext.files.image_reader import read_mask
from controlnet_ext.generation.inpainting import composite
from controlnet_ext.generation.options import parse_unit
from controlnet_ext.guidance.hints import HintImages
from controlnet_ext.sdwebui.fields import RequestLimits
from controlnet_ext.sdwebui.requests import parse_generation_request
from controlnet_ext.sdwebui.units import parse_webui_unit

H, W = 24, 32
WHITE = np.zeros((H, W), np.uint8)
WHITE[4:12, 8:20] = 255
GREY = np.full((H, W, 3), 128, np.uint8)


def sketch():
    """Strokes in black and red on a transparent canvas, opaque where WHITE is: over white they would be dark."""
    strokes = np.zeros((H, W, 4), np.uint8)
    strokes[..., 3] = WHITE
    strokes[:6, :, 0] = 255
    return strokes


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, format, **options)
    return file.getvalue()


def palette():
    """Both colors of the palette are dark green; the first is transparent."""
    image = Image.fromarray((WHITE > 0).astype(np.uint8)).convert("P")
    image.putpalette([0, 40, 0, 0, 40, 0] + [0] * 762)
    return encoded(image, transparency=b"\0\xff")


def masks():
    """(name, mask) that all select WHITE."""
    opaque = np.full((H, W), 255, np.uint8)
    yield "gray", WHITE
    yield "RGB", np.dstack([WHITE] * 3)
    yield "RGBA, opaque", np.dstack([WHITE] * 3 + [opaque])
    yield "RGBA, opaque, a file", encoded(np.dstack([WHITE] * 3 + [opaque]))
    yield "strokes on a transparent canvas", sketch()
    yield "strokes on a transparent canvas, a PNG", encoded(sketch())
    yield "strokes on a transparent canvas, a WebP", encoded(sketch(), "WEBP", lossless=True)
    yield "strokes on a transparent canvas, a TIFF", encoded(sketch(), "TIFF")
    yield "strokes on a transparent canvas, a PIL image", Image.fromarray(sketch())
    yield "white on transparent white", np.dstack([opaque] * 3 + [WHITE])
    yield "floats", WHITE / 255
    yield "floats, RGBA", (sketch() / 255).astype(np.float32)
    yield "bools", WHITE > 0
    yield "bools, RGBA", sketch() > 0
    yield "gray and alpha, an array", np.dstack([opaque, WHITE])
    yield "gray and alpha, opaque", np.dstack([WHITE, opaque])
    la = Image.merge("LA", [Image.fromarray(255 - WHITE), Image.fromarray(WHITE)])
    yield "LA", la
    yield "LA, a PNG", encoded(la)
    yield "premultiplied LA", la.convert("La")
    yield "premultiplied RGBA", Image.fromarray(sketch()).convert("RGBa")
    yield "palette with a transparent entry", palette()
    yield "gray with a transparent value", encoded(np.where(WHITE > 0, 7, 200).astype(np.uint8), transparency=200)
    deep = Image.fromarray(WHITE.astype(np.uint16) * 257)
    yield "16 bits, PNG", encoded(deep)
    yield "16 bits, TIFF", encoded(deep, "TIFF")
    hidden = np.where(WHITE > 0, 1000, 60000).astype(np.uint16)
    yield "16 bits with a transparent value", encoded(Image.fromarray(hidden), transparency=60000)
    yield "1 bit", encoded(Image.fromarray(WHITE).convert("1"))
    yield "JPEG", encoded(WHITE, "JPEG", quality=100)
    turned = Image.Exif()
    turned[274] = 3
    yield "transparent, turned by EXIF", encoded(sketch()[::-1, ::-1], exif=turned)
    yield "a map", ControlMap(np.dstack([WHITE] * 3), "other")


MASKS = list(masks())
FILES = [(name, mask) for name, mask in MASKS if isinstance(mask, bytes)]
every_mask = pytest.mark.parametrize("mask", [mask for _, mask in MASKS], ids=[name for name, _ in MASKS])
every_file = pytest.mark.parametrize("mask", [mask for _, mask in FILES], ids=[name for name, _ in FILES])


def selects_white(mask):
    return mask.shape == (H, W, 3) and mask.dtype == np.uint8 and ((mask > 127) == (WHITE > 127)[..., None]).all()


@every_mask
def test_a_mask_of_a_unit_selects_what_is_opaque_or_else_what_is_white(mask):
    unit = Unit(Pushes(), GREY, inpaint=mask)
    assert selects_white(HintImages(unit).fit_first_map(H, W)[1])


@every_mask
def test_a_region_of_a_unit_is_read_like_a_mask(mask):
    region = Unit(Pushes(), GREY, region=mask).region
    assert region.shape == (H, W) and region.dtype == np.float32
    assert ((region > 0.5) == (WHITE > 127)).all()


@every_mask
def test_a_photo_comes_back_around_whatever_its_mask_is(mask):
    if isinstance(mask, ControlMap):
        mask = mask.pixels
    done = composite(np.zeros((H, W, 3), np.uint8), GREY, mask, blur=0)
    assert (done == np.where(WHITE[..., None] > 127, 0, 128)).all()


@every_file
def test_masks_of_the_command_are_read_like_those_of_units(mask, tmp_path):
    path = tmp_path / "mask.png"
    path.write_bytes(mask)
    spec = parse_unit(f"canny,model=none,region={path}", "photo.png")
    assert ((spec.region > 0.5) == (WHITE > 127)).all()
    image = tmp_path / "photo.png"
    Image.fromarray(GREY).save(image)
    spec = parse_unit("inpaint_only,model=none", str(image), mask=str(path))
    assert selects_white(HintImages(spec).fit_first_map(H, W)[1])


@every_file
def test_masks_of_requests_are_read_like_those_of_units(mask):
    text, photo = base64.b64encode(mask).decode(), base64.b64encode(encoded(GREY)).decode()
    sent = {"model": "m", "module": "inpaint", "effective_region_mask": text}
    for image in (
        {"image": photo, "mask": text},
        {"image": photo, "mask_image": text},
        {"image": {"image": photo, "mask": text}},
        {"image": [photo, text]},
        {"image": [{"image": photo, "mask": text}]},
    ):
        unit = parse_webui_unit({**sent, **image}, "unit 1")
        assert selects_white(unit.images[0][1]) and selects_white(unit.region_mask)
    sent = {"prompt": "", "init_images": [photo], "mask": text, "mask_blur": 0}
    request = parse_generation_request(sent, (64, 64), RequestLimits(), True)
    assert selects_white(request.init_source[1])


@every_file
def test_masks_of_preprocess_jobs_are_read_like_those_of_units(mask):
    (item,) = ReadStage((), True)([InputImage(0, "a", "a.png", GREY, mask)])
    assert selects_white(item.mask)


def test_a_mask_may_be_a_tensor():
    planes = torch.from_numpy(np.ascontiguousarray(sketch().transpose(2, 0, 1)))
    assert selects_white(read_mask(planes)) and selects_white(read_mask(planes[3:].float() / 255))


def test_a_soft_mask_keeps_its_values():
    soft = np.linspace(0, 255, H * W).reshape(H, W).astype(np.uint8)
    assert (read_mask(np.dstack([GREY, soft])) == soft[..., None]).all()
    assert (read_mask(soft) == soft[..., None]).all()
    region = Unit(Pushes(), GREY, region=Image.fromarray(np.dstack([GREY, soft]))).region
    assert np.abs(region * 255 - soft).max() < 1e-4


def test_a_mask_without_an_opaque_pixel_selects_nothing():
    assert not read_mask(np.zeros((H, W, 4), np.uint8)).any()


def test_a_colored_opaque_mask_counts_by_its_luminance():
    colors = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]]], np.uint8)
    assert read_mask(colors)[0, :, 0].tolist() == [76, 150, 29, 226]  # ITU-R 601, as PIL's convert("L")
    pil = Image.fromarray(colors)
    assert (read_mask(pil)[..., 0] == np.asarray(pil.convert("L"))).all()
