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

from ..files.image_formats import sniff_format
from ..sdwebui.detect import DetectFields
from ..sdwebui.fields import ImageField
from ..sdwebui.requests import ImageToImageFields
from ..sdwebui.units import UnitFields

TIMEOUT_SECONDS, MAX_BYTES, MAX_REDIRECTS, MAX_URLS = 10, 32 * 2**20, 3, 8  # the last: addresses of a request
PORTS_BY_SCHEME = {"http": 80, "https": 443}
FETCH_ERROR = (
    "no picture came from its address, which must be that of a public host, answer within "
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


def replace_urls(value: Any, fetch: Callable[[str], bytes]) -> Any:
    """The JSON of a request with base64 instead of addresses where it has pictures. ValueError names the field; what
    cannot be fetched and what is no picture are refused alike."""
    count = 0

    def looked(value: Any, field: str) -> Any:
        nonlocal count
        if isinstance(value, Mapping):
            return {key: looked(each, key if key in IMAGE_FIELDS else field) for key, each in value.items()}
        if isinstance(value, list):
            return [looked(each, field) for each in value]
        if not field or not isinstance(value, str) or not re.match(r"\s*https?:", value[:40], re.IGNORECASE):
            return value
        count += 1
        if count > MAX_URLS:
            raise ValueError(f"the request has over {MAX_URLS} addresses of pictures")
        try:
            return base64.b64encode(fetch(value.strip())).decode()
        except ValueError as error:
            raise ValueError(f"{field}: {FETCH_ERROR}") from error

    return looked(value, "")


def resolve_public(host: str, port: int) -> list[tuple[str, int]]:
    """The addresses of a host. ValueError if it has none, or one that is not public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ValueError("no such host") from error
    addresses = list(dict.fromkeys((str(entry[4][0]), int(entry[4][1])) for entry in found))
    if not addresses or not all(is_public_address(address) for address, _ in addresses):
        raise ValueError("no public host")
    return addresses


def is_public_address(address: str) -> bool:
    """Whether it is a host's in the public internet; of addresses of version 6 those that hold one of version 4 are
    none."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and (
        ip not in ipaddress.ip_network("2000::/3") or ip.sixtofour is not None or ip.teredo is not None
    ):
        return False
    return ip.is_global and not ip.is_multicast


class SafeFetcher:
    """The content of a picture at an address. `resolve` gives the addresses of a host and port, which alone are
    connected to: the name is not looked up again. ValueError."""

    def __init__(self, resolve: Resolver = resolve_public):
        self._resolve = resolve

    def __call__(self, url: str) -> bytes:
        try:
            for _ in range(MAX_REDIRECTS + 1):
                content, url = self._request(urlsplit(url), url)
                if content is not None:
                    break
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(f"{type(error).__name__} on the way") from error
        if content is None or len(content) > MAX_BYTES or sniff_format(content[:16]) is None:
            raise ValueError("redirected too often, too large, or no picture")
        return content

    def _request(self, parts: SplitResult, url: str) -> tuple[bytes | None, str]:
        """The content, or None and where to look for it."""
        port = PORTS_BY_SCHEME.get(parts.scheme)
        if port is None or parts.port not in (None, port) or not parts.hostname or parts.username is not None:
            raise ValueError("no address of a picture")
        target = parts.path or "/"
        if parts.query:
            target += f"?{parts.query}"
        if not target.isascii() or not target.isprintable():
            raise ValueError("an address of other letters")
        (address, *_) = self._resolve(parts.hostname, port)
        connected = socket.create_connection(address, TIMEOUT_SECONDS)
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connected = context.wrap_socket(
                connected, server_hostname=parts.hostname, do_handshake_on_connect=False
            )  # which the first write does, in time
        with closing(connected), _close_after_timeout(connected):
            connection = http.client.HTTPConnection(parts.hostname, port)
            connection.sock = connected
            connection.request("GET", target, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
            answer = connection.getresponse()
            if answer.status in (301, 302, 303, 307, 308):
                return None, urljoin(url, answer.headers.get("Location", ""))
            if answer.status != 200:
                raise ValueError(f"status {answer.status}")
            return answer.read(MAX_BYTES + 1), url


@contextmanager
def _close_after_timeout(sock: socket.socket) -> Iterator[None]:
    """After `SECONDS` nothing more comes, also of an answer that comes drop by drop."""

    def end() -> None:
        with suppress(OSError):  # it is over already
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    timer = threading.Timer(TIMEOUT_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
