"""The OpenAPI document: valid, of every route, and of the bounds that readers have."""

from __future__ import annotations

from typing import Any

import pytest
from controlnet_ext.preprocessors.registry import find
from serving import white

from controlnet_ext.sdwebui.catalog import ModelCatalog
from controlnet_ext.sdwebui.detect import DetectFields, detect_maps
from controlnet_ext.sdwebui.fields import ImageField, JsonObject, RequestLimits, UnsupportedField
from controlnet_ext.sdwebui.infotext import UNIT_TEXT_FIELDS
from controlnet_ext.sdwebui.requests import ImageToImageFields, TextToImageFields, parse_generation_request
from controlnet_ext.sdwebui.units import UnitFields, parse_webui_unit
from controlnet_ext.server.service import Service

pytest.importorskip("starlette", reason="needs controlnet-ext[serve]")
LIMITS = RequestLimits(max_units=2, max_side=256, max_steps=9, max_images=3)
NAME = "embedded/canny [00000000]"


@pytest.fixture(scope="module", params=[False, True], ids=["open", "guarded"])
def document(request: pytest.FixtureRequest) -> dict[str, Any]:
    from controlnet_ext.server.openapi import make_openapi_document

    return make_openapi_document(routes(), LIMITS, [NAME], request.param)


def routes() -> list[Any]:
    """The routes of a server whose engine is not called."""
    from controlnet_ext.server.app import create_routes

    nothing: Any = None
    return create_routes(Service(nothing, ModelCatalog([], "other"), nothing, LIMITS), nothing, False)


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    validator = pytest.importorskip("openapi_spec_validator", reason="needs openapi-spec-validator from PyPI")
    validator.validate(document)


def test_the_document_has_every_route_and_its_methods(document: dict[str, Any]) -> None:
    described = {(path, method.upper()) for path, operations in document["paths"].items() for method in operations}
    assert described == {(route.path, route.method) for route in routes()}


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
        read(key, each["minimum"])
        read(key, each["maximum"])
        for beyond in (each["minimum"] - 1, each["maximum"] + 1):
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
    assert schemas["Image"]["maxLength"] == 64 * 2**20
    units = schemas["TextToImage"]["properties"]["alwayson_scripts"]["properties"]["ControlNet"]["properties"]["args"]
    assert units["description"] == "Up to 2 that are on"


class RecordingDict(dict[str, Any]):
    """A JSON object that records the names that are looked up in it."""

    def __init__(self, values: dict[str, Any]):
        super().__init__(values)
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return super().__getitem__(name)


def list_names(table: type[JsonObject], *kinds: type[Any]) -> set[str]:
    fields = [each for each in table.list_fields().values() if not kinds or isinstance(each, kinds)]
    return {name for each in fields for name in (each.name, *each.aliases)}


@pytest.mark.parametrize(
    ("table", "sent"),
    [
        (UnitFields, {"model": "m", "image": white(8, 8)}),
        (DetectFields, {"controlnet_module": "canny", "controlnet_input_images": [white(64, 64)]}),
        (TextToImageFields, {"enable_hr": True}),
        (ImageToImageFields, {"init_images": [white(8, 8)], "mask": white(8, 8, slice(4))}),
    ],
)
def test_the_reader_reads_the_fields_of_the_schema_and_no_others(table: type[JsonObject], sent: Any) -> None:
    recorded = RecordingDict(sent)
    if table is UnitFields:
        parse_webui_unit(recorded, "unit 1")
    elif table is DetectFields:
        detect_maps(recorded, lambda name: find(name).load())
    else:
        parse_generation_request(recorded, (64, 64), LIMITS, table is ImageToImageFields)
    schema = set(table.make_schema(LIMITS)["properties"])
    assert recorded.names == list_names(table)
    assert schema == {name for name, each in table.list_fields().items() if not isinstance(each, UnsupportedField)}
    assert table is not UnitFields or "weight_schedule" in schema


def test_the_text_of_a_unit_in_a_png_names_fields_of_a_unit() -> None:
    assert list_names(UnitFields) >= UNIT_TEXT_FIELDS


def test_every_field_with_an_image_takes_addresses_where_these_are_fetched() -> None:
    from controlnet_ext.server.fetch import IMAGE_FIELDS

    for table in (UnitFields, DetectFields, TextToImageFields, ImageToImageFields):
        for name, schema in table.make_schema(LIMITS)["properties"].items():
            assert ("schemas/Image" in str(schema)) == (name in IMAGE_FIELDS), name
    assert list_names(ImageToImageFields, ImageField) == {"init_images", "mask"}


def test_the_document_for_the_documentation_has_every_route_and_names_every_field() -> None:
    from controlnet_ext.server.openapi import make_default_document

    document = make_default_document()
    schemas = document["components"]["schemas"]
    for table in (UnitFields, DetectFields, TextToImageFields, ImageToImageFields):
        text = str(schemas[table.schema_name])
        assert all(name in text for name in list_names(table))
    assert {(path, method.upper()) for path, each in document["paths"].items() for method in each} == {
        (route.path, route.method) for route in routes()
    }


def test_every_field_and_every_route_is_described(document: dict[str, Any]) -> None:
    for table in (UnitFields, DetectFields, TextToImageFields, ImageToImageFields):
        assert all(each["description"] for each in table.make_schema(LIMITS)["properties"].values())
    assert all(each["summary"] for path in document["paths"].values() for each in path.values())


def test_a_default_outside_the_limits_becomes_the_nearest_bound() -> None:
    assert TextToImageFields.make_schema(LIMITS)["properties"]["steps"]["default"] == 9
    assert TextToImageFields({}, "the request", LIMITS).steps == 9
