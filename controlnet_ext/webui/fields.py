"""Units as the values of the panel's components, and as other scripts change them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from .gradio_images import read_canvas

PANEL_UNIT_FIELDS = (
    *("enabled", "image", "mask", "module", "model", "weight", "weight_schedule", "guidance_start", "guidance_end"),
    *("control_mode", "resize_mode", "hr_option", "processor_res", "threshold_a", "threshold_b", "pixel_perfect"),
    *("low_vram", "union_control_type", "advanced_weighting", "effective_region_mask", "save_detected_map"),
    *("batch_folder", "loopback"),
)
PANEL_ONLY_FIELDS = ("batch_folder", "loopback")  # no request's JSON names a folder
PROCESSING_ATTRIBUTES = {  # of a request, by which scripts of old set a field of all units, or by a list one of each
    "control_net_input_image": "image",
    "control_net_image": "image",
    "control_net_lowvram": "low_vram",
    "control_net_pres": "processor_res",
    "control_net_pthr_a": "threshold_a",
    "control_net_pthr_b": "threshold_b",
    "control_net_guidance_strength": "guidance_end",
    **{
        f"control_net_{name}": name
        for name in (
            *("enabled", "module", "model", "weight", "resize_mode", "guidance_start", "guidance_end"),
            *("control_mode", "pixel_perfect"),
        )
    },
}
AXES_ATTRIBUTE = "controlnet_axes"  # of a request: what the XYZ script sets


def iter_panel_units(args: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """The units that the components' values say."""
    for begin in range(0, len(args) - len(PANEL_UNIT_FIELDS) + 1, len(PANEL_UNIT_FIELDS)):
        said = dict(zip(PANEL_UNIT_FIELDS, args[begin : begin + len(PANEL_UNIT_FIELDS)], strict=True))
        yield {
            **said,
            "image": read_canvas(said["image"]),
            "advanced_weighting": _parse_layer_weights(said["advanced_weighting"]),
        }


def parse_unit_arguments(args: Sequence[Any]) -> list[dict[str, Any]]:
    """Units at their places: the panel's values, of which the first is a bool, or objects and nulls, after which the
    host leaves the panel's own values. ValueError on anything else."""
    args = list(args)
    if args and isinstance(args[0], bool):
        return list(iter_panel_units(args))
    if args and args[0] is not None and not isinstance(args[0], Mapping):
        raise ValueError(f"unit 1 is {args[0]!r:.60}, expected an object")
    said = list(takewhile(lambda each: each is None or isinstance(each, Mapping), args))
    while said and said[-1] is None:
        said.pop()
    return [{key: each[key] for key in each if key not in PANEL_ONLY_FIELDS} if each else {} for each in said]


def read_request_units(args: Sequence[Any], p: Any, with_script_control: bool) -> list[dict[str, Any]]:
    """The units of a request, as the XYZ script, or with `scripted` other scripts, changed them."""
    units = parse_unit_arguments(args)
    changes = dict(vars(p).get(AXES_ATTRIBUTE, {}))
    if with_script_control:
        changes |= {
            field: getattr(p, name)
            for name, field in PROCESSING_ATTRIBUTES.items()
            if getattr(p, name, None) is not None
        }
    for field, value in changes.items():
        each = value if isinstance(value, list | tuple) else [value] * len(units)
        for unit, given in zip(units, each, strict=False):
            if given is not None:
                unit[field] = given
    return units


def _parse_layer_weights(text: Any) -> list[float] | None:
    words = str(text or "").replace(",", " ").split()
    try:
        return [float(word) for word in words] or None
    except ValueError as error:
        raise ValueError(f"layer weights {text!r:.60}: expected numbers, such as 1, 0.8, 0.5") from error
