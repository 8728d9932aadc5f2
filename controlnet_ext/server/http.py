"""Endpoints from functions of JSON: bodies received within bounds of size, pace and memory, errors answered in one
sentence, and work whose client is gone abandoned.

A page of another site may send requests from a user's browser, but not `application/json` before the browser has asked
this server, which answers no such question; nor can it hide its own origin. So requests that change something are taken
as JSON, from this server's own origin, or from a client that is no browser.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..errors import one_line, quote_value
from ..files.disk import parse_json
from .worker import QueueFull, RequestWorker

MAX_BODY_BYTES = 64 * 2**20  # bytes of a request at most
MAX_SETTINGS_BYTES = 2**20  # bytes of a request that is answered at once
MAX_JSON_ITEMS = 10**6  # lists, objects and commas of a request
MAX_BODIES_BYTES = 4 * MAX_BODY_BYTES  # bytes at most of all requests that arrive or wait
BODY_SECONDS = 300.0  # a body arrives within this time,
PACE_SECONDS, PACE_BYTES = 10.0, 2**19  # and brings this much, or its end, each so many seconds
SURROGATE_ESCAPE = re.compile(rb"\\\0*u\0*[dD]\0*[89a-fA-F]")  # in UTF-8, and in UTF-16 or UTF-32 too
CLIENT_GONE = 499  # status in the log of a request whose client is gone; nobody receives it
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")  # these change nothing
Endpoint = Callable[[Request], Awaitable[Response]]


class RequestError(Exception):
    """Raised for a request that is refused with an HTTP status of its own."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class BodyBudget:
    """The bytes of all bodies that are in memory; safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.used = 0

    def take(self, count: int) -> None:
        """Count bytes that arrived. Raises RequestError with status 503 where there are `MAX_BODIES_BYTES`."""
        with self._lock:
            if self.used + count > MAX_BODIES_BYTES:
                raise RequestError(503, "other requests fill the memory for bodies, try again later")
            self.used += count

    def give_back(self, count: int) -> None:
        """Uncount bytes that are no longer in memory."""
        with self._lock:
            self.used -= count


BODY_BUDGET = BodyBudget()  # of the process


class RequestBody:
    """The body of a request while it arrives and waits: a context manager, in which its bytes count in the budget."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._content = bytearray()
        self._count = 0

    def __enter__(self) -> RequestBody:
        return self

    def __exit__(self, *_: object) -> None:
        self._content = bytearray()
        BODY_BUDGET.give_back(self._count)

    def parse(self) -> Any:
        """Return the JSON of the body, once: its bytes are freed. Raises ValueError for what no answer can hold."""
        content, self._content = self._content, bytearray()
        return parse_request_json(content)

    async def receive(self, request: Request, answer_future: asyncio.Future[Any] | None = None) -> None:
        """Receive the whole body.

        Raises RequestError for a body that is no plain JSON, too large, too slow, or for which there is no memory, or
        whose client leaves; and what `answer_future` raises where that comes first.
        """
        self._check_headers(request)
        loop = asyncio.get_running_loop()
        latest, deadline, expected = loop.time() + BODY_SECONDS, loop.time() + PACE_SECONDS, PACE_BYTES
        is_over = False
        while not is_over:
            message = await _receive(request, min(deadline, latest) - loop.time(), answer_future)
            if message is None:
                raise RequestError(
                    408, f"the request came too slowly, expected {PACE_BYTES >> 10} KiB each {PACE_SECONDS:g} s"
                )
            if message["type"] == "http.disconnect":
                raise RequestError(CLIENT_GONE, "the client is gone")
            chunk, is_over = message.get("body", b""), not message.get("more_body", False)
            self._check_size(self._count + len(chunk))
            BODY_BUDGET.take(len(chunk))
            self._count += len(chunk)
            self._content += chunk
            if self._count >= expected:
                deadline, expected = loop.time() + PACE_SECONDS, self._count + PACE_BYTES

    def _check_headers(self, request: Request) -> None:
        headers = request.headers
        if not _is_json(request):
            raise RequestError(415, "the request is no application/json")
        encoding = headers.get("content-encoding", "identity").strip().casefold()
        if encoding not in ("", "identity"):
            raise RequestError(415, f"the request is encoded as {quote_value(encoding)}, expected plain JSON")
        length = headers.get("content-length", "")
        if length.isdecimal():
            self._check_size(int(length[:20]))

    def _check_size(self, count: int) -> None:
        if count > self.max_bytes:
            raise RequestError(413, f"the request is over {self.max_bytes >> 20} MiB")


async def _receive(request: Request, seconds: float, answer_future: asyncio.Future[Any] | None = None) -> Any:
    """Return the next ASGI message, or None where none comes in time. Raises what `answer_future` raises before."""
    receiving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait(
            {receiving} if answer_future is None else {receiving, answer_future},
            timeout=max(seconds, 0),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if receiving.done():
            return receiving.result()
        return answer_future.result() if answer_future is not None and answer_future.done() else None
    finally:
        receiving.cancel()


def get_endpoint(answer: Callable[[Request], Any]) -> Endpoint:
    """Return an endpoint that answers at once, from the request without its body."""

    async def call(request: Request) -> Any:
        return await run_in_threadpool(answer, request)

    return _make_endpoint(call)


def json_endpoint(answer: Callable[[Any], Any]) -> Endpoint:
    """Return an endpoint that answers at once, from the JSON in the request's body."""

    async def call(request: Request) -> Any:
        with RequestBody(MAX_SETTINGS_BYTES) as body:
            await body.receive(request)
            return await run_in_threadpool(lambda: answer(body.parse()))

    return _make_endpoint(call)


def queued_endpoint(answer: Callable[[Any, threading.Event], Any], worker: RequestWorker) -> Endpoint:
    """Return an endpoint that answers from the JSON in the request's body, by work that `worker` does one at a time.

    `answer` also gets an event that is set when nobody waits for the answer any more.
    """

    async def call(request: Request) -> Any:
        with worker.reserve() as slot, RequestBody(MAX_BODY_BYTES) as body:
            answer_future = asyncio.wrap_future(slot.future)
            try:
                await body.receive(request, answer_future)
                slot.submit(lambda stop_event: answer(body.parse(), stop_event))
                return await _wait_for_answer(request, answer_future)
            finally:
                answer_future.cancel()

    return _make_endpoint(call)


async def _wait_for_answer(request: Request, answer_future: asyncio.Future[Any]) -> Any:
    """Return the answer. Raises RequestError if the client leaves before."""
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({answer_future, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answer_future.done() and leaving.result()["type"] == "http.disconnect":
            raise RequestError(CLIENT_GONE, "the client is gone")
        return await answer_future
    finally:
        leaving.cancel()


def _make_endpoint(call: Callable[[Request], Awaitable[Any]]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        if request.method not in SAFE_METHODS and is_foreign(request):
            return error_response(403, "the request comes from a page of another site; send it as application/json")
        try:
            return JSONResponse(await call(request))
        except (RequestError, QueueFull) as error:
            return error_response(error.status, str(error))
        except (ValueError, TypeError, FileNotFoundError) as error:
            return error_response(422, str(error))
        except (RuntimeError, OSError, MemoryError) as error:
            return error_response(500, str(error) or type(error).__name__)

    return endpoint


def error_response(status: int, message: str) -> Response:
    """Return an error as JSON: one sentence under `detail`, the key that FastAPI uses."""
    headers = {429: {"Retry-After": "5"}, 503: {"Retry-After": "5"}, 401: {"WWW-Authenticate": "Basic"}}.get(status)
    text = one_line(message, 500).encode("utf-8", "backslashreplace").decode()  # half a letter has no UTF-8
    return JSONResponse({"detail": text}, status, headers)


def _is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().casefold() == "application/json"


def is_foreign(request: Request) -> bool:
    """Return True for a request that a page of another site may have sent without the browser's asking first."""
    if _is_json(request):
        return False
    origin = request.headers.get("origin")
    if origin is None:  # no browser, or one that tells its site otherwise
        return request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
    return origin.casefold().partition("://")[2] != request.headers.get("host", "").casefold()


def parse_request_json(content: bytes | bytearray) -> Any:
    """Parse the JSON of a request. Raises ValueError also for over `MAX_JSON_ITEMS`, and for what Python reads and no
    answer can hold: NaN, infinite numbers, half a letter of a pair."""
    if sum(map(content.count, b"[{,")) > MAX_JSON_ITEMS:  # an empty list takes 2 bytes there, 64 here
        raise ValueError(f"the request has over {MAX_JSON_ITEMS} values in its JSON")
    value = parse_json(content, "the request", allow_nan=False)
    if SURROGATE_ESCAPE.search(content):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("the request holds half a letter, an unpaired surrogate") from error
    return value
