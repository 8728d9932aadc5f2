"""Pixels from Pillow, which knows the formats, may not warn nor be lenient, and is imported only when called."""

from __future__ import annotations

import importlib
import io
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from typing import TypeGuard

    from PIL.Image import Image

_PLUGINS = {"WEBP": "WebP"}  # the others are capitalized
_BROKEN = (  # what Pillow raises on hostile files
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, AttributeError, RuntimeError,
    MemoryError, struct.error, zlib.error,
)  # fmt: skip
_UPRIGHT = {  # by EXIF's orientation, tag 274
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}
_lock = threading.Lock()


def made(value: Any) -> TypeGuard[Image]:
    """Whether the value is a PIL image; there is none as long as nobody has imported Pillow."""
    return "PIL.Image" in sys.modules and isinstance(value, sys.modules["PIL.Image"].Image)


def header(file: BinaryIO, format: str, name: str) -> Image:
    """The image in a file of that format (Pillow's name), nothing decoded yet. ValueError, beginning with `name`."""
    from PIL import Image

    with _strict(name):
        try:
            importlib.import_module(f"PIL.{_PLUGINS.get(format, format.capitalize())}ImagePlugin")
            return Image.open(file, formats=[format])
        except Image.UnidentifiedImageError:
            raise ValueError(f"a broken {format}, or of a kind that this Pillow does not read") from None
        except ModuleNotFoundError:
            raise ValueError(f"this Pillow does not read {format}") from None


def pixels(image: Image, name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright, alpha over white, in sRGB. ValueError, beginning with `name`: broken, NaN."""
    with _strict(name):
        image.load()
        turn = _orientation(image)
        deep = image.mode[0] in "IF"  # I, I;16, I;16B, F
        array = np.array(image if deep else _over_white(image))
        hidden = image.info.get("transparency")
    if deep:
        grey = _eight_bits(array, name)
        if isinstance(hidden, int):
            grey[array == hidden] = 255
        array = np.repeat(grey[..., None], 3, axis=2)
    return np.ascontiguousarray(_UPRIGHT[turn](array) if turn in _UPRIGHT else array)


@contextmanager
def _strict(name: str) -> Iterator[None]:
    """Where Pillow works: it may not warn, nor accept what is cut short, and whatever it raises becomes one line.

    Both switches are the process's, hence the lock, and are put back (webui sets LOAD_TRUNCATED_IMAGES for itself).
    """
    from PIL import Image, ImageFile

    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            yield
        except Image.DecompressionBombError as error:  # over its own limit, which is over ours
            raise ValueError(f"{name} is over the limit of 64 megapixels: {error}") from error
        except _BROKEN as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"{name} cannot be read: {reason}") from error
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _orientation(image: Image) -> int:
    if image.format == "TIFF":
        return 1  # load() has turned it; Pillow 9.5 leaves the tag
    try:
        return image.getexif().get(274, 1)
    except _BROKEN:
        return 1


def _over_white(image: Image) -> Image:
    """The image in RGB, its alpha composed over white."""
    from PIL import Image

    colours = _in_srgb(image)
    if image.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in image.info:
        return colours
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(colours, mask=image.convert("RGBA").getchannel("A"))
    return canvas


def _in_srgb(image: Image) -> Image:
    """The colours in RGB, through the image's profile unless that is sRGB, broken, or for channels it does not have."""
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
    except (ImageCms.PyCMSError, *_BROKEN):
        return image.convert("RGB")


def _eight_bits(grey: np.ndarray, name: str) -> np.ndarray:
    """Grey (H, W) of integers 0..65535, or floats 0..1 or 0..255, as uint8."""
    if not np.isfinite(grey).all():
        raise ValueError(f"{name} holds NaN or infinity")
    low, high = grey.min(), grey.max()
    if grey.dtype.kind == "f":
        if low < 0 or high > 255:
            raise ValueError(f"{name} holds floats from {low:g} to {high:g}, expected 0..1 or 0..255")
        return np.rint(grey * (255 if high <= 1 else 1)).astype(np.uint8)
    if low < 0 or high > 65535:
        raise ValueError(f"{name} holds integers from {low} to {high}, expected 0..65535")
    return (grey >> 8).astype(np.uint8)
