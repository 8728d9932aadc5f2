"""The extension in a running stable-diffusion-webui, checked over its HTTP API: docs/evidence/webui.md.

    python -m benchmarks.webui --url http://127.0.0.1:7860 [--diffusers] [--trained NAME FOLDER] [--page shot.png]

The webui has the embedded model and its ControlNet as docs/guides/webui.md says. Prints what was tried and seen as a
table in Markdown, and exits with 1 if anything is not as it should be. `--diffusers` compares a guided image with a
loop over diffusers' own UNet and ControlNet. `--trained` does so with a FOLDER that `controlnet-ext train` wrote for
the embedded model; `python -m controlnet_ext.embedded.export_ldm` made the file that the webui calls NAME. `--page`
works the panel in headless Chromium by selenium, on the same machine, and writes a screenshot.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from .answers import refusals, routes, texts
from .calls import Check, Webui
from .guidance import afterwards, guidance, inpainting, passes
from .meanwhile import meanwhile
from .neighbours import neighbours
from .tiles import tiles

PARTS = (guidance, passes, inpainting, afterwards, refusals, texts, routes, meanwhile, neighbours, tiles)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--only", nargs="+", choices=[part.__name__ for part in PARTS], help="these parts of the table")
    parser.add_argument("--diffusers", action="store_true")
    parser.add_argument("--trained", nargs=2, metavar=("NAME", "FOLDER"))
    parser.add_argument("--page", type=Path, metavar="PNG")
    options = parser.parse_args()
    webui = Webui(options.url)
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {load}, Python {platform.python_version()}\n")
    print("| | seen |\n|---|---|")
    right = True
    for check in rows(webui, options):
        right &= check.holds
        print(f"| {check.what} | {'' if check.holds else 'WRONG: '}{check.figure} |", flush=True)
    return 0 if right else 1


def rows(webui: Webui, options: argparse.Namespace) -> Iterator[Check]:
    for part in PARTS:
        if options.only is None or part.__name__ in options.only:
            yield from part(webui)
    if options.diffusers or options.trained:
        from .beside_diffusers import beside

        if options.diffusers:
            yield beside(webui)
        if options.trained:
            yield beside(webui, *options.trained)
    if options.page is not None:
        from .page import page

        yield from page(webui, options.page)


if __name__ == "__main__":
    sys.exit(main())
