"""Our routes in the host's OpenAPI document, where FastAPI lists only those that are its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

REF = "#/components/schemas/"
PREFIX = "ControlNet"  # of our schemas' names
GUARD = "HTTPBasic"  # FastAPI's name of the host's `--api-auth`


def described(theirs: Callable[[], Any], ours: Mapping[str, Any], guarded: bool) -> Callable[[], Any]:
    """What gives the host's document, which is OpenAPI 3.0.2, with the paths of `ours` and the schemas they need."""
    paths = _as_3_0(ours["paths"])
    for operation in (each for path in paths.values() for each in path.values()):
        operation["security"] = [{GUARD: []}] if guarded else []
    schemas = {f"{PREFIX}{name}": schema for name, schema in _as_3_0(_needed(paths, ours)).items()}
    paths, schemas = (json.loads(json.dumps(each).replace(REF, REF + PREFIX)) for each in (paths, schemas))

    def both() -> Any:
        found = theirs()
        parts = found.get("components", {})
        known = {**parts.get("schemas", {}), **schemas}
        return {**found, "paths": {**found["paths"], **paths}, "components": {**parts, "schemas": known}}

    return both


def _needed(paths: Any, ours: Mapping[str, Any]) -> dict[str, Any]:
    """The schemas that paths name, and those that these name."""
    known, found, text = ours["components"]["schemas"], dict[str, Any](), json.dumps(paths)
    while names := set(re.findall(f'{REF}(\\w+)"', text)) - set(found):
        found |= {name: known[name] for name in names}
        text = json.dumps([known[name] for name in names])
    return found


def _as_3_0(value: Any) -> Any:
    """A part of an OpenAPI 3.1 document in the words of 3.0."""
    if isinstance(value, list):
        return [_as_3_0(each) for each in value]
    if not isinstance(value, dict):
        return value
    found = {key: _as_3_0(each) for key, each in value.items()}
    if isinstance(found.get("type"), list):
        (kind,) = (each for each in found["type"] if each != "null")
        found |= {"type": kind, "nullable": True}
    return found
