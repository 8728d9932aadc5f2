"""The server as a process: when it says that it is ready, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from limits import wait_until
from serving import Client

from controlnet_ext import cli

pytest.importorskip("starlette", reason="needs controlnet-ext[serve]")
pytest.importorskip("uvicorn", reason="needs controlnet-ext[serve]")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are sent")
ROOT = Path(cli.__file__).parents[2]
PLAIN = """
import signal, sys, time
from starlette.applications import Starlette
from starlette.routing import Route
from controlnet_ext.server.http import queued_endpoint
from controlnet_ext.server.listening import ApiServer, bind_sockets, format_url
from controlnet_ext.server.worker import RequestWorker, check_abandoned

def work(value, abandoned):
    print("at work", file=sys.stderr, flush=True)
    while True:
        time.sleep(0.01)
        if not value["stubborn"]:
            check_abandoned(abandoned)

signal.signal(signal.SIGINT, signal.SIG_IGN if "--ignored" in sys.argv else signal.default_int_handler)
worker, sockets = RequestWorker(4), bind_sockets("127.0.0.1", 0)
app = Starlette(routes=[Route("/work", queued_endpoint(work, worker), methods=["POST"])])
ApiServer(app, worker, lambda: print(format_url("127.0.0.1", sockets), file=sys.stderr, flush=True)).run(sockets)
"""


class Served:
    """A process, the lines of its stderr so far, and a client."""

    def __init__(self, process: subprocess.Popen[str]):
        self.process, self.lines = process, list[str]()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        port = wait_until(lambda: next(iter(re.findall(r"http://127\.0\.0\.1:(\d+)", self.text)), None), process)
        self.client = Client(int(port))

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def ask(self, path: str, body: Any) -> list[Any]:
        """A list that gets the answer; errors of the connection are one."""
        found: list[Any] = []

        def ask() -> None:
            try:
                found.append(self.client(path, body))
            except OSError as error:
                found.append(error)

        threading.Thread(target=ask, daemon=True).start()
        return found

    def end(self) -> int:
        """The exit code, once the process has ended and all its lines are there."""
        code = self.process.wait()
        self._thread.join()
        return code


@contextmanager
def started(*words: str, python: str = sys.executable) -> Iterator[Served]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([python, *words], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield Served(process)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("ignored", ["--ignored", ""])
def test_the_first_signal_ends_the_work_at_its_next_step(sent: signal.Signals, ignored: str) -> None:
    with started("-c", PLAIN, ignored) as served:
        answers = [served.ask("/work", {"stubborn": False}) for _ in range(3)]
        wait_until(lambda: "at work" in served.text, served.process)
        served.process.send_signal(sent)
        assert served.end() == 0
        wait_until(lambda: all(answers))
        assert all(each[0] == (503, {"detail": "the server is stopping"}) for each in answers)
        assert "Traceback" not in served.text


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_the_second_signal_ends_the_process_though_a_step_goes_on(sent: signal.Signals) -> None:
    with started("-c", PLAIN) as served:
        answer = served.ask("/work", {"stubborn": True})
        wait_until(lambda: "at work" in served.text, served.process)
        served.process.send_signal(sent)
        wait_until(lambda: answer, served.process)
        served.process.send_signal(sent)
        assert served.end() == 130


def test_connections_that_do_nothing_do_not_keep_a_stopped_server() -> None:
    head = b"POST /work HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    with started("-c", PLAIN) as served:
        held = [socket.create_connection(("127.0.0.1", served.client.port)) for _ in range(3)]
        held[0].sendall(head)
        held[1].sendall(head[:20])
        assert served.client("/nowhere")[0] == 404
        served.process.send_signal(signal.SIGTERM)
        assert served.end() == 0
        for each in held:
            each.close()
        assert "Traceback" not in served.text


def test_a_served_model_is_ready_when_it_says_so_and_stops_while_it_draws(sigint: None, warm_python: str) -> None:
    words = ["-m", "controlnet_ext.cli", "serve", "--port", "0", "--no-download", "--device", "cpu"]
    with started(*words, python=warm_python) as served:
        assert served.client("/health") == (200, {"status": "ok", "waiting": 0})
        with socket.create_connection(("127.0.0.1", served.client.port)) as other:
            other.sendall(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
            assert other.recv(100).startswith(b"HTTP/1.1 400 ")
        answer = served.ask("/sdapi/v1/txt2img", {"prompt": "a red circle", "steps": 150})
        wait_until(lambda: served.client("/sdapi/v1/progress")[1]["state"]["sampling_step"], served.process)
        served.process.send_signal(signal.SIGINT)
        assert served.end() == 0
        wait_until(lambda: answer)
        assert answer == [(503, {"detail": "the server is stopping"})]
    assert "Traceback" not in served.text
    assert re.search(r"^POST /sdapi/v1/txt2img 503 \d+ ms$", served.text, re.MULTILINE)
    assert served.text.count("Invalid HTTP request received.\n") == 1
    assert "stopping at the next step; a second Ctrl-C stops at once" in served.text


def test_a_port_that_is_taken_is_refused_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from controlnet_ext.server import engine

    monkeypatch.setattr(engine, "GenerationEngine", lambda *_: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--device", "cpu", "--port", str(port)]) == 2
    words = f"controlnet-ext: Address already in use: '127.0.0.1', port {port}; choose another --host or --port"
    assert capsys.readouterr().err == words + "\n"
    assert cli.main(["serve", "--device", "cpu", "--host", "no such host.example", "--token", "t"]) == 2


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_prints_no_line_for_a_request(quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from controlnet_ext.server import app, engine, listening

    reports: list[Any] = []
    monkeypatch.setattr(engine, "GenerationEngine", lambda *_: SimpleNamespace(checkpoint_name="other"))
    monkeypatch.setattr(app, "create_app", lambda *given: reports.append(given[-1]))
    monkeypatch.setattr(listening.ApiServer, "run", lambda *_: None)
    assert cli.main(["serve", "--device", "cpu", "--port", "0", *(["--quiet"] if quiet else [])]) == 0
    assert [report is None for report in reports] == [quiet]


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("localhost", "localhost")])
def test_every_address_of_a_host_is_bound_to_one_port(host: str, shown: str) -> None:
    from controlnet_ext.server.listening import bind_sockets, format_url

    try:
        sockets = bind_sockets(host, 0)
    except ValueError as error:
        pytest.skip(f"needs the address: {error}")
    ports = {each.getsockname()[1] for each in sockets}
    assert len(ports) == 1 and format_url(host, sockets) == f"http://{shown}:{ports.pop()}"
    for each in sockets:
        each.close()


def test_addresses_that_this_machine_lacks_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    from controlnet_ext.server.listening import bind_sockets

    def find(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", find)
    hosts = ["192.0.2.1", "127.0.0.1"]  # the first is reserved for documentation
    (found,) = bind_sockets("localhost", 0)
    assert found.getsockname()[0] == "127.0.0.1"
    found.close()
    hosts = ["192.0.2.1"]
    with pytest.raises(ValueError, match=r"^Cannot assign requested address: 'localhost', port 0; choose another"):
        bind_sockets("localhost", 0)
