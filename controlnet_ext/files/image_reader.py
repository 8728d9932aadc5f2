"""The one reader of images: pixels as a viewer shows them, or an error of one line.

Pillow decodes most formats; it is imported only when needed, and may neither warn nor accept incomplete files.
"""

from __future__ import annotations

import importlib
import io
import os
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import cv2
import numpy as np

from ..errors import one_line
from .disk import open_regular_file
from .image_formats import (
    IMAGE_FORMATS,
    MAX_PIXELS,
    check_budget,
    check_pixels,
    get_pixel_limit,
    is_complete,
    iter_jpeg_segments,
    keep_needed_png_chunks,
    remove_ppm_comments,
    sniff_format,
)

if TYPE_CHECKING:
    from typing import TypeGuard

    from PIL.Image import Image
    from torch import Tensor

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | np.ndarray | Image | Tensor"

_PLUGIN_NAMES = {"WEBP": "WebP"}  # the others are capitalized
_DECODE_ERRORS = (  # what Pillow raises on hostile files
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, AttributeError, RuntimeError,
    MemoryError, struct.error, zlib.error,
)  # fmt: skip
_EXIF_TRANSFORMS = {  # by EXIF's orientation, tag 274
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}
BAND_PIXELS = 2**22  # that are converted at once
_pillow_lock = threading.Lock()


def is_pil_image(value: object) -> TypeGuard[Image]:
    """Return True if the value is a PIL image, without importing Pillow."""
    return "PIL.Image" in sys.modules and isinstance(value, sys.modules["PIL.Image"].Image)


def is_tensor(value: object) -> bool:
    """Return True if the value is a torch tensor, without importing torch."""
    return "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor)


def open_image_header(content: bytes, format: str, name: str) -> Image:
    """Open an image of the format (Pillow's name) without decoding it.

    Raises ValueError, beginning with `name`, for a broken file, one over a budget (`check_budget`), or a format that
    this Pillow does not read.
    """
    from PIL import Image

    check_budget(content, format, name)
    if format == "PNG":
        content = keep_needed_png_chunks(content)
    elif format == "PPM":
        content = remove_ppm_comments(content, name)
    with _strict_decoding(name, any_size=format == "JPEG"):  # which may be decoded at a fraction
        try:
            importlib.import_module(f"PIL.{_PLUGIN_NAMES.get(format, format.capitalize())}ImagePlugin")
            return Image.open(io.BytesIO(content), formats=[format])
        except Image.UnidentifiedImageError:
            raise ValueError(f"a broken {format}, or of a kind that this Pillow does not read") from None
        except ModuleNotFoundError:
            raise ValueError(f"this Pillow does not read {format}") from None


def read_upright_size(image: Image) -> tuple[int, int]:
    """Return (height, width) that a header's image has when it is upright by EXIF."""
    try:
        is_turned = image.getexif().get(274, 1) in (5, 6, 7, 8)
    except _DECODE_ERRORS:
        is_turned = False
    return (image.width, image.height) if is_turned else (image.height, image.width)


def decode_pixels(image: Image, name: str) -> np.ndarray:
    """Decode to (H, W, 3) uint8 RGB, upright, alpha over white, in sRGB.

    Raises ValueError, beginning with `name`: broken data, NaN.
    """
    with _strict_decoding(name):
        image.load()
        turn = _read_orientation(image)
        deep = image.mode[0] in "IF"  # I, I;16, I;16B, F
        array = np.array(image) if deep else _render_bands(image)
        transparency = image.info.get("transparency")
    if deep:
        grey = _to_uint8(array, name)
        if isinstance(transparency, int):
            grey[array == transparency] = 255
        array = np.repeat(grey[..., None], 3, axis=2)
    return np.ascontiguousarray(_EXIF_TRANSFORMS[turn](array) if turn in _EXIF_TRANSFORMS else array)


def _decode_mask(image: Image, name: str) -> np.ndarray:
    """Decode to (H, W, 3) uint8, upright: alpha where a pixel is not opaque, else the pixels of `decode_pixels`."""
    with _strict_decoding(name):
        image.load()
        alpha, turn = _read_alpha(image), _read_orientation(image)
    if alpha is None or alpha.min() == 255:
        return decode_pixels(image, name)
    array = np.repeat(alpha[..., None], 3, axis=2)
    return np.ascontiguousarray(_EXIF_TRANSFORMS[turn](array) if turn in _EXIF_TRANSFORMS else array)


@contextmanager
def _strict_decoding(name: str, any_size: bool = False) -> Iterator[None]:
    """Run Pillow without warnings and without leniency, and raise its errors as ValueError of one line.

    Both switches are global, hence the lock, and are restored (webui sets LOAD_TRUNCATED_IMAGES for itself).
    """
    from PIL import Image, ImageFile

    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        most = Image.MAX_IMAGE_PIXELS
        if any_size or get_pixel_limit() > MAX_PIXELS:  # Pillow's own limit is 179 megapixels
            Image.MAX_IMAGE_PIXELS = None
        lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            yield
        except Image.DecompressionBombError as error:  # over its own limit, which is over ours
            raise ValueError(f"{name} is over the limit of 64 megapixels: {error}") from error
        except _DECODE_ERRORS as error:
            reason = one_line(error, 200)
            raise ValueError(f"{name} cannot be read: {reason}") from error
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = lenient
            Image.MAX_IMAGE_PIXELS = most


def _read_orientation(image: Image) -> int:
    if image.format == "TIFF":
        return 1  # load() has turned it; Pillow 9.5 leaves the tag
    try:
        return image.getexif().get(274, 1)
    except _DECODE_ERRORS:
        return 1


def _has_alpha(image: Image) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _read_alpha(image: Image) -> np.ndarray | None:
    """Return the opacity (H, W) uint8 of a decoded image, None without any."""
    if not _has_alpha(image):
        return None
    if image.mode[0] in "IF":
        transparency = image.info["transparency"]
        if not isinstance(transparency, int):
            return None
        return np.where(np.asarray(image) == transparency, np.uint8(0), np.uint8(255))
    return np.asarray(image.convert("LA" if image.mode == "La" else "RGBA").getchannel("A"))


def _render_bands(image: Image) -> np.ndarray:
    """Return the image in RGB over white, (H, W, 3) uint8, rendered in bands of rows that need little memory."""
    rows = max(BAND_PIXELS // image.width, 1)
    if rows >= image.height:
        return np.array(_composite_over_white(image))
    array = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        array[top : top + band.height] = np.asarray(_composite_over_white(band))
    return array


def _composite_over_white(image: Image) -> Image:
    """Return the image in RGB, its alpha composed over white."""
    from PIL import Image

    colors = _convert_to_srgb(image)
    if not _has_alpha(image):
        return colors
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(colors, mask=image.convert("RGBA").getchannel("A"))
    return canvas


def _convert_to_srgb(image: Image) -> Image:
    """Return the image in RGB, through its profile unless that is sRGB, broken, or for other channels."""
    if "icc_profile" not in image.info:
        return image.convert("RGB")
    from PIL import ImageCms

    grey = image.mode in ("1", "L", "LA")
    mode = "L" if grey else "CMYK" if image.mode == "CMYK" else "RGB"
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        fits = profile.profile.xcolor_space.strip() == ("GRAY" if grey else mode)
        if not fits or "sRGB" in (profile.profile.profile_description or ""):
            return image.convert("RGB")
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image.convert(mode), profile, srgb, outputMode="RGB") or image.convert("RGB")
    except (ImageCms.PyCMSError, *_DECODE_ERRORS):
        return image.convert("RGB")


def _to_uint8(gray: np.ndarray, name: str) -> np.ndarray:
    """Convert gray (H, W) of integers 0..65535, or floats 0..1 or 0..255, to uint8."""
    if not np.isfinite(gray).all():
        raise ValueError(f"{name} holds NaN or infinity")
    low, high = gray.min(), gray.max()
    if gray.dtype.kind == "f":
        if low < 0 or high > 255:
            raise ValueError(f"{name} holds floats from {low:g} to {high:g}, expected 0..1 or 0..255")
        return np.rint(gray * (255 if high <= 1 else 1)).astype(np.uint8)
    if low < 0 or high > 65535:
        raise ValueError(f"{name} holds integers from {low} to {high}, expected 0..65535")
    return (gray >> 8).astype(np.uint8)


IMAGE_FILE_LIMIT = 2**30  # bytes: 64 megapixels of four 32-bit channels


def read_image(source: ImageLike, min_side: int | None = None) -> np.ndarray:
    """Read an image as a new array, (H, W, 3) uint8 RGB, as a viewer shows it.

    A path or the bytes of a JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or (Pillow 11.3) AVIF file: upright by EXIF, alpha
    over white, the first frame of several, the upper 8 of 16 bits, colors through an embedded ICC profile into sRGB (a
    broken profile is ignored, as viewers do). Float gray is 0..1, or 0..255 if it exceeds 1. A PIL image likewise, at
    its current frame. An array is (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of uint8, bool or floats 0..1; a
    tensor likewise with its channels first, (3, H, W), as diffusers and torchvision have it.

    With `min_side` a JPEG of over 64 megapixels is decoded at 1/2, 1/4 or 1/8 of its size, the smallest whose short
    side has so many pixels; others are read whole.

    Raises FileNotFoundError, TypeError, or ValueError in one line: over 64 megapixels (or `set_pixel_limit`), a million
    pixels a side, or another budget (`image_formats.check_budget`), all checked before decoding; cut short, not an
    image, NaN. Damaged compressed data in a complete JPEG cannot be detected, and is decoded.
    """
    return _read_source(source, decode_pixels, _convert_image_array, min_side)


def read_small_image(content: bytes, name: str, min_side: int) -> np.ndarray:
    """Read the bytes of an image as `read_image` does, (H, W, 3) uint8 RGB, but most JPEGs at 1/2, 1/4 or 1/8 of their
    size, the smallest whose short side has `min_side` pixels; that takes a fraction of the time.

    Raises what `read_image` raises, beginning with `name`.
    """
    if sniff_format(content[:16]) == "JPEG":
        check_budget(content, "JPEG", name)
        size = _read_plain_jpeg_size(content)
        factor = next((f for f in JPEG_FACTORS if size is not None and min(size) // f >= min_side), 1)
        if size is not None and factor > 1:
            check_pixels(*size, name)
            return _decode_plain_jpeg(content, name, factor)
    return _read_image_file(io.BytesIO(content), name, decode_pixels)


def read_mask(source: ImageLike) -> np.ndarray:
    """Read a mask as a new array, (H, W, 3) uint8 with three equal channels, white where it selects.

    Where any pixel is transparent, the alpha channel is the mask, and its colors do not count; otherwise the luminance
    (0.299 R + 0.587 G + 0.114 B) is. That is the rule of stable-diffusion-webui 1.10.1 (modules/processing.py,
    `create_binary_mask`), here for every format with transparency. Takes what `read_image` takes, and arrays (H, W, 2)
    of gray and alpha. Raises what `read_image` raises.
    """
    pixels = _read_source(source, _decode_mask, _convert_mask_array)
    return np.repeat(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


def _read_source(
    source: Any,
    decode: Callable[[Image, str], np.ndarray],
    convert_array: Callable[[np.ndarray], np.ndarray],
    min_side: int | None = None,
) -> np.ndarray:
    if isinstance(source, np.ndarray):
        return convert_array(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read_image_file(io.BytesIO(source), "the image", decode, min_side)
    if isinstance(source, (str, os.PathLike)):
        with open_regular_file(source) as file:
            return _read_image_file(file, repr(os.fspath(source)), decode, min_side)
    if is_pil_image(source):
        check_pixels(source.height, source.width, "the image")
        return decode(source, "the image")
    if is_tensor(source):
        if source.ndim != 3 or source.shape[0] not in (1, 3, 4):
            raise ValueError(
                f"an image tensor of shape {tuple(source.shape)}, expected (3, H, W) of uint8 or floats 0..1"
            )
        planes = source.detach().cpu()
        planes = planes.float() if planes.is_floating_point() else planes
        return convert_array(planes.permute(1, 2, 0).numpy())
    raise TypeError(f"an image is a path, bytes, a PIL image, an array or a tensor, not {type(source).__name__}")


def _read_image_file(
    file: BinaryIO, name: str, decode: Callable[[Image, str], np.ndarray], min_side: int | None = None
) -> np.ndarray:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(16)
    format = sniff_format(head)
    if not head:
        raise ValueError(f"{name} is empty, expected an image")
    if format is None:
        raise ValueError(f"{name} is none of {', '.join(IMAGE_FORMATS)}: it begins with {head!r}")
    if size > IMAGE_FILE_LIMIT:
        raise ValueError(f"{name} is a file of {size / 2**30:.1f} GiB, over the limit of 1 GiB for images")
    file.seek(0)
    content = file.read()
    if format == "JPEG":
        check_budget(content, format, name)
        if plain := _read_plain_jpeg_size(content):
            factor = _choose_jpeg_factor(content, *plain, min_side)
            check_pixels(plain[0] // factor, plain[1] // factor, name)
            return _decode_plain_jpeg(content, name, factor)
    image = open_image_header(content, format, name)
    factor = _choose_jpeg_factor(content, image.height, image.width, min_side) if format == "JPEG" else 1
    check_pixels(image.height // factor, image.width // factor, name)
    if factor > 1:
        image.draft(image.mode, (image.width // factor, image.height // factor))
    if not is_complete(content, format):
        raise ValueError(f"{name} is a {format} that is cut short or damaged")
    if format == "PNG" and content[24:26] == b"\x10\2" and "transparency" in image.info:
        # RGB of 16 bits: Pillow keeps the upper 8, and would compare them with all 16 of the transparent colour
        image.info["transparency"] = tuple(channel >> 8 for channel in image.info["transparency"])
    return decode(image, name)


def _read_plain_jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Return (height, width) of a JPEG that OpenCV decodes exactly as Pillow does, else None.

    That is 8-bit gray or color without EXIF, XMP and profile; it saves the 50 ms of importing Pillow.
    """
    size = None
    for marker, payload in iter_jpeg_segments(content):
        if marker in (0xC0, 0xC1, 0xC2) and len(payload) >= 6 and payload[0] == 8 and payload[5] in (1, 3):
            size = int.from_bytes(payload[1:3], "big"), int.from_bytes(payload[3:5], "big")
        elif marker == 0xDA:
            return size
        elif marker in (0xE1, 0xE2) or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xCC)):
            return None
    return None


JPEG_FACTORS = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
MAX_JPEG_PIXELS = 2**30  # of a JPEG that is decoded at a fraction of its size
MAX_JPEG_PIXELS_PER_BYTE = 100  # an even ground has 57


def _choose_jpeg_factor(content: bytes, height: int, width: int, min_side: int | None) -> int:
    """Return the fraction, 1/2, 1/4 or 1/8, at which a JPEG over the limit is decoded so that its short side has at
    least `min_side` pixels; 1 where that is not asked for, or would need memory for the whole, as of a progressive
    one."""
    count = height * width
    if min_side is None or count <= get_pixel_limit() or count > MAX_JPEG_PIXELS:
        return 1
    markers = {marker for marker, _ in iter_jpeg_segments(content)}
    if not markers & {0xC0, 0xC1} or count > MAX_JPEG_PIXELS_PER_BYTE * len(content):
        return 1
    fits = (factor for factor in JPEG_FACTORS if min(height, width) // factor >= min_side)
    return next(fits, 1)


def _decode_plain_jpeg(content: bytes, name: str, factor: int = 1) -> np.ndarray:
    way = JPEG_FACTORS.get(factor, cv2.IMREAD_COLOR)
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), way) if is_complete(content, "JPEG") else None
    except cv2.error:
        pixels = None
    if pixels is None:
        raise ValueError(f"{name} is a JPEG that is cut short or damaged")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def _convert_image_array(array: np.ndarray) -> np.ndarray:
    x = _convert_to_bytes(array)
    if x.shape[2] == 4:
        alpha = x[..., 3:].astype(np.uint16)
        x = ((x[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.repeat(x, 3, axis=2) if x.shape[2] == 1 else np.array(x, order="C")


def _convert_mask_array(array: np.ndarray) -> np.ndarray:
    x = _convert_to_bytes(array, (1, 2, 3, 4))
    if x.shape[2] in (2, 4):
        alpha = x[..., -1:]
        x = x[..., :-1] if alpha.min() == 255 else alpha
    return np.repeat(x, 3, axis=2) if x.shape[2] == 1 else np.ascontiguousarray(x)


def _convert_to_bytes(array: np.ndarray, channels: tuple[int, ...] = (1, 3, 4)) -> np.ndarray:
    """Return an image array as (H, W, channels) uint8."""
    x = np.asarray(array)  # a matrix or masked array behaves otherwise
    if x.ndim == 2:
        x = x[..., None]
    if x.ndim != 3 or x.shape[2] not in channels:
        shapes = ["(H, W)", *(f"(H, W, {n})" for n in channels)]
        raise ValueError(f"an image array of shape {array.shape}, expected {', '.join(shapes[:-1])} or {shapes[-1]}")
    check_pixels(x.shape[0], x.shape[1], "the image array")
    if x.dtype.kind == "f":
        low, high = x.min(), x.max()
        if not (low >= 0 and high <= 1):  # NaN neither
            raise ValueError(f"an image array of floats from {low:g} to {high:g}, expected 0..1")
        x = np.rint(x * np.float32(255)).astype(np.uint8)
    elif x.dtype == bool:
        x = x.astype(np.uint8) * 255
    elif x.dtype != np.uint8:
        raise ValueError(f"an image array of {x.dtype}, expected uint8, bool or floats 0..1")
    return x
