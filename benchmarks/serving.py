"""Many clients at once on `controlnet-ext serve`: are the answers those of a client alone, and does health answer?

    python benchmarks/serving.py [--clients 32] [--requests 50]

A server of the embedded model is started on a free port. One client sends all requests, one after the other; then each
of the clients sends its share at once, while another asks /health every 20 ms. No two requests are alike: canny maps,
images of a text, of an image, with one unit and with two. Prints how many answers differ in any byte, the times of
the requests and of /health, in milliseconds, and exits with 1 if one differs or fails.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import threading
import time
from hashlib import sha256
from typing import Any

import torch

from controlnet_ext.embedded import SAMPLE_PHOTO

IMAGE = base64.b64encode(SAMPLE_PHOTO.read_bytes()).decode()
UNIT = {"image": IMAGE, "module": "canny", "model": "embedded/canny"}


def request(i: int) -> tuple[str, bytes]:
    """The path and body of the i-th."""
    body: dict[str, Any] = {"prompt": f"a circle {i}", "seed": i, "width": 64, "height": 64, "steps": 1 + i % 2}
    units = [{**UNIT, "processor_res": 64 + 8 * (i % 16), "weight": 0.5 + i % 3 / 2} for _ in range(i % 8 // 3)]
    kind = i % 4
    if kind < 2:
        body_of_detect = {"controlnet_module": "canny", "controlnet_input_images": [IMAGE]}
        body_of_detect |= {"controlnet_threshold_a": 1 + i % 200, "controlnet_processor_res": 64 + i // 8}
        return "/controlnet/detect", json.dumps(body_of_detect).encode()
    body["alwayson_scripts"] = {"ControlNet": {"args": units}}
    if kind == 3:
        body |= {"init_images": [IMAGE], "denoising_strength": 1}
    return f"/sdapi/v1/{'img2img' if kind == 3 else 'txt2img'}", json.dumps(body).encode()


def post(connection: http.client.HTTPConnection, path: str, body: bytes | None) -> tuple[int, bytes, float]:
    """Status, answer and seconds."""
    begin = time.perf_counter()
    headers = {"Content-Type": "application/json"} if body else {}
    connection.request("POST" if body else "GET", path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    return answer.status, content, time.perf_counter() - begin


def client(port: int, numbers: range, answers: dict[int, tuple[int, str, float]]) -> None:
    """Sends the requests of these numbers; into `answers` go status, hash of the answer, and seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    for i in numbers:
        status, content, seconds = post(connection, *request(i))
        answers[i] = status, sha256(content).hexdigest(), seconds


def probe(port: int, is_over: threading.Event, times: list[float]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while not is_over.wait(0.02):
        times.append(post(connection, "/health", None)[2])


def start_server(port: int) -> subprocess.Popen[bytes]:
    """A server that answers."""
    command = [
        sys.executable,
        "-m",
        "controlnet_ext.cli",
        "serve",
        "--port",
        str(port),
        "--queue",
        "64",
        "--no-download",
        "--quiet",
    ]
    process = subprocess.Popen(command)
    for _ in range(600):
        try:
            post(http.client.HTTPConnection("127.0.0.1", port), "/health", None)
            return process
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the server did not start")


def format_times(times: list[float]) -> str:
    cuts = statistics.quantiles(times, n=100)
    return f"median {cuts[49] * 1e3:.0f}, p99 {cuts[98] * 1e3:.0f}, most {max(times) * 1e3:.0f} ms, n {len(times)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in (("clients", 32), ("requests", 50)):
        parser.add_argument(f"--{name}", type=int, default=number)
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start_server(port)
    total = options.clients * options.requests
    serial: dict[int, tuple[int, str, float]] = {}
    together: dict[int, tuple[int, str, float]] = {}
    health: list[float] = []
    try:
        begin = time.perf_counter()
        client(port, range(total), serial)
        middle = time.perf_counter()
        is_over = threading.Event()
        shares = [range(i, total, options.clients) for i in range(options.clients)]
        threads = [threading.Thread(target=client, args=(port, share, together)) for share in shares]
        prober = threading.Thread(target=probe, args=(port, is_over, health))
        for thread in (*threads, prober):
            thread.start()
        for thread in threads:
            thread.join()
        end = time.perf_counter()
        is_over.set()
        prober.join()
    finally:
        process.terminate()
        process.wait()
    failure_count = sum(status != 200 for found in (serial, together) for status, _, _ in found.values())
    other = sum(serial[i][:2] != together[i][:2] for i in range(total))
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {load}, {versions}")
    print(f"{total} requests, {options.clients} clients: {other} answers differ, {failure_count} failed")
    print(f"one client:  {middle - begin:.0f} s; {format_times([seconds for _, _, seconds in serial.values()])}")
    print(f"all clients: {end - middle:.0f} s; {format_times([seconds for _, _, seconds in together.values()])}")
    print(f"health meanwhile: {format_times(health)}")
    return int(bool(failure_count or other))


if __name__ == "__main__":
    sys.exit(main())
