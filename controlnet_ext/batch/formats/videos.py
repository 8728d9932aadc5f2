"""Videos: frames as images, and maps as videos of the same frame rate."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ...files.disk import open_regular_file
from ...files.image_formats import check_pixels
from ...files.image_reader import read_image
from ..stages import InputImage
from .journal import iter_indexed_members

FOURCC_BY_SUFFIX = {
    ".mp4": "mp4v",
    ".mov": "mp4v",
    ".avi": "FFV1",
}  # of what FFmpeg writes the same bytes every time; FFV1 is
# lossless. A .mkv or .webm gets a random number.
MAX_MISSING_SHARE = 0.01  # of the frames that a file says it has; containers without an index only estimate them


# MP4 and MOV; AVI; Matroska and WebM; MPEG program, elementary and transport streams
_VIDEO_SIGNATURES = re.compile(
    rb"....(ftyp|styp|moov|moof|mdat|wide|free|skip|pnot|uuid)|RIFF....AVI |\x1aE\xdf\xa3|\0\0\1[\xb3\xba]|G", re.DOTALL
)


@dataclass(frozen=True, eq=False)
class VideoSource:
    """A source of the frames of a video, upright."""

    path: str

    def __len__(self) -> int:
        try:
            with _open_input(self.path) as video:
                return _count_frames(video)
        except (OSError, ValueError):  # which `iter_images` reports
            return 0

    def iter_images(self, start: int) -> Generator[InputImage, None, None]:
        """Yield the frames from position `start` on; where the file is cut short, an image with that error is last."""
        i = 0
        try:
            with _open_input(self.path) as video:
                while video.grab():
                    if i >= start:
                        there, frame = video.retrieve()
                        name = f"{self.path}/{i}"
                        damage = ValueError(f"frame {i} of {self.path!r} is damaged")
                        content = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if there else damage
                        yield InputImage(i, str(i), name, content)
                    i += 1
                frame_count = _count_frames(video)
        except (OSError, ValueError) as error:
            yield InputImage(i, "", self.path, error)
            return
        if i == 0 or i < frame_count * (1 - MAX_MISSING_SHARE):
            reason = f"breaks off after {i} of {frame_count} frames" if i else "is no video that OpenCV reads"
            yield InputImage(i, "", self.path, ValueError(f"{self.path!r} {reason}"))


@contextmanager
def _open_input(path: str) -> Iterator[cv2.VideoCapture]:
    """Open a video from outside.

    Raises what `open_regular_file` raises, and ValueError for a file of another kind or frames of over 64 megapixels.
    """
    with open_regular_file(path) as file:
        head = file.read(16)
    if not _VIDEO_SIGNATURES.match(head):  # a playlist would make FFmpeg open other files and addresses
        raise ValueError(f"{path!r} is no video that is read here: it begins with {head!r}")
    with _open_video(path) as video:
        height, width = (int(video.get(side)) for side in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
        if height and width:
            check_pixels(height, width, f"a frame of {path!r}")  # before one is decoded
        yield video


@contextmanager
def _open_video(path: str) -> Iterator[cv2.VideoCapture]:
    video = cv2.VideoCapture(path, cv2.CAP_FFMPEG)  # others take `%d` for a sequence of images
    try:
        yield video
    finally:
        video.release()


def _count_frames(video: cv2.VideoCapture) -> int:
    """Return the number of frames that the file states, 0 where it states none."""
    frame_count = video.get(cv2.CAP_PROP_FRAME_COUNT)
    return int(frame_count) if 0 < frame_count < 2**31 else 0


@dataclass(frozen=True)
class VideoOutput:
    """The format of one video for each preprocessor, by its name.

    Width and height are made even, as codecs require, by repeating the last column and row. A frame without a map is
    black.
    """

    paths: dict[str, Path]
    source_path: str

    def member_name(self, image: InputImage, ending: str) -> str:
        """Return `<index>.<ending>`."""
        return f"{image.index}.{ending}"

    def output_files(self, part: Path) -> list[tuple[Path, Path]]:
        """Return (temporary path, final path) of each video."""
        return [(part.with_name(f"{part.name}{i}{p.suffix}"), p) for i, p in enumerate(self.paths.values())]

    def finalize(self, part: Path) -> None:
        """Encode the videos. Raises OSError when a disk is full."""
        with _open_video(self.source_path) as video:
            rate = video.get(cv2.CAP_PROP_FPS)
        for name, (path, _) in zip(self.paths, self.output_files(part), strict=True):
            _write_video(path, partial(_iter_frames, part, name), rate if 0 < rate < 1000 else 25.0)


def _write_video(path: Path, frames: Callable[[], Iterator[np.ndarray | None]], rate: float) -> None:
    """Write a video of the frames, black where one is None; no file where all are None."""
    first = next((frame for frame in frames() if frame is not None), None)
    if first is None:
        return
    size = first.shape[1], first.shape[0]
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*FOURCC_BY_SUFFIX[path.suffix.lower()]), rate, size
    )
    count = 0
    for frame in frames():
        writer.write(np.zeros_like(first) if frame is None else frame)
        count += 1
    writer.release()
    with _open_video(str(path)) as video:  # the writer does not say when a disk is full
        if _count_frames(video) != count:
            raise OSError(errno.EIO, "OpenCV could not write all frames of the video", str(path))


def _iter_frames(part: Path, name: str) -> Iterator[np.ndarray | None]:
    """Yield the maps of one preprocessor, BGR (H, W, 3) uint8 of an even size, None where a frame has none."""
    following = 0
    for index, files in iter_indexed_members(part):
        yield from (None for _ in range(following, index))
        yield _pad_to_even(read_image(files[f"{name}.png"])) if f"{name}.png" in files else None
        following = index + 1


def _pad_to_even(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.copyMakeBorder(bgr, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
