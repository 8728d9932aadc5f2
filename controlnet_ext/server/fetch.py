"""Images from URLs in requests, for a server that was started with --fetch.

Only public hosts are connected to, checked by their addresses after each redirect, within bounds of size and time.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from ..files.image_formats import sniff_format
from ..sdwebui.detect import DetectFields
from ..sdwebui.fields import ImageField
from ..sdwebui.requests import ImageToImageFields
from ..sdwebui.units import UnitFields

TIMEOUT_SECONDS, MAX_BYTES, MAX_REDIRECTS = 10, 32 * 2**20, 3
MAX_URLS = 8  # in a request
PORTS_BY_SCHEME = {"http": 80, "https": 443}
FETCH_ERROR = (
    "no image came from its URL, which must be that of a public host, answer within "
    f"{TIMEOUT_SECONDS} s, and hold up to "
    f"{MAX_BYTES >> 20} MiB"
)
IMAGE_FIELDS = frozenset(
    name
    for table in (UnitFields, ImageToImageFields, DetectFields)
    for field in table.list_fields().values()
    if isinstance(field, ImageField)
    for name in (field.name, *field.aliases)
)
Resolver = Callable[[str, int], Sequence[tuple[str, int]]]


def replace_urls(value: object, fetch: Callable[[str], bytes]) -> Any:
    """Return the JSON of a request with base64 instead of URLs in its image fields; `fetch` returns the content of one.
    It is called from several threads at once, so that all take as long as one.

    Raises ValueError with the field's name, in the same words for what cannot be fetched and for what is no image.
    """
    links: list[tuple[str, str]] = []  # URL and field
    _map_urls(value, "", lambda url, field: links.append((url, field)))
    if len(links) > MAX_URLS:
        raise ValueError(f"the request has over {MAX_URLS} URLs of images")
    if not links:
        return value
    contents: dict[str, str] = {}
    with ThreadPoolExecutor(len(links)) as executor:
        fetching = [(url, field, executor.submit(fetch, url)) for url, field in links]
        for url, field, future in fetching:
            try:
                contents[url] = base64.b64encode(future.result()).decode()
            except ValueError as error:
                raise ValueError(f"{field}: {FETCH_ERROR}") from error
    return _map_urls(value, "", lambda url, _: contents[url])


def _map_urls(value: object, field: str, replace: Callable[[str, str], Any]) -> Any:
    """Return a JSON value with `replace(URL, name of the field)` for each URL in an image field."""
    if isinstance(value, Mapping):
        return {key: _map_urls(each, key if key in IMAGE_FIELDS else field, replace) for key, each in value.items()}
    if isinstance(value, list):
        return [_map_urls(each, field, replace) for each in value]
    if not field or not isinstance(value, str) or not re.match(r"\s*https?:", value[:40], re.IGNORECASE):
        return value
    return replace(value.strip(), field)


def resolve_public(host: str, port: int) -> list[tuple[str, int]]:
    """Return the addresses of a host, with the port. Raises ValueError if it has none, or one that is not public."""
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ValueError("no such host") from error
    addresses = list(dict.fromkeys((str(entry[4][0]), int(entry[4][1])) for entry in entries))
    if not addresses or not all(is_public_address(address) for address, _ in addresses):
        raise ValueError("no public host")
    return addresses


def is_public_address(address: str) -> bool:
    """Return True for the address of a host in the public internet. IPv6 addresses that embed one of version 4 are not
    public."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and (
        ip not in ipaddress.ip_network("2000::/3") or ip.sixtofour is not None or ip.teredo is not None
    ):
        return False
    return ip.is_global and not ip.is_multicast


class SafeFetcher:
    """A function from the URL of an image to its content. Raises ValueError where there is none within the bounds.

    `resolve` returns the addresses of a host and port. Only these are connected to: the name is not resolved again, so
    that the answer cannot change after the check.
    """

    def __init__(self, resolve: Resolver = resolve_public):
        self._resolve = resolve

    def __call__(self, url: str) -> bytes:
        """Return the content of the image at `url`. Raises ValueError."""
        deadline = time.monotonic() + TIMEOUT_SECONDS  # redirects included
        try:
            for _ in range(MAX_REDIRECTS + 1):
                content, url = self._request(urlsplit(url), url, deadline)
                if content is not None:
                    break
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(f"{type(error).__name__} on the way") from error
        if content is None or len(content) > MAX_BYTES or sniff_format(content[:16]) is None:
            raise ValueError("redirected too often, too large, or no image")
        return content

    def _request(self, parts: SplitResult, url: str, deadline: float) -> tuple[bytes | None, str]:
        """Return the content and the URL, or None and the URL of a redirect."""
        port = PORTS_BY_SCHEME.get(parts.scheme)
        if port is None or parts.port not in (None, port) or not parts.hostname or parts.username is not None:
            raise ValueError("not the URL of an image")
        target = parts.path or "/"
        if parts.query:
            target += f"?{parts.query}"
        if not target.isascii() or not target.isprintable():
            raise ValueError("not a printable ASCII path")
        (address, *_) = self._resolve(parts.hostname, port)
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            raise ValueError("too slow")
        connection_socket = socket.create_connection(address, seconds)
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection_socket = context.wrap_socket(
                connection_socket, server_hostname=parts.hostname, do_handshake_on_connect=False
            )  # the first write does the handshake, within the time limit
        with closing(connection_socket), _close_at(deadline, connection_socket):
            connection = http.client.HTTPConnection(parts.hostname, port)
            connection.sock = connection_socket
            connection.request("GET", target, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
            answer = connection.getresponse()
            if answer.status in (301, 302, 303, 307, 308):
                return None, urljoin(url, answer.headers.get("Location", ""))
            if answer.status != 200:
                raise ValueError(f"status {answer.status}")
            return answer.read(MAX_BYTES + 1), url


@contextmanager
def _close_at(deadline: float, sock: socket.socket) -> Iterator[None]:
    """Shut the socket down at a time of `time.monotonic`, also during an answer that comes byte by byte."""

    def shut_down() -> None:
        with suppress(OSError):  # already closed
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    timer = threading.Timer(max(deadline - time.monotonic(), 0), shut_down)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
