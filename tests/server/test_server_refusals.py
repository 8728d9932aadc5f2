"""What no request gets: files of the server, and what is not public of the network around it."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from limits import HANG
from serving import photo

from controlnet_ext.embedded import SAMPLE_PHOTO
from controlnet_ext.sdwebui.detect import detect_maps
from controlnet_ext.sdwebui.fields import RequestLimits
from controlnet_ext.sdwebui.requests import parse_generation_request
from controlnet_ext.server import fetch
from controlnet_ext.server.fetch import FETCH_ERROR, SafeFetcher, is_public_address, replace_urls, resolve_public

MISSING = "/nowhere/none.png"
BEFORE = ["", "file://", "file:", "./", "../../../../../../..", "\\\\?\\", "//", "~root", "data:image/png;base64,"]
THERE = [
    str(SAMPLE_PHOTO),
    __file__,
    "/etc/passwd",
    "/dev/zero",
    "/proc/self/environ",
    "/proc/self/fd/0",
    "/",
    "/etc",
    "/root",
    str(SAMPLE_PHOTO.parent),
]
OTHERS = [
    *(
        "C:\\Windows\\win.ini",
        "C:/Windows/win.ini",
        "\\\\127.0.0.1\\c$\\a.png",
        "//127.0.0.1/share/a.png",
        "NUL",
        "CON",
    ),
    *("a.png\0.jpg", "/etc/passwd\0.png", "%2e%2e%2fetc%2fpasswd", "..%252f..%252fetc%252fpasswd", "....//....//etc"),
    *("~/.ssh/id_rsa", "$HOME/.bashrc", "${HOME}", "`id`", "$(id)", "|id", "*.png", "/etc/*", "@/etc/passwd", "-"),
    *("tests/serving.py", "pyproject.toml", "a.png::$DATA", "/etc/passwd#.png", "/etc/passwd?.png", "zip:///a.zip!/a"),
    *("phar://a.png", "jar:file:/a!/b", "php://filter/resource=/etc/passwd", "expect://id", "glob:///etc/*", "x" * 300),
    *("/dev/stdin", "/dev/tcp/127.0.0.1/80", "/proc/self/maps", "/sys/kernel", "/run/secrets", "/var/log"),
]
PATHS = [before + path for before in BEFORE for path in THERE] + OTHERS
URLS = [
    *(
        "http://127.0.0.1/a.png",
        "http://localhost/a.png",
        "http://[::1]/a.png",
        "http://0.0.0.0/a.png",
        "http://0/a.png",
    ),
    *("http://2130706433/a.png", "http://0x7f.1/a.png", "http://127.1/a.png", "http://017700000001/a.png"),
    *("http://10.0.0.1/a.png", "http://192.168.0.1/a.png", "http://172.16.0.1/a.png", "http://100.64.0.1/a.png"),
    *("http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/latest/", "http://[fe80::1]/a.png"),
    *("http://[::ffff:127.0.0.1]/a.png", "http://[::ffff:7f00:1]/a.png", "http://[64:ff9b::7f00:1]/a.png"),
    *("http://[2002:7f00:1::]/a.png", "http://224.0.0.1/a.png", "http://255.255.255.255/a.png"),
    *("http://user:word@127.0.0.1/a.png", "http://127.0.0.1:6379/a.png", "http://localhost.:80/a.png"),
    *("https://127.0.0.1/a.png", "HTTP://LOCALHOST/A.PNG", "http:///a.png", "http://", "http://a.example:22/a.png"),
    *("http://a.example:x/", "http://[::1", "http://" + "a" * 300 + ".example/", "http://a..example/a.png"),
]


def asked(read: Callable[[], Any]) -> str:
    with pytest.raises(ValueError, match=r"\S") as caught:
        read()
    return str(caught.value)


def everywhere(value: Any) -> list[Callable[[], Any]]:
    """Readers of requests that have it wherever an image can be."""

    def unit(**fields: Any) -> Callable[[], Any]:
        body = {"alwayson_scripts": {"ControlNet": {"args": [{"model": "m", **fields}]}}}
        return lambda: parse_generation_request(body, (64, 64), RequestLimits(), False)

    def image(**fields: Any) -> Callable[[], Any]:
        return lambda: parse_generation_request({"init_images": [photo()], **fields}, (64, 64), RequestLimits(), True)

    def maps(**fields: Any) -> Callable[[], Any]:
        return lambda: detect_maps({"controlnet_module": "canny", **fields}, lambda name: pytest.fail(name))

    found = [unit(image=value), unit(input_image=value), unit(image={"image": value}), unit(image=[photo(), value])]
    found += [unit(image=photo(), mask=value), unit(image=photo(), mask_image=value)]
    found += [unit(image=photo(), effective_region_mask=value), image(init_images=[value]), image(mask=value)]
    found += [maps(controlnet_input_images=[value]), maps(controlnet_images=[value])]
    return [*found, maps(controlnet_input_images=[photo()], controlnet_masks=[value])]


def test_there_are_enough_of_them() -> None:
    assert len(set(PATHS)) >= 120 and len(set(URLS)) >= 25


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_a_path_is_refused_as_a_missing_one_is(path: str) -> None:
    for hostile, missing in zip(everywhere(path), everywhere(MISSING), strict=True):
        words = asked(hostile)
        assert words == asked(missing)
        assert words.endswith("no image in base64; paths and URLs are not read")


@pytest.mark.parametrize("url", URLS, ids=range(len(URLS)))
def test_an_address_is_refused_as_a_path_is_unless_the_server_fetches(url: str) -> None:
    for hostile, missing in zip(everywhere(url), everywhere(MISSING), strict=True):
        assert asked(hostile) == asked(missing)


@pytest.mark.parametrize("url", URLS, ids=range(len(URLS)))
def test_an_address_that_is_not_public_is_not_connected_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("connected"))
    assert asked(lambda: replace_urls({"image": url}, SafeFetcher())) == f"image: {FETCH_ERROR}"


@pytest.mark.parametrize("found", [["127.0.0.1"], ["93.184.215.14", "10.0.0.1"], ["::1"], ["fe80::1%eth0"], []])
def test_a_name_is_as_public_as_all_its_addresses(found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in found]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("connected"))
    assert asked(lambda: replace_urls({"image": "http://a.example/"}, SafeFetcher())) == f"image: {FETCH_ERROR}"


def test_public_addresses_are_public() -> None:
    for address in ("93.184.215.14", "1.1.1.1", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"):
        assert is_public_address(address)


class Images(BaseHTTPRequestHandler):
    """Answers by the path."""

    def do_GET(self) -> None:
        content, status, headers = SAMPLE_PHOTO.read_bytes(), 200, {}
        if self.path.startswith("/to?"):
            status, headers, content = 302, {"Location": self.path[4:]}, b""
        elif self.path.startswith("/later?"):
            time.sleep(0.3)
            status, headers, content = 302, {"Location": self.path[7:]}, b""
        elif self.path == "/missing":
            status, content = 404, b""
        elif self.path == "/text":
            content = b"secret"
        elif self.path == "/large":
            content += b"\0" * fetch.MAX_BYTES
        elif self.path == "/slow":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-More: ")
            with suppress(OSError):  # the client has had enough
                while not self.server.done.is_set():  # type: ignore[attr-defined]
                    self.wfile.write(b"1")
                    time.sleep(0.05)
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[SafeFetcher]:
    """What fetches as from the internet: a.example is public, all else as it is."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Images)
    server.done = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield SafeFetcher(
        lambda host, port: [server.server_address[:2]] if host == "a.example" else resolve_public(host, port)
    )  # type: ignore[list-item]
    server.done.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_image_at_a_public_address_is_fetched_also_after_a_redirect(web: SafeFetcher) -> None:
    for url in ("http://a.example/p.jpg", "http://A.example:80/to?/p", "http://a.example/to?http://a.example/to?/p"):
        sent = {"prompt": url, "init_images": [url], "unit": [{"image": {"image": url, "mask": photo()}}]}
        kept = json.dumps(sent)
        found = replace_urls(sent, web)
        assert found["init_images"] == [photo()] and found["unit"][0]["image"] == {"image": photo(), "mask": photo()}
        assert found["prompt"] == url and json.dumps(sent) == kept


@pytest.mark.parametrize("target", [*URLS, "/to?/to?/to?/to?/p", "ftp://a.example/p", f"file://{SAMPLE_PHOTO}"])
def test_a_redirect_to_what_is_not_public_is_not_followed(web: SafeFetcher, target: str) -> None:
    if not target.startswith("http:///"):  # which is a path of that host
        assert asked(lambda: replace_urls({"mask": "http://a.example/to?" + target}, web)) == f"mask: {FETCH_ERROR}"


def test_what_is_missing_no_image_too_large_or_too_slow_is_refused_alike(
    web: SafeFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "MAX_BYTES", 100_000)
    for path in ("missing", "text", "large", "slow"):
        monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 0.5 if path == "slow" else HANG)
        assert (
            asked(lambda path=path: replace_urls({"image": f"http://a.example/{path}"}, web)) == f"image: {FETCH_ERROR}"
        )


def test_redirects_have_one_time_limit_together(web: SafeFetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 0.5)  # each redirect takes 0.3 s
    words = asked(lambda: replace_urls({"image": "http://a.example/later?/later?/later?/p"}, web))
    assert words == f"image: {FETCH_ERROR}"


def test_addresses_are_fetched_side_by_side() -> None:
    together = threading.Barrier(8)  # none passes before all have come

    def wait(url: str) -> bytes:
        together.wait(HANG)
        return url.encode()

    found = replace_urls([{"image": f"http://a.example/{k}"} for k in range(8)], wait)
    assert found[7] == {"image": base64.b64encode(b"http://a.example/7").decode()}


def test_a_request_has_only_so_many_addresses(web: SafeFetcher) -> None:
    many = [{"image": "http://a.example/p"}] * 9
    assert asked(lambda: replace_urls(many, web)) == "the request has over 8 URLs of images"
    assert len(replace_urls(many[:8], web)) == 8


def test_nothing_of_a_refused_request_is_in_the_answer(tmp_path: Path) -> None:
    secret = tmp_path / "secret-name.png"
    assert all("secret-name" not in asked(read) for read in everywhere(str(secret)))
