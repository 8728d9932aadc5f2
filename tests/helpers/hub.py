"""A Hugging Face Hub on 127.0.0.1, honest or not: /repo/resolve/main/path answers HEAD as the Hub does, with the
hash and the size, and points to another address, which gives the bytes."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from controlnet_ext.files.hub import WeightsFile


class Hub:
    """What the server does. `fault(self, handler, content, start)` may answer in place of the honest bytes; `requests`
    are (method, path, Range). `times` faults come before honesty. With a `token` files are gated: HEAD is refused
    without it. Bytes are at `bytes_host`; `tokens` are (path, Authorization, Host) of all requests."""

    def __init__(self, files, fault=None, times=10**9, headers=None, token=None, bytes_host="127.0.0.1"):
        self.token, self.bytes_host, self.tokens = token, bytes_host, []
        self.files, self.fault, self.times, self.headers = files, fault, times, headers or {}
        self.fault_count = times if fault else 0
        self.requests = []


def file(name="net.pth", content=b"", **known):
    """A WeightsFile of the stand-in."""
    return WeightsFile(repo="some/repo", path=f"sub/{name}", webui_folder="field", license="MIT", **known)


def headers(content, status=200):
    return {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}


@contextmanager
def serving(hub):
    """The address of a server that behaves like `hub`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status, given, content=b""):
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | given).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def note_token(self):
            host = self.headers["Host"].partition(":")[0]
            hub.tokens.append((self.path, self.headers.get("Authorization"), host))

        def do_HEAD(self):
            hub.requests.append(("HEAD", self.path, None))
            self.note_token()
            content = hub.files.get(self.path)
            if content is None:
                return self.answer(404, {})
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.answer(401, {"X-Error-Code": "GatedRepo"})
            place = f"http://{hub.bytes_host}:{server.server_address[1]}/bytes{self.path}"
            return self.answer(302, {"Location": place} | headers(content) | hub.headers)

        def do_GET(self):
            hub.requests.append(("GET", self.path, self.headers.get("Range")))
            self.note_token()
            content = hub.files.get(self.path.removeprefix("/bytes"))
            if content is None:
                return self.answer(404, {})
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            if hub.fault and hub.times > 0:
                hub.times -= 1
                self.close_connection = True
                return hub.fault(self, content, start)
            return honest(self, content, start)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()


def honest(handler, content, start):
    if start:
        ranged = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return handler.answer(206, ranged, content[start:])
    return handler.answer(200, {}, content)
