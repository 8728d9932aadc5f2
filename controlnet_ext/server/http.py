"""Endpoints from functions of JSON: bodies read within bounds, errors answered in one sentence."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..errors import one_line
from ..files.disk import parse_json
from .worker import QueueFull, RequestWorker

MAX_BODY_BYTES = 64 * 2**20  # bytes of a request at most
Endpoint = Callable[[Request], Awaitable[Response]]


class RequestError(Exception):
    """Raised for a request that is refused with an HTTP status of its own."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def get_endpoint(answer: Callable[[Request], Any]) -> Endpoint:
    """Return an endpoint that answers at once, from the request without its body."""

    async def endpoint(request: Request) -> Response:
        return await _respond(run_in_threadpool(answer, request))

    return endpoint


def json_endpoint(answer: Callable[[Any], Any]) -> Endpoint:
    """Return an endpoint that answers at once, from the JSON in the request's body."""

    async def call(request: Request) -> Any:
        content = await _read_body(request)
        return await run_in_threadpool(lambda: answer(parse_json(content, "the request")))

    async def endpoint(request: Request) -> Response:
        return await _respond(call(request))

    return endpoint


def queued_endpoint(answer: Callable[[Any], Any], worker: RequestWorker) -> Endpoint:
    """Return an endpoint that answers from the JSON in the request's body, by work that `worker` does one at a time."""

    async def call(request: Request) -> Any:
        worker.check_capacity()  # before there is a body in memory
        content = await _read_body(request)
        return await asyncio.wrap_future(worker.submit(lambda: answer(parse_json(content, "the request"))))

    async def endpoint(request: Request) -> Response:
        return await _respond(call(request))

    return endpoint


async def _respond(answer: Awaitable[Any]) -> Response:
    try:
        return JSONResponse(await answer)
    except (RequestError, QueueFull) as error:
        return error_response(error.status, str(error))
    except (ValueError, TypeError, FileNotFoundError) as error:
        return error_response(422, str(error))
    except (RuntimeError, OSError, MemoryError) as error:
        return error_response(500, str(error) or type(error).__name__)


def error_response(status: int, message: str) -> Response:
    """Return an error as JSON: one sentence under `detail`, the key that FastAPI uses."""
    headers = {429: {"Retry-After": "5"}, 401: {"WWW-Authenticate": "Basic"}}.get(status)
    return JSONResponse({"detail": one_line(message, 500)}, status, headers)


async def _read_body(request: Request) -> bytes:
    if request.headers.get("content-type", "").partition(";")[0].strip().casefold() != "application/json":
        # a page of another site cannot send this type without the browser's asking first
        raise RequestError(415, "the request is no application/json")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_BODY_BYTES:
            raise RequestError(413, f"the request is over {MAX_BODY_BYTES >> 20} MiB")
    return bytes(content)
