"""Wording of refusals: every error message is one line that names what was given and what was expected.

Functions here build text or re-raise; the checks themselves stand where the values are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# Names that the same things have in diffusers, its training scripts, controlnet_aux, stable-diffusion-webui,
# sd-webui-controlnet and ComfyUI, with the names that they may have here.
PEER_NAMES = {
    "a1111": ("serve",),
    "annotate": ("preprocess",),
    "api_auth": ("token",),
    "batch_size": ("batch",),
    "caption": ("text",),
    "cfg": ("guidance",),
    "cfg_scale": ("guidance",),
    "checkpoint": ("model",),
    "checkpointing_steps": ("every",),
    "ckpt": ("model",),
    "conditioning_image": ("image", "map"),
    "conditioning_scale": ("weight",),
    "control_guidance_end": ("window",),
    "control_guidance_start": ("window",),
    "control_mode": ("mode",),
    "control_weight": ("weight",),
    "controlnet": ("control",),
    "controlnet_conditioning_scale": ("weight",),
    "controlnet_model_name_or_path": ("control",),
    "dataset": ("data",),
    "dataset_name": ("data",),
    "ddim_steps": ("steps",),
    "detect_resolution": ("resolution",),
    "detection_resolution": ("resolution",),
    "dpm++_2m": ("dpm++",),
    "dpm++_2m_karras": ("dpm++",),
    "dpm2": ("kdpm2",),
    "dpm2_a": ("kdpm2-ancestral",),
    "dpm_2": ("kdpm2",),
    "dpm_2_ancestral": ("kdpm2-ancestral",),
    "dpmpp": ("dpm++",),
    "dpmpp_2m": ("dpm++",),
    "dpmsolver": ("dpm++",),
    "dpmsolver++": ("dpm++",),
    "end_percent": ("window",),
    "epochs": ("steps",),
    "euler_a": ("euler-ancestral",),
    "gradient_accumulation_steps": ("accumulate",),
    "guidance_end": ("window",),
    "guidance_scale": ("guidance",),
    "guidance_start": ("window",),
    "height": ("size",),
    "high_threshold": ("high",),
    "image_resolution": ("resolution",),
    "img2img": ("generate",),
    "input_image": ("image",),
    "k_dpm_2": ("kdpm2",),
    "k_dpm_2_a": ("kdpm2-ancestral",),
    "k_euler": ("euler",),
    "k_euler_a": ("euler-ancestral",),
    "k_euler_ancestral": ("euler-ancestral",),
    "k_heun": ("heun",),
    "learning_rate": ("rate",),
    "listen": ("host",),
    "low_threshold": ("low",),
    "lr": ("rate",),
    "mask_image": ("mask",),
    "max_train_steps": ("steps",),
    "n_iter": ("steps",),
    "neg": ("negative",),
    "negative_prompt": ("negative",),
    "num_inference_steps": ("steps",),
    "num_workers": ("jobs",),
    "out": ("output",),
    "outdir": ("output",),
    "output_dir": ("output",),
    "plms": ("pndm",),
    "pretrained_model_name_or_path": ("model",),
    "processor_res": ("resolution",),
    "recurse": ("recursive",),
    "res": ("resolution", "size"),
    "resize_mode": ("fit",),
    "resolution": ("size",),
    "sampler": ("scheduler",),
    "sampler_name": ("scheduler",),
    "sampling_steps": ("steps",),
    "save_every": ("every",),
    "scale": ("weight", "guidance"),
    "sd_model": ("model",),
    "start_percent": ("window",),
    "strength": ("weight",),
    "train_batch_size": ("batch",),
    "train_data_dir": ("data",),
    "txt2img": ("generate",),
    "uni_pc": ("unipc",),
    "validation_steps": ("every",),
    "width": ("size",),
    "workers": ("jobs",),
}


def escape_unprintable(text: object) -> str:
    r"""Return the text with every character that a terminal would obey written as in a literal: `\n`, `\x1b`, `\u202e`.

    Foreign text (names of files, keys, fields) can neither begin a line of its own nor color, move or hide others.
    """
    words = str(text)
    return words if words.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)


def one_line(error: BaseException | str, limit: int | None = None) -> str:
    """Return the text of `error` on one line, cut after `limit` characters; of an error without text, its type."""
    text = escape_unprintable(" ".join(str(error).split()))
    if not text and isinstance(error, BaseException):
        text = type(error).__name__
    return text[:limit]


def quote_value(value: object, limit: int = 40) -> str:
    """Return the `repr` of a foreign value on one line, with an ellipsis where it is longer than `limit` characters."""
    text = escape_unprintable(" ".join(repr(value).split()))  # the repr of an array has several lines
    return text if len(text) <= limit else text[: limit - 1] + "…"


@contextmanager
def error_prefix(name: str) -> Iterator[None]:
    """Prefix errors about input with `name`: `ValueError("x")` inside becomes `ValueError("name: x")`.

    FileNotFoundError, TypeError and ValueError keep their type; other errors pass unchanged.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(escape_unprintable(f"{name}: {error}")) from error
    except TypeError as error:
        raise TypeError(escape_unprintable(f"{name}: {error}")) from error
    except ValueError as error:
        raise ValueError(escape_unprintable(f"{name}: {error}")) from error


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`, such as `mode 'x' is none of: balanced, prompt, control`."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name} {quote_value(value, 80)} is none of: {', '.join(choices)}")


def suggest_names(message: str, name: str, known_names: Iterable[str]) -> str:
    """Append the known names most like `name` to `message`: `unknown command 'x', the nearest are: a, b, c`.

    Where `name` is what a peer calls one of them, that one alone: `unknown scheduler 'euler_a'; it is called
    euler-ancestral here`.
    """
    known_names = tuple(known_names)
    if own_name := _find_peer_name(name, known_names):
        return escape_unprintable(f"{message}; it is called {own_name} here")
    return escape_unprintable(f"{message}, the nearest are: {closest_names(name, known_names)}")


def _find_peer_name(name: str, known_names: Iterable[str]) -> str | None:
    """Return the known name that `name` is written otherwise, or that a peer calls so, None if there is none."""
    by_form = {_normalize_name(own_name): own_name for own_name in known_names}
    form = _normalize_name(name)
    return next(
        (
            by_form[form_of_peer]
            for each in (form, *PEER_NAMES.get(form, ()))
            if (form_of_peer := _normalize_name(each)) in by_form
        ),
        None,
    )


def _normalize_name(name: str) -> str:
    return name[:80].casefold().lstrip("-").replace("-", "_").replace(" ", "_")


def closest_names(name: str, known_names: Iterable[str]) -> str:
    """Return the three known names most like `name`, comma-separated: those that contain it, then by common letters."""
    from difflib import SequenceMatcher  # only where something is wrong already

    name = name.casefold()[:80]
    alike = {other: SequenceMatcher(None, name, other.casefold()).ratio() for other in known_names}
    return ", ".join(sorted(alike, key=lambda other: (name not in other.casefold(), -alike[other]))[:3])
