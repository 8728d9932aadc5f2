"""How well an image obeys the map that guided it: a measure for each kind of map, in numpy and OpenCV alone.

`measure` makes the map of an image again and compares it with the one that was asked for. `get_measure` says by what;
`compute_share` puts a score between floor and ceiling, `bootstrap_interval` says how far a mean may be trusted."""

from .compare import Measure, NoMeasure, Placement, require_measure
from .edges import EdgeScore, canny_f1, edge_f1
from .measures import MEASURES, get_measure, get_measure_of_kind, measure
from .statistics import Interval, bootstrap_interval, compute_share

__all__ = [
    "MEASURES",
    "EdgeScore",
    "Interval",
    "Measure",
    "NoMeasure",
    "Placement",
    "bootstrap_interval",
    "canny_f1",
    "compute_share",
    "edge_f1",
    "get_measure",
    "get_measure_of_kind",
    "measure",
    "require_measure",
]
