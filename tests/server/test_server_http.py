"""HTTP around the API, without a model: bodies, queues, tokens, names; what `serve` lets in; where units stand."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from controlnet_ext.preprocessors.library import Library
from serving import photo, white

from controlnet_ext import cli
from controlnet_ext.sdwebui.catalog import ModelCatalog
from controlnet_ext.sdwebui.fields import RequestLimits
from controlnet_ext.sdwebui.modules import create_preprocessor_loader
from controlnet_ext.sdwebui.requests import parse_generation_request
from controlnet_ext.server.service import Service
from controlnet_ext.server.worker import GenerationProgress, QueueFull, RequestWorker

pytest.importorskip("starlette", reason="needs controlnet-ext[serve]")
NOTHING: Any = None
DETECT = "/controlnet/detect"
ASKED = {"controlnet_module": "canny", "controlnet_input_images": [photo()]}


def asked(app: Any, path: str, chunks: Iterable[bytes] = (), **headers: str) -> tuple[int, Any, dict[str, str]]:
    """Status, JSON and headers that an ASGI application answers; a POST if there are chunks of a body."""
    waiting = list(chunks)
    given = {"host": "127.0.0.1", "content_type": "application/json"} | headers
    scope = {"type": "http", "method": "POST" if waiting else "GET", "path": path, "query_string": b"", "headers": []}
    scope |= {"http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 80), "asgi": {"version": "3.0"}}
    scope["headers"] = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        body = waiting.pop(0) if waiting else b""
        return {"type": "http.request", "body": body, "more_body": bool(waiting)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    content = b"".join(message.get("body", b"") for message in sent[1:])
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], json.loads(content) if content.startswith(b"{") else content.decode(), answered


def application(worker: RequestWorker, token: str | None = None, engine: Any = NOTHING) -> Any:
    """One without a model."""
    from controlnet_ext.server.app import create_app

    ready = create_preprocessor_loader("cpu", Library(download=False))
    return create_app(Service(engine, ModelCatalog([], "other"), ready, RequestLimits()), worker, token, ("127.0.0.1",))


def body(value: Any) -> list[bytes]:
    return [json.dumps(value).encode()]


def test_a_request_over_the_limit_is_refused_while_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    from controlnet_ext.server import http

    app = application(RequestWorker(1))
    monkeypatch.setattr(http, "MAX_BODY_BYTES", 2**20)
    status, answer, _ = asked(app, DETECT, [b" " * 2**19] * 3)
    assert (status, answer) == (413, {"detail": "the request is over 1 MiB"})
    assert asked(app, DETECT, [b" " * 2**19, *body(ASKED)])[0] == 200


def test_a_full_queue_and_a_stopping_server_turn_away_and_health_answers() -> None:
    worker, released = RequestWorker(1), threading.Event()
    app = application(worker)
    at_work = worker.submit(released.wait)
    status, answer, headers = asked(app, DETECT, body(ASKED))
    assert (status, answer["detail"]) == (429, "1 requests wait already, try again later")
    assert headers["retry-after"] == "5"
    assert asked(app, "/health")[:2] == (200, {"status": "ok", "waiting": 1})
    released.set()
    at_work.result()
    assert asked(app, DETECT, body(ASKED))[0] == 200
    worker.close()
    assert asked(app, DETECT, body(ASKED))[:2] == (503, {"detail": "the server is stopping"})
    assert asked(app, "/health")[0] == 200
    with pytest.raises(QueueFull, match="the server is stopping"):
        worker.submit(released.wait)


def test_work_that_ends_the_interpreter_ends_itself_only() -> None:
    with pytest.raises(RuntimeError, match="the work ended by SystemExit"):
        RequestWorker(1).submit(lambda: sys.exit(3)).result()


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("Bearer secret", 200),
        ("bearer  secret", 200),
        ("Basic YW55OnNlY3JldA==", 200),  # any:secret
        ("Basic c2VjcmV0", 401),  # secret
        ("Basic !", 401),
        ("Bearer Secret", 401),
        ("Bearer ", 401),
        ("secret", 401),
        ("", 401),
    ],
)
def test_a_token_is_needed_for_everything_but_health(authorization: str, status: int) -> None:
    app = application(RequestWorker(1), token="secret")
    assert asked(app, "/controlnet/version", authorization=authorization)[0] == status
    assert asked(app, "/openapi.json", authorization=authorization)[0] == status
    assert asked(app, "/no/such/route", authorization=authorization)[0] == (404 if status == 200 else 401)
    assert asked(app, "/health", authorization=authorization)[0] == 200


def test_a_page_of_another_site_is_not_served() -> None:
    app = application(RequestWorker(1))
    assert asked(app, "/controlnet/version", host="evil.example")[0] == 400
    assert asked(app, DETECT, body(ASKED), content_type="text/plain")[0] == 415
    assert "access-control-allow-origin" not in asked(app, "/controlnet/version", origin="https://evil.example")[2]


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "LocalHost", "[::1]:7860", "localhost:", "evil.example", "::1", ""])
def test_the_names_of_this_machine_are_answered_to(host: str) -> None:
    from controlnet_ext.cli.commands.serve import ALLOWED_HOST_NAMES
    from controlnet_ext.server.app import create_app

    app = create_app(
        Service(NOTHING, ModelCatalog([], "other"), NOTHING, RequestLimits()), NOTHING, None, ALLOWED_HOST_NAMES
    )
    status, answer, _ = asked(app, "/controlnet/version", host=host)
    if host in ("evil.example", "::1", ""):
        assert status == 400 and answer["detail"].endswith(", only to: 127.0.0.1, [::1], localhost")
    else:
        assert (status, answer) == (200, {"version": 3})


def test_the_document_is_served() -> None:
    status, answer, _ = asked(application(RequestWorker(1)), "/openapi.json")
    assert status == 200 and "/sdapi/v1/txt2img" in answer["paths"] and "/openapi.json" in answer["paths"]


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines in: give a --token"),
        (["--units", "0"], "--units 0 is outside 1..16"),
        (["--side", "9000"], "--side 9000 is outside 64..8192"),
        (["--dtype", "int8"], "dtype 'int8' is none of: "),
        (["--controls", "/no/such/folder"], "the folder of control models '/no/such/folder' does not exist"),
    ],
)
def test_serve_refuses_before_it_listens(
    words: list[str], refusal: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONTROLNET_EXT_TOKEN", raising=False)
    assert cli.main(["serve", "--device", "cpu", *words]) == 2
    assert refusal in capsys.readouterr().err


@pytest.mark.parametrize("title", ["ControlNet", "controlnet", "CONTROLNET", "controlNet", "controlnet M2M"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_units_stand_under_any_casing_of_the_title(title: str, wrapped: bool) -> None:
    units = [{"model": "None"}, {"model": "m"}, None, {}]
    with pytest.raises(ValueError, match=r"^unit 3 is None, expected a JSON object$"):
        parse_generation_request(
            {"alwayson_scripts": {title: {"args": units}}}, (64, 64), RequestLimits(max_units=4), False
        )
    scripts = {title: {"args": units[:2]} if wrapped else units[:2]}
    ((place, unit),) = parse_generation_request({"alwayson_scripts": scripts}, (64, 64), RequestLimits(), False).units
    assert place == 2 and unit.model == "m"


def test_only_units_that_are_on_count_against_the_limit() -> None:
    off: list[dict[str, Any]] = [{"enabled": False}, {}, {"model": "None", "module": "none", "image": ""}]
    for count, is_refused in ((3, False), (4, True)):
        units = [*off, *off, *[{"model": "m"}] * count]
        for sent in ({"alwayson_scripts": {"ControlNet": {"args": units}}}, {"controlnet_units": units}):
            if is_refused:
                with pytest.raises(ValueError, match=r"^4 units, expected up to 3$"):
                    parse_generation_request(sent, (64, 64), RequestLimits(), False)
            else:
                found = parse_generation_request(sent, (64, 64), RequestLimits(), False).units
                assert [place for place, _ in found] == [7, 8, 9]


def test_what_is_null_is_as_if_it_were_not_there() -> None:
    names = "prompt negative_prompt seed steps width height cfg_scale sampler_name sampler_index scheduler batch_size"
    names += (
        " n_iter send_images override_settings alwayson_scripts enable_hr tiling styles script_name subseed_strength"
    )
    for nothing in (None, ""):
        found = parse_generation_request(dict.fromkeys(names.split(), nothing), (64, 64), RequestLimits(), False)
        assert (found.steps, found.width, found.units, found.returns_images, found.prompt) == (20, 64, (), True, "")


def test_detect_takes_masks_beside_in_and_over_images() -> None:
    app = application(RequestWorker(1))
    image = {"image": photo(), "mask": photo()}
    for images in ([image], photo(), ["data:image/jpeg;base64," + photo()]):
        status, answer, _ = asked(app, DETECT, body({"controlnet_module": "none", "controlnet_input_images": images}))
        assert status == 200 and len(answer["images"]) == 1
    status, answer, _ = asked(app, DETECT, body({**ASKED, "controlnet_masks": [photo(), photo()]}))
    assert (status, answer["detail"]) == (422, "controlnet_masks has 2 masks for 1 images")
    status, answer, _ = asked(app, DETECT, body({"controlnet_module": "canny"}))
    assert (status, answer["detail"]) == (422, "No image selected")


def test_images_of_a_request_have_64_megapixels_in_all() -> None:
    large = white(6000, 6000)
    units = [{"model": "m", "image": [{"image": large, "mask": large}]}]
    with pytest.raises(ValueError, match=r"^the images of the request have 72 megapixels, expected up to 64 in all$"):
        parse_generation_request(
            {"alwayson_scripts": {"ControlNet": {"args": units}}}, (64, 64), RequestLimits(), False
        )
    status, answer, _ = asked(
        application(RequestWorker(1)), DETECT, body({**ASKED, "controlnet_masks": [large, large]})
    )
    assert status == 422 and "have 72 megapixels" in answer["detail"]


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 10**6,
        b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"a": ' * 101 + b"1" + b"}" * 101,
        b'{"seed": 1' + b"0" * 10**5 + b"}",
        b'{"a": NaN}',
        b'{"a": [{"b": -Infinity}]}',
        b'{"a": [1e400]}',
        b'{"a": "\\ud800"}',
        b'{"alwayson_scripts": {"\\uDFFF": 1}}',
        '{"prompt": "\\uD800"}'.encode("utf-16"),
        b'{"a": 1, "a": 2}',
        b'{"a": "\xff"}',
        b"",
        b"null",
        b"[]",
        b'{"width": 1e308, "seed": 1' + b"0" * 4000 + b"}",
        b"[" + b"," * 10**6,
    ],
    ids=range(17),
)
@pytest.mark.parametrize("path", ["/sdapi/v1/txt2img", "/sdapi/v1/options", DETECT])
def test_json_that_no_answer_can_hold_is_refused_before_the_work(content: bytes, path: str) -> None:
    engine = SimpleNamespace(size=(64, 64), checkpoint_name="other")
    status, answer, _ = asked(application(RequestWorker(1), engine=engine), path, [content])
    assert status == 422 and len(answer["detail"]) <= 500 and "\n" not in answer["detail"]


def test_json_of_100_levels_and_whole_letters_is_read() -> None:
    from controlnet_ext.server.http import parse_request_json

    value = parse_request_json(b"[" * 100 + b'"\\ud83d\\ude00"' + b"]" * 100)
    for _ in range(100):
        (value,) = value
    assert value == "\N{GRINNING FACE}"


def list_changing_routes() -> list[str]:
    from controlnet_ext.server.app import create_routes

    service = Service(NOTHING, ModelCatalog([], "other"), NOTHING, RequestLimits())
    return sorted({each.path for each in create_routes(service, NOTHING, False) if each.method != "GET"})


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:7860.evil.example"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_page_of_another_site_changes_nothing(headers: dict[str, str], kind: str) -> None:
    app = application(RequestWorker(1))
    for path in list_changing_routes():
        status, answer, answered = asked(app, path, [b"{}"], host="127.0.0.1:7860", content_type=kind, **headers)
        assert status == 403 and "another site" in answer["detail"]
        assert not any("access-control" in name for name in answered)


@pytest.mark.parametrize(
    "headers",
    [
        {"content_type": ""},
        {"content_type": "text/plain", "origin": "http://127.0.0.1:7860"},
        {"content_type": "", "origin": "HTTP://127.0.0.1:7860", "sec_fetch_site": "same-origin"},
        {"content_type": "application/json; charset=utf-8", "origin": "file://"},
    ],
)
def test_clients_and_the_servers_own_page_interrupt(headers: dict[str, str]) -> None:
    engine = SimpleNamespace(progress=GenerationProgress())
    app = application(RequestWorker(1), engine=engine)
    assert asked(app, "/sdapi/v1/interrupt", [b""], host="127.0.0.1:7860", **headers)[:2] == (200, {})
    assert engine.progress.stop_requested.is_set()
