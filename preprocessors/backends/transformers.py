"""Networks of transformers, in folders like the Hub's: config.json, preprocessor_config.json, weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files.disk import read_json
from ...files.weights_file import WeightsFile
from .config_bounds import check_numbers, no_larger_than, values
from .torch import Device, Network

if TYPE_CHECKING:
    from torch import nn

    from ..library import Library

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
