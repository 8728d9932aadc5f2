"""Connections over the loopback as strangers hold them: slow, large, many, gone before the answer."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import pytest
import serving
from controlnet_ext.preprocessors.library import Library
from limits import HANG, wait_until
from serving import Client, photo

from controlnet_ext.sdwebui.catalog import ModelCatalog
from controlnet_ext.sdwebui.fields import RequestLimits
from controlnet_ext.sdwebui.modules import create_preprocessor_loader
from controlnet_ext.server.service import Service
from controlnet_ext.server.worker import RequestWorker

pytest.importorskip("starlette", reason="needs controlnet-ext[serve]")
pytest.importorskip("uvicorn", reason="needs controlnet-ext[serve]")
NOTHING: Any = None
DETECT = "/controlnet/detect"
HEALTH = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
BODY = json.dumps({"controlnet_module": "canny", "controlnet_input_images": [photo()]}).encode()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time limits that no busy machine reaches; tests of a limit set it."""
    from controlnet_ext.server import http, listening

    for name in ("BODY_SECONDS", "PACE_SECONDS"):
        monkeypatch.setattr(http, name, HANG)
    for name in ("REQUEST_SECONDS", "READ_SECONDS"):
        monkeypatch.setattr(listening, name, HANG)


@pytest.fixture
def worker() -> RequestWorker:
    return RequestWorker(4)


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def server(worker: RequestWorker, lines: list[str]) -> Iterator[tuple[Client, Any]]:
    """A client of a server without a model, and the server."""
    ready = create_preprocessor_loader("cpu", Library(download=False))
    service = Service(NOTHING, ModelCatalog([], "other"), ready, RequestLimits())
    with serving.listening(service, worker, report=lines.append) as found:
        yield found


@pytest.fixture
def client(server: tuple[Client, Any]) -> Client:
    return server[0]


class Connection:
    """A socket to the server; a context manager."""

    def __init__(self, client: Client):
        self.socket = socket.create_connection(("127.0.0.1", client.port), HANG)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, content: bytes) -> Connection:
        self.socket.sendall(content)
        return self

    def post(self, body: bytes, length: int | None = None, path: str = DETECT, more: str = "") -> Connection:
        """Send a request, or the beginning of one of that length."""
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{more}"
        return self.send(f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body)

    def read(self) -> bytes:
        """All that comes until the server closes the connection."""
        found = bytearray()
        with suppress(ConnectionError):
            while chunk := self.socket.recv(65536):
                found += chunk
        return bytes(found)

    def answer(self) -> tuple[int, Any]:
        """Status and JSON of the next answer."""
        with closing(self.socket.makefile("rb")) as file:
            status = int(file.readline().split()[1])
            length = 0
            while (line := file.readline()) not in (b"\r\n", b""):
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            content = file.read(length)
        return status, json.loads(content) if content.startswith((b"{", b"[")) else content.decode()


def drip(connection: Connection, content: bytes) -> None:
    """Send byte after byte until the server closes the connection."""

    def send() -> None:
        with suppress(OSError):
            for k in range(len(content)):
                connection.send(content[k : k + 1])
                time.sleep(0.01)

    threading.Thread(target=send, daemon=True).start()


# Bodies


@pytest.mark.parametrize("drips", [False, True], ids=["stalled", "dripping"])
def test_a_body_that_comes_too_slowly_is_refused_and_its_connection_closed(
    client: Client, worker: RequestWorker, monkeypatch: pytest.MonkeyPatch, drips: bool
) -> None:
    from controlnet_ext.server import http, listening

    monkeypatch.setattr(http, "PACE_SECONDS", 0.2)
    with Connection(client) as one:
        one.post(b"{", 2**20)
        wait_until(lambda: worker.pending_count == 1)
        monkeypatch.setattr(listening, "REQUEST_SECONDS", 0.2)
        if drips:
            drip(one, b" " * 2**20)
        status, answer = one.answer()
        assert (status, answer["detail"]) == (408, "the request came too slowly, expected 512 KiB each 0.2 s")
        assert one.read() == b""
    wait_until(lambda: worker.pending_count == 0)


def test_a_body_has_an_end_also_at_the_right_pace(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from controlnet_ext.server import http

    monkeypatch.setattr(http, "PACE_BYTES", 1)
    monkeypatch.setattr(http, "BODY_SECONDS", 0.2)
    with Connection(client) as one:
        one.post(b"{", 2**20)
        drip(one, b" " * 2**20)
        assert one.answer()[0] == 408


def test_all_bodies_together_have_one_budget(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from controlnet_ext.server import http

    monkeypatch.setattr(http, "MAX_BODIES_BYTES", 2**20)
    with Connection(client) as first, Connection(client) as second, Connection(client) as third:
        for one in (first, second):
            one.post(b" " * 2**19, 2**20)
        wait_until(lambda: http.BODY_BUDGET.used == 2**20)
        status, answer = third.post(BODY).answer()
        assert (status, answer["detail"]) == (503, "other requests fill the memory for bodies, try again later")
        assert client("/health")[0] == 200
    wait_until(lambda: http.BODY_BUDGET.used == 0)
    assert client(DETECT, BODY)[0] == 200
    assert http.BODY_BUDGET.used == 0


def test_settings_are_small(client: Client) -> None:
    with Connection(client) as one:  # without the body, which is not waited for
        status, answer = one.post(b"", 2**20 + 1, path="/sdapi/v1/options").answer()
    assert (status, answer["detail"]) == (413, "the request is over 1 MiB")


def test_a_request_counts_in_the_queue_from_its_first_byte(client: Client, worker: RequestWorker) -> None:
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(Connection(client)).post(b"{", 9)
        wait_until(lambda: worker.pending_count == 4)
        assert client(DETECT, BODY)[0] == 429
        assert client("/health") == (200, {"status": "ok", "waiting": 4})
    wait_until(lambda: worker.pending_count == 0)
    assert client(DETECT, BODY)[0] == 200


# Connections without a request, and without a reader


def test_a_head_that_never_ends_is_not_waited_for(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from controlnet_ext.server import listening

    monkeypatch.setattr(listening, "REQUEST_SECONDS", 0.2)
    head = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-More: "
    for silent in (b"", head):
        with Connection(client) as one:
            assert one.send(silent).read() == b""
    with Connection(client) as one:
        drip(one, head + b"1" * 2**16)
        assert one.read() == b""
    monkeypatch.setattr(listening, "REQUEST_SECONDS", HANG)
    with Connection(client) as one:  # also after an answer
        assert one.send(HEALTH).answer()[0] == 200
        monkeypatch.setattr(listening, "REQUEST_SECONDS", 0.2)
        assert one.send(HEALTH).answer()[0] == 200
        drip(one, head + b"1" * 2**16)
        assert one.read() == b""


def test_the_longest_silent_connection_gives_its_place_to_the_next(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from controlnet_ext.server import listening

    monkeypatch.setattr(listening, "MAX_CONNECTIONS", 3)
    with ExitStack() as stack:
        silent = [stack.enter_context(Connection(client)) for _ in range(6)]
        assert client("/health")[0] == 200
        assert [one.read() for one in silent[:4]] == [b""] * 4


def test_an_answer_that_nobody_reads_is_not_kept(server: tuple[Client, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from controlnet_ext.server import listening

    monkeypatch.setattr(listening, "READ_SECONDS", 0.2)
    client, uvicorn_server = server
    uvicorn_server.config.timeout_keep_alive = HANG
    images = {"controlnet_module": "none", "controlnet_input_images": [serving.noise(1024)] * 4}
    with Connection(client) as one:
        one.post(json.dumps(images).encode())
        wait_until(lambda: any(each.flow.write_paused for each in list(uvicorn_server.server_state.connections)))
        wait_until(lambda: not uvicorn_server.server_state.connections)


# Clients that leave


def test_work_of_clients_that_left_is_dropped_and_others_are_served(client: Client, worker: RequestWorker) -> None:
    released, done = threading.Event(), []
    at_work, run_work = worker.submit(released.wait), worker.run_work
    wait_until(lambda: worker._running)

    def count(work: Callable[[], Any]) -> Any:
        done.append(1)
        return run_work(work)

    worker.run_work = count  # type: ignore[method-assign]
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(Connection(client)).post(BODY)
        wait_until(lambda: len(worker._waiting) == 3)
    wait_until(lambda: worker.pending_count == 1)
    with Connection(client) as pipelined:
        pipelined.post(BODY).send(HEALTH)
        wait_until(lambda: worker._waiting)
    wait_until(lambda: worker.pending_count == 1)
    with Connection(client) as last:
        last.post(BODY)
        wait_until(lambda: worker._waiting)
        released.set()
        assert last.answer()[0] == 200
    assert at_work.result() and len(done) == 1


def test_a_client_that_leaves_midway_is_one_line_in_the_log(
    client: Client, lines: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with Connection(client) as one:
        one.post(BODY[:100], len(BODY))
    wait_until(lambda: lines)
    (line,) = lines
    assert line.startswith(f"POST {DETECT} 499 ") and line.endswith(" ms")
    assert capfd.readouterr().err == ""


def test_each_request_is_one_line_in_the_log(client: Client, lines: list[str]) -> None:
    client("/health?a=b")
    client("/no%0Asuch%1b[31mroute")
    client("/" + "x" * 1000)
    wait_until(lambda: len(lines) == 3)
    assert [line.rpartition(" ms")[0].rpartition(" ")[0] for line in lines] == [
        "GET /health 200",
        "GET /no%0Asuch%1b[31mroute 404",
        f"GET /{'x' * 199} 404",
    ]


def test_a_log_that_nobody_reads_stops_no_request(worker: RequestWorker) -> None:
    from controlnet_ext.server.app import create_app
    from controlnet_ext.server.listening import ApiServer, bind_sockets

    def fail(*_: object) -> None:
        raise BrokenPipeError("nobody reads")

    service = Service(NOTHING, ModelCatalog([], "other"), NOTHING, RequestLimits())
    sockets = bind_sockets("127.0.0.1", 0)
    client = Client(sockets[0].getsockname()[1])
    server = ApiServer(create_app(service, worker, None, ("127.0.0.1",), fail), worker, fail, fail)
    thread = threading.Thread(target=server.run, args=(sockets,))
    thread.start()
    wait_until(lambda: server.started)
    try:
        assert client("/health")[0] == 200
    finally:
        server.should_exit = True
        thread.join()
    assert not server.server_state.connections


def test_a_pipe_that_nobody_reads_holds_no_request_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from controlnet_ext.server import listening

    monkeypatch.setattr(listening, "MAX_WAITING_LINES", 3)
    released, written = threading.Event(), list[str]()

    def write(line: str) -> None:
        released.wait(HANG)
        if line == "1":
            raise BrokenPipeError(line)
        written.append(line)

    writer = listening.LineWriter(write)
    writer("0")
    wait_until(writer._lines.empty)
    for k in range(1, 9):
        writer(str(k))
    released.set()
    wait_until(writer._lines.empty)
    writer("last")
    writer.close()
    assert written == ["0", "2", "3", "last"]


# HTTP as it is seldom written


def test_requests_in_one_packet_are_answered_in_their_order(client: Client) -> None:
    with Connection(client) as one:
        last = HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        one.send(HEALTH + b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" + last)
        assert [int(each.split()[0]) for each in one.read().split(b"HTTP/1.1 ")[1:]] == [200, 404, 200]


def test_a_client_that_waits_for_100_continue_gets_it_or_a_refusal(client: Client) -> None:
    with Connection(client) as one:
        one.post(b"", len(BODY), more="Expect: 100-continue\r\n")
        assert one.answer()[0] == 100
        assert one.send(BODY).answer()[0] == 200
    with Connection(client) as one:
        assert one.post(b"", 2**40, more="Expect: 100-continue\r\n").answer()[0] == 413


def test_a_body_in_chunks_is_read_and_bounded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from controlnet_ext.server import http

    head = f"POST {DETECT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    start = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode()
    chunk = f"{len(BODY):x}\r\n".encode() + BODY + b"\r\n"
    with Connection(client) as one:
        assert one.send(start + chunk + b"0\r\n\r\n").answer()[0] == 200
    monkeypatch.setattr(http, "MAX_BODY_BYTES", len(BODY))
    with Connection(client) as one:
        assert one.send(start + chunk + chunk + b"0\r\n\r\n").answer()[0] == 413


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00" * 9 + b"\r\n\r\n", 400),  # TLS
        (b"GET /health HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /health HTTP/9.9\r\nHost: a\r\n\r\n", 400),
        (b"GET /" + b"a" * 20000, 400),
        (HEALTH[:-2] + b"A: b\r\n" * 9999, 400),
        (f"POST {DETECT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n".encode(), 400),
        (f"POST {DETECT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".encode(), 400),
        (
            f"POST {DETECT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\n\r\nZ\r\n".encode(),
            400,
        ),
        (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 200),
        (b"HEAD /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 200),
        (b"OPTIONS /sdapi/v1/interrupt HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://evil.example\r\n\r\n", 405),
        (b"DELETE /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 405),
        (b"GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n", 200),
        (b"GET http://other.example/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 404),
        (b"GET /sdapi/../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 404),
    ],
    ids=range(15),
)
def test_what_is_seldom_http_is_answered_by_a_status_and_in_the_log_by_a_line(
    client: Client, sent: bytes, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with Connection(client) as one:
        one.send(sent)
        head = one.socket.recv(65536)
    assert int(head.split()[1]) == status
    assert b"access-control-allow-origin" not in head.lower() and (status == 200 or b"application/json" in head)
    assert client("/health")[0] == 200
    assert capfd.readouterr().err.count("\n") <= 1


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
def test_a_compressed_body_is_refused_by_the_name_of_its_encoding(client: Client, encoding: str) -> None:
    with Connection(client) as one:
        status, answer = one.post(b"\x1f\x8b" * 9, more=f"Content-Encoding: {encoding}\r\n").answer()
    assert (status, answer["detail"]) == (415, f"the request is encoded as {encoding!r}, expected plain JSON")


def test_more_than_content_length_is_no_part_of_the_request(client: Client) -> None:
    with Connection(client) as one:
        found = one.post(BODY + b"x" * 99 + b"\r\n\r\n", len(BODY)).read()
    assert [int(each.split()[0]) for each in found.split(b"HTTP/1.1 ")[1:]] == [200, 400]
