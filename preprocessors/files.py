"""Files in and out, once: whatever reads or writes one does it through these."""

from preprocessors.disk import opened, read_json, write_atomically
from preprocessors.image_in import read_image
from preprocessors.image_out import encoded_image, read_text, write_image
from preprocessors.safetensors_file import write_weights
from preprocessors.sizes import MAX_PIXELS, check_pixels, working_size
from preprocessors.weights import Weights, read_weights

__all__ = [
    "MAX_PIXELS",
    "Weights",
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
