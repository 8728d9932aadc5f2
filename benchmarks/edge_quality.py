"""Edges of preprocessors beside human boundaries: F where one threshold is best for all images (BSDS500's ODS).

    python benchmarks/edge_quality.py --truth ASSETS/truth/edges [--library ASSETS/weights] [NAME ...]

A map is thinned to the ridges across its direction. For each threshold its pixels are matched one to one with each
person's boundary pixels within 0.0075 of the diagonal, as many as can be (BSDS500's benchmark takes the cheapest such
matching, which is the same number but for its outliers). Precision counts pixels matched with anyone's, recall all
persons'. Needs scipy, for MATLAB's files and the matching.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
from controlnet_ext.preprocessors import find
from controlnet_ext.preprocessors.library import Library
from scipy.io import loadmat
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree

from controlnet_ext.files.image_reader import read_image

NAMES = ("canny", "scribble_xdog", "pidinet", "softedge_teed")
REACH = 0.0075  # of the diagonal
THRESHOLDS = np.linspace(0, 0.96, 17)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", metavar="NAME", nargs="*", default=NAMES)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--library", action="append")
    parser.add_argument("--weights", action="append", default=[], metavar="NAME=FILE")
    options = parser.parse_args()
    images = sorted(options.truth.glob("*.jpg"))
    files = dict(pair.split("=", 1) for pair in options.weights)
    library = Library(options.library, download=False, files=files)
    print(f"{len(images)} images, matching within {REACH} of the diagonal, {len(THRESHOLDS)} thresholds")
    for name in options.names:
        begin = time.perf_counter()
        run = find(name).load(library=library)
        parameters = {"safe_steps": 0} if any(p.name == "safe_steps" for p in run.spec.parameters) else {}
        counts = sum(count_edges(run(read_image(path), **parameters).pixels[..., 0], path) for path in images)
        precision, recall = counts[:, 0] / np.maximum(counts[:, 1], 1), counts[:, 2] / counts[:, 3]
        f = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
        best = int(f.argmax())
        print(
            f"{name:14} F {f[best]:.3f} at {THRESHOLDS[best]:.2f}: precision {precision[best]:.3f}, "
            f"recall {recall[best]:.3f} ({time.perf_counter() - begin:.0f} s)"
        )


def count_edges(pixels: np.ndarray, path: Path) -> np.ndarray:
    """For each threshold: (pixels matched, pixels, boundary pixels matched, boundary pixels)."""
    people = [person["Boundaries"][0, 0] for person in loadmat(path.with_suffix(".mat"))["groundTruth"][0]]
    reach = REACH * np.hypot(*pixels.shape)
    soft = thin_edges(pixels.astype(np.float32) / 255)
    rows = []
    for threshold in THRESHOLDS:
        places = np.argwhere(soft > threshold)
        right, hit_count, total = np.zeros(len(places), bool), 0, 0
        for boundaries in people:
            truth = np.argwhere(boundaries)
            is_match = matching(places, truth, reach)
            right |= is_match
            hit_count, total = hit_count + is_match.sum(), total + len(truth)
        rows.append((right.sum(), len(places), hit_count, total))
    return np.array(rows, float)


def matching(places: np.ndarray, truth: np.ndarray, reach: float) -> np.ndarray:
    """Which of the places have a partner of their own in the truth."""
    if not len(places):
        return np.zeros(0, bool)
    near = cKDTree(places).sparse_distance_matrix(cKDTree(truth), reach, output_type="coo_matrix")
    graph = coo_matrix((np.ones(near.nnz, np.int8), (near.row, near.col)), (len(places), len(truth))).tocsr()
    return maximum_bipartite_matching(graph, perm_type="column") >= 0


def thin_edges(soft: np.ndarray) -> np.ndarray:
    """Soft edges (H, W) where they are at least as high as both neighbours across their direction, 0 elsewhere.
    The direction is that in which the map, smoothed, is bent most; a map of 0 and 1 stays as it is."""
    if np.isin(soft, (0, 1)).all():
        return soft
    smooth = cv2.GaussianBlur(soft, (0, 0), 2)
    dy, dx = np.gradient(smooth)
    (dyy, dyx), (_, dxx) = np.gradient(dy), np.gradient(dx)
    across = 0.5 * np.arctan2(2 * dyx, dxx - dyy) + np.pi / 2  # where the map falls most steeply to both sides
    y, x = np.mgrid[: soft.shape[0], : soft.shape[1]].astype(np.float32)
    step = np.float32(np.cos(across)), np.float32(np.sin(across))
    sides = [cv2.remap(soft, x + s * step[0], y + s * step[1], cv2.INTER_LINEAR) for s in (-1, 1)]
    return np.where((soft >= sides[0]) & (soft >= sides[1]), soft, 0)


if __name__ == "__main__":
    main()
