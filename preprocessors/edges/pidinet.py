"""Soft edges, scribbles and sketches by PiDiNet, whose network is in annotators/pidinet.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ...files.hub import HORDE_CATALOG, WeightsFile
from ..backends.tensors import pad_to_multiple, to_batch_tensor
from ..registry import Traits, preprocessor
from .soft_edges import make_edge_preprocessor, render_safe_edges, render_scribbles, to_uint8

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library

PIDINET_WEIGHTS = WeightsFile(
    "lllyasviel/Annotators",
    "table5_pidinet.pth",
    webui_folder="pidinet",
    license="research only, non-commercial",
    size=2871148,
    sha256="80860ac267258b5f27486e0ef152a211d0b08120f62aeb185a050acc30da486c",
    source=f"{HORDE_CATALOG}; hellozhuo/pidinet @ 36f6506df68e, trained_models",
)


def _load_edge_detector(device: str | Device, library: Library) -> Callable[[np.ndarray], np.ndarray]:
    """PiDiNet's edges (B, H, W) in 0..1, all stages together, of images (B, H, W, 3) uint8. It reads BGR in 0..1,
    without mean and deviation, as ControlNet 1.1 feeds it."""
    from ...annotators import pidinet

    network = library.load_network(PIDINET_WEIGHTS, pidinet.load, device)

    def edges(images: np.ndarray) -> np.ndarray:
        height, width = images.shape[1:3]
        bgr = pad_to_multiple(images, 1, min_size=8)[..., ::-1]
        return network(to_batch_tensor(bgr) / 255)[-1][:, 0, :height, :width].numpy()

    return edges


preprocessor(
    "pidinet",
    makes="soft edges",
    label="softedge_pidinet",
    weights=PIDINET_WEIGHTS,
    batched=True,
    traits=Traits(is_default_for_kind=True),
)(make_edge_preprocessor(_load_edge_detector, to_uint8))
preprocessor("pidinet_safe", makes="soft edges", label="softedge_pidisafe", weights=PIDINET_WEIGHTS, batched=True)(
    make_edge_preprocessor(_load_edge_detector, render_safe_edges)
)
preprocessor(
    "pidinet_scribble",
    makes="scribble",
    label="scribble_pidinet",
    weights=PIDINET_WEIGHTS,
    batched=True,
    traits=Traits(is_default_for_kind=True),
)(make_edge_preprocessor(_load_edge_detector, render_scribbles))


def _render_sketch(edges: np.ndarray) -> np.ndarray:
    """Return 255 where edges are over one half, 0 elsewhere: the map that T2I-Adapter's sketch model reads."""
    return np.where(edges > 0.5, np.uint8(255), np.uint8(0))


preprocessor("pidinet_sketch", makes="scribble", label="t2ia_sketch_pidi", weights=PIDINET_WEIGHTS, batched=True)(
    make_edge_preprocessor(_load_edge_detector, _render_sketch)
)
