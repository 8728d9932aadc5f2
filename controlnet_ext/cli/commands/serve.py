"""Serve the HTTP API of sd-webui-controlnet, with txt2img and img2img, over one model.

Needs controlnet-ext[serve]. Requests bring the token as bearer or as password.

The first Ctrl-C ends the work at its next step, the second at once. Each request is a line on stderr: method, path,
status (499: the client left), milliseconds.

Exit code 0: stopped by Ctrl-C or SIGTERM; 130: by the second; 2: refused.
"""

from __future__ import annotations

import os
import re
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from typing import NamedTuple

from ...embedded import EMBEDDED_NAME
from ...errors import check_choice
from ...generation.options import choose_device
from ...generation.recipe import DTYPES, MAX_UNITS
from ...preprocessors.library import Library
from ...sdwebui.fields import RequestLimits
from ..common import DEVICE_HELP, DTYPE_HELP, MODEL_HELP, add_load_option, print_stderr, resume_garbage_collection
from ..weights_options import add_library_options

DEFAULT_LIMITS = RequestLimits()


class NumberOption(NamedTuple):
    """A flag for a whole number with its default, bounds (inclusive) and help."""

    default: int
    low: int
    high: int
    help: str


NUMBER_OPTIONS = {
    "port": NumberOption(7860, 0, 65535, "port to listen on, 0 for a free one, which is printed"),
    "queue": NumberOption(16, 1, 1000, "most requests that may wait"),
    "units": NumberOption(DEFAULT_LIMITS.max_units, 1, MAX_UNITS, "most units of a request"),
    "side": NumberOption(DEFAULT_LIMITS.max_side, 64, 8192, "largest width and height of an image in pixels"),
    "steps": NumberOption(DEFAULT_LIMITS.max_steps, 1, 1000, "most steps of an image"),
    "images": NumberOption(DEFAULT_LIMITS.max_images, 1, 100, "most images of a request"),
}
TOKEN_VARIABLE = "CONTROLNET_EXT_TOKEN"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
ALLOWED_HOST_NAMES = ("127.0.0.1", "localhost", "[::1]")


def arguments(parser: ArgumentParser, argv: list[str]) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--model",
        metavar="M",
        default=EMBEDDED_NAME,
        help=MODEL_HELP,
    )
    parser.add_argument(
        "--controls",
        metavar="FOLDER",
        action="append",
        help="folder with control models, searched in depth; repeatable",
    )
    add_library_options(parser)
    parser.add_argument(
        "--fetch", action="store_true", help="accept URLs of images in requests, and fetch them from public hosts"
    )
    parser.add_argument(
        "--host", default=LOOPBACK_HOSTS[0], help="address to listen on; any but this machine's own needs a --token"
    )
    parser.add_argument(
        "--token",
        help=f"token that requests must bring; the variable {TOKEN_VARIABLE} hides it from other users of the machine",
    )
    for name, option in NUMBER_OPTIONS.items():
        help = f"{option.help}, {option.low}..{option.high}"
        parser.add_argument(f"--{name}", metavar="N", type=int, default=option.default, help=help)
    parser.add_argument("--pictures", dest="images", type=int, default=SUPPRESS, help=SUPPRESS)  # its name in 0.1.0
    parser.add_argument("--quiet", action="store_true", help="print no line for each request")
    parser.add_argument("--device", metavar="D", help=DEVICE_HELP)
    parser.add_argument("--dtype", metavar="T", help=DTYPE_HELP)
    add_load_option(parser, argv)


def run(options: Namespace) -> int:
    """Load the model, then answer requests until interrupted. Raises ValueError for an option out of range."""
    token = options.token or os.environ.get(TOKEN_VARIABLE) or None
    for name, option in NUMBER_OPTIONS.items():
        if not option.low <= getattr(options, name) <= option.high:
            raise ValueError(f"--{name} {getattr(options, name)} is outside {option.low}..{option.high}")
    if options.host not in LOOPBACK_HOSTS and token is None:
        raise ValueError(f"--host {options.host} lets other machines in: give a --token")
    try:
        from ...server.app import create_app
        from ...server.listening import ApiServer, LineWriter, bind_sockets, format_url
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
    catalog = ModelCatalog(options.controls or (), options.model)
    limits = RequestLimits(options.units, options.side, options.steps, options.images)
    with ExitStack() as stack:
        sockets = [stack.enter_context(each) for each in bind_sockets(options.host, options.port)]
        loader = create_preprocessor_loader(device, library)
        engine = GenerationEngine(options.model, catalog, loader, device, dtype)
        service = Service(engine, catalog, loader, limits, SafeFetcher() if options.fetch else None)
        resume_garbage_collection()
        worker = RequestWorker(options.queue)
        hosts = ALLOWED_HOST_NAMES if options.host in LOOPBACK_HOSTS else ("*",)
        writer = stack.enter_context(closing(LineWriter(print_stderr)))
        report = None if options.quiet else writer
        application = create_app(service, worker, token, hosts, report)
        ready = f"{engine.checkpoint_name} on {device}, {format_url(options.host, sockets)}, Ctrl-C stops it"
        report_ready = partial(writer, f"controlnet-ext: {ready}")
        ApiServer(application, worker, report_ready, partial(_report_stop, writer), report).run(sockets)
    return 0


def _report_stop(report: Callable[[str], object], pending_count: int) -> None:
    if pending_count:
        report("controlnet-ext: stopping at the next step; a second Ctrl-C stops at once")
