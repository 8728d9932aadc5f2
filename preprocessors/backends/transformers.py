"""Networks of transformers, in folders like the Hub's: config.json, preprocessor_config.json, weights.

How much a configuration may ask for: nobody has looked at its numbers, and a network of a million layers or widths
takes hours and all memory before it turns out not to be the one whose weights lie beside it.

Pictures as networks that begin with weights of ImageNet read them.

Pictures as the networks of transformers read them: what a preprocessor_config.json says, typed out. transformers'
own classes for it change their names between versions, some of them need torchvision, OneFormer's a download.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...files.disk import read_json
from ...files.hub import WeightsFile
from ...files.image_formats import check_pixels
from ..edges.soft_edges import tensor
from .torch import Device, Network

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..library import Library


_COUNT = 2**16  # no count in the configurations of published networks of pictures is larger, but of words
_SPARE_TENSORS = 1000  # tensors that a network may have beside twice those of its file


def check_numbers(name: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
    """Raises ValueError, beginning with `name`, if a whole number in the settings, or the sum of a list of them, is
    over 65,536 and over the longest side of the tensors."""
    sides = (side for tensor in (tensors or {}).values() for side in tensor.shape)
    most = max(_COUNT, max(sides, default=0))
    for key, value in values(settings):
        if isinstance(value, list):
            value = sum(one for one in value if isinstance(one, int))
        if isinstance(value, int) and abs(value) > most:
            raise ValueError(f"{name} has {value!s:.40} for {key!r:.80}, expected at most {most}")


def values(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every value in the settings with its key, also those in dicts and lists there."""
    waiting: list[tuple[str, Any]] = list(settings.items())
    while waiting:
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += ((key, one) for one in value)


@contextmanager
def no_larger_than(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """While a network is built in this thread: ValueError as soon as it has far more parameters than there are
    tensors, or far larger ones."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    most = 2 * len(tensors) + _SPARE_TENSORS
    largest = 2 * sum(tensor.numel() for tensor in tensors.values()) + 2**20
    thread = threading.get_ident()
    sizes: dict[tuple[int, str], int] = {}  # by module and name: loading puts other tensors in their places
    total = 0

    def count(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal total
        if parameter is None or threading.get_ident() != thread:
            return
        place = id(module), name
        total += parameter.numel() - sizes.get(place, 0)
        sizes[place] = parameter.numel()
        if len(sizes) > most or total > largest:
            raise ValueError(f"its configuration asks for more than the {len(tensors)} tensors in its file of weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


_MEAN, _DEVIATION = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)


def normalised(images: np.ndarray) -> Tensor:
    """Pictures (B, H, W, 3) in 0..1, RGB, as a tensor (B, 3, H, W) float32 of ImageNet's mean and deviation."""
    return tensor((images.astype(np.float32) - _MEAN) / _DEVIATION)


Files = tuple[WeightsFile, ...]
CONFIG, PREPARATION = "config.json", "preprocessor_config.json"
_RUNNING = {"is_training": False, "output_attentions": False, "output_hidden_states": False}  # some files say else
_SPARE = ("relative_position_index", "text_mapper")  # tensors in published files: computed from sizes; for training


def model_files(
    repo: str, licence: str, weights: str = "model.safetensors", about: int | None = None, source: str = ""
) -> Files:
    """The files of a model on the Hub, its weights last, of `about` so many bytes as `source` states; in a folder of
    weights they are in repo/."""
    settings = (WeightsFile(repo, name, folder=repo, licence=licence) for name in (CONFIG, PREPARATION))
    return (*settings, WeightsFile(repo, weights, folder=repo, licence=licence, about=about, source=source))


def folder(library: Library, files: Files) -> Path:
    """The folder that holds all of a model's files, after a download if there was none. Raises what Library.path does,
    and FileNotFoundError when the files lie apart."""
    found = [library.path(file).parents[file.path.count("/")] for file in files]
    if len(set(found)) > 1:
        raise FileNotFoundError(f"the files of {files[0].repo} lie apart, in {', '.join(sorted(set(map(str, found))))}")
    return found[0]


def transformers_network(library: Library, files: Files, name: str, device: str | Device) -> Network:
    """The network of transformers' class `name`, shared and kept as the library's others are. Its weights are read by
    our own reader and must be all of its. Raises what `folder` does, ValueError where transformers is too old for the
    class or the files are refused."""
    where = Device.of(device)

    def load() -> Network:
        place = folder(library, files)
        weights = library.path(files[-1]).name  # which may be another than its own
        return Network.on(transformers_module(place, weights, name), where)

    return library.pool.get((files, name, where), load)


def transformers_class(name: str) -> Any:
    """A class of transformers, of image processors the one that needs no torchvision. ValueError where transformers
    has none."""
    import transformers

    for candidate in (f"{name}Pil", name) if name.endswith("ImageProcessor") else (name,):
        if hasattr(transformers, candidate):
            return getattr(transformers, candidate)
    raise ValueError(f"transformers {transformers.__version__} has no {name}: install a later one")


def architecture(path: Path) -> str:
    """The class of transformers that a folder's config.json names, "none" without one."""
    names = read_json(path / CONFIG).get("architectures")
    return str(names[0]) if isinstance(names, list) and names else "none"


def transformers_module(path: Path, weights: str, name: str) -> nn.Module:
    """The network of transformers' class `name` in a folder with config.json and a file of weights, which are all of
    its. Raises ValueError as `transformers_network` does."""
    from ...files.weights import read_weights

    kind = transformers_class(name)
    settings = read_json(path / CONFIG)
    settings |= {key: _RUNNING[key] for key in settings.keys() & _RUNNING}
    tensors = read_weights(path / weights).tensors
    check_numbers(repr(str(path / CONFIG)), settings, tensors)
    if others := [value for key, value in values(settings) if key == "backbone" and isinstance(value, str)]:
        raise ValueError(  # transformers would ask the Hub for it
            f"{str(path / CONFIG)!r} names another network, {others[0]!r:.80}, as its backbone: expected all in here"
        )
    try:
        config = kind.config_class.from_dict(settings)
        with no_larger_than(tensors):
            module, report = kind.from_pretrained(None, config=config, state_dict=tensors, output_loading_info=True)
    except _refusals() as error:
        raise ValueError(f"{str(path)!r} is refused: {' '.join(str(error).split())[:400]}") from error
    more = [key for key in report["unexpected_keys"] if not any(part in _SPARE for part in key.split("."))]
    if wrong := sorted(map(str, [*report["missing_keys"], *more, *report["mismatched_keys"]])):
        raise ValueError(f"{str(path)!r} is refused: {len(wrong)} tensors are not {name}'s, such as {wrong[0]}")
    return module


def _refusals() -> tuple[type[Exception], ...]:
    """What transformers raises at a config.json that is not of the network: its numbers are not looked at before they
    are used. RuntimeError also for the shapes of tensors."""
    import huggingface_hub

    strict = getattr(huggingface_hub.errors, "StrictDataclassError", ValueError)  # of huggingface_hub from 0.35 on
    return (ValueError, RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, strict)


_BILINEAR = 2  # PIL's number
_LARGEST = 8192  # pixels of a side; published networks have up to 2560


def prepared(settings: dict[str, Any], images: np.ndarray) -> Tensor:
    """Pictures (B, H, W, 3) uint8, RGB, as a network's input (B, 3, h, w) float32, by a preprocessor_config.json's
    size, resample, image_mean and image_std. Raises ValueError when it has none of these, or when they are absurd."""
    from PIL import Image

    height, width = input_size(settings, images.shape[1], images.shape[2])
    if (height, width) != images.shape[1:3]:
        way = Image.Resampling(settings.get("resample", _BILINEAR))
        images = np.stack([np.asarray(Image.fromarray(image).resize((width, height), way)) for image in images])
    mean, deviation = (_three(settings, key) for key in ("image_mean", "image_std"))
    return tensor((images.astype(np.float32) / 255 - mean) / deviation)


def input_size(settings: dict[str, Any], height: int, width: int) -> tuple[int, int]:
    """Height and width of the input for a picture of these. As transformers' classes have it: exactly that; or the
    short side so long, unless the long one then were too long; or only the long side so long. A lone number is a
    square's, beside a max_size the short side. Raises as `prepared`."""
    size = settings.get("size")
    if isinstance(size, int):
        longest = settings.get("max_size")
        size = {"height": size, "width": size} if longest is None else {"shortest_edge": size, "longest_edge": longest}
    size = {key: value for key, value in size.items() if value is not None} if isinstance(size, dict) else {}
    whole = size.keys() >= {"height", "width"}
    known = whole or "shortest_edge" in size or "longest_edge" in size
    if not known or not all(type(value) is int and 0 < value <= _LARGEST for value in size.values()):
        raise ValueError(
            f"preprocessor_config.json has the size {settings.get('size')!r:.80}, expected sides in pixels"
        )
    if whole:
        return size["height"], size["width"]
    short, long = min(height, width), max(height, width)
    if "shortest_edge" not in size:
        scale = size["longest_edge"] / long
        return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)
    edge: float = size["shortest_edge"]
    if "longest_edge" in size and long / short * edge > size["longest_edge"]:
        edge = size["longest_edge"] * short / long
    shorter = max(round(edge), 1)
    longer = long if round(edge) == short else max(int(edge * long / short), 1)
    check_pixels(shorter, longer, f"a picture of {width}x{height} as a network's input")
    return (shorter, longer) if height <= width else (longer, shorter)


def _three(settings: dict[str, Any], key: str) -> np.ndarray:
    numbers = settings.get(key)
    if not isinstance(numbers, list) or len(numbers) != 3 or not all(isinstance(n, (int, float)) for n in numbers):
        raise ValueError(f"preprocessor_config.json has the {key} {numbers!r:.80}, expected three numbers")
    return np.array(numbers, np.float32)
