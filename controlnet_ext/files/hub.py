"""Published files of weights, and their download from the Hugging Face Hub.

A file gets its name when it is complete and its hash is right. The download of huggingface_hub names a file before its
hash is compared, and raises the errors of a transport that changed with each major version (requests, httpx, httpx2);
therefore the bytes are fetched here.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from ..errors import quote_value
from .disk import commit_file, open_regular_file

# Sources of the sha256 of published files, the second also of sizes
HORDE_CATALOG = "Haidra-Org/horde-model-reference @ 418cf00b4d24, src/horde_model_reference/annotator_catalog.py"
DINKSTER_HASHES = "Kosinkadink/Dinkster @ 4258cb557cb6, tools/gen_line_edge_goldens.py"
# Pages of the Hub for a revision: the list of files with sizes to three digits, and the commit with hashes
HUB_FILE_LIST, HUB_COMMIT_PAGE = "the Hub's list of its files @", "the Hub's page of the commit"


@dataclass(frozen=True)
class WeightsFile:
    """A published file of weights, which a preprocessor declares and `Library` finds.

    repo: repository on the Hugging Face Hub.
    path: path in the repository.
    webui_folder: folder below annotator/downloads of sd-webui-controlnet.
    size: bytes, None where no source states it.
    approx_size: bytes to three digits, where nothing more exact is stated.
    sha256: hex digits; None where a download is compared with the Hub's own record.
    source: source of size and hash.
    url: URL of a file that is not on the Hub; such a file has size and sha256.
    """

    repo: str
    path: str
    webui_folder: str
    license: str
    size: int | None = None
    approx_size: int | None = None
    sha256: str | None = None
    source: str = ""
    url: str = ""

    @property
    def name(self) -> str:
        """File name without folders, such as "table5_pidinet.pth"."""
        return PurePosixPath(self.path).name

    @property
    def local_name(self) -> str:
        """Path in a folder of weights: the file name, for a part of a whole model its path in the repository."""
        return self.path if self.webui_folder.startswith(self.repo) else self.name

    @property
    def group(self) -> str:
        """Repository of the whole model that the file is a part of, else the file name."""
        return self.repo if self.webui_folder.startswith(self.repo) else self.name

    @property
    def url_path(self) -> str:
        """Path at the Hub, quoted, without the host."""
        return quote(f"{self.repo}/resolve/main/{self.path}")

    def describe_manual_download(self, target: Path) -> str:
        """Return a line that tells the user which file to put at `target`."""
        return f"put {self.url or f'https://huggingface.co/{self.url_path}'} at {str(target)!r}"


LOGIN_ADVICE = "; accept the license on its page, then log in with `hf auth login` or set HF_TOKEN"
HEADERS = {"User-Agent": "controlnet-ext", "Accept-Encoding": "identity"}
BLOCK_BYTES = 2**18  # bytes of a read
MIN_BYTES = 2**15  # least bytes that a connection must bring
STALL_SECONDS = 30.0  # seconds in which it must bring them
HEADER_SECONDS = 15.0  # seconds in which connection, redirections and headers are complete
MAX_ATTEMPTS = 4  # attempts in a row that may bring less
MAX_REDIRECTIONS = 6  # of one request
RETRY_SECONDS = 0.5  # seconds before the second attempt, doubled before each further one


@dataclass(frozen=True)
class HubFileInfo:
    """The Hub's record of a file: URL of its bytes, their number, and their hash in hex.

    The hash is a sha256, of small files the sha1 of a git blob. `token` belongs to the Hub's own host and is set for
    files that the Hub refuses without a login.
    """

    url: str
    size: int
    hash: str
    token: str | None = None


def download(file: WeightsFile, target: Path) -> None:
    """Download the file to `target`, with a progress bar on stderr; wait for another process that downloads it.

    Bytes go to a hidden .part file beside `target`, which a later call continues after an interruption, also after
    kill -9. A file that the Hub refuses is requested again with the token of `huggingface_hub.get_token()`, which is
    sent to the Hub's own host only. Raises OSError when the bytes do not arrive, ValueError when they are not those of
    the file; then the part is deleted.
    """
    from filelock import FileLock  # of huggingface_hub

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if target.exists():
            return
        record = _request_file_info(file)
        part = target.with_name(f".{target.name}.{record.hash[:16]}.part")
        try:
            _download_to_part(record, part, file.name)
            _check_part(part, record)
        except ValueError:
            part.unlink(missing_ok=True)
            raise
        commit_file(part, target, overwrite=False)
        part.unlink(missing_ok=True)


def _request_file_info(file: WeightsFile) -> HubFileInfo:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    if file.url and file.size is not None and file.sha256:
        return HubFileInfo(file.url, file.size, file.sha256)
    headers, url, token = _request_headers(f"{constants.ENDPOINT}/{file.url_path}", constants.HF_HUB_ETAG_TIMEOUT)
    etag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"').lower()
    size = headers.get("X-Linked-Size") or ("" if "Location" in headers else headers.get("Content-Length")) or ""
    digest = etag if re.fullmatch("[0-9a-f]{64}|[0-9a-f]{40}", etag) else file.sha256
    if digest is None:
        raise OSError(f"the Hub does not say its hash, but {etag!r:.80}")
    if file.sha256 and len(digest) == 64 and digest != file.sha256:
        raise OSError(f"the Hub's has sha256 {digest}, expected {file.sha256}: it was changed there")
    if file.size is None and not size.isdecimal():
        raise OSError(f"the Hub does not say its size, but {size!r:.80}")
    if file.size is not None and size.isdecimal() and int(size) != file.size:
        raise OSError(f"the Hub's has {size} bytes, expected {file.size}: it was changed there")
    return HubFileInfo(url, file.size or int(size), file.sha256 or digest, token)


class _Deadline:
    """A time after which a connection is shut down, even one that gives a byte a second. Safe for several threads."""

    def __init__(self) -> None:
        self.is_over = False
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._sockets: list[socket.socket] = []

    def connect(self, address: tuple[str, int], *more: Any) -> socket.socket:
        """Return a connection, as `socket.create_connection` does, that ends with the deadline."""
        connection = socket.create_connection(address, *more)
        with self._lock:
            self._sockets.append(connection.dup())  # TLS takes the other's descriptor
        return connection

    def extend(self, seconds: float) -> None:
        """Set the deadline to so many seconds from now."""
        self._cancel()
        self._timer = threading.Timer(seconds, self._shut_down)
        self._timer.daemon = True
        self._timer.start()

    def close(self) -> None:
        """Drop the deadline and what belongs to it."""
        self._cancel()
        with self._lock:
            while self._sockets:
                self._sockets.pop().close()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _shut_down(self) -> None:
        with self._lock:
            self.is_over = True
            for each in self._sockets:
                with suppress(OSError):  # closed by the server
                    each.shutdown(socket.SHUT_RDWR)


def _connect_with(deadline: _Deadline, kind: type[HTTPConnection]) -> Callable[..., HTTPConnection]:
    """Return a maker of connections, as urllib calls it, whose sockets end with the deadline."""

    def make(host: str, **options: Any) -> HTTPConnection:
        connection = kind(host, **options)
        connection._create_connection = deadline.connect  # type: ignore[attr-defined]  # http.client's, since 3.2
        return connection

    return make


def _make_opener(deadline: _Deadline) -> OpenerDirector:
    """Return an opener for http and https, which knows no files, FTP or data, and follows no redirection."""

    class Http(HTTPHandler):
        def http_open(self, request: Request) -> Any:
            return self.do_open(_connect_with(deadline, HTTPConnection), request)  # type: ignore[arg-type]

    class Https(HTTPSHandler):
        def https_open(self, request: Request) -> Any:
            make = _connect_with(deadline, HTTPSConnection)
            return self.do_open(make, request, context=ssl.create_default_context())  # type: ignore[arg-type]

    opener = OpenerDirector()
    for handler in (ProxyHandler, Http, Https, UnknownHandler, HTTPDefaultErrorHandler, HTTPErrorProcessor):
        opener.add_handler(handler())
    return opener


def open_url(request: Request, timeout: float, deadline: _Deadline) -> Any:
    """Return the answer to an http or https request. Its headers come before the deadline, each read takes `timeout`.

    Redirections are answers: they raise HTTPError. Raises OSError for any other address, StallError at the deadline.
    """
    if urlsplit(request.full_url).scheme not in ("http", "https"):
        raise OSError(f"an address of {quote_value(request.full_url, 80)}, expected http or https")
    try:
        answer = _make_opener(deadline).open(request, timeout=timeout)
    except (HTTPException, OSError):
        if not deadline.is_over:
            raise
    if deadline.is_over:  # headers that break off are taken for complete ones
        raise StallError(f"the server sent no whole answer in {HEADER_SECONDS:.0f} s")
    return answer


def _follow(url: str, error: HTTPError) -> str:
    """Return the URL that a redirection names. Raises OSError for one that is not http or https, or that leaves https,
    and `error` where it names none."""
    location = error.headers.get("Location")
    if not 300 <= error.code < 400 or not location:
        raise error
    error.close()
    following = urljoin(url, location)
    old, new = urlsplit(url).scheme, urlsplit(following).scheme
    if new not in ("http", "https") or (old == "https" and new == "http"):
        raise RedirectionError(
            f"the server redirects from {old} to {quote_value(following.partition('?')[0], 80)}; not followed"
        )
    return following


class StallError(TimeoutError):
    """A server that sends too little in its time. Another attempt counts as two."""


class RedirectionError(OSError):
    """A redirection that is not followed, whenever it comes."""


def _request_headers(url: str, timeout: float) -> tuple[Any, str, str | None]:
    """Return the Hub's headers of the file, the URL of its bytes, and the token if the Hub requires one.

    A repository that has moved is followed.
    """
    token = None
    for _ in range(MAX_REDIRECTIONS):
        deadline = _Deadline()
        deadline.extend(HEADER_SECONDS)
        try:
            with closing(open_url(_make_request(url, token, method="HEAD"), timeout, deadline)) as response:
                return response.headers, url, token
        except HTTPError as error:
            if error.code in (401, 403) and token is None and (token := _get_token()):
                continue
            if not 300 <= error.code < 400 or not error.headers.get("Location"):
                advice = LOGIN_ADVICE if error.code in (401, 403) else ""
                raise OSError(f"the Hub answers {error.code} {error.reason}{advice}") from error
            url = _follow(url, error)
            if "X-Linked-Etag" in error.headers:
                return error.headers, url, token
        except HTTPException as error:
            raise OSError(f"the Hub's answer is not HTTP: {error!r:.80}") from error
        finally:
            deadline.close()
    raise OSError("the Hub redirects without end")


def _get_token() -> str | None:
    """Return the user's token of the Hub, unless the environment forbids to send it unasked."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_token

    return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()


def _make_request(url: str, token: str | None, offset: int = 0, method: str = "GET") -> Request:
    """Return a request for the bytes from `offset` on, with the token only where the URL is at the Hub's own host."""
    from huggingface_hub import constants

    request = Request(url, method=method, headers=HEADERS | ({"Range": f"bytes={offset}-"} if offset else {}))
    if token and urlsplit(url)[:2] == urlsplit(constants.ENDPOINT)[:2]:  # scheme, and host with port
        request.add_header("Authorization", f"Bearer {token}")
    return request


def _download_to_part(info: HubFileInfo, part: Path, name: str) -> None:
    """Append to `part` until it has all bytes, through interruptions of the server."""
    from huggingface_hub.utils import tqdm

    have = part.stat().st_size if part.exists() else 0
    free = shutil.disk_usage(part.parent).free
    if info.size - have > free:
        raise OSError(f"the disk has {free} bytes free, it needs {info.size - have}")
    with (
        open(part, "ab", buffering=0) as out,
        tqdm(total=info.size, initial=have, unit="B", unit_scale=True, desc=name) as bar,
    ):
        fruitless = 0
        while have < info.size:
            before = have
            try:
                for at, block in _iter_blocks(info, have):
                    if at == 0:  # the server may send the whole file, whatever range was requested
                        out.truncate(0)
                    out.write(block)
                    have = at + len(block)
                    bar.update(have - bar.n)
                if have < info.size:
                    raise OSError("the server stopped")
            except (HTTPException, OSError) as error:
                fruitless = 0 if have - before >= MIN_BYTES else fruitless + (2 if isinstance(error, StallError) else 1)
                if fruitless >= MAX_ATTEMPTS or not _is_transient(error):
                    raise OSError(f"after {have} of {info.size} bytes: {error or repr(error)}") from error
                time.sleep(RETRY_SECONDS / 2 * 2**fruitless)
        os.fsync(out.fileno())


def _is_transient(error: Exception) -> bool:
    """Return True if another attempt may succeed."""
    if isinstance(error, RedirectionError):
        return False
    if isinstance(error, HTTPError):
        return error.code >= 500 or error.code in (408, 429)
    return getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _iter_blocks(info: HubFileInfo, offset: int) -> Iterator[tuple[int, bytes]]:
    """Yield (position, bytes) from `offset` on, or from 0 if the server ignores the range."""
    from huggingface_hub import constants

    deadline = _Deadline()
    deadline.extend(HEADER_SECONDS)
    try:
        with closing(_open_bytes(info, offset, constants.HF_HUB_DOWNLOAD_TIMEOUT, deadline)) as response:
            if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
                raise ValueError(f"the server sends the bytes packed as {quote_value(encoding)}, asked for as they are")
            at = offset if response.status == 206 else 0
            place = response.headers.get("Content-Range", "")
            if at and not place.startswith(f"bytes {at}-"):
                raise ValueError(f"the server sends {quote_value(place)}, asked for from {at} on")
            deadline.extend(STALL_SECONDS)
            since, before = time.monotonic(), at
            while block := response.read1(BLOCK_BYTES):
                if at + len(block) > info.size:
                    raise ValueError(f"the server sends more than the {info.size} bytes that it promised")
                yield at, block
                at += len(block)
                now = time.monotonic()
                if at - before < MIN_BYTES and now - since > STALL_SECONDS:
                    raise StallError(f"the server sent {at - before} bytes in {STALL_SECONDS:.0f} s")
                if at - before >= MIN_BYTES and now - since > STALL_SECONDS / 4:
                    since, before = now, at
                    deadline.extend(STALL_SECONDS)
    except (HTTPException, OSError) as error:
        if deadline.is_over:
            raise StallError(f"the server sent under {MIN_BYTES} bytes in {STALL_SECONDS:.0f} s") from error
        raise
    finally:
        deadline.close()


def _open_bytes(info: HubFileInfo, offset: int, timeout: float, deadline: _Deadline) -> Any:
    """Return the answer with the bytes of a file, after redirections. The token goes to the Hub's own host only."""
    url = info.url
    for _ in range(MAX_REDIRECTIONS):
        try:
            return open_url(_make_request(url, info.token, offset), timeout, deadline)
        except HTTPError as error:
            url = _follow(url, error)
    raise RedirectionError("the server redirects without end")


def _check_part(part: Path, info: HubFileInfo) -> None:
    size = part.stat().st_size
    git = len(info.hash) == 40
    digest = hashlib.sha1(b"blob %d\0" % size) if git else hashlib.sha256()
    with open_regular_file(part) as content:
        while block := content.read(2**20):
            digest.update(block)
    if size != info.size or digest.hexdigest() != info.hash:
        raise ValueError(f"what came has {size} bytes and hash {digest.hexdigest()}, expected {info.hash}")


def find_cached_repository(repo: str, expected: str) -> Path:
    """Return the folder of a repository, as "owner/name", in the Hugging Face cache; nothing is downloaded.

    Raises FileNotFoundError, which says that `repo` is neither what was `expected` nor a repository there.
    """
    import huggingface_hub  # only here: it is slow to import, and most models are given as files

    try:
        return Path(huggingface_hub.snapshot_download(repo, local_files_only=True))
    except (OSError, ValueError) as error:  # not in the cache; not a valid name
        raise FileNotFoundError(
            f"{repo!r} is neither {expected} nor a repository in the Hugging Face cache; download it there first "
            f"(hf download {repo})"
        ) from error
