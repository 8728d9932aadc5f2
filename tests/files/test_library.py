"""Where weights are found, and what a download may do: a file gets its name when its hash is right, and never else."""

import hashlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError

import pytest
import torch
from controlnet_ext.preprocessors import library as library_module
from controlnet_ext.preprocessors.backends.torch import Device
from controlnet_ext.preprocessors.cache import LRUCache
from controlnet_ext.preprocessors.library import Library
from controlnet_ext.preprocessors.registry import find
from hub import Hub, file, honest, serving
from huggingface_hub import constants
from limits import HANG, wait_until
from torch import nn

from controlnet_ext.files import hub as downloads
from controlnet_ext.files.hub import find_cached_repository, open_url
from controlnet_ext.files.safetensors import write_weights

ROOT = Path(__file__).parents[2]
CONTENT = os.urandom(300_000)
PATH = "/some/repo/resolve/main/sub/net.pth"


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No cache, no folders of the machine's, no bars, no waiting."""
    monkeypatch.delenv("CONTROLNET_EXT_MODELS", raising=False)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):  # a server that answers is not given up
        monkeypatch.setattr(constants, name, HANG)
    monkeypatch.setattr(downloads, "RETRY_SECONDS", 0)


@pytest.mark.parametrize("place", ["net.pth", "field/net.pth", "some/repo/sub/net.pth"])
def test_a_file_is_found_in_each_layout_of_the_field(tmp_path, place):
    path = tmp_path / "second" / place
    path.parent.mkdir(parents=True)
    (tmp_path / "first").mkdir()
    path.write_bytes(b"x")
    assert Library([tmp_path / "first", tmp_path / "second"], download=False).fetch(file()) == path


def test_the_environment_names_folders_and_a_given_file_comes_before_them(tmp_path, monkeypatch):
    (tmp_path / "net.pth").write_bytes(b"x")
    monkeypatch.setenv("CONTROLNET_EXT_MODELS", f"{tmp_path}{os.pathsep}")
    assert Library(download=False).fetch(file()) == tmp_path / "net.pth"
    assert Library(files={"net.pth": "other.pth"}).fetch(file()) == Path("other.pth")


def test_the_hugging_face_cache_is_looked_into(tmp_path):
    repo = tmp_path / "home" / "hub" / "models--some--repo"
    snapshot = repo / "snapshots" / ("a" * 40) / "sub"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    (snapshot / "net.pth").write_bytes(b"x")
    assert Library(download=False).fetch(file()) == snapshot / "net.pth"


def test_a_missing_file_says_what_to_put_where(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        Library([tmp_path], download=False).fetch(file())
    line = f"put https://huggingface.co/some/repo/resolve/main/sub/net.pth at '{tmp_path}/field/net.pth'"
    assert str(caught.value) == f"net.pth is not there and downloads are off: {line}"


def test_all_missing_files_of_a_preprocessor_are_named_with_the_command_that_brings_them(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        find("depth_anything_v2_small").load(library=Library([tmp_path], download=False))
    repo = "depth-anything/Depth-Anything-V2-Small-hf"
    files = [file.path for file in find("depth_anything_v2_small").weights]
    assert len(files) == 3 and "config.json is not there and downloads are off" in str(caught.value)
    command = f"3 files are missing in all; this brings them: hf download {repo} {' '.join(files)}"
    assert str(caught.value).endswith(f". Of depth_anything_v2_small, {command}")
    with pytest.raises(
        FileNotFoundError, match=r"^ControlNetHED\.pth is not there and downloads are off: put \S+ at \S+$"
    ):
        find("hed").load(library=Library([tmp_path], download=False))
    two = Library([tmp_path], download=False).describe_missing(find("rtmpose").weights)
    assert "hf download yzd-v/DWPose yolox_l.onnx && hf download " in two


def test_offline_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"^net\.pth could not be downloaded \(HF_HUB_OFFLINE is set\): "):
        Library([tmp_path]).fetch(file())


@pytest.mark.parametrize("folders", [["no such folder"], "no such folder"])
def test_folders_are_a_list_of_folders(folders):
    with pytest.raises((FileNotFoundError, TypeError), match="no such folder"):
        Library(folders)


def test_a_pinned_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    path, hashed = tmp_path / "net.pth", []
    path.write_bytes(CONTENT)
    sha256 = hashlib.sha256
    monkeypatch.setattr(
        library_module.hashlib, "sha256", lambda content: (hashed.append(len(content)), sha256(content))[1]
    )
    pinned, free = file(sha256=sha256(CONTENT).hexdigest()), file()
    for _ in range(3):
        assert Library([tmp_path], download=False).read_verified(pinned) == (path, CONTENT)
        assert Library([tmp_path], download=False).read_verified(free) == (path, CONTENT)
    assert hashed == [len(CONTENT)]
    status = path.stat()
    path.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"net\.pth' is refused: its sha256 is \w+, expected \w+, of sub/"):
            Library([tmp_path], download=False).read_verified(pinned)
    assert hashed == [len(CONTENT)] * 3


@contextmanager
def online(monkeypatch, hub):
    attempts = itertools.count()

    def impatient(request, timeout, deadline):
        """open_url, with a short timeout where it is what ends the attempt. Should the attempt end before the server
        has begun to answer, as on a busy machine, that is the same fault."""
        stalls = hub.fault is stalled and next(attempts) < hub.fault_count
        return open_url(request, 0.3 if stalls else timeout, deadline)

    with serving(hub) as address, monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", address)
        patch.setattr(downloads, "open_url", impatient)
        yield hub


def left(folder):
    """The names in the folder of the file, without the lock's."""
    return {path.name for path in (folder / "field").iterdir() if path.suffix != ".lock"}


def test_a_download_lies_in_webuis_place_and_comes_once(tmp_path, monkeypatch):
    with online(monkeypatch, Hub({PATH: CONTENT})) as hub:
        for _ in range(2):
            path = Library([tmp_path]).fetch(file())
            assert path == tmp_path / "field" / "net.pth" and path.read_bytes() == CONTENT
        assert [method for method, *_ in hub.requests] == ["HEAD", "GET"]
        assert Library().fetch(file()) == tmp_path / "home" / "controlnet-ext" / "field" / "net.pth"
    assert left(tmp_path) == {"net.pth"}


def garbage(handler, content, start):
    honest(handler, bytes(len(content)), start)


def cut(handler, content, start):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 3])


def short(handler, content, start):
    honest(handler, content[:-1], start)


def endless(handler, content, start):
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(1000):
            handler.wfile.write(content)
    except OSError:
        pass  # the client has had enough


def stalled(handler, content, start):
    cut(handler, content, start)
    handler.wfile.flush()
    time.sleep(0.5)


def elsewhere(handler, content, start):
    """Another part than was asked for."""
    handler.answer(206, {"Content-Range": f"bytes 7-9/{len(content)}"}, content[7:])


def failing(handler, content, start):
    handler.answer(500, {}, b"down")


def gone(handler, content, start):
    handler.answer(404, {}, b"gone")


def noise(handler, content, start):
    handler.wfile.write(b"\0garbage\r\n\r\n")


FAULTS = (garbage, cut, short, endless, stalled, elsewhere, failing, gone, noise)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_never_sends_the_file_leaves_none(tmp_path, monkeypatch, fault):
    with online(monkeypatch, Hub({PATH: CONTENT}, fault)), pytest.raises(FileNotFoundError) as caught:
        Library([tmp_path]).fetch(file())
    assert "\n" not in str(caught.value) and "could not be downloaded (" in str(caught.value)
    assert f"sub/net.pth at '{tmp_path}/field/net.pth'" in str(caught.value)
    assert "net.pth" not in left(tmp_path)


@pytest.mark.parametrize("fault", [cut, stalled, failing, short, noise])
def test_a_passing_fault_is_survived_in_one_call(tmp_path, monkeypatch, fault):
    with online(monkeypatch, Hub({PATH: CONTENT}, fault, times=2)) as hub:
        assert Library([tmp_path]).fetch(file()).read_bytes() == CONTENT
    assert left(tmp_path) == {"net.pth"} and len(hub.requests) > 2


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_a_fault_left_the_next_call_gets_the_file(tmp_path, monkeypatch, fault):
    with online(monkeypatch, Hub({PATH: CONTENT}, fault)) as hub:
        with pytest.raises(FileNotFoundError):
            Library([tmp_path]).fetch(file())
        hub.fault = None
        assert Library([tmp_path]).fetch(file()).read_bytes() == CONTENT
    assert left(tmp_path) == {"net.pth"}


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_twenty_times_never_gives_another_file(tmp_path, monkeypatch, fault):
    """Of files of random sizes, the fault coming once to five times, or for ever; and once more after it."""
    chance = random.Random(fault.__name__)
    for number in range(20):
        content, name = chance.randbytes(chance.randrange(1, 400_000)), f"{number}.pth"
        address = f"/some/repo/resolve/main/sub/{name}"
        with online(monkeypatch, Hub({address: content}, fault, times=chance.choice((1, 2, 3, 4, 5, 10**9)))) as hub:
            try:
                assert Library([tmp_path]).fetch(file(name)).read_bytes() == content
            except FileNotFoundError:
                assert name not in left(tmp_path)
                hub.fault = None
                assert Library([tmp_path]).fetch(file(name)).read_bytes() == content
    assert left(tmp_path) == {f"{number}.pth" for number in range(20)}


def test_what_has_come_is_not_asked_for_again(tmp_path, monkeypatch):
    with online(monkeypatch, Hub({PATH: CONTENT}, cut, times=1)) as hub:
        Library([tmp_path]).fetch(file())
    assert hub.requests[-1] == ("GET", f"/bytes{PATH}", "bytes=100000-")


def test_a_slow_server_is_given_up(tmp_path, monkeypatch):
    def slow(handler, content, start):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        for i in range(8):
            handler.wfile.write(content[i : i + 1])
            time.sleep(0.02)

    clock = itertools.count(0, downloads.STALL_SECONDS + 1)  # between two looks at it the patience is over
    monkeypatch.setattr(downloads, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=time.sleep))
    with (
        online(monkeypatch, Hub({PATH: CONTENT}, slow)),
        pytest.raises(FileNotFoundError, match=r"sent \d bytes in 30 s\)"),
    ):
        Library([tmp_path]).fetch(file())
    assert "net.pth" not in left(tmp_path)


@pytest.mark.parametrize(
    ("said", "known", "reason"),
    [
        ({"X-Linked-Etag": "nothing"}, {}, "does not say its hash, but 'nothing'"),
        ({"X-Linked-Size": "-5"}, {}, "does not say its size, but '-5'"),
        ({"X-Linked-Etag": "0" * 64}, {}, f"expected {'0' * 64}"),
        ({"X-Linked-Size": "5"}, {}, "more than the 5 bytes"),
        ({"X-Linked-Size": "300001"}, {}, "the server stopped"),
        ({}, {"sha256": "0" * 64}, f"expected {'0' * 64}: it was changed there"),
        ({}, {"size": 7}, "300000 bytes, expected 7: it was changed there"),
        ({"Location": "/loop/"}, {}, "404"),
    ],
)
def test_a_hub_that_lies_or_has_another_file_is_refused(tmp_path, monkeypatch, said, known, reason):
    with online(monkeypatch, Hub({PATH: CONTENT}, headers=said)), pytest.raises(FileNotFoundError, match=reason):
        Library([tmp_path]).fetch(file(**known))
    assert left(tmp_path) <= {f".net.pth.{hashlib.sha256(CONTENT).hexdigest()[:16]}.part"}


def test_small_files_carry_gits_hash(tmp_path, monkeypatch):
    blob = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    with online(monkeypatch, Hub({PATH: CONTENT}, headers={"X-Linked-Etag": f'W/"{blob}"'})):
        assert Library([tmp_path]).fetch(file()).read_bytes() == CONTENT


def test_a_pinned_hash_needs_none_from_the_hub(tmp_path, monkeypatch):
    pinned = file(sha256=hashlib.sha256(CONTENT).hexdigest(), size=len(CONTENT))
    with online(monkeypatch, Hub({PATH: CONTENT}, headers={"X-Linked-Etag": "", "X-Linked-Size": ""})):
        assert Library([tmp_path]).fetch(pinned).read_bytes() == CONTENT


def test_the_users_token_is_sent_for_a_gated_file_to_the_hubs_own_host_only(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub = Hub({PATH: CONTENT}, token="hf_secret", bytes_host="localhost")
    with online(monkeypatch, hub):
        assert Library([tmp_path]).fetch(file()).read_bytes() == CONTENT
    assert hub.tokens == [
        (PATH, None, "127.0.0.1"),
        (PATH, "Bearer hf_secret", "127.0.0.1"),
        (f"/bytes{PATH}", None, "localhost"),
    ]


def test_a_redirection_of_the_bytes_to_another_host_carries_no_token(tmp_path, monkeypatch):
    def redirect(handler, content, start):
        port = handler.server.server_address[1]
        handler.answer(302, {"Location": f"http://localhost:{port}{handler.path}"})

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub = Hub({PATH: CONTENT}, redirect, times=1, token="hf_secret")
    with online(monkeypatch, hub):
        assert Library([tmp_path]).fetch(file()).read_bytes() == CONTENT
    assert hub.tokens[-2:] == [
        (f"/bytes{PATH}", "Bearer hf_secret", "127.0.0.1"),
        (f"/bytes{PATH}", None, "localhost"),
    ]


@pytest.mark.parametrize(
    "place", ["file:///etc/passwd", "ftp://127.0.0.1/net.pth", "data:,words", "gopher://127.0.0.1/"]
)
@pytest.mark.parametrize("of", ["the record", "the bytes"])
def test_a_redirection_to_anything_but_http_is_not_followed(tmp_path, monkeypatch, place, of):
    def redirect(handler, content, start):
        handler.answer(302, {"Location": place})

    hub = Hub({PATH: CONTENT}, *([redirect] if of == "the bytes" else []))
    hub.headers = {"Location": place} if of == "the record" else {}
    with online(monkeypatch, hub), pytest.raises(FileNotFoundError, match="could not be downloaded") as caught:
        Library([tmp_path]).fetch(file())
    assert "\n" not in str(caught.value) and "net.pth" not in left(tmp_path)
    assert all((tmp_path / "field" / name).stat().st_size == 0 for name in left(tmp_path))


def test_a_redirection_does_not_leave_https():
    def moved(location):
        error = HTTPError("https://a/b", 302, "", Message(), None)
        error.headers["Location"] = location
        return error

    for location, wanted in (("/c", "https://a/c"), ("https://d/e", "https://d/e"), ("//d/e", "https://d/e")):
        assert downloads._follow("https://a/b", moved(location)) == wanted
    error = moved("http://a/b")
    with pytest.raises(OSError, match=r"redirects from https to 'http://a/b'; not followed"):
        downloads._follow("https://a/b", error)


def test_a_server_that_redirects_without_end_is_given_up(tmp_path, monkeypatch):
    def redirect(handler, content, start):
        handler.answer(302, {"Location": handler.path})

    with (
        online(monkeypatch, Hub({PATH: CONTENT}, redirect)) as hub,
        pytest.raises(FileNotFoundError, match="redirects without end"),
    ):
        Library([tmp_path]).fetch(file())
    assert len(hub.requests) == 1 + downloads.MAX_REDIRECTIONS


def drip_headers(handler, content, start):
    """Header lines a byte at a time, until the client has gone."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    _drip(handler, b"X-A: b\r\n")


def drip_chunks(handler, content, start):
    """The size of a chunk, whose line never ends."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;")
    _drip(handler, b"a")


def _drip(handler, text):
    with suppress(OSError):
        for i in itertools.count():
            handler.wfile.write(text[i % len(text) :][:1])
            handler.wfile.flush()
            time.sleep(0.01)


@pytest.mark.parametrize("fault", [drip_headers, drip_chunks])
def test_a_server_that_sends_a_byte_at_a_time_is_given_up_at_the_deadline(tmp_path, monkeypatch, fault):
    for name in ("HEADER_SECONDS", "STALL_SECONDS"):
        monkeypatch.setattr(downloads, name, 0.2)
    with (
        online(monkeypatch, Hub({PATH: CONTENT}, fault)) as hub,
        pytest.raises(FileNotFoundError, match=r"the server sent (under 32768 bytes|no whole answer) in 0 s"),
    ):
        Library([tmp_path]).fetch(file())
    assert [method for method, *_ in hub.requests] == ["HEAD", "GET", "GET"]


def test_a_packed_answer_is_refused(tmp_path, monkeypatch):
    def packed(handler, content, start):
        handler.answer(200, {"Content-Encoding": "gzip"}, content)

    with (
        online(monkeypatch, Hub({PATH: CONTENT}, packed)),
        pytest.raises(FileNotFoundError, match="sends the bytes packed as 'gzip'"),
    ):
        Library([tmp_path]).fetch(file())


def test_a_file_that_is_open_to_all_is_fetched_without_the_token(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub = Hub({PATH: CONTENT})
    with online(monkeypatch, hub):
        Library([tmp_path]).fetch(file())
    assert {token for _, token, _ in hub.tokens} == {None}


@pytest.mark.parametrize("token", ["", "hf_other"])
def test_a_gated_file_without_a_valid_token_says_what_to_do(tmp_path, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    with (
        online(monkeypatch, Hub({PATH: CONTENT}, token="hf_secret")),
        pytest.raises(FileNotFoundError, match=r"answers 401 Unauthorized; accept the license .* HF_TOKEN"),
    ):
        Library([tmp_path]).fetch(file())


def test_a_killed_download_is_gone_on_with(tmp_path, monkeypatch):
    def wait(handler, content, start):
        cut(handler, content, start)
        handler.wfile.flush()
        killed.wait()

    killed = threading.Event()
    code = "from hub import file; from controlnet_ext.preprocessors.library import Library; "
    code += f"Library([{str(tmp_path)!r}]).fetch(file())"
    with online(monkeypatch, Hub({PATH: CONTENT}, wait, times=1)) as hub:
        settings = {
            "HF_ENDPOINT": constants.ENDPOINT,
            "HF_HUB_DOWNLOAD_TIMEOUT": str(int(HANG)),
            "HF_HUB_ETAG_TIMEOUT": str(int(HANG)),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'helpers'}",
        }
        process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | settings, stderr=subprocess.DEVNULL)
        part = tmp_path / "field" / f".net.pth.{hashlib.sha256(CONTENT).hexdigest()[:16]}.part"
        wait_until(lambda: part.exists() and part.stat().st_size == 100_000, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed.set()
        assert left(tmp_path) == {part.name}
        assert Library([tmp_path]).fetch(file()).read_bytes() == CONTENT
    assert hub.requests[-1][2] == "bytes=100000-" and left(tmp_path) == {"net.pth"}


def test_two_libraries_that_download_at_once_download_once(tmp_path, monkeypatch):
    with online(monkeypatch, Hub({PATH: CONTENT})) as hub:
        paths = at_once(lambda: Library([tmp_path]).fetch(file()), 6)
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert [method for method, *_ in hub.requests].count("GET") == 1


def at_once(call, threads):
    results = []
    running = [threading.Thread(target=lambda: results.append(call())) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert len(results) == threads
    return results


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.zeros(4))
        self.drop = nn.Dropout()

    def forward(self, x):
        return {"y": [self.drop(x * self.k), x > 0]}


@pytest.fixture
def written(tmp_path):
    write_weights(tmp_path / "net.pth", {"k": torch.tensor([0.0, 1.0, 2.0, 1 / 3])})
    return Library([tmp_path], download=False, cache_bytes=100)


def build(tensors):
    built.append(1)
    net = Scale()
    net.load_state_dict(tensors)
    return net


built = []


def test_a_network_computes_on_its_device_in_its_numbers_and_gives_float32_back(written):
    exact = written.load_network(file(), build)(torch.ones(4))["y"][0]
    assert exact.tolist() == [0, 1, 2, torch.tensor(1 / 3).item()] and not exact.requires_grad
    rounded, above = written.load_network(file(), build, Device("cpu", "bfloat16"))(torch.ones(4))["y"]
    assert rounded.dtype == torch.float32 and rounded[3] == torch.tensor(1 / 3).bfloat16() != exact[3]
    assert above.dtype == torch.bool


def test_many_threads_load_a_network_once(written):
    built.clear()
    assert len({id(network) for network in at_once(lambda: written.load_network(file(), build), 8)}) == len(built) == 1


def test_networks_are_kept_up_to_the_limit_and_freed(written):
    built.clear()
    for _ in range(3):
        written.load_network(file(), build)
    assert len(built) == 1 and written.cache.size == 16
    written.free()
    held = written.load_network(file(), build)
    assert len(built) == 2
    written.free()
    assert written.load_network(file(), build) is held and written.cache.size == 16


def test_nothing_is_kept_that_nobody_asked_to_keep(tmp_path, written):
    lean = Library([tmp_path], download=False)
    built.clear()
    held = lean.load_network(file(), build)
    assert lean.load_network(file(), build) is held and lean.cache.size == 0
    del held
    lean.load_network(file(), build)
    assert len(built) == 2


class Thing:
    def __init__(self, bytes):
        self.bytes = bytes


def test_the_longest_unused_goes_first_and_what_is_too_large_is_not_kept():
    pool, loads = LRUCache(10, lambda thing: thing.bytes), []

    def get(key, size):
        return pool.get_or_create(key, lambda: loads.append(key) or Thing(size))

    for key, size in (("a", 4), ("b", 4), ("a", 4), ("c", 4), ("huge", 11), ("a", 4), ("b", 4)):
        get(key, size)
    assert loads == ["a", "b", "c", "huge", "b"] and pool.size == 8


def test_a_failed_load_is_tried_again_and_holds_nobody_up():
    pool = LRUCache(10, lambda thing: thing.bytes)
    with pytest.raises(KeyError):
        pool.get_or_create("a", lambda: {}["nothing"])
    assert pool.get_or_create("a", lambda: Thing(1)).bytes == 1


def test_other_weights_are_refused_with_the_files_name(tmp_path, written):
    write_weights(tmp_path / "other.pth", {"q": torch.zeros(4)})
    library = Library(files={"net.pth": tmp_path / "other.pth"})
    with pytest.raises(ValueError, match=r"other\.pth' is refused: .*Missing key\(s\) in state_dict: \"k\"") as caught:
        library.load_network(file(), build)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("device", "reason"), [("cuda:99", "cuda:99"), ("toaster", "toaster"), ("", "device ''")])
def test_a_device_that_is_not_there_is_refused(written, device, reason):
    with pytest.raises(ValueError, match=f"{reason}.*cannot be used"):
        written.load_network(file(), build, device)
    with pytest.raises(ValueError, match="'int8' is none of: float32, float16, bfloat16"):
        Device("cpu", "int8")


@pytest.mark.parametrize("repo", ["nobody/nothing", "a//b", "--/.."])
def test_a_repository_that_is_not_in_the_cache_is_refused_without_a_connection(repo):
    with pytest.raises(FileNotFoundError, match="is neither a folder nor a repository in the Hugging Face cache; down"):
        find_cached_repository(repo, "a folder")
