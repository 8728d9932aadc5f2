"""A photo becomes three control maps: python examples/make_map.py

Writes canny.png, lines.png and tile.png to the working folder.
"""

from pathlib import Path

from PIL import Image

from controlnet_ext import preprocess

PHOTO = Path(__file__).parent / "coffee.jpg"

edges = preprocess("canny", PHOTO, low=50, high=150, resolution=256)
print(edges.kind, edges.pixels.shape)  # edges (256, 384, 3)
Image.fromarray(edges.pixels).save("canny.png")
Image.fromarray(preprocess("lineart_standard", PHOTO, resolution=256).pixels).save("lines.png")
Image.fromarray(preprocess("tile_resample", PHOTO, down_sampling_rate=8).pixels).save("tile.png")
