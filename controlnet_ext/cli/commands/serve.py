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

from ...embedded import EMBEDDED_NAME
from ...errors import check_choice
from ...generation.options import choose_device
from ...generation.recipe import DTYPES, MAX_UNITS
from ...preprocessors.library import Library
from ...sdwebui.limits import RequestLimits
from . import print_stderr

DEFAULT_LIMITS = RequestLimits()
NUMBER_OPTIONS = {  # option: what it is by default, least and most
    "port": (7860, 0, 65535),
    "queue": (16, 1, 1000),
    "units": (DEFAULT_LIMITS.max_units, 1, MAX_UNITS),
    "side": (DEFAULT_LIMITS.max_side, 64, 8192),
    "steps": (DEFAULT_LIMITS.max_steps, 1, 1000),
    "pictures": (DEFAULT_LIMITS.max_images, 1, 100),
}
TOKEN_VARIABLE = "CONTROLNET_EXT_TOKEN"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
ALLOWED_HOST_NAMES = ("127.0.0.1", "localhost", "[::1]")


def arguments(parser: ArgumentParser, argv: list[str]) -> None:
    """Declares what the docstring says."""
    parser.add_argument("--model", default=EMBEDDED_NAME)
    parser.add_argument("--host", default="127.0.0.1")
    for name, (number, _, _) in NUMBER_OPTIONS.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    for name in ("controls", "library"):
        parser.add_argument(f"--{name}", metavar="FOLDER", action="append")
    for name in ("token", "device", "dtype"):
        parser.add_argument(f"--{name}")
    for name in ("no-download", "fetch"):
        parser.add_argument(f"--{name}", action="store_true")


def run(options: Namespace) -> int:
    """Loads the model, then answers until it is interrupted."""
    token = options.token or os.environ.get(TOKEN_VARIABLE) or None
    for name, (_, least, most) in NUMBER_OPTIONS.items():
        if not least <= getattr(options, name) <= most:
            raise ValueError(f"--{name} {getattr(options, name)} is outside {least}..{most}")
    if options.host not in LOOPBACK_HOSTS and token is None:
        raise ValueError(f"--host {options.host} lets other machines in: give a --token")
    try:
        import uvicorn

        from ...server.app import create_app
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed: pip install controlnet-ext[serve]") from error
    from ...sdwebui.catalog import ModelCatalog
    from ...sdwebui.modules import create_preprocessor_loader
    from ...server.engine import GenerationEngine
    from ...server.fetch import SafeFetcher
    from ...server.service import Service
    from ...server.worker import RequestWorker

    device = choose_device(options.device)
    dtype = options.dtype or ("float32" if re.match("cpu", device) else "float16")
    check_choice("dtype", dtype, DTYPES)
    library = Library(options.library, download=not options.no_download)
    shelf = ModelCatalog(options.controls or (), options.model)
    ready = create_preprocessor_loader(device, library)
    engine = GenerationEngine(options.model, shelf, ready, device, dtype)
    desk = Service(
        engine,
        shelf,
        ready,
        RequestLimits(options.units, options.side, options.steps, options.pictures),
        SafeFetcher() if options.fetch else None,
    )
    worker = RequestWorker(options.queue)
    served = create_app(desk, worker, token, ALLOWED_HOST_NAMES if options.host in LOOPBACK_HOSTS else ("*",))
    print_stderr(
        f"controlnet-ext: {engine.checkpoint_name} on {device}, http://{options.host}:{options.port}, Ctrl-C stops it"
    )
    with suppress(KeyboardInterrupt), closing(worker):
        uvicorn.run(served, host=options.host, port=options.port, log_level="warning", lifespan="off")
    return 0
