"""Examples as the networks read them: latents, text states and maps, kept in memory or on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import one_line
from ..files.safetensors import write_weights
from ..files.weights import read_weights
from .bases import EncodedBatch, EncodedCaption, FrozenBase
from .data import CENTER, ControlDataset, DecodedExample, LoadingSettings, Sample, View
from .masks import draw_mask

CACHE_BYTES = 2**31  # bytes of encoded examples in memory
Size = tuple[int, int]  # height and width in pixels


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An example through the VAE: latents (C, h, w), and the mask and masked latents for inpainting UNets (5, h, w)."""

    latents: Tensor
    extra: Tensor | None


@dataclass(frozen=True, eq=False)
class EncodedExample:
    """An example as networks read it: latents (C, h, w), the caption, map (H, W, 3) uint8, and what SDXL (P + 6,) and
    inpainting UNets (5, h, w) read beside, see `EncodedBatch`."""

    name: str
    image: EncodedImage
    text: EncodedCaption
    map: np.ndarray
    added: Tensor | None

    @property
    def nbytes(self) -> int:
        """Its size in memory, in bytes."""
        tensors = (self.image.latents, self.image.extra, self.text.context, self.text.pooled, self.added)
        return int(self.map.nbytes) + sum(tensor.nbytes for tensor in tensors if tensor is not None)


class MissingPixelsError(ValueError):
    """Latents that were on disk when an example was planned are gone or damaged, and its pixels were not read."""


class ExampleEncoder:
    """Encodes examples with a frozen model and keeps them: the first ones, up to 2 GiB, in memory, or on disk.

    On disk are latents under the hash of the image, the part of it and the model, and text states under that of the
    caption and the model: files that are whole or absent, and may be removed at any time.
    """

    def __init__(self, frozen: FrozenBase, loading: LoadingSettings):
        self._frozen = frozen
        self._in_memory = loading.cache == "memory"
        self._folder = loading.folder if loading.cache == "disk" and loading.identity else None
        self._identity = loading.identity
        self.tolerance = loading.tolerance
        self._examples: dict[tuple[Sample, Size, View], EncodedExample] = {}
        self._bytes = 0
        self._captions: dict[str, EncodedCaption] = {}

    @property
    def device(self) -> torch.device:
        """The device of the frozen model."""
        return self._frozen.device

    @property
    def empty_caption(self) -> EncodedCaption:
        """The empty caption, on the CPU."""
        return self._frozen.empty_caption

    def find(self, sample: Sample, size: Size, view: View) -> EncodedExample | None:
        """Return an example from memory, None if it is not there."""
        return self._examples.get((sample, size, view))

    def has_image(self, sample: Sample, size: Size, view: View) -> bool:
        """Return True if the latents of an example are on disk, so that its pixels are not needed."""
        path = self._get_image_path(sample, size, view)
        return path is not None and path.exists()

    def encode(self, sample: Sample, size: Size, view: View, example: DecodedExample) -> EncodedExample:
        """Return the example, whose pixels may be absent where `has_image` is True.

        Raises MissingPixelsError where they are absent and needed.
        """
        image = self._encode_image(sample, size, view, example)
        text = self._encode_caption(example.caption)
        height, width, top, left, *_ = example.sizes
        vector = self._frozen.build_added(text, size, (height, width), (top, left))
        result = EncodedExample(example.name, image, text, example.map, vector)
        if self._in_memory and self._bytes + result.nbytes <= CACHE_BYTES:
            self._bytes += result.nbytes
            self._examples[sample, size, view] = result
        return result

    def _get_image_path(self, sample: Sample, size: Size, view: View) -> Path | None:
        return self._get_path([sample.key, *size, view.place, view.is_mirrored])

    def _get_path(self, key: list[object]) -> Path | None:
        if self._folder is None:
            return None
        digest = hashlib.sha256(json.dumps([self._identity, *key]).encode()).hexdigest()
        return self._folder / f"{digest}.safetensors"

    def _encode_image(self, sample: Sample, size: Size, view: View, example: DecodedExample) -> EncodedImage:
        path = self._get_image_path(sample, size, view)
        tensors = _read_tensors(path)
        if "latents" in tensors:
            return EncodedImage(tensors["latents"], tensors.get("extra"))
        if example.pixels is None:
            raise MissingPixelsError(f"{str(path)!r} is gone or damaged")
        rng = np.random.default_rng(int(hashlib.sha256(sample.key.encode()).hexdigest()[:16], 16))
        latents = self._frozen.encode_latents(example.pixels)
        extra = self._frozen.encode_extra(example.pixels, draw_mask(rng, *size))
        _write_tensors(path, {"latents": latents, "extra": extra})
        return EncodedImage(latents, extra)

    def _encode_caption(self, caption: str) -> EncodedCaption:
        if caption in self._captions:
            return self._captions[caption]
        path = self._get_path(["caption", caption])
        tensors = _read_tensors(path)
        if "context" in tensors:
            return EncodedCaption(tensors["context"], tensors.get("pooled"))
        text = self._frozen.encode_caption(caption)
        if path is not None:
            _write_tensors(path, {"context": text.context, "pooled": text.pooled})
        elif self._in_memory and self._bytes + text.context.nbytes <= CACHE_BYTES:
            self._bytes += text.context.nbytes
            self._captions[caption] = text
        return text


def _read_tensors(path: Path | None) -> dict[str, Tensor]:
    """Return the tensors of a file of the cache, none where it is absent or damaged."""
    with suppress(FileNotFoundError, ValueError):
        if path is not None:
            return dict(read_weights(path).tensors)
    return {}


def _write_tensors(path: Path | None, tensors: dict[str, Tensor | None]) -> None:
    """Write a file of the cache; where the disk is full, none."""
    with suppress(OSError):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            contents = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
            write_weights(path, contents, {}, overwrite=True)


class EncodedExamples:
    """The examples of a set by number, at one size and each in its middle; for measurements."""

    def __init__(self, dataset: ControlDataset, encoder: ExampleEncoder, size: Size):
        self.dataset, self._encoder, self._size = dataset, encoder, size

    def __len__(self) -> int:
        return len(self.dataset)

    def load_batch(self, rows: Sequence[int]) -> EncodedBatch:
        """Return these examples, nothing of them dropped. One that cannot be read is reported, and the next one taken.

        Raises ValueError when too many cannot.
        """
        return stack_examples([self._load_example(i) for i in rows])

    def _load_example(self, i: int) -> EncodedExample:
        for k in range(len(self.dataset)):
            sample = self.dataset[(i + k) % len(self.dataset)]
            example = self._encoder.find(sample, self._size, CENTER)
            if example is not None:
                return example
            try:
                decoded_example = sample.decode(*self._size, CENTER, self.dataset.maps)
            except (ValueError, OSError) as error:
                self._encoder.tolerance.add(sample.name, one_line(error, 300))
                self._encoder.tolerance.check(len(self.dataset))
                continue
            return self._encoder.encode(sample, self._size, CENTER, decoded_example)
        raise ValueError(f"none of {len(self.dataset)} examples can be read")


def stack_examples(examples: Sequence[EncodedExample]) -> EncodedBatch:
    """Return the batch of examples of one size."""
    return EncodedBatch(
        latents=torch.stack([each.image.latents for each in examples]),
        context=torch.stack([each.text.context for each in examples]),
        maps=np.stack([each.map for each in examples]),
        names=tuple(each.name for each in examples),
        added=_stack_known([each.added for each in examples]),
        extra=_stack_known([each.image.extra for each in examples]),
    )


def _stack_known(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Return the tensors of all examples as one, None where the model has none."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if present else None
