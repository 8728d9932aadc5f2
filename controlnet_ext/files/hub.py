"""A file from the Hugging Face Hub, which gets its name when all of it is there and its hash is right.

huggingface_hub's own download names the file before anyone compares its hash, and its errors are those of a transport
that changed with each of its major versions (requests, httpx, httpx2): so the bytes are fetched here.

What is known of a published file of weights before it is here.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urljoin
from urllib.request import HTTPRedirectHandler, Request, build_opener, urlopen

from .disk import commit_file, open_regular_file

# Who states hashes of published files, sha256 and in the second also sizes
HORDE_CATALOG = "Haidra-Org/horde-model-reference @ 418cf00b4d24, src/horde_model_reference/annotator_catalog.py"
DINKSTER_HASHES = "Kosinkadink/Dinkster @ 4258cb557cb6, tools/gen_line_edge_goldens.py"
# The Hub's own pages of a revision: its list of files, sizes to three digits, and what was added in it, with hashes
HUB_FILE_LIST, HUB_COMMIT_PAGE = "the Hub's list of its files @", "the Hub's page of the commit"


@dataclass(frozen=True)
class WeightsFile:
    """A published file of weights: what a preprocessor declares, and `Library` finds.

    `repo` on the Hugging Face Hub and `path` in it; `folder` is what sd-webui-controlnet calls its place below
    annotator/downloads; `size` in bytes, None where no source states it; `about` is the size to three digits, where no
    more is stated; `sha256` in hex, None where the Hub's own record is what a download is compared with. `source` is
    who states these. `url` is where a file is that is not on the Hub; it has size and sha256."""

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
        """The file's own name, such as "table5_pidinet.pth"."""
        return PurePosixPath(self.path).name

    @property
    def local_name(self) -> str:
        """Where it lies in a folder that was made for it: by its name, as a part of a whole model by its path there."""
        return self.path if self.webui_folder.startswith(self.repo) else self.name

    @property
    def group(self) -> str:
        """What it is a part of: the repository of a whole model, else its own name."""
        return self.repo if self.webui_folder.startswith(self.repo) else self.name

    @property
    def url_path(self) -> str:
        """Where it is at the Hub, after the host."""
        return quote(f"{self.repo}/resolve/main/{self.path}")

    def describe_manual_download(self, target: Path) -> str:
        """What a user can do by hand, in one line: which file to put where."""
        return f"put {self.url or f'https://huggingface.co/{self.url_path}'} at {str(target)!r}"


HEADERS = {"User-Agent": "controlnet-ext", "Accept-Encoding": "identity"}
BLOCK_BYTES = 2**18  # bytes
MIN_BYTES = 2**15  # bytes that a connection must bring
STALL_SECONDS = 30.0  # seconds, in each such stretch of it
MAX_ATTEMPTS = 4  # in a row that bring less
RETRY_SECONDS = 0.5  # seconds after the first of them, doubled after each


@dataclass(frozen=True)
class HubFileInfo:
    """What the Hub says of a file: where its bytes are, how many, and their hash (hex): sha256, or for what is not
    large git's sha1 of a blob."""

    url: str
    size: int
    hash: str


def download(file: WeightsFile, target: Path) -> None:
    """Put the file at `target`, with a progress bar on stderr. Another process that downloads it is waited for.

    Its bytes come into a hidden .part file beside `target`, which a later call goes on with after an interruption,
    also after kill -9. Raises OSError when they do not come, ValueError when they are not the file's: then the
    part is deleted."""
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
    headers, url = _request_headers(f"{constants.ENDPOINT}/{file.url_path}", constants.HF_HUB_ETAG_TIMEOUT)
    etag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"').lower()
    size = headers.get("X-Linked-Size") or ("" if "Location" in headers else headers.get("Content-Length")) or ""
    known = etag if re.fullmatch("[0-9a-f]{64}|[0-9a-f]{40}", etag) else file.sha256
    if known is None:
        raise OSError(f"the Hub does not say its hash, but {etag!r:.80}")
    if file.sha256 and len(known) == 64 and known != file.sha256:
        raise OSError(f"the Hub's has sha256 {known}, expected {file.sha256}: it was changed there")
    if file.size is None and not size.isdecimal():
        raise OSError(f"the Hub does not say its size, but {size!r:.80}")
    if file.size is not None and size.isdecimal() and int(size) != file.size:
        raise OSError(f"the Hub's has {size} bytes, expected {file.size}: it was changed there")
    return HubFileInfo(url, file.size or int(size), file.sha256 or known)


class _NoRedirect(HTTPRedirectHandler):
    """Redirections are answers: the Hub's carries the file's hash, what it points to does not."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _request_headers(url: str, timeout: float) -> tuple[Any, str]:
    """The Hub's headers on the file, and where its bytes are. A repository that has moved is followed."""
    for _ in range(5):
        try:
            with build_opener(_NoRedirect).open(
                Request(url, method="HEAD", headers=HEADERS), timeout=timeout
            ) as response:
                return response.headers, url
        except HTTPError as error:
            location = error.headers.get("Location")
            if not 300 <= error.code < 400 or not location:
                raise OSError(f"the Hub answers {error.code} {error.reason}") from error
            url = urljoin(url, location)
            if "X-Linked-Etag" in error.headers:
                return error.headers, url
        except HTTPException as error:
            raise OSError(f"the Hub's answer is not HTTP: {error!r:.80}") from error
    raise OSError("the Hub redirects without end")


def _download_to_part(info: HubFileInfo, part: Path, name: str) -> None:
    """Bring `part` to the record's size, whatever of it is there already, through interruptions of the server."""
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
                    if at == 0:  # all of it comes, whatever was asked for
                        out.truncate(0)
                    out.write(block)
                    have = at + len(block)
                    bar.update(have - bar.n)
                if have < info.size:
                    raise OSError("the server stopped")
            except (HTTPException, OSError) as error:
                fruitless = 0 if have - before >= MIN_BYTES else fruitless + 1
                if fruitless >= MAX_ATTEMPTS or not _is_transient(error):
                    raise OSError(f"after {have} of {info.size} bytes: {error or repr(error)}") from error
                time.sleep(RETRY_SECONDS / 2 * 2**fruitless)
        os.fsync(out.fileno())


def _is_transient(error: Exception) -> bool:
    """Whether asking again may help."""
    if isinstance(error, HTTPError):
        return error.code >= 500 or error.code in (408, 429)
    return getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _iter_blocks(info: HubFileInfo, offset: int) -> Iterator[tuple[int, bytes]]:
    """Where each block of bytes belongs, and the block, from `have` on, or from 0 if the server will have it so."""
    from huggingface_hub import constants

    request = Request(info.url, headers=HEADERS | ({"Range": f"bytes={offset}-"} if offset else {}))
    with closing(urlopen(request, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)) as response:
        at = offset if response.status == 206 else 0
        if at and not response.headers.get("Content-Range", "").startswith(f"bytes {at}-"):
            raise ValueError(f"the server sends {response.headers.get('Content-Range')!r:.80}, asked for from {at} on")
        since, before = time.monotonic(), at
        while block := response.read1(BLOCK_BYTES):
            if at + len(block) > info.size:
                raise ValueError(f"the server sends more than the {info.size} bytes that it promised")
            yield at, block
            at += len(block)
            if time.monotonic() - since > STALL_SECONDS:
                if at - before < MIN_BYTES:
                    raise TimeoutError(f"the server sent {at - before} bytes in {STALL_SECONDS:.0f} s")
                since, before = time.monotonic(), at


def _check_part(part: Path, info: HubFileInfo) -> None:
    size = part.stat().st_size
    git = len(info.hash) == 40
    digest = hashlib.sha1(b"blob %d\0" % size) if git else hashlib.sha256()
    with open_regular_file(part) as content:
        while block := content.read(2**20):
            digest.update(block)
    if size != info.size or digest.hexdigest() != info.hash:
        raise ValueError(f"what came has {size} bytes and hash {digest.hexdigest()}, expected {info.hash}")
