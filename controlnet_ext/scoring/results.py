"""Scores of many images: one after the other, with means and their intervals, as JSON and as a table."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..errors import escape_unprintable, one_line
from ..maps.control_map import GRAY_KINDS, ControlMap
from ..maps.fidelity import Interval, bootstrap_interval, compute_share
from ..maps.resize import fit
from ..preprocessors.registry import LoadedPreprocessor, Preprocessor
from .inputs import ImageTargets, ScoreInput, TargetReader
from .scores import DECIMALS, UnitScore, UnitScorer, describe_score, format_figure
from .unguided import UnguidedRenderer

if TYPE_CHECKING:
    from .clip import ClipScorer  # which imports torch

RESULT_FORMAT = 1
PANEL_SIDE = 256  # pixels of the longer side of an image in a report, at most
SAMPLES, LEVEL = 2000, 0.95  # of the bootstrap
READ_ERRORS = (ValueError, TypeError, OSError, RuntimeError)  # of one image, after which the next one is scored


@dataclass(frozen=True, eq=False)
class ScorePanel:
    """Images that a report shows of one unit of an image, each (h, w, 3) uint8 RGB: the expected map, the image, the
    map that was found, and where the two differ, None for maps in color."""

    expected: np.ndarray
    image: np.ndarray
    found: np.ndarray
    difference: np.ndarray | None


@dataclass(frozen=True, eq=False)
class ScoreResult:
    """The scores of an image by its units; by their number why others have none; why the image as a whole has none,
    None if it has; and how well it fits its prompt by CLIP, 0..100, None where that is not known."""

    path: str
    scores: tuple[UnitScore, ...] = ()
    unscored: Mapping[int, str] = field(default_factory=dict)
    error: str | None = None
    clip_score: float | None = None


Group = tuple[int, str, str, str]  # number of the unit, preprocessor, measure, figure: what is compared over images


def get_group(score: UnitScore) -> Group:
    """Return what the score belongs with: scores of units of one number and preprocessor, by one measure."""
    return score.number, score.preprocessor, score.measure, score.figure


class ScorePanels:
    """Keeps the panels of the `count` worst scores of each group."""

    def __init__(self, count: int):
        self._count, self._number = count, 0
        self._heaps: dict[Group, list[tuple[float, int, str, UnitScore, ScorePanel]]] = {}

    def add(self, path: str, score: UnitScore, panel: ScorePanel) -> None:
        """Keep the panel of an image's score if it is one of the worst so far."""
        self._number += 1
        gain = score.gain if math.isfinite(score.gain) else math.inf  # an undefined score is none of the worst
        heap = self._heaps.setdefault(get_group(score), [])
        heapq.heappush(heap, (-gain, -self._number, path, score, panel))
        if len(heap) > self._count:
            heapq.heappop(heap)

    def list_worst(self, group: Group) -> list[tuple[str, UnitScore, ScorePanel]]:
        """Return path, score and panel of the worst scores of a group, the worst first."""
        return [entry[2:] for entry in sorted(self._heaps.get(group, []), key=lambda entry: entry[:2], reverse=True)]


def score_images(
    inputs: Iterable[ScoreInput],
    reader: TargetReader,
    load: Callable[[Preprocessor], LoadedPreprocessor],
    renderer: UnguidedRenderer | None = None,
    panels: ScorePanels | None = None,
    clip: ClipScorer | None = None,
) -> Iterator[ScoreResult]:
    """Yield the result of each image. With a renderer unguided images of recipes are drawn for the floor, with `clip`
    images are also compared with their prompts, where these are known.

    What is wrong with one image is in its result."""
    for score_input in inputs:
        try:
            targets = reader.read(score_input)
            unguided_image = targets.unguided
            if unguided_image is None and renderer is not None and targets.recipe is not None:
                unguided_image = renderer.render(targets.recipe)
        except READ_ERRORS as error:
            yield ScoreResult(score_input.path, error=_describe_error(error, score_input.path))
            continue
        result = _score_image(score_input.path, targets, unguided_image, load, panels)
        if clip is not None and targets.prompt is not None:
            (clip_score,) = clip([targets.prompt], [targets.image])
            result = replace(result, clip_score=round(clip_score, DECIMALS))
        yield result


def _score_image(
    path: str,
    targets: ImageTargets,
    unguided_image: np.ndarray | None,
    load: Callable[[Preprocessor], LoadedPreprocessor],
    panels: ScorePanels | None,
) -> ScoreResult:
    scores: list[UnitScore] = []
    failures = dict(targets.unscored)
    for target in targets.targets:
        try:
            scorer = UnitScorer(target, load(target.spec))
            actual = scorer.detect(targets.image)
            scores.append(scorer.score_map(actual, targets.image, unguided_image))
        except READ_ERRORS as error:
            failures[target.number] = one_line(error, 300)
            continue
        if panels is not None:
            panels.add(path, scores[-1], make_panel(scorer.expected, targets.image, actual, target.fit))
    reasons = None
    if not scores:
        reasons = "; ".join(f"unit {number}: {reason}" for number, reason in sorted(failures.items()))
    return ScoreResult(path, tuple(scores), failures, reasons)


def _describe_error(error: BaseException, path: str) -> str:
    """Return an error's line without the path of its image, which stands beside it."""
    return one_line(error, 300).removeprefix(f"{path!r}").removeprefix(":").strip()


def make_panel(expected: ControlMap, image: np.ndarray, actual: ControlMap, fit_mode: str) -> ScorePanel:
    """Return the panel of an image (H, W, 3) uint8 RGB with its maps of any size, the expected one fitted to it as in
    `Unit`, all made smaller to `PANEL_SIDE`."""
    height, width, _ = image.shape
    scale = min(PANEL_SIDE / max(height, width), 1)
    rows, columns = (max(1, round(side * scale)) for side in (height, width))
    target = fit(fit(expected.pixels, height, width, fit_mode), rows, columns, "stretch")
    own = fit(actual.pixels, rows, columns, "stretch")
    small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    return ScorePanel(target, small, own, overlay_maps(target, own) if expected.kind in GRAY_KINDS else None)


BOTH_COLOR, MISSED_COLOR, ADDED_COLOR = (255, 255, 255), (255, 80, 60), (70, 140, 255)  # of an overlay


def overlay_maps(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Return two gray maps (H, W, 3) uint8 as one image: what both have is `BOTH_COLOR`, what only the expected one has
    `MISSED_COLOR`, what only the found one has `ADDED_COLOR`."""
    target, own = (pixels[..., :1].astype(np.float32) / 255 for pixels in (expected, actual))
    both = np.minimum(target, own)
    parts = ((both, BOTH_COLOR), (target - both, MISSED_COLOR), (own - both, ADDED_COLOR))
    blend = sum((share * np.array(color, np.float32) for share, color in parts), np.float32(0))
    return np.rint(blend).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class GroupSummary:
    """The means over images of the scores of one preprocessor by one measure, each with its interval; floor, ceiling
    and share, which is that of the means, None where they are not known of any image."""

    number: int
    preprocessor: str
    kind: str
    measure: str
    figure: str
    is_better_higher: bool
    score: Interval
    floor: Interval | None
    ceiling: Interval | None
    share: Interval | None

    @property
    def group(self) -> Group:
        """The group of the scores."""
        return self.number, self.preprocessor, self.measure, self.figure

    @property
    def title(self) -> str:
        """The preprocessor, after the number of the unit where it is not the first."""
        return self.preprocessor if self.number == 1 else f"unit {self.number}, {self.preprocessor}"


def summarize_clip(results: Sequence[ScoreResult]) -> Interval | None:
    """Return the mean CLIP score of the images that have one, None if none has."""
    values = [result.clip_score for result in results if result.clip_score is not None]
    return bootstrap_interval(values, LEVEL, SAMPLES) if values else None


def summarize_scores(scores: Sequence[UnitScore]) -> list[GroupSummary]:
    """Return a summary of each group of scores, in the order of their first ones."""
    groups: dict[Group, list[UnitScore]] = {}
    for score in scores:
        groups.setdefault(get_group(score), []).append(score)
    return [_summarize_group(some) for some in groups.values()]


def _summarize_group(scores: Sequence[UnitScore]) -> GroupSummary:
    first = scores[0]
    floors = [score.floor[score.figure] for score in scores if score.floor is not None]
    ceilings = [score.ceiling[score.figure] for score in scores if score.ceiling is not None]
    return GroupSummary(
        first.number,
        first.preprocessor,
        first.kind,
        first.measure,
        first.figure,
        first.is_better_higher,
        bootstrap_interval([score.score for score in scores], LEVEL, SAMPLES),
        bootstrap_interval(floors, LEVEL, SAMPLES) if floors else None,
        bootstrap_interval(ceilings, LEVEL, SAMPLES) if ceilings else None,
        bootstrap_share(scores),
    )


def bootstrap_share(scores: Sequence[UnitScore]) -> Interval | None:
    """Return the share of the way from the mean floor to the mean ceiling that the mean score has come, with its
    percentile bootstrap interval over images. Scores of which one of the three is not known, or not finite, are left
    out; None if that leaves none.

    It is no mean of shares, which a single image with nearly equal floor and ceiling can move anywhere."""
    rows = [
        [figures[score.share_figure or score.figure] for figures in (score.figures, score.floor, score.ceiling)]
        for score in scores
        if score.floor is not None and score.ceiling is not None
    ]
    table = np.array(rows, np.float64).reshape(-1, 3)
    table = table[np.isfinite(table).all(axis=1)]
    if not len(table):
        return None
    numbers = np.random.default_rng(0)
    means = [table[numbers.integers(0, len(table), len(table))].mean(axis=0) for _ in range(SAMPLES)]
    shares = np.array([compute_share(*map(float, row)) for row in means])
    shares = shares[np.isfinite(shares)]
    low, high = np.quantile(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(shares) else (math.nan, math.nan)
    share = compute_share(*map(float, table.mean(axis=0)))
    return Interval(share, float(low), float(high), len(table), len(scores) - len(table))


def encode_results(results: Sequence[ScoreResult]) -> dict[str, Any]:
    """Return results and their summaries as a JSON object; null stands for what is not known or not finite."""
    images = [
        {
            "image": result.path,
            "units": [describe_score(score) for score in result.scores],
            "unscored": {str(number): reason for number, reason in result.unscored.items()},
            "error": result.error,
            "clip_score": result.clip_score,
        }
        for result in results
    ]
    summaries = summarize_scores([score for result in results for score in result.scores])
    return {
        "format": RESULT_FORMAT,
        "images": images,
        "failed": sum(result.error is not None for result in results),
        "summaries": [_encode_summary(summary) for summary in summaries],
        "clip_score": _encode_interval(summarize_clip(results)),
    }


def _encode_summary(summary: GroupSummary) -> dict[str, Any]:
    values: dict[str, Any] = {"unit": summary.number, "preprocessor": summary.preprocessor, "kind": summary.kind}
    values |= {"measure": summary.measure, "score": summary.figure, "level": LEVEL}
    values["better"] = "higher" if summary.is_better_higher else "lower"
    for name, interval in (
        ("mean", summary.score),
        ("floor", summary.floor),
        ("ceiling", summary.ceiling),
        ("share", summary.share),
    ):
        values[name] = _encode_interval(interval)
    return values


def _encode_interval(interval: Interval | None) -> dict[str, float | None] | None:
    if interval is None:
        return None
    values = interval._asdict().items()
    return {key: round(value, DECIMALS) if math.isfinite(value) else None for key, value in values}


HEADINGS = ("image", "unit", "figure", "score", "floor", "ceiling", "share")


def format_table(results: Sequence[ScoreResult]) -> str:
    """Return results as text: a line for each unit of each image, then one for each group."""
    rows = [
        (
            escape_unprintable(result.path),
            f"{score.number} {score.preprocessor}",
            score.figure,
            format_figure(score.score),
            *(format_figure(None if each is None else each[score.figure]) for each in (score.floor, score.ceiling)),
            format_figure(score.share),
        )
        for result in results
        for score in result.scores
    ]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (HEADINGS, *rows)]
    summaries = summarize_scores([score for result in results for score in result.scores])
    clip = summarize_clip(results)
    more = [] if clip is None else [f"CLIP score: {format_interval(clip)} of {format_count(clip.used, 'image')}"]
    return "\n".join(line.rstrip() for line in [*lines, "", *map(format_summary, summaries), *more])


def format_summary(summary: GroupSummary) -> str:
    """Return a summary as a sentence."""
    count = format_count(summary.score.used, "image")
    parts = [f"{summary.title}: {summary.figure} {format_interval(summary.score)} of {count}"]
    for name, interval in (("floor", summary.floor), ("ceiling", summary.ceiling)):
        if interval is not None and interval.used:
            parts.append(f"{name} {format_figure(interval.mean)}")
    if summary.share is not None:
        parts.append(f"share {format_interval(summary.share)}")
    if summary.score.left_out:
        parts.append(f"{summary.score.left_out} left out, whose maps ask for nothing")
    return f"{', '.join(parts)}; {'higher' if summary.is_better_higher else 'lower'} is better"


def format_count(number: int, word: str) -> str:
    """Return a number and its word, which stands for several with an s."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def format_interval(interval: Interval) -> str:
    """Return a mean with the bounds of its interval, those of one image without."""
    if interval.used < 2:
        return format_figure(interval.mean)
    return f"{format_figure(interval.mean)} ({format_figure(interval.low)}..{format_figure(interval.high)})"
