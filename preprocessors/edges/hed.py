"""Soft edges and scribbles by HED, whose network is in annotators/hed.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ...files.hub import DINKSTER_HASHES, HORDE_CATALOG, WeightsFile
from ..backends.tensors import pad_to_multiple, to_batch_tensor
from ..registry import preprocessor
from .soft_edges import make_edge_preprocessor, render_safe_edges, render_scribbles, to_uint8

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

HED_WEIGHTS = WeightsFile(
    "lllyasviel/Annotators",
    "ControlNetHED.pth",
    webui_folder="hed",
    license="Apache-2.0",
    size=29444406,
    sha256="5ca93762ffd68a29fee1af9d495bf6aab80ae86f08905fb35472a083a4c7a8fa",
    source=f"{HORDE_CATALOG}; {DINKSTER_HASHES}",
)


def _load_edge_detector(device: str | Device, library: Library) -> Callable[[np.ndarray], np.ndarray]:
    """HED's edges (B, H, W) in 0..1, all depths together, of images (B, H, W, 3) uint8, RGB."""
    from ...annotators import hed

    network = library.load_network(HED_WEIGHTS, hed.load, device)

    def edges(images: np.ndarray) -> np.ndarray:
        height, width = images.shape[1:3]
        return hed.fuse_side_outputs(network(to_batch_tensor(pad_to_multiple(images, 1, min_size=16))))[
            :, 0, :height, :width
        ].numpy()

    return edges


preprocessor("hed", makes="soft edges", label="softedge_hed", weights=HED_WEIGHTS, batched=True)(
    make_edge_preprocessor(_load_edge_detector, to_uint8)
)
preprocessor("hed_safe", makes="soft edges", label="softedge_hedsafe", weights=HED_WEIGHTS, batched=True)(
    make_edge_preprocessor(_load_edge_detector, render_safe_edges)
)
preprocessor("scribble_hed", makes="scribble", weights=HED_WEIGHTS, batched=True, aliases=("fake_scribble",))(
    make_edge_preprocessor(_load_edge_detector, render_scribbles)
)
