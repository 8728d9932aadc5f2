"""Straight lines by M-LSD, whose network is in annotators/mlsd.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import cv2
import numpy as np

from ...files.hub import DINKSTER_HASHES, HORDE_CATALOG, WeightsFile
from ..backends.tensors import pad_to_multiple, to_batch_tensor
from ..parameters import Range
from ..registry import Traits, preprocessor

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

MLSD_WEIGHTS = WeightsFile(
    "lllyasviel/Annotators",
    "mlsd_large_512_fp32.pth",
    webui_folder="mlsd",
    license="Apache-2.0",
    size=6341481,
    sha256="5696f168eb2c30d4374bbfd45436f7415bb4d88da29bea97eea0101520fba082",
    source=f"{HORDE_CATALOG}; {DINKSTER_HASHES}",
)
MAX_COORDINATE = 2**20  # pixels: OpenCV draws up to here


@preprocessor(
    "mlsd", makes="straight lines", weights=MLSD_WEIGHTS, batched=True, traits=Traits(is_default_for_kind=True)
)
class Mlsd:
    """M-LSD's straight lines, one pixel wide, white on black, of a probability over `thr_v` and a length over
    2 `thr_d` pixels. The map's values are the lines, (N, 4) as x and y of both ends in pixels, the surest first."""

    def __init__(self, device: str | Device, library: Library):
        from ...annotators import mlsd

        self.network = library.load_network(MLSD_WEIGHTS, mlsd.load, device)
        self.decode_segments = mlsd.decode_segments

    def __call__(
        self,
        images: np.ndarray,
        thr_v: Annotated[float, Range(0.01, 2)] = 0.1,
        thr_d: Annotated[float, Range(0.01, 20)] = 0.1,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        height, width = images.shape[1:3]
        with_ones = np.pad(pad_to_multiple(images, 16), ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1)
        output = self.network(to_batch_tensor(with_ones) / 127.5 - 1)
        results = []
        for segments in self.decode_segments(output, thr_v, thr_d):
            pixels, lines = render_lines(segments.numpy(), *with_ones.shape[1:3])
            results.append((pixels[:height, :width], lines))
        return results


def render_lines(lines: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The lines (N, 4), cut to whole pixels and one wide, as (height, width) uint8, and the lines."""
    lines = lines[np.isfinite(lines).all(axis=1)].clip(-MAX_COORDINATE, MAX_COORDINATE)
    canvas = np.zeros((height, width), np.uint8)
    for x0, y0, x1, y1 in lines.astype(int).tolist():
        cv2.line(canvas, (x0, y0), (x1, y1), 255, 1)
    return canvas, lines
