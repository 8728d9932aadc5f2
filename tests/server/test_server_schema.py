"""The OpenAPI document: valid, of every route, and of the bounds that readers have."""

from __future__ import annotations

from typing import Any

import pytest
from serving import white

from controlnet_ext.sdwebui.catalog import ModelCatalog
from controlnet_ext.sdwebui.limits import RequestLimits
from controlnet_ext.sdwebui.requests import parse_generation_request
from controlnet_ext.sdwebui.units import parse_webui_unit
from controlnet_ext.server.service import Service

pytest.importorskip("starlette", reason="needs controlnet-ext[serve]")
LIMITS = RequestLimits(max_units=2, max_side=256, max_steps=9, max_images=3)
NAME = "embedded/canny [00000000]"


@pytest.fixture(scope="module", params=[False, True], ids=["open", "guarded"])
def document(request: pytest.FixtureRequest) -> dict[str, Any]:
    from controlnet_ext.server import schema

    return schema.make_openapi_document(routes(), LIMITS, [NAME], request.param)


def routes() -> list[Any]:
    """Those of an application whose engine is never asked."""
    from controlnet_ext.server.app import create_app

    nothing: Any = None
    return create_app(
        Service(nothing, ModelCatalog([], "other"), nothing, LIMITS), nothing, None, ("127.0.0.1",)
    ).routes


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    validator = pytest.importorskip("openapi_spec_validator", reason="needs openapi-spec-validator from PyPI")
    validator.validate(document)


def test_the_document_has_every_route_and_its_methods(document: dict[str, Any]) -> None:
    described = {(path, method.upper()) for path, operations in document["paths"].items() for method in operations}
    assert described == {(route.path, method) for route in routes() for method in route.methods - {"HEAD"}}


def test_every_reference_leads_to_a_schema_and_every_schema_is_used(document: dict[str, Any]) -> None:
    found: set[str] = set()

    def look(value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if key == "$ref":
                found.add(inner)
            elif isinstance(inner, dict | list):
                look(inner)

    look(document)
    assert found == {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}


def test_only_health_is_open_where_a_token_is_needed(document: dict[str, Any]) -> None:
    if "security" in document:
        open_ones = [path for path, each in document["paths"].items() if any("security" in op for op in each.values())]
        assert open_ones == ["/health"] and "401" in document["paths"]["/sdapi/v1/txt2img"]["post"]["responses"]
    else:
        assert "401" not in str(document["paths"])


@pytest.mark.parametrize("name", ["Unit", "TextToImage", "ImageToImage"])
def test_numbers_are_taken_up_to_the_bounds_of_the_schema_and_not_beyond(document: dict[str, Any], name: str) -> None:
    properties = document["components"]["schemas"][name]["properties"]
    bounded = {key: each for key, each in properties.items() if "maximum" in each}
    assert bounded

    def read(key: str, value: Any) -> None:
        if name == "Unit":
            parse_webui_unit({"model": "m", "image": white(8, 8), key: value}, "unit 1")
        else:
            asked = {
                "init_images": [white(8, 8)],
                "mask": white(8, 8),
                "enable_hr": key[:3] in ("hr_", "den"),
                key: value,
            }
            parse_generation_request(asked, (64, 64), LIMITS, name == "ImageToImage")

    for key, each in bounded.items():
        if key == "batch_size":
            assert each["maximum"] == LIMITS.max_images
        step = each.get("multipleOf", 1)
        read(key, each["minimum"])
        read(key, each["maximum"])
        for beyond in (each["minimum"] - step, each["maximum"] + step):
            with pytest.raises(ValueError, match=key):
                read(key, beyond)


def test_the_words_of_the_schema_are_read(document: dict[str, Any]) -> None:
    properties = document["components"]["schemas"]["Unit"]["properties"]
    for key, each in properties.items():
        words = [word for part in each.get("anyOf", [each]) for word in part.get("enum", ())]
        for word in words:
            assert parse_webui_unit({"enabled": True, key: word}, "unit 1") is not None
    assert NAME in properties["model"]["anyOf"][0]["enum"]
    assert {"canny", "openpose_full"} <= set(properties["module"]["anyOf"][0]["enum"])


def test_a_size_is_bounded_where_it_costs(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["TextToImage"]["properties"]["width"]["maximum"] == 256
    assert schemas["TextToImage"]["properties"]["prompt"]["maxLength"] == 10_000
    assert schemas["Picture"]["maxLength"] == 64 * 2**20
    units = schemas["TextToImage"]["properties"]["alwayson_scripts"]["properties"]["ControlNet"]["properties"]["args"]
    assert units["maxItems"] == 2
