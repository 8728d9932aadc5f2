"""The CLIP score: how well an image matches its prompt, by a CLIP that is at hand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import error_prefix
from ..files.hub import find_cached_repository
from ..preprocessors.backends.torch import Device, Network
from ..preprocessors.backends.transformers import (
    PREPROCESSOR_CONFIG_JSON,
    import_transformers_class,
    load_transformers_module,
)

DEFAULT_CLIP = "openai/clip-vit-base-patch16"  # as in ControlNet++'s evaluation
_WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


class ClipScorer:
    """Scores of images by their prompts: 100 times the cosine of CLIP's embeddings of both, 0 where it is negative
    (Hessel et al., CLIPScore, arXiv 2104.08718, in the scale of torchmetrics).

    `model` is a folder of transformers, or a repository that lies in the Hugging Face cache; nothing is downloaded.
    Raises FileNotFoundError where there is neither, or a file is missing, and ValueError for a folder of another
    network."""

    def __init__(self, model: str | os.PathLike[str] = DEFAULT_CLIP, device: str | Device = "cpu"):
        folder = Path(model)
        if not folder.is_dir():
            folder = find_cached_repository(os.fspath(model), "a folder")
        self.folder = folder
        weights = self._find_file(_WEIGHT_NAMES)
        self._find_file(_TOKENIZER_FILES)
        self._find_file((PREPROCESSOR_CONFIG_JSON,))
        module: Any = load_transformers_module(folder, weights, "CLIPModel")
        self._network = Network.from_module(module, Device.coerce(device))
        self._length: int = module.config.text_config.max_position_embeddings
        with error_prefix(repr(str(folder))):
            self._tokenize = import_transformers_class("AutoTokenizer").from_pretrained(folder, local_files_only=True)
            processor = import_transformers_class("CLIPImageProcessor")
            self._read_images = processor.from_pretrained(folder, local_files_only=True)

    def _find_file(self, names: Sequence[str]) -> str:
        for name in names:
            if (self.folder / name).is_file():
                return name
        raise FileNotFoundError(f"{str(self.folder)!r} has no {' or '.join(names)}, which a CLIP of transformers has")

    def __call__(self, prompts: Sequence[str], images: Sequence[np.ndarray]) -> list[float]:
        """Return the score of each image (H, W, 3) uint8 RGB by the prompt of its place. A prompt longer than CLIP
        reads is cut. Raises ValueError where there are not as many prompts as images."""
        if len(prompts) != len(images):
            raise ValueError(f"{len(prompts)} prompts for {len(images)} images, expected as many")
        return [self._score(prompt, image) for prompt, image in zip(prompts, images, strict=True)]

    def _score(self, prompt: str, image: np.ndarray) -> float:
        import torch

        words = self._tokenize([prompt], truncation=True, max_length=self._length, return_tensors="pt")
        pixels = self._read_images(images=[image], input_data_format="channels_last", return_tensors="pt").pixel_values
        output = self._network(words["input_ids"], pixels, words["attention_mask"])
        a, b = (output[name][0].double() for name in ("text_embeds", "image_embeds"))
        return max(0.0, 100 * float(torch.nn.functional.cosine_similarity(a, b, dim=0)))
