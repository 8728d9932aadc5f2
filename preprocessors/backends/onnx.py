"""Networks in ONNX files, by onnxruntime: an extra, `pip install controlnet-ext[onnx]`."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np

from ...errors import one_line
from ...files.hub import WeightsFile
from .torch import Device

if TYPE_CHECKING:
    import onnxruntime

    from ..library import Library

_PROVIDERS = {  # by kind of device, the first that this onnxruntime has
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "ROCMExecutionProvider", "MIGraphXExecutionProvider"),
    "mps": ("CoreMLExecutionProvider",),
}


class OnnxNetwork:
    """A network of one input (B, 3, H, W) in its file's own numbers, ready on a device. `height` and `width` are those
    of the input; `bytes` is its file's size, for the pool that keeps it."""

    def __init__(self, session: onnxruntime.InferenceSession, bytes: int):
        self._session, self.bytes = session, bytes
        (input,) = session.get_inputs()
        if len(input.shape) != 4 or not all(isinstance(side, int) and side > 0 for side in input.shape[2:]):
            raise ValueError(f"its input is {input.shape}, expected (B, 3, H, W) with H and W fixed")
        self._input_name, self._batch_size = input.name, input.shape[0]
        self._dtype = np.float16 if input.type == "tensor(float16)" else np.float32
        self.height, self.width = input.shape[2:]

    def __call__(self, x: np.ndarray) -> list[np.ndarray]:
        """The outputs as float32 for x (B, 3, H, W). A file that takes a fixed number at once is run for each."""
        parts = np.split(x, len(x)) if isinstance(self._batch_size, int) else [x]
        results = [self._session.run(None, {self._input_name: part.astype(self._dtype)}) for part in parts]
        return [np.concatenate(outputs).astype(np.float32) for outputs in zip(*results, strict=True)]


def load_onnx_network(library: Library, file: WeightsFile, device: str | Device) -> OnnxNetwork:
    """The network of a file, shared and kept as the library's others are. `device` is cpu, cuda, cuda:1, mps; its
    dtype is the file's business. Raises what `Library.read_verified` does, and ValueError where onnxruntime or its
    provider for the device is missing, or the file is refused."""
    name = Device.coerce(device).name
    return library.cache.get_or_create((file, name), lambda: _create_session(library, file, name))


def _create_session(library: Library, file: WeightsFile, device: str) -> OnnxNetwork:
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors
    except ImportError as error:
        raise ValueError(f"{file.name} needs onnxruntime: pip install controlnet-ext[onnx]") from error
    providers = [_select_provider(device, onnxruntime.get_available_providers())]
    path, model = library.read_verified(file)  # not by its path, beside which a file could name others to read
    if file.sha256 is None:
        _check_in_process(model, str(path))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        return OnnxNetwork(onnxruntime.InferenceSession(model, options, providers), len(model))
    except (
        errors.Fail,
        errors.InvalidArgument,
        errors.InvalidGraph,
        errors.InvalidProtobuf,
        errors.NotImplemented,
    ) as e:
        raise ValueError(f"{str(path)!r} is refused: {one_line(e, 300)}") from e
    except (errors.RuntimeException, ValueError) as error:
        raise ValueError(f"{str(path)!r} is refused: {one_line(error, 300)}") from error


# A file without a pinned sha256 is first run by a process of its own, which a damaged one may end
_TRIAL_PROGRAM = """
import sys
import numpy
import onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
session = onnxruntime.InferenceSession(sys.stdin.buffer.read(), options, ["CPUExecutionProvider"])
for each in session.get_inputs():
    shape = [side if isinstance(side, int) and side > 0 else 1 for side in each.shape]
    dtype = numpy.float16 if each.type == "tensor(float16)" else numpy.float32
    session.run(None, {each.name: numpy.zeros(shape, dtype)})
"""
TRIAL_SECONDS = 300  # after which the process is ended
_tried_hashes: set[str] = set()


def _check_in_process(model: bytes, path: str) -> None:
    """Raise ValueError where loading or running the network ends a process. What it raises is left to the caller."""
    digest = hashlib.sha256(model).hexdigest()
    if digest in _tried_hashes:
        return
    command = [sys.executable, "-c", _TRIAL_PROGRAM]
    try:
        code = subprocess.run(
            command, input=model, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=TRIAL_SECONDS
        ).returncode
    except subprocess.TimeoutExpired:
        raise ValueError(f"{path!r} is refused: onnxruntime did not finish with it in {TRIAL_SECONDS} s") from None
    if code not in (0, 1):  # 1: an exception, which will be raised here too
        raise ValueError(f"{path!r} is refused: it ends the process of onnxruntime, with code {code}")
    _tried_hashes.add(digest)


def _select_provider(device: str, available: list[str]) -> tuple[str, dict[str, str]]:
    kind, _, index = device.partition(":")
    providers = [provider for provider in _PROVIDERS.get(kind, ()) if provider in available]
    if not providers:
        raise ValueError(f"onnxruntime has no provider for the device {device!r:.40}, only {', '.join(available)}")
    return providers[0], {"device_id": index} if index else {}
