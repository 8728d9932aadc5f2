"""The server on a free port of the loopback, over the embedded model, and a client without any library."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import cv2
import numpy as np
from controlnet_ext.preprocessors.library import Library
from limits import HANG, wait_until

from controlnet_ext.embedded import SAMPLE_PHOTO
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.sdwebui.catalog import ModelCatalog
from controlnet_ext.sdwebui.fields import RequestLimits
from controlnet_ext.sdwebui.modules import create_preprocessor_loader
from controlnet_ext.server.engine import GenerationEngine
from controlnet_ext.server.service import Service
from controlnet_ext.server.worker import RequestWorker

CANNY = "embedded/canny"


def photo() -> str:
    return base64.b64encode(SAMPLE_PHOTO.read_bytes()).decode()


def white(height: int, width: int, painted: slice = slice(0)) -> str:
    """A black PNG with white columns."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[:, painted] = 255
    return base64.b64encode(cv2.imencode(".png", pixels)[1].tobytes()).decode()


def noise(side: int) -> str:
    """A PNG that does not compress."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return base64.b64encode(cv2.imencode(".png", pixels)[1].tobytes()).decode()


def pixels(image: str) -> np.ndarray:
    return read_image(base64.b64decode(image))


class Client:
    """Calls give the status and the answer's JSON."""

    def __init__(self, port: int):
        self.port = port

    def __call__(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        names = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        request = Request(f"http://127.0.0.1:{self.port}{path}", content, names)
        try:
            with urlopen(request, timeout=HANG) as answer:
                content = answer.read()
                is_json = answer.headers.get_content_type() == "application/json"
                return answer.status, json.loads(content) if is_json else content.decode()
        except HTTPError as error:
            with error:
                content = error.read()
            return error.code, json.loads(content) if content.startswith(b"{") else content.decode()

    def draw(self, *units: Any, path: str = "txt2img", title: str = "ControlNet", **more: Any) -> tuple[int, Any]:
        body = {"prompt": "a red circle", "steps": 2, "seed": 3, "width": 128, "height": 128, **more}
        if units:
            body["alwayson_scripts"] = {title: {"args": list(units)}}
        return self(f"/sdapi/v1/{path}", body)

    def images(self, *units: Any, **more: Any) -> list[np.ndarray]:
        status, answer = self.draw(*units, **more)
        assert status == 200, answer
        return [pixels(image) for image in answer["images"]]


@contextmanager
def served(
    units: int = 3, queue: int = 16, token: str | None = None, fetch: Any = None, folders: tuple[str, ...] = ()
) -> Iterator[tuple[Client, Service]]:
    shelf = ModelCatalog(folders, "embedded")
    ready = create_preprocessor_loader("cpu", Library(download=False))
    desk = Service(
        GenerationEngine("embedded", shelf, ready, "cpu", "float32"),
        shelf,
        ready,
        RequestLimits(max_units=units),
        fetch,
    )
    with listening(desk, RequestWorker(queue), token) as (client, _):
        yield client, desk


@contextmanager
def listening(
    service: Service, worker: RequestWorker, token: str | None = None, report: Any = None
) -> Iterator[tuple[Client, Any]]:
    """A client of a server with this service, and the server."""
    from controlnet_ext.server.app import create_app
    from controlnet_ext.server.listening import ApiServer, bind_sockets

    sockets = bind_sockets("127.0.0.1", 0)
    port = sockets[0].getsockname()[1]
    server = ApiServer(create_app(service, worker, token, ("127.0.0.1",), report), worker)
    thread = threading.Thread(target=server.run, args=(sockets,))
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield Client(port), server
    finally:
        server.should_exit = True
        thread.join()
        worker.close()
