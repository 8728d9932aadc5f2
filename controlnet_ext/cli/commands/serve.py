"""controlnet-ext serve [--model M] [--controls FOLDER]...

Serve the HTTP API of sd-webui-controlnet, with txt2img and img2img, over one model. Needs controlnet-ext[serve].

    --model M          a folder saved by diffusers (SD1.5, SD2.1, SDXL), or owner/name in the local Hugging Face cache;
                       by default the embedded model
    --controls FOLDER  where control models are, in it and below; may be given several times
    --library FOLDER   where the weights of preprocessors are; may be given several times
    --no-download      fetch no weights of preprocessors
    --fetch            take addresses of pictures in requests, and fetch these from public hosts
    --host HOST        by default 127.0.0.1, this machine only; any other needs a --token
    --port N           by default 7860; 0 takes a free one
    --token T          what requests must bring, as bearer or as password; better in the environment's
                       CONTROLNET_EXT_TOKEN, where other users do not see it
    --units N          how many units a request may have, by default 3
    --queue N          how many requests may wait, by default 16
    --side N           how wide and high a picture may be in pixels, by default 2048
    --steps N          how many steps a picture may take, by default 150
    --pictures N       how many pictures a request may ask for, by default 16
    --device D         cpu, cuda, cuda:1, mps; by default the fastest there is
    --dtype T          float32, bfloat16, float16; by default float32 on a CPU and float16 elsewhere

Exit code 0: stopped by Ctrl-C; 2: refused.
"""

from __future__ import annotations

import os
import re
from argparse import ArgumentParser, Namespace
from contextlib import closing, suppress

from ...embedded import NAME
from ...generation.options import chosen_device
from ...generation.recipe import DTYPES, UNITS
from ...preprocessors.library import Library
from ...sdwebui.limits import Limits
from . import say

LIMITS = Limits()
NUMBERS = {  # option: what it is by default, least and most
    "port": (7860, 0, 65535),
    "queue": (16, 1, 1000),
    "units": (LIMITS.units, 1, UNITS),
    "side": (LIMITS.side, 64, 8192),
    "steps": (LIMITS.steps, 1, 1000),
    "pictures": (LIMITS.pictures, 1, 100),
}
TOKEN = "CONTROLNET_EXT_TOKEN"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
NAMES = ("127.0.0.1", "localhost", "[::1]")


def arguments(parser: ArgumentParser, words: list[str]) -> None:
    """Declares what the docstring says."""
    parser.add_argument("--model", default=NAME)
    parser.add_argument("--host", default="127.0.0.1")
    for name, (number, _, _) in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    for name in ("controls", "library"):
        parser.add_argument(f"--{name}", metavar="FOLDER", action="append")
    for name in ("token", "device", "dtype"):
        parser.add_argument(f"--{name}")
    for name in ("no-download", "fetch"):
        parser.add_argument(f"--{name}", action="store_true")


def run(options: Namespace) -> int:
    """Loads the model, then answers until it is interrupted."""
    token = options.token or os.environ.get(TOKEN) or None
    for name, (_, least, most) in NUMBERS.items():
        if not least <= getattr(options, name) <= most:
            raise ValueError(f"--{name} {getattr(options, name)} is outside {least}..{most}")
    if options.host not in LOOPBACK and token is None:
        raise ValueError(f"--host {options.host} lets other machines in: give a --token")
    try:
        import uvicorn

        from ...server.app import app
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed: pip install controlnet-ext[serve]") from error
    from ...sdwebui.catalog import Shelf
    from ...sdwebui.modules import readied
    from ...server.engine import Engine
    from ...server.fetch import Fetch
    from ...server.service import Desk
    from ...server.worker import Worker

    device = chosen_device(options.device)
    dtype = options.dtype or ("float32" if re.match("cpu", device) else "float16")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is none of: {', '.join(DTYPES)}")
    library = Library(options.library, download=not options.no_download)
    shelf = Shelf(options.controls or (), options.model)
    ready = readied(device, library)
    engine = Engine(options.model, shelf, ready, device, dtype)
    desk = Desk(
        engine,
        shelf,
        ready,
        Limits(options.units, options.side, options.steps, options.pictures),
        Fetch() if options.fetch else None,
    )
    worker = Worker(options.queue)
    served = app(desk, worker, token, NAMES if options.host in LOOPBACK else ("*",))
    say(f"controlnet-ext: {engine.name} on {device}, http://{options.host}:{options.port}, Ctrl-C stops it")
    with suppress(KeyboardInterrupt), closing(worker):
        uvicorn.run(served, host=options.host, port=options.port, log_level="warning", lifespan="off")
    return 0
