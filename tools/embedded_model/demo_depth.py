"""The depth map of the demo: `python -m tools.embedded_model.demo_depth [--seed N]` renders a landscape and writes its
map into the package."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2

from controlnet_ext.embedded import SAMPLE_DEPTH
from controlnet_ext.embedded.scenes import HELD_OUT_SEEDS
from tools.embedded_model.landscapes import render
from tools.embedded_model.render_worlds import draw_depth_map

SEED = HELD_OUT_SEEDS[112]  # pines on the shore of a lake
SIZE = 192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("-o", "--output", type=Path, default=SAMPLE_DEPTH)
    options = parser.parse_args()
    landscape = render(options.seed, SIZE)
    cv2.imwrite(str(options.output), draw_depth_map(landscape.depth), (cv2.IMWRITE_PNG_COMPRESSION, 9))
    print(f"{options.output}: {options.output.stat().st_size} bytes, {landscape.caption}")


if __name__ == "__main__":
    main()
