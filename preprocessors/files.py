"""Files in and out, once: whatever reads or writes one does it through these."""

from preprocessors.disk import opened, read_json, write_atomically
from preprocessors.image_in import read_image
from preprocessors.image_out import read_text, write_image
from preprocessors.sizes import MAX_PIXELS, check_pixels, working_size

__all__ = [
    "MAX_PIXELS",
    "check_pixels",
    "opened",
    "read_image",
    "read_json",
    "read_text",
    "working_size",
    "write_atomically",
    "write_image",
]
