"""Networks in .tflite files, by OpenCV: nothing else needs to be installed for them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ...errors import one_line
from ...files.hub import WeightsFile

if TYPE_CHECKING:
    from ..library import Library


class TfliteNetwork:
    """A network of one image, on the CPU, safe to share between threads. `side` is that of its input in pixels,
    `sizes` are the numbers of values in those of its outputs that are wanted. Raises ValueError when the file has
    them not."""

    def __init__(self, content: bytes, input_size: int, output_sizes: tuple[int, ...]):
        self.bytes, self._lock = len(content), threading.Lock()
        try:
            self._net = cv2.dnn.readNetFromTFLite(np.frombuffer(content, np.uint8))
            self._net.setInput(np.zeros((1, 3, input_size, input_size), np.float32))
            names = {self._measure_output(name): name for name in self._net.getLayerNames()[-8:]}
        except cv2.error as error:
            raise ValueError(f"no network that OpenCV reads: {one_line(error, 200)}") from error
        if missing := [size for size in output_sizes if size not in names]:
            raise ValueError(f"a network without an output of {missing[0]} values")
        self._output_names = [names[size] for size in output_sizes]

    def _measure_output(self, name: str) -> int:
        """Count the values that a layer gives. OpenCV 5 lists only one of several outputs as such, but gives the
        others."""
        try:
            return self._net.forward(name).size
        except cv2.error:  # a layer that became part of another
            return 0

    def __call__(self, x: np.ndarray) -> list[np.ndarray]:
        """The outputs, flat, for x (side, side, 3) float32."""
        with self._lock:
            self._net.setInput(np.ascontiguousarray(x.transpose(2, 0, 1)[None]))
            return [self._net.forward(name).ravel() for name in self._output_names]


def load_tflite_network(
    library: Library, file: WeightsFile, input_size: int, output_sizes: tuple[int, ...]
) -> TfliteNetwork:
    """Load the network of a file, shared and kept as the library's others are.

    Raises what `Library.read_verified` raises, and ValueError where the file is refused or has no pinned sha256."""

    def load() -> TfliteNetwork:
        if file.sha256 is None:
            raise ValueError(f"{file.name} has no known sha256: OpenCV ends the process at a damaged one")
        path, content = library.read_verified(file)
        try:
            return TfliteNetwork(content, input_size, output_sizes)
        except ValueError as error:
            raise ValueError(f"{str(path)!r} is refused: {error}") from error

    return library.cache.get_or_create((file, input_size), load)
