"""Networks of transformers, from folders like the Hub's: config.json, preprocessor_config.json and weights.

Three subjects: limits for the numbers of a config, since a network of a million layers takes hours and all memory
before it turns out not to be the one of the weights; loading; and images as the networks read them. The last is typed
out here from preprocessor_config.json, because transformers' own image processors change their names between versions,
some need torchvision, and OneFormer's needs a download.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import one_line
from ...files.disk import read_json
from ...files.hub import WeightsFile
from ...files.image_formats import check_pixels
from .tensors import to_batch_tensor
from .torch import Device, Network

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..library import Library


_MAX_NUMBER = 2**16  # no count in the configurations of published networks of images is larger, but of words
_SPARE_TENSORS = 1000  # tensors that a network may have beside twice those of its file


def check_config_numbers(name: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
    """Check the whole numbers of a config. ValueError, beginning with `name`, if one of them, or the sum of a list of
    them, is over 65,536 and over the longest side of the tensors, whatever their shapes."""
    sides = (side for tensor in (tensors or {}).values() for side in tensor.shape)
    most = max(_MAX_NUMBER, max(sides, default=0))
    for key, value in iter_config_values(settings):
        if isinstance(value, list):
            value = sum(one for one in value if isinstance(one, int))
        if isinstance(value, int) and abs(value) > most:
            raise ValueError(f"{name} has {value!s:.40} for {key!r:.80}, expected at most {most}")


def iter_config_values(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
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
def limit_parameters(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Return a context manager for the time in which a network is built in this thread: ValueError as soon as it has
    far more parameters than there are tensors, or far larger ones, whatever their shapes."""
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


_MEAN, _STD = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)


def normalize_imagenet(images: np.ndarray) -> Tensor:
    """Images (B, H, W, 3) in 0..1, RGB, as a tensor (B, 3, H, W) float32 of ImageNet's mean and deviation."""
    return to_batch_tensor((images.astype(np.float32) - _MEAN) / _STD)


ModelFiles = tuple[WeightsFile, ...]
CONFIG_JSON, PREPROCESSOR_CONFIG_JSON = "config.json", "preprocessor_config.json"
_INFERENCE_SETTINGS = {
    "is_training": False,
    "output_attentions": False,
    "output_hidden_states": False,
}  # some files say else
_IGNORED_TENSORS = (
    "relative_position_index",
    "position_ids",
    "text_mapper",
)  # tensors in published files: computed from sizes; for training


def make_model_files(
    repo: str, license: str, weights: str = "model.safetensors", approx_size: int | None = None, source: str = ""
) -> ModelFiles:
    """The files of a model on the Hub, its weights last, of `about` so many bytes as `source` states; in a folder of
    weights they are in repo/."""
    settings = (
        WeightsFile(repo, name, webui_folder=repo, license=license) for name in (CONFIG_JSON, PREPROCESSOR_CONFIG_JSON)
    )
    return (
        *settings,
        WeightsFile(repo, weights, webui_folder=repo, license=license, approx_size=approx_size, source=source),
    )


def fetch_model_folder(library: Library, files: ModelFiles) -> Path:
    """The folder that holds all of a model's files, after a download if there was none. Raises what Library.path does,
    and FileNotFoundError when the files lie apart."""
    folders = [library.fetch(file).parents[file.path.count("/")] for file in files]
    if len(set(folders)) > 1:
        raise FileNotFoundError(
            f"the files of {files[0].repo} lie apart, in {', '.join(sorted(set(map(str, folders))))}"
        )
    return folders[0]


def load_transformers_network(library: Library, files: ModelFiles, class_name: str, device: str | Device) -> Network:
    """The network of transformers' class `name`, shared and kept as the library's others are. Its weights are read by
    our own reader and must be all of its. Raises what `folder` does, ValueError where transformers is too old for the
    class or the files are refused."""
    where = Device.coerce(device)

    def load() -> Network:
        place = fetch_model_folder(library, files)
        weights = library.fetch(files[-1]).name  # which may be another than its own
        return Network.from_module(load_transformers_module(place, weights, class_name), where)

    return library.cache.get_or_create((files, class_name, where), load)


def import_transformers_class(class_name: str) -> Any:
    """A class of transformers, of image processors the one that needs no torchvision. ValueError where transformers
    has none."""
    import transformers

    for candidate in (f"{class_name}Pil", class_name) if class_name.endswith("ImageProcessor") else (class_name,):
        if hasattr(transformers, candidate):
            return getattr(transformers, candidate)
    raise ValueError(f"transformers {transformers.__version__} has no {class_name}: install a later one")


def read_architecture(path: Path) -> str:
    """The class of transformers that a folder's config.json names, "none" without one."""
    names = read_json(path / CONFIG_JSON).get("architectures")
    return str(names[0]) if isinstance(names, list) and names else "none"


def load_transformers_module(path: Path, weights_name: str, class_name: str) -> nn.Module:
    """The network of transformers' class `name` in a folder with config.json and a file of weights, which are all of
    its. Raises ValueError as `load_transformers_network` does."""
    from ...files.weights import read_weights

    kind = import_transformers_class(class_name)
    settings = read_json(path / CONFIG_JSON)
    settings |= {key: _INFERENCE_SETTINGS[key] for key in settings.keys() & _INFERENCE_SETTINGS}
    tensors = read_weights(path / weights_name).tensors
    check_config_numbers(repr(str(path / CONFIG_JSON)), settings, tensors)
    if others := [value for key, value in iter_config_values(settings) if key == "backbone" and isinstance(value, str)]:
        raise ValueError(  # transformers would ask the Hub for it
            f"{str(path / CONFIG_JSON)!r} names another network, {others[0]!r:.80}, as its backbone: "
            "expected all in here"
        )
    try:
        config = kind.config_class.from_dict(settings)
        with limit_parameters(tensors):
            module, report = kind.from_pretrained(None, config=config, state_dict=tensors, output_loading_info=True)
    except _list_config_errors() as error:
        raise ValueError(f"{str(path)!r} is refused: {one_line(error, 400)}") from error
    more = [key for key in report["unexpected_keys"] if not any(part in _IGNORED_TENSORS for part in key.split("."))]
    if wrong := sorted(map(str, [*report["missing_keys"], *more, *report["mismatched_keys"]])):
        raise ValueError(f"{str(path)!r} is refused: {len(wrong)} tensors are not {class_name}'s, such as {wrong[0]}")
    return module


def _list_config_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that transformers raises at a config.json that is not of the network, whose numbers it does
    not check before use; RuntimeError also for the shapes of tensors."""
    import huggingface_hub

    strict = getattr(huggingface_hub.errors, "StrictDataclassError", ValueError)  # of huggingface_hub from 0.35 on
    return (ValueError, RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, strict)


_BILINEAR = 2  # PIL's number
_MAX_INPUT_SIDE = 8192  # pixels of a side; published networks have up to 2560


def preprocess_images(settings: dict[str, Any], images: np.ndarray) -> Tensor:
    """Images (B, H, W, 3) uint8, RGB, as a network's input (B, 3, h, w) float32, by a preprocessor_config.json's
    size, resample, image_mean and image_std. Raises ValueError when it has none of these, or when they are absurd."""
    from PIL import Image

    height, width = compute_input_size(settings, images.shape[1], images.shape[2])
    if (height, width) != images.shape[1:3]:
        way = Image.Resampling(settings.get("resample", _BILINEAR))
        images = np.stack([np.asarray(Image.fromarray(image).resize((width, height), way)) for image in images])
    mean, deviation = (_read_three_numbers(settings, key) for key in ("image_mean", "image_std"))
    return to_batch_tensor((images.astype(np.float32) / 255 - mean) / deviation)


def compute_input_size(settings: dict[str, Any], height: int, width: int) -> tuple[int, int]:
    """Compute the height and width of a network's input for an image of these. As in transformers' classes: exactly the
    configured size; or the short side of that length, unless the long one then were too long; or only the long side
    of that length. A lone number is a square's side, beside a max_size the short side. ValueError as
    `preprocess_images`."""
    size = settings.get("size")
    if isinstance(size, int):
        longest = settings.get("max_size")
        size = {"height": size, "width": size} if longest is None else {"shortest_edge": size, "longest_edge": longest}
    size = {key: value for key, value in size.items() if value is not None} if isinstance(size, dict) else {}
    whole = size.keys() >= {"height", "width"}
    is_supported = whole or "shortest_edge" in size or "longest_edge" in size
    if not is_supported or not all(type(value) is int and 0 < value <= _MAX_INPUT_SIDE for value in size.values()):
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
    check_pixels(shorter, longer, f"an image of {width}x{height} as a network's input")
    return (shorter, longer) if height <= width else (longer, shorter)


def _read_three_numbers(settings: dict[str, Any], key: str) -> np.ndarray:
    numbers = settings.get(key)
    if not isinstance(numbers, list) or len(numbers) != 3 or not all(isinstance(n, (int, float)) for n in numbers):
        raise ValueError(f"preprocessor_config.json has the {key} {numbers!r:.80}, expected three numbers")
    return np.array(numbers, np.float32)
