"""Folders of Stable Diffusion as diffusers saves them, checked before they are loaded. Code in a folder is never
run, and weights are read from .safetensors only."""

from __future__ import annotations

import codecs
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import embedded
from ..embedded import read_about, resolve_embedded
from ..errors import one_line, quote_value, suggest_names
from ..files.disk import open_regular_file, read_json
from ..files.safetensors import read_safetensors_contents

if TYPE_CHECKING:
    import torch

    from ..hosts.diffusers.host import Scheduler

PIPELINE_CLASSES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
INPAINTING_CLASSES = ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline")
REQUIRED_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
OPTIONAL_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
ALLOWED_LIBRARIES = (
    "diffusers",
    "transformers",
    "stable_diffusion",
)  # the last is diffusers' name for its safety checker
SCHEDULER_CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "kdpm2-ancestral": "KDPM2AncestralDiscreteScheduler",
    "lcm": "LCMScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
MAX_QUOTED_WORDS = 8  # of a prompt, in a sentence on those that the embedded model does not know
INITIALIZERS = ("normal_", "uniform_", "kaiming_uniform_", "trunc_normal_")
"""Functions of torch.nn.init, and methods of a tensor, that fill it with random numbers."""
TEXT_MODEL_PREFIX = "text_model."
"""Names in a CLIP text encoder begin with it, except in transformers from 5 on."""
TEXT_SUFFIXES = (".json", ".txt", ".model")  # what tokenizers and configurations are written in


@dataclass(frozen=True)
class Style:
    """A world that the embedded model draws. `name` begins a prompt and says which it is, "" for the only one; `words`
    are all that it knows there; `draws` says what that is, and `example` is a prompt."""

    name: str
    words: frozenset[str]
    draws: str
    example: str

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Style:
        """Return the style that its fields in a model's about.json describe."""
        return cls(fields["style"], frozenset(fields["words"]), fields["draws"], fields["example"])

    def begins(self, words: Sequence[str]) -> bool:
        """Return True if a prompt of these words names the style."""
        own = self.name.split()
        return list(words[: len(own)]) == own


@dataclass(frozen=True)
class PipelineFolder:
    """A folder with a model_index.json that names one of `PIPELINE_CLASSES`, or of the classes that it was found as.

    `parts` are the names of its parts and their classes in diffusers or transformers; `missing_parts` are optional ones
    that it names and does not hold. `variant` is "fp16" where it holds the UNet in that variant only. `styles` are
    those of the embedded model, none of any other."""

    path: Path
    class_name: str
    parts: dict[str, str]
    missing_parts: tuple[str, ...]
    variant: str | None
    styles: tuple[Style, ...] = ()

    @classmethod
    def find(cls, path_or_repo: str, classes: Sequence[str] = PIPELINE_CLASSES) -> PipelineFolder:
        """Return the folder of a path, of `embedded`, or of a Hub repository `owner/name` in the local cache, which
        holds a pipeline of these classes. Nothing is downloaded. Raises FileNotFoundError or ValueError in one line
        where it is not such a folder."""
        path = _locate_folder(path_or_repo)
        index = read_json(path / "model_index.json")
        name, kind = repr(str(path)), index.get("_class_name")
        if kind not in classes:
            raise ValueError(f"{name} is a {str(kind)[:80]!r}, expected one of {', '.join(classes)}")
        parts, missing = {}, []
        for part, entry in index.items():
            if not isinstance(entry, list) or part.startswith("_") or entry == [None, None]:
                continue
            if (
                len(entry) != 2
                or entry[0] not in ALLOWED_LIBRARIES
                or not re.fullmatch(r"(?!Auto[A-Z])\w{1,80}", str(entry[1]))
            ):
                raise ValueError(f"{name} wants {str(entry)[:80]} as its {part[:40]!r}, which would run other code")
            if part in OPTIONAL_PARTS and not (path / part).is_dir():
                missing.append(part)
            else:
                parts[part] = entry[1]
        for part in REQUIRED_PARTS:
            if part not in parts or not (path / part).is_dir():
                raise FileNotFoundError(f"{name} has no {part!r}, which a {kind} needs")
        plain, fp16 = (path / "unet" / f"diffusion_pytorch_model{suffix}.safetensors" for suffix in ("", ".fp16"))
        variant = "fp16" if fp16.exists() and not plain.exists() else None
        styles = read_about(path).get("styles", []) if path == embedded.EMBEDDED_FOLDER else []
        folder = cls(path, str(kind), parts, tuple(missing), variant, tuple(map(Style.parse, styles)))
        for part in ("unet", "vae", *(part for part in parts if part.startswith("text_encoder"))):
            folder._check_weights(part)
        folder._check_encodings()
        return folder

    def files(self) -> dict[str, Path]:
        """Return the files on which an image depends, by their names in the folder."""
        paths = {"model_index.json": self.path / "model_index.json"}
        for part in sorted(self.parts):
            for file in sorted((self.path / part).iterdir()):
                if file.suffix in TEXT_SUFFIXES or file in self._list_weights(part):
                    paths[f"{part}/{file.name}"] = file
        return paths

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels that the model was trained for. Raises ValueError if its configs state none."""
        side = read_json(self.path / "unet" / "config.json").get("sample_size")
        if type(side) is not int or not self._vae_widths:
            raise ValueError(f"{str(self.path)!r} states no size: name one with --size WIDTHxHEIGHT")
        return (side * self.vae_scale_factor,) * 2

    @property
    def vae_scale_factor(self) -> int:
        """Factor by which the image is larger than its latents, in height and in width.

        Raises ValueError if the VAE's config states no levels.
        """
        if not self._vae_widths:
            raise ValueError(f"{str(self.path / 'vae')!r} states no block_out_channels in its config")
        return int(2 ** (len(self._vae_widths) - 1))

    @property
    def _vae_widths(self) -> list[int]:
        """The widths of the VAE's levels, as AutoencoderKL or AutoencoderTiny state them; empty without any."""
        config = read_json(self.path / "vae" / "config.json")
        widths = config.get("block_out_channels", config.get("encoder_block_out_channels"))
        return widths if isinstance(widths, list) else []

    def describe_unknown_words(self, *prompts: str | None, negative: str | None = None) -> str | None:
        """Return a sentence on the words of prompts that the embedded model does not know, and on prompts that name
        none of its styles; None if there is nothing to say, or this is another model."""
        return _describe_unknown_words(self.styles, prompts, negative) if self.styles else None

    def make_meta_unet(self) -> Any:
        """Return its UNet without weights, on torch's meta device, to check control models against."""
        import torch
        from diffusers import UNet2DConditionModel

        config = read_json(self.path / "unet" / "config.json")
        _check_config_numbers(config, f"{str(self.path)!r}: its UNet")
        with _wrap_load_errors(f"{str(self.path)!r}: its UNet"), torch.device("meta"):
            return UNet2DConditionModel.from_config(config)

    def make_scheduler(self, name: str | None) -> Any:
        """Return its own scheduler, or with the same settings the one of a name or class in `SCHEDULER_CLASSES`. Raises
        ValueError with the nearest names."""
        import diffusers

        own = self.parts["scheduler"]
        class_name = SCHEDULER_CLASSES.get((name or own).casefold(), name or own)
        if class_name not in (own, *SCHEDULER_CLASSES.values()):
            raise ValueError(suggest_names(f"unknown scheduler {class_name!r:.80}", class_name, SCHEDULER_CLASSES))
        config = read_json(self.path / "scheduler" / "scheduler_config.json")
        _check_config_numbers(config, f"{str(self.path)!r}: its scheduler")
        with _wrap_load_errors(f"{str(self.path)!r}: its scheduler"):
            scheduler = getattr(diffusers, own).from_config(config)
            if class_name == own:
                return scheduler
            more = {"skip_prk_steps": True} if class_name == "PNDMScheduler" else {}  # as Stable Diffusion has it
            return getattr(diffusers, class_name).from_config(scheduler.config, **more)

    def load(self, dtype: torch.dtype, scheduler: Scheduler) -> Any:
        """Return the pipeline on the CPU. Raises ValueError in one line where diffusers cannot load it."""
        import diffusers

        modules: dict[str, Any] = dict.fromkeys(self.missing_parts)
        if "safety_checker" in self.missing_parts:
            modules["requires_safety_checker"] = False
        if self.class_name.startswith("StableDiffusionXL"):
            modules["add_watermarker"] = False  # or the image depends on what else is installed
        with _wrap_load_errors(repr(str(self.path))):
            if (text_encoder := self._load_text_encoder(dtype)) is not None:
                modules["text_encoder"] = text_encoder
            return getattr(diffusers, self.class_name).from_pretrained(
                str(self.path),
                torch_dtype=dtype,
                scheduler=scheduler,
                variant=self.variant,
                local_files_only=True,
                use_safetensors=True,
                **modules,
            )

    def _load_text_encoder(self, dtype: torch.dtype) -> Any:
        """Return the CLIP text encoder that `CLIPTextModel.from_pretrained` would give; None for one of another class,
        with an adapter, quantized, in several files or with other tensors, which from_pretrained has to read.

        from_pretrained prepares for all models of transformers: it compiles 1000 regular expressions and imports sympy,
        a tenth of the start."""
        folder, weights = self.path / "text_encoder", self._list_weights("text_encoder")
        has_adapter = (folder / "adapter_config.json").exists()
        if self.parts["text_encoder"] != "CLIPTextModel" or len(weights) != 1 or has_adapter:
            return None
        from transformers import CLIPTextConfig, CLIPTextModel

        from ..files.weights import read_weights

        config = CLIPTextConfig.from_pretrained(str(folder), local_files_only=True)
        if config.to_dict().get("quantization_config") is not None:
            return None
        with _skip_initialization():
            model: Any = CLIPTextModel(config)
        own = {name.removeprefix(TEXT_MODEL_PREFIX): name for name in model.state_dict()}
        read = read_weights(weights[0]).tensors
        tensors = {name.removeprefix(TEXT_MODEL_PREFIX): tensor for name, tensor in read.items()}
        tensors.pop("embeddings.position_ids", None)  # numbers from 0 on, which older versions saved
        own.pop("embeddings.position_ids", None)
        if tensors.keys() != own.keys():
            return None
        model.load_state_dict(
            {own[name]: tensor.to(dtype) for name, tensor in tensors.items()}, strict=False, assign=True
        )
        return model.eval()

    def _list_weights(self, part: str) -> list[Path]:
        variant = rf"(\.{self.variant})?" if self.variant else ""
        pattern = rf"(diffusion_pytorch_model|model){variant}(-\d+-of-\d+)?{variant}\.safetensors"
        return [file for file in (self.path / part).iterdir() if re.fullmatch(pattern, file.name)]

    def _check_encodings(self) -> None:
        """Raise ValueError for JSON with a byte order mark, which Windows writes and diffusers does not read."""
        for path in self.files().values():
            if path.suffix == ".json":
                with open_regular_file(path) as file:
                    if file.read(3) == codecs.BOM_UTF8:
                        raise ValueError(
                            f"{str(path)!r} begins with a byte order mark, which diffusers does not read: save it as "
                            "UTF-8 without one"
                        )

    def _check_weights(self, part: str) -> None:
        """Raise FileNotFoundError or ValueError unless the part has weights, in files with valid headers."""
        weights = self._list_weights(part)
        if not weights:
            raise FileNotFoundError(
                f"{str(self.path / part)!r} holds no .safetensors; other formats can run code and are not loaded: save "
                "the model again with save_pretrained(folder, safe_serialization=True)"
            )
        for path in weights:
            with open_regular_file(path) as file:
                try:
                    read_safetensors_contents(file, path.stat().st_size)
                except ValueError as error:
                    raise ValueError(f"{str(path)!r} is refused: {error}") from error


MAX_CONFIG_NUMBER = 2**16  # widths, steps of training; the largest of published models are 10,240 and 1000
MAX_CONFIG_LAYERS = 64  # in a block, and entries of a list


def _check_config_numbers(config: Mapping[str, Any], name: str) -> None:
    """Raise ValueError, beginning with `name`, for numbers that would take all memory before a file is read."""
    for key, value in config.items():
        values = value if isinstance(value, list) else [value]
        most = MAX_CONFIG_LAYERS if "layers" in key else MAX_CONFIG_NUMBER
        numbers = [n for n in values if isinstance(n, int | float) and not isinstance(n, bool)]
        if key != "trained_betas" and (len(values) > MAX_CONFIG_LAYERS or any(abs(n) > most for n in numbers)):
            raise ValueError(f"{name} has {quote_value(value)} for {quote_value(key)}, expected at most {most}")


def _skip_initialization() -> AbstractContextManager[Any]:
    """Return a context in which parameters keep the memory that they are given: no numbers are drawn for them."""
    from torch.overrides import TorchFunctionMode

    class SkipInitialization(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if getattr(function, "__name__", None) in INITIALIZERS:
                return kwargs["tensor"] if "tensor" in kwargs else args[0]
            return function(*args, **kwargs)

    return SkipInitialization()


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Switch off progress bars and warnings of diffusers and transformers."""
    import transformers

    transformers.utils.logging.set_verbosity_error()  # before diffusers is imported, which makes it remark
    import diffusers

    logs = transformers.utils.logging, diffusers.utils.logging
    levels = [(log.get_verbosity(), getattr(log, "is_progress_bar_enabled", lambda: True)()) for log in logs]
    try:
        for log in logs:
            log.set_verbosity_error()
            log.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, (verbosity, bar) in zip(logs, levels, strict=True):
            log.set_verbosity(verbosity)
            (log.enable_progress_bar if bar else log.disable_progress_bar)()


def _locate_folder(path_or_repo: str) -> Path:
    path = Path(resolve_embedded(path_or_repo))
    if path.is_dir() and path_or_repo:
        if not (path / "model_index.json").exists():
            raise FileNotFoundError(f"{path_or_repo!r} holds no model_index.json, expected a folder saved by diffusers")
        return path
    if path.exists():
        raise ValueError(f"{path_or_repo!r} is a file, expected a folder saved by diffusers, or owner/name")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", path_or_repo):
        from ..files.hub import find_cached_repository

        return find_cached_repository(path_or_repo, "a folder")
    raise FileNotFoundError(f"{path_or_repo!r} does not exist; expected a folder saved by diffusers, or owner/name")


@contextmanager
def _wrap_load_errors(name: str) -> Iterator[None]:
    """Turn whatever diffusers and transformers raise while they read files into a ValueError in one line."""
    from safetensors import SafetensorError

    foreign = OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, ImportError
    try:
        yield
    except (*foreign, SafetensorError) as error:
        raise ValueError(f"{name} cannot be loaded: {one_line(error, 300)}") from error


def _describe_unknown_words(styles: Sequence[Style], prompts: Sequence[str | None], negative: str | None) -> str | None:
    everything = frozenset().union(*(style.words for style in styles))
    unknown: dict[Style | None, dict[str, None]] = {}
    has_no_style = False
    for prompt in [*prompts, negative]:
        words = re.findall(r"[^\W\d_]+", (prompt or "").casefold())
        style = next((style for style in styles if style.begins(words)), None)
        has_no_style |= bool(words) and style is None and prompt is not negative
        vocabulary = everything if style is None else style.words
        unknown.setdefault(style, {}).update(dict.fromkeys(word for word in words if word not in vocabulary))
    remarks = []
    if has_no_style:
        names = ", ".join(f'"{style.name}"' for style in styles)
        remarks.append(f"the embedded model draws what the beginning of a prompt names, one of {names}, as in: ")
        remarks[-1] += styles[0].example
    for style, some in unknown.items():
        if some:
            after = f' after "{style.name}"' if style is not None and style.name else ""
            sentence = f"the embedded model does not know {_quote_words(list(some))}{after}"
            remarks.append(sentence if style is None else f"{sentence}: it draws {style.draws}, as in: {style.example}")
    return "; ".join(remarks) or None


def _quote_words(words: Sequence[str]) -> str:
    more = f" and {len(words) - MAX_QUOTED_WORDS} more" if len(words) > MAX_QUOTED_WORDS else ""
    return ", ".join(word[:40] for word in words[:MAX_QUOTED_WORDS]) + more
