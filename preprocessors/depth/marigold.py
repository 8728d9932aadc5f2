"""Marigold (Ke et al., arXiv 2312.02145 and 2505.09358): a diffusion model that draws depth or normals of an image, by
diffusers 0.28 or later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from ...errors import one_line
from ...files.disk import read_json
from ...files.hub import WeightsFile
from ...files.weights import read_weights
from ..backends.tensors import pad_to_multiple
from ..backends.torch import Device, Network
from ..backends.transformers import (
    CONFIG_JSON,
    ModelFiles,
    check_config_numbers,
    fetch_model_folder,
    limit_parameters,
    load_transformers_module,
)
from ..parameters import Range
from ..registry import preprocessor
from .normals_of_depth import encode_normals
from .shades import encode_inverse_depth
from .transformers_depth import DepthRenderer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..backends.torch import Device
    from ..library import Library


MODEL_INDEX_JSON, SCHEDULER_CONFIG_JSON = "model_index.json", "scheduler/scheduler_config.json"
_WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
_CONFIG_ERRORS = (  # of diffusers at a configuration whose values it does not look at
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(NotImplementedError, RuntimeError, TypeError, ValueError),
)
# Networks of the same sizes in float32
_SIZE_SOURCE = "the Hub's pages of the files of prs-eth/marigold-depth-v1-0 and marigold-depth-lcm-v1-0"
_SCHEDULER_CLASSES = ("DDIMScheduler", "LCMScheduler")
# What diffusers called the parts of a VAE's attention before 0.15, in which SD2's VAE is published
_OLD_ATTENTION_KEYS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def make_marigold_files(repo: str, license: str) -> ModelFiles:
    """The files of a Marigold on the Hub; in a folder of weights they are in repo/, as diffusers saves them."""
    paths = (
        MODEL_INDEX_JSON,
        SCHEDULER_CONFIG_JSON,
        *(f"{part}/{CONFIG_JSON}" for part in ("unet", "vae", "text_encoder")),
    )
    weights = {f"unet/{_WEIGHTS_NAME}": 3_460_000_000, f"vae/{_WEIGHTS_NAME}": 335_000_000}
    weights["text_encoder/model.safetensors"] = 1_360_000_000

    def file(path: str, about: int | None = None) -> WeightsFile:
        place = "/".join([repo, *path.split("/")[:-1]])
        return WeightsFile(repo, path, place, license, approx_size=about, source=_SIZE_SOURCE if about else "")

    return (*map(file, paths), *(file(path, about) for path, about in weights.items()))


@dataclass(frozen=True, eq=False)
class MarigoldPipeline:
    """A Marigold ready on a device; threads may share it. `index` is its model_index.json, `scheduler` its scheduler's
    configuration, `text` what it is told, the embedding (1, 2, C) of no words."""

    pipeline_class: str
    unet: Network
    vae: Network
    text_embedding: Tensor
    model_index: dict[str, Any]
    scheduler_config: dict[str, Any]

    @cached_property
    def bytes(self) -> int:
        """The memory that its parts take, in bytes, for the cache that holds it."""
        return self.unet.bytes + self.vae.bytes

    def __call__(
        self, image: np.ndarray, steps: int | None, ensemble: int, seed: int, processing: int | None
    ) -> np.ndarray:
        """Predict a map `(H, W, C)` float32 from an image `(H, W, 3)` uint8, RGB. `steps` and `processing`, the longer
        side in pixels at which the network works (0: the image's own), are the model's own if None. ValueError where
        scipy is missing, which aligns an ensemble of depths, or where the prediction is not finite."""
        import diffusers
        import torch

        height, width = image.shape[:2]
        longest = self.model_index.get("default_processing_resolution") if processing is None else processing
        least = ceil(max(height, width) / longest) if longest else 1  # a strip must not be lost
        image = pad_to_multiple(image[None], 1, least)[0]
        parameters = signature(getattr(diffusers, self.pipeline_class)).parameters.keys() - _PIPELINE_COMPONENTS
        scheduler = getattr(diffusers, self.scheduler_config["_class_name"]).from_config(self.scheduler_config)
        pipe = getattr(diffusers, self.pipeline_class)(
            unet=self.unet.module,
            vae=self.vae.module,
            scheduler=scheduler,  # its own, for it counts steps
            text_encoder=None,
            tokenizer=None,
            **{name: value for name, value in self.model_index.items() if name in parameters},
        )
        pipe.image_processor.preprocess = _preprocess_in_float32(pipe.image_processor.preprocess)
        pipe.empty_text_embedding = self.text_embedding
        pipe.set_progress_bar_config(disable=True)
        try:
            prediction = pipe(
                image / np.float32(255),
                num_inference_steps=steps,
                ensemble_size=ensemble,
                processing_resolution=processing,
                generator=torch.Generator().manual_seed(seed),
            ).prediction[0]
        except ImportError as error:
            raise ValueError(f"an ensemble needs scipy: {error}") from error
        if not np.isfinite(prediction).all():
            raise ValueError("what Marigold draws is no number: compute in float32 or bfloat16")
        return prediction[:height, :width]


_PIPELINE_COMPONENTS = {"unet", "vae", "scheduler", "text_encoder", "tokenizer"}


def _preprocess_in_float32(preprocess: Callable[..., Any]) -> Callable[..., Any]:
    """Marigold's preparation of an image in float32, for torch shrinks none in bfloat16 on a CPU."""
    import torch

    def preprocess_in_float32(
        image: object, processing: int, way: str, device: object, dtype: object
    ) -> tuple[Any, ...]:
        pixels, *sizes = preprocess(image, processing, way, device, torch.float32)
        return pixels.to(dtype), *sizes

    return preprocess_in_float32


def load_marigold(library: Library, files: ModelFiles, pipeline_class: str, device: str | Device) -> MarigoldPipeline:
    """The Marigold in a folder that diffusers saved, whose class is `kind`, MarigoldDepthPipeline or
    MarigoldNormalsPipeline; shared and kept as the library's networks are. Its weights are read by our own reader and
    must be all of it. Raises what `folder` does, ValueError where diffusers is too old or the folder is another
    thing."""
    where = Device.coerce(device)
    return library.cache.get_or_create(
        (files, pipeline_class, where),
        lambda: _load_pipeline(fetch_model_folder(library, files), pipeline_class, where),
    )


def _load_pipeline(path: Path, pipeline_class: str, device: Device) -> MarigoldPipeline:
    import diffusers
    import torch

    if not hasattr(diffusers, pipeline_class):
        raise ValueError(f"diffusers {diffusers.__version__} has no {pipeline_class}: install 0.28 or later")
    index, scheduler = read_json(path / MODEL_INDEX_JSON), read_json(path / SCHEDULER_CONFIG_JSON)
    _check_config(path, pipeline_class, index, scheduler)
    unet, vae = (
        Network.from_module(_load_module(getattr(diffusers, name), path / part), device)
        for name, part in (("UNet2DConditionModel", "unet"), ("AutoencoderKL", "vae"))
    )
    words = Network.from_module(
        load_transformers_module(path / "text_encoder", "model.safetensors", "CLIPTextModel"), device
    )
    config: Any = words.module.config
    ends = torch.tensor([[config.vocab_size - 2, config.vocab_size - 1]])  # CLIP's tokens of begin and end are last
    text = words(ends)["last_hidden_state"].to(unet.device, unet.dtype)
    try:  # whether the parts are of one model
        with torch.inference_mode():
            x = torch.zeros(1, 3, 64, 64, device=vae.device, dtype=vae.dtype)
            latent: Any = vae.module.encode(x).latent_dist.mode()  # type: ignore[operator]
            predicted_latent = unet.module(torch.cat([latent, latent], dim=1), 1, text).sample
            vae.module.decode(predicted_latent)  # type: ignore[operator]
    except _CONFIG_ERRORS as error:
        raise ValueError(f"{str(path)!r} is refused: {one_line(error, 400)}") from error
    return MarigoldPipeline(pipeline_class, unet, vae, text, index, scheduler)


def _check_config(path: Path, pipeline_class: str, model_index: dict[str, Any], scheduler: dict[str, Any]) -> None:
    import diffusers

    if model_index.get("_class_name") != pipeline_class:
        raise ValueError(f"{str(path)!r} is a {model_index.get('_class_name')!r:.80}, expected a {pipeline_class}")
    for name in ("default_denoising_steps", "default_processing_resolution"):
        value = model_index.get(name)
        if value is not None and not (type(value) is int and 0 <= value <= 2**16):
            raise ValueError(f"{str(path)!r} has the {name} {value!r:.40}, expected a whole number")
    check_config_numbers(repr(str(path / SCHEDULER_CONFIG_JSON)), scheduler)
    class_name = scheduler.get("_class_name")
    if class_name not in _SCHEDULER_CLASSES:
        raise ValueError(
            f"{str(path)!r} has the scheduler {class_name!r:.80}, expected one of: {', '.join(_SCHEDULER_CLASSES)}"
        )
    try:
        getattr(diffusers, class_name).from_config(scheduler).set_timesteps(
            model_index.get("default_denoising_steps") or 1
        )
    except _CONFIG_ERRORS as error:
        raise ValueError(f"{str(path)!r}'s scheduler is refused: {one_line(error, 300)}") from error


def _load_module(model_class: Callable[..., Any], path: Path) -> nn.Module:
    import torch

    config, tensors = read_json(path / CONFIG_JSON), read_weights(path / _WEIGHTS_NAME).tensors
    check_config_numbers(repr(str(path / CONFIG_JSON)), config, tensors)
    try:
        with torch.device("meta"), limit_parameters(tensors):  # or 865 million weights are drawn only to be overwritten
            module = model_class.from_config(config)  # type: ignore[attr-defined]
        module.load_state_dict({_rename_attention_key(key): tensor for key, tensor in tensors.items()}, assign=True)
    except _CONFIG_ERRORS as error:
        raise ValueError(f"{str(path)!r} is refused: {one_line(error, 400)}") from error
    return module


def _rename_attention_key(key: str) -> str:
    *before, part, last = key.split(".") if key.count(".") else ("", key)
    return (
        ".".join([*before, _OLD_ATTENTION_KEYS[part], last])
        if part in _OLD_ATTENTION_KEYS and "attentions" in before
        else key
    )


class _Marigold:
    """The parameters that the preprocessors share; a subclass loads `pipeline`, and renders what it predicts."""

    pipeline: MarigoldPipeline

    def __call__(
        self,
        image: np.ndarray,
        steps: Annotated[int, Range(1, 100)] | None = None,
        ensemble: Annotated[int, Range(1, 20)] = 1,
        seed: Annotated[int, Range(0, 2**32 - 1)] = 0,
        processing: Annotated[int, Range(0, 2048)] | None = None,
    ) -> DepthRenderer | tuple[np.ndarray, np.ndarray]:
        return self.render(self.pipeline(image, steps, ensemble, seed, processing))

    def render(self, prediction: np.ndarray) -> DepthRenderer | tuple[np.ndarray, np.ndarray]:
        """Render a prediction `(H, W, channels)` as the map and its values."""
        raise NotImplementedError


MARIGOLD_DEPTH_FILES = make_marigold_files("prs-eth/marigold-depth-v1-1", "OpenRAIL++-M")


@preprocessor("depth_marigold", makes="depth", weights=MARIGOLD_DEPTH_FILES)
class DepthMarigold(_Marigold):
    """Depth by Marigold, drawn anew for each `seed`; the map's values (H, W), about 0..1, are more where it is farther,
    of unknown scale and offset. Of an `ensemble` of drawings it is the median. `steps` and `processing`, the longer
    side in pixels at which it works, a multiple of 8 (0: the image's own), are by default the model's own."""

    def __init__(self, device: str | Device, library: Library):
        self.pipeline = load_marigold(library, MARIGOLD_DEPTH_FILES, "MarigoldDepthPipeline", device)

    def render(self, prediction: np.ndarray) -> DepthRenderer:
        """Render depth `(H, W, 1)`, near white."""
        depth = prediction[..., 0]
        sign = 1 if self.pipeline.model_index.get("prediction_type") == "disparity" else -1

        def at(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
            inside = depth[:height, :width]
            return encode_inverse_depth(sign * inside), inside

        return at


MARIGOLD_NORMALS_FILES = make_marigold_files("prs-eth/marigold-normals-v1-1", "OpenRAIL++-M")
_FLIP_X = np.array([-1, 1, 1], np.float32)  # Marigold's x is to the right


@preprocessor("normal_marigold", makes="normals", weights=MARIGOLD_NORMALS_FILES)
class NormalMarigold(_Marigold):
    """Normals by Marigold for ControlNet 1.1, drawn anew for each `seed`; the map's values are the unit normals
    (H, W, 3), left, up and to the viewer. Of an `ensemble` of drawings it is, at each pixel, the one nearest to their
    mean. `steps` and `processing` as for depth_marigold."""

    def __init__(self, device: str | Device, library: Library):
        self.pipeline = load_marigold(library, MARIGOLD_NORMALS_FILES, "MarigoldNormalsPipeline", device)

    def render(self, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Render normals `(H, W, 3)` in ControlNet 1.1's colors."""
        n = prediction * _FLIP_X
        return encode_normals(n), n
