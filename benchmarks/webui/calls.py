"""A running stable-diffusion-webui over its HTTP API."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from controlnet_ext.embedded import SAMPLE_PHOTO

SIDE = 128  # of the images, in pixels
REQUEST: dict[str, Any] = {
    "prompt": "a blue blob and a yellow curve on a red ground",
    "seed": 3,
    "steps": 4,
    "cfg_scale": 4,
    "width": SIDE,
    "height": SIDE,
    "sampler_name": "DDIM",
}
IMAGE = base64.b64encode(SAMPLE_PHOTO.read_bytes()).decode()


@dataclass(frozen=True)
class Check:
    """A row of the table: what was tried, what was seen, and whether that is as it should be."""

    what: str
    figure: str
    holds: bool


@dataclass(frozen=True, eq=False)
class Render:
    """Images and the maps after them, (H, W, 3) uint8 RGB, and the first image's PNG in base64 with its text."""

    images: list[np.ndarray]
    maps: list[np.ndarray]
    png: str
    text: str

    @property
    def first(self) -> np.ndarray:
        return self.images[0]


class Webui:
    """The one at this address, with its canny model in a unit that says nothing else."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        model = self.get("/controlnet/control_types")["control_types"]["Canny"]["default_model"]
        self.unit = {"image": IMAGE, "module": "canny", "model": model, "processor_res": SIDE}

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=600) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and answer."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def post_units(self, *units: dict[str, Any], **changes: Any) -> tuple[int, Any]:
        """Of txt2img, or with `init_images` of img2img; each unit is what it has other than `self.unit`."""
        body = {**REQUEST, **changes}
        if units:
            args = [{**self.unit, **unit} for unit in units]
            body["alwayson_scripts"] = {**body.get("alwayson_scripts", {}), "ControlNet": {"args": args}}
        return self.post(f"/sdapi/v1/{'img2img' if 'init_images' in changes else 'txt2img'}", body)

    def draw(self, *units: dict[str, Any], **changes: Any) -> Render:
        """RuntimeError with the webui's answer where it gives none."""
        status, answer = self.post_units(*units, **changes)
        if status != 200:
            raise RuntimeError(f"{status}: {answer!s:.300}")
        info = json.loads(answer["info"])
        begin = info["index_of_first_image"]
        end = begin + len(info["all_seeds"])
        images = [pixels(each) for each in answer["images"]]
        return Render(images[begin:end], images[end:], answer["images"][begin], info["infotexts"][0])

    @contextmanager
    def options(self, **changes: Any) -> Iterator[None]:
        """The webui's settings changed for a while."""
        now = self.get("/sdapi/v1/options")
        self.post("/sdapi/v1/options", changes)
        try:
            yield
        finally:
            self.post("/sdapi/v1/options", {key: now[key] for key in changes})


def pixels(png: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image in base64."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))


def png(array: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def apart(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference of two images, of 255."""
    return int(np.abs(a.astype(int) - b).max())
