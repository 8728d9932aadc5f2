"""A load campaign against `controlnet-ext serve` as a process: large bodies, slow heads, hang-ups, signals.

Minutes long; figures in docs/evidence/server.md."""

from __future__ import annotations

import json
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from limits import HANG, wait_until
from serving import CANNY, photo
from test_server_process import PLAIN, Served, started

pytest.importorskip("starlette", reason="needs controlnet-ext[serve]")
pytest.importorskip("uvicorn", reason="needs controlnet-ext[serve]")
pytestmark = [pytest.mark.long, pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")]
MIB = 2**20
UNIT = {"image": photo(), "module": "canny", "model": CANNY}
SMALL = {"prompt": "a red circle", "steps": 2, "seed": 3, "width": 64, "height": 64}
DRAW = {**SMALL, "alwayson_scripts": {"ControlNet": {"args": [UNIT]}}}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with started("-m", "controlnet_ext.cli", "serve", "--port", "0", "--no-download", "--device", "cpu") as found:
        yield found
        assert found.process.poll() is None
        assert "Traceback" not in found.text


def measure_mib(served: Served, name: str) -> int:
    """A number of /proc/PID/status in MiB: VmRSS, or VmHWM, the highest so far."""
    text = Path(f"/proc/{served.process.pid}/status").read_text()
    return int(re.findall(rf"{name}:\s+(\d+) kB", text)[0]) // 1024


def connect(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.client.port), HANG)


def make_head(length: int, path: str = "/sdapi/v1/txt2img") -> bytes:
    lines = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
    return lines.encode()


def read_status(one: socket.socket) -> int:
    """The status of the answer; 0 where the connection was closed without one."""
    with suppress(ConnectionError):
        head = one.recv(65536)
        return int(head.split()[1]) if head else 0
    return 0


def test_bodies_of_forty_connections_take_the_memory_of_the_budget(served: Served) -> None:
    from controlnet_ext.server.http import MAX_BODIES_BYTES

    before, statuses = measure_mib(served, "VmRSS"), list[int]()

    def hold() -> None:
        with connect(served) as one:
            one.sendall(make_head(63 * MIB))
            with suppress(ConnectionError):
                for _ in range(62):
                    one.sendall(b" " * MIB)
            statuses.append(read_status(one))

    began = time.monotonic()
    threads = [threading.Thread(target=hold) for _ in range(40)]
    for each in threads:
        each.start()
    healthy = 0
    while any(each.is_alive() for each in threads):
        healthy += served.client("/health")[0] == 200
        time.sleep(0.1)
    seconds, peak = time.monotonic() - began, measure_mib(served, "VmHWM")
    print(f"\n40 x 62 of 63 MiB: {before} MiB before, {peak} MiB at most, /health answered {healthy} times,")
    print(f"all ended after {seconds:.0f} s, statuses {sorted(statuses)}")
    assert set(statuses) <= {0, 408, 429, 503} and 408 in statuses
    assert peak - before < 2 * MAX_BODIES_BYTES // MIB
    assert served.client("/sdapi/v1/txt2img", SMALL)[0] == 200


def test_four_hundred_slow_heads_hold_nobody_up(served: Served) -> None:
    is_over, closed = threading.Event(), list[int]()

    def drip() -> None:
        while not is_over.is_set():
            with suppress(OSError), connect(served) as one:
                while not is_over.is_set():
                    one.sendall(b"G")
                    time.sleep(0.5)
            closed.append(1)

    threads = [threading.Thread(target=drip) for _ in range(400)]
    for each in threads:
        each.start()
    waits = []
    for _ in range(100):
        began = time.monotonic()
        assert served.client("/health")[0] == 200
        waits.append(time.monotonic() - began)
    assert all(served.client("/sdapi/v1/txt2img", DRAW)[0] == 200 for _ in range(5))
    is_over.set()
    for each in threads:
        each.join()
    waits.sort()
    print(f"\n400 slow heads: {len(closed)} connections closed, /health in {1000 * waits[50]:.0f} ms (median),")
    print(f"{1000 * waits[-1]:.0f} ms at most; 5 of 5 images")


def test_two_hundred_hang_ups_leave_nothing_queued(served: Served) -> None:
    moments, body = random.Random(0), json.dumps({**DRAW, "steps": 50}).encode()
    expected = served.client("/sdapi/v1/txt2img", DRAW)
    before = measure_mib(served, "VmRSS")
    for k in range(200):
        sent = make_head(len(body)) + body
        if k % 4 == 3:
            sent += b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        with connect(served) as one, suppress(ConnectionError):
            one.sendall(sent[: moments.randrange(len(sent)) if k % 2 else len(sent)])
            time.sleep(moments.uniform(0, 0.05))
    wait_until(lambda: served.client("/health")[1]["waiting"] == 0, served.process)
    wait_until(lambda: len(re.findall(r"^POST \S+ (?:499|429) ", served.text, re.MULTILINE)) >= 150, served.process)
    assert served.client("/sdapi/v1/txt2img", DRAW) == expected
    statuses = re.findall(r"^POST /sdapi/v1/txt2img (\d+) ", served.text, re.MULTILINE)
    found = {each: statuses.count(each) for each in sorted(set(statuses))}
    print(f"\n200 hang-ups: {before} to {measure_mib(served, 'VmRSS')} MiB, lines of the log so far by status {found}")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_at_any_moment_ends_the_process(sent: signal.Signals) -> None:
    moments = random.Random(0)
    for _ in range(25):
        with started("-c", PLAIN) as served:
            answers = [served.ask("/work", {"stubborn": False}) for _ in range(6)]
            time.sleep(moments.uniform(0, 0.3))
            served.process.send_signal(sent)
            assert served.end() == 0
            wait_until(lambda answers=answers: all(answers))
            assert "Traceback" not in served.text


def test_a_signal_while_an_image_is_made_ends_the_process_after_the_step() -> None:
    seconds = []
    for _ in range(3):
        with started("-m", "controlnet_ext.cli", "serve", "--port", "0", "--no-download", "--device", "cpu") as served:
            answers = [served.ask("/sdapi/v1/txt2img", {"prompt": "a red circle", "steps": 150}) for _ in range(4)]
            wait_until(lambda: served.client("/sdapi/v1/progress")[1]["state"]["sampling_step"], served.process)
            began = time.monotonic()
            served.process.send_signal(signal.SIGTERM)
            assert served.end() == 0
            seconds.append(time.monotonic() - began)
            wait_until(lambda answers=answers: all(answers))
            assert all(each[0][0] == 503 for each in answers)
    print(f"\nSIGTERM while an image is made: ended after {', '.join(f'{each:.1f}' for each in seconds)} s")
