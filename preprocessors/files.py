"""Files in and out, once: whatever reads or writes one does it through these."""

from preprocessors.disk import opened, read_json, write_atomically
from preprocessors.image_in import read_image
from preprocessors.image_out import encoded_image, read_text, write_image
from preprocessors.library import Library
from preprocessors.network import Device
from preprocessors.safetensors_file import write_weights
from preprocessors.sizes import MAX_PIXELS, check_pixels, working_size
from preprocessors.weights import Weights, read_weights
from preprocessors.weights_file import WeightsFile

__all__ = [
    "MAX_PIXELS",
    "Device",
    "Library",
    "Weights",
    "WeightsFile",
    "check_pixels",
    "encoded_image",
    "opened",
    "read_image",
    "read_json",
    "read_text",
    "read_weights",
    "working_size",
    "write_atomically",
    "write_image",
    "write_weights",
]
