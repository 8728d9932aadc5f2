"""Pictures from addresses in requests, on a server that is told to fetch them: from public hosts only, whatever their
names and redirects say, and within bounds of size and time."""

from __future__ import annotations

import base64
import http.client
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from ..files.image_formats import kind

SECONDS, BYTES, REDIRECTS, COUNT = 10, 32 * 2**20, 3, 8  # the last: addresses of a request
PORTS = {"http": 80, "https": 443}
REFUSAL = (
    f"no picture came from its address, which must be that of a public host, answer within {SECONDS} s, and hold up to "
    f"{BYTES >> 20} MiB"
)
FIELDS = {
    *("init_images", "image", "input_image", "mask", "mask_image", "effective_region_mask"),
    *("controlnet_input_images", "controlnet_images", "controlnet_masks", "controlnet_mask"),
}
Resolve = Callable[[str, int], Sequence[tuple[str, int]]]


def fetched(value: Any, fetch: Callable[[str], bytes]) -> Any:
    """The JSON of a request with base64 instead of addresses where it has pictures. ValueError names the field; what
    cannot be fetched and what is no picture are refused alike."""
    count = 0

    def looked(value: Any, field: str) -> Any:
        nonlocal count
        if isinstance(value, Mapping):
            return {key: looked(each, key if key in FIELDS else field) for key, each in value.items()}
        if isinstance(value, list):
            return [looked(each, field) for each in value]
        if not field or not isinstance(value, str) or not re.match(r"\s*https?:", value[:40], re.IGNORECASE):
            return value
        count += 1
        if count > COUNT:
            raise ValueError(f"the request has over {COUNT} addresses of pictures")
        try:
            return base64.b64encode(fetch(value.strip())).decode()
        except ValueError as error:
            raise ValueError(f"{field}: {REFUSAL}") from error

    return looked(value, "")


def public(host: str, port: int) -> list[tuple[str, int]]:
    """The addresses of a host. ValueError if it has none, or one that is not public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ValueError("no such host") from error
    addresses = list(dict.fromkeys((str(entry[4][0]), int(entry[4][1])) for entry in found))
    if not addresses or not all(is_public(address) for address, _ in addresses):
        raise ValueError("no public host")
    return addresses


def is_public(address: str) -> bool:
    """Whether it is a host's in the public internet; of addresses of version 6 those that hold one of version 4 are
    none."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and (
        ip not in ipaddress.ip_network("2000::/3") or ip.sixtofour is not None or ip.teredo is not None
    ):
        return False
    return ip.is_global and not ip.is_multicast


class Fetch:
    """The content of a picture at an address. `resolve` gives the addresses of a host and port, which alone are
    connected to: the name is not looked up again. ValueError."""

    def __init__(self, resolve: Resolve = public):
        self._resolve = resolve

    def __call__(self, url: str) -> bytes:
        try:
            for _ in range(REDIRECTS + 1):
                content, url = self._answer(urlsplit(url), url)
                if content is not None:
                    break
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(f"{type(error).__name__} on the way") from error
        if content is None or len(content) > BYTES or kind(content[:16]) is None:
            raise ValueError("redirected too often, too large, or no picture")
        return content

    def _answer(self, parts: SplitResult, url: str) -> tuple[bytes | None, str]:
        """The content, or None and where to look for it."""
        port = PORTS.get(parts.scheme)
        if port is None or parts.port not in (None, port) or not parts.hostname or parts.username is not None:
            raise ValueError("no address of a picture")
        target = parts.path or "/"
        if parts.query:
            target += f"?{parts.query}"
        if not target.isascii() or not target.isprintable():
            raise ValueError("an address of other letters")
        (address, *_) = self._resolve(parts.hostname, port)
        connected = socket.create_connection(address, SECONDS)
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connected = context.wrap_socket(
                connected, server_hostname=parts.hostname, do_handshake_on_connect=False
            )  # which the first write does, in time
        with closing(connected), _ended_in_time(connected):
            connection = http.client.HTTPConnection(parts.hostname, port)
            connection.sock = connected
            connection.request("GET", target, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
            answer = connection.getresponse()
            if answer.status in (301, 302, 303, 307, 308):
                return None, urljoin(url, answer.headers.get("Location", ""))
            if answer.status != 200:
                raise ValueError(f"status {answer.status}")
            return answer.read(BYTES + 1), url


@contextmanager
def _ended_in_time(connected: socket.socket) -> Iterator[None]:
    """After `SECONDS` nothing more comes, also of an answer that comes drop by drop."""

    def end() -> None:
        with suppress(OSError):  # it is over already
            socket.socket.shutdown(connected, socket.SHUT_RDWR)

    timer = threading.Timer(SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
