"""Units stored under names, in one JSON file of the host's folder of data. Images are not stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..files.disk import read_json, write_atomically

PRESETS_FILE = "controlnet_presets.json"
PRESET_FIELDS = (
    *("enabled", "module", "model", "weight", "weight_schedule", "guidance_start", "guidance_end", "control_mode"),
    *("resize_mode", "hr_option", "processor_res", "threshold_a", "threshold_b", "pixel_perfect", "low_vram"),
    *("union_control_type", "advanced_weighting", "save_detected_map"),
)


def list_preset_names() -> list[str]:
    """Return the names of presets; none if the file cannot be read."""
    try:
        return list(_read_presets())
    except ValueError:
        return []


def load(name: str) -> dict[str, Any]:
    """Return the fields of a preset. Raises ValueError if there is none of that name."""
    presets = _read_presets()
    if name not in presets:
        raise ValueError(f"there is no preset {name!r:.60}")
    return {key: value for key, value in presets[name].items() if key in PRESET_FIELDS}


def save(name: str, fields: dict[str, Any]) -> None:
    """Store these fields, in place of an earlier preset of that name. Raises ValueError for a name that is empty or
    over 100 letters."""
    if not isinstance(name, str) or not 0 < len(name.strip()) <= 100:
        raise ValueError("a preset needs a name of up to 100 letters")
    _write_presets({**_read_presets(), name.strip(): fields})


def delete(name: str) -> None:
    """Delete a preset. Raises ValueError if there is none of that name."""
    load(name)
    _write_presets({key: value for key, value in _read_presets().items() if key != name})


def _read_presets() -> dict[str, dict[str, Any]]:
    path = _presets_path()
    presets = read_json(path) if path.exists() else {}
    if not isinstance(presets, dict) or not all(isinstance(each, dict) for each in presets.values()):
        raise ValueError(f"{str(path)!r} holds no presets; move it away")
    return presets


def _write_presets(presets: dict[str, Any]) -> None:
    write_atomically(_presets_path(), json.dumps(presets, indent=1).encode(), overwrite=True)


def _presets_path() -> Path:
    from modules.paths import data_path

    return Path(data_path) / PRESETS_FILE
