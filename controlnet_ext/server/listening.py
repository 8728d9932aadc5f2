"""The listening server: connections within bounds of time and number, and an end that waits for one step only.

uvicorn bounds idle connections that have had an answer; here also those that have not asked yet, ask too slowly, or do
not read their answer.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .worker import RequestWorker

MAX_CONNECTIONS = 256
REQUEST_SECONDS = 10.0  # in which the head of a request arrives, also after the body of a refused one
READ_SECONDS = 30.0  # in which a client reads some of its answer
MAX_PIPELINED_BYTES = 2**16  # of further requests that arrive while one is answered
MAX_WAITING_LINES = 1000  # of the log
LEAVE_SECONDS = 2.0  # in which connections end when the server stops
EXIT_INTERRUPTED = 130
MISSING_ADDRESS_ERRORS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # ::1 where IPv6 is switched off


class BoundedProtocol(H11Protocol):
    """One HTTP/1.1 connection, closed when it asks or reads too slowly.

    Where there are over `MAX_CONNECTIONS`, the one that has waited longest without a request gives way to the next.
    """

    _since = 0.0
    _request_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None

    @property
    def is_waiting(self) -> bool:
        """True while no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin with a connection, in the place of another one if need be."""
        super().connection_made(transport)
        self._since = self.loop.time()
        present = [
            each for each in self.connections if isinstance(each, BoundedProtocol) and not each.transport.is_closing()
        ]
        if len(present) > MAX_CONNECTIONS:
            min((each for each in present if each.is_waiting), key=lambda each: each._since).abort()
        self._watch_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        for timer in (self._request_timer, self._read_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read requests; notice that the client leaves also while a further request waits."""
        super().data_received(data)
        self._watch_request()
        has_body = not self.is_waiting and not self.cycle.more_body
        if has_body and self.flow.read_paused and len(self.conn.trailing_data[0]) <= MAX_PIPELINED_BYTES:
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Go on to the next request."""
        self._since = self.loop.time()
        super().on_response_complete()
        self._watch_request()

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        if self._read_timer is None:
            self._watch_reader(self.transport.get_write_buffer_size())

    def abort(self) -> None:
        """Close the connection at once; whatever is not sent is lost."""
        if self.transport is not None:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, if there is no answer yet, and close the connection."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        if self.cycle is not None and not self.cycle.response_complete:  # its body is broken: nobody to answer
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        content = json.dumps({"detail": "the request is no HTTP/1.1"}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(content))), ("connection", "close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Answer a request for another protocol as if it asked for none."""

    def _watch_request(self) -> None:
        if self.transport.is_closing():
            rest = self.transport.get_write_buffer_size()
            if rest and self._read_timer is None:
                self._watch_reader(rest)
            return
        if not self.is_waiting:
            if self._request_timer is not None:
                self._request_timer.cancel()
                self._request_timer = None
        elif self._request_timer is None:
            self._request_timer = self.loop.call_later(REQUEST_SECONDS, self.abort)

    def _watch_reader(self, size: int) -> None:
        self._read_timer = self.loop.call_later(READ_SECONDS, self._check_reader, size)

    def _check_reader(self, size: int) -> None:
        self._read_timer = None
        rest = self.transport.get_write_buffer_size()
        if rest >= size:
            self.abort()
        elif rest:
            self._watch_reader(rest)


class LineWriter:
    """A function of a line that calls `write` in a thread of its own, so that a pipe that nobody reads holds up no
    request. Lines are dropped while `MAX_WAITING_LINES` wait, or where `write` raises OSError."""

    def __init__(self, write: Callable[[str], object]):
        self._write = write
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_WAITING_LINES)
        self._thread = threading.Thread(target=self._write_lines, name="controlnet-ext log", daemon=True)
        self._thread.start()

    def __call__(self, line: str) -> None:
        """Write a line soon."""
        with suppress(queue.Full):
            self._lines.put_nowait(line)

    def close(self) -> None:
        """Write what waits, as far as it is read within `LEAVE_SECONDS`."""
        with suppress(queue.Full):
            self._lines.put_nowait(None)
            self._thread.join(LEAVE_SECONDS)

    def _write_lines(self) -> None:
        while (line := self._lines.get()) is not None:
            with suppress(OSError, ValueError):
                self._write(line)


class _LineHandler(logging.Handler):
    """Hands records of a logger to a function of a line."""

    def __init__(self, report: Callable[[str], object]):
        super().__init__()
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        """Report the record."""
        self._report(self.format(record))


class ApiServer(uvicorn.Server):
    """A server of `application` whose first SIGINT or SIGTERM lets the work end at its next step; the second ends the
    process.

    `on_ready` is called once requests are accepted, `on_stop` when the server begins to stop, with the number of
    requests that it drops, `report` with a line for what is no HTTP and for what fails.
    """

    def __init__(
        self,
        application: Any,
        worker: RequestWorker,
        on_ready: Callable[[], object] = lambda: None,
        on_stop: Callable[[int], object] = lambda _: None,
        report: Callable[[str], object] | None = None,
    ):
        config = uvicorn.Config(
            application,
            http=BoundedProtocol,
            ws="none",
            log_config=None,
            log_level="error" if report is None else "warning",
            access_log=False,
            lifespan="off",
        )
        super().__init__(config)
        self._worker, self._on_ready, self._on_stop = worker, on_ready, on_stop
        if report is not None:
            logger = logging.getLogger("uvicorn.error")
            logger.handlers, logger.propagate = [_LineHandler(report)], False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections."""
        await super().startup(sockets)
        with suppress(OSError, ValueError):  # stderr is closed
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer everybody, close all connections, and wait for the work that runs."""
        with suppress(OSError, ValueError):  # stderr is closed
            self._on_stop(self._worker.pending_count)
        self._worker.stop()
        asyncio.get_running_loop().call_later(LEAVE_SECONDS, self._abort_connections)
        await super().shutdown(sockets)
        await asyncio.to_thread(self._worker.close)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at the first signal, end the process at the second."""
        if self.should_exit:
            os._exit(EXIT_INTERRUPTED)
        self.should_exit = True

    def _abort_connections(self) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, BoundedProtocol):
                connection.abort()


def bind_sockets(host: str, port: int) -> list[socket.socket]:
    """Bind a socket to each address of `host` that this machine has, all to the same port, a free one for port 0; none
    listens yet.

    Raises ValueError in one line where there is no such address, or its port is taken.
    """
    sockets: list[socket.socket] = []
    missing = OSError("no such address")
    try:
        for family, _, _, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            try:
                sockets.append(_bind_socket(family, (address[0], port or _get_port(sockets), *address[2:])))
            except OSError as error:
                if error.errno not in MISSING_ADDRESS_ERRORS:
                    raise
                missing = error
        if not sockets:
            raise missing
    except (OSError, UnicodeError) as error:
        for each in sockets:
            each.close()
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{reason}: {host!r:.80}, port {port}; choose another --host or --port") from error
    return sockets


def _bind_socket(family: int, address: Any) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one


def _get_port(sockets: Sequence[socket.socket]) -> int:
    return sockets[0].getsockname()[1] if sockets else 0


def format_url(host: str, sockets: Sequence[socket.socket]) -> str:
    """Return the URL of a server that listens on `sockets`, bound to the addresses of `host`."""
    return f"http://{f'[{host}]' if ':' in host else host}:{_get_port(sockets)}"
