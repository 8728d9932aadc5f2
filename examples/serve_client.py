"""A server and a client that sends it a request: python examples/serve_client.py

Starts `controlnet-ext serve` with the embedded model on a free port of this machine, asks for a guided image with
nothing but the standard library, and writes served.png and served_map.png. Needs controlnet-ext[serve].
"""

import base64
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

PHOTO = Path(__file__).parent / "coffee.jpg"
UNIT = {
    "image": base64.b64encode(PHOTO.read_bytes()).decode(),
    "module": "canny",
    "model": "embedded/canny",
    "pixel_perfect": True,
    "weight": 1.0,
    "guidance_end": 0.9,
}
BODY = {
    "prompt": "a blue blob on a red ground",
    "seed": 3,
    "steps": 10,
    "cfg_scale": 2,
    "width": 128,
    "height": 128,
    "alwayson_scripts": {"ControlNet": {"args": [UNIT]}},
}

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
url = f"http://127.0.0.1:{port}"
command = [sys.executable, "-m", "controlnet_ext.cli", "serve", "--port", str(port), "--no-download"]
with subprocess.Popen(command) as server:
    try:
        while True:  # until it answers
            try:
                urlopen(f"{url}/health", timeout=60).close()
                break
            except URLError:
                if server.poll() is not None:
                    raise SystemExit("the server ended before it answered") from None
                time.sleep(0.2)
        request = Request(f"{url}/sdapi/v1/txt2img", json.dumps(BODY).encode(), {"Content-Type": "application/json"})
        with urlopen(request) as answer:
            image, control_map = json.load(answer)["images"]  # the image, then the unit's map
        Path("served.png").write_bytes(base64.b64decode(image))
        Path("served_map.png").write_bytes(base64.b64decode(control_map))
    finally:
        server.terminate()
