"""Python with torch and diffusers imported: one process imports them, and each command runs in a fork of it.

The imports take seven seconds, which each command of a test would spend again. Only for tests that are about neither
imports nor the start of a process. `open_python` gives a file that is called as Python is, with `-c CODE`, `-m MODULE`
or `FILE`. A call hands its environment, folder, files 0 to 2 and signals on to its fork, and ends as the fork ends.

As a program this file is the process (`serve FOLDER DESCRIPTOR`) or one call (`call FOLDER WORDS`)."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SOCKET, SHIM, STDOUT = "socket", "python", "stdout"
LEASE, CALL = b"L", b"C"  # the first byte of a connection
FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP")


@contextmanager
def open_python(folder: Path) -> Iterator[str]:
    """The file to call, in `folder`; beside it, in `STDOUT`, lies what the imports wrote to stdout.

    Several processes may share a folder. The first starts the process; it ends when the last has left the block.
    Where there are no forks, or where the folder's path is too long for a socket, the file is Python itself."""
    if sys.platform != "linux" or len(str(folder / SOCKET).encode()) > 107:
        yield sys.executable
        return
    server = None
    folder.mkdir(mode=0o700, exist_ok=True)
    with _lock(folder):
        if not (folder / SHIM).exists():
            server = _start(folder)
        lease = _connect(folder)
        lease.sendall(LEASE)
    try:
        yield str(folder / SHIM)
    finally:
        lease.close()
        if server:
            server.wait()


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    import fcntl

    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the process and return once it listens; calls wait until its imports are done."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    reader, writer = os.pipe()
    words = [sys.executable, __file__, "serve", str(folder), str(writer)]
    with open(folder / STDOUT, "wb") as stdout:
        server = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, pass_fds=[writer])
    os.close(writer)
    assert os.read(reader, 1), "no process to fork"
    os.close(reader)
    call = f'exec "{sys.executable}" -IS "{__file__}" call "{folder}" "$@"'
    (folder / SHIM).write_text(f"#!/bin/sh\n{call}\n")
    (folder / SHIM).chmod(0o755)
    return server


def _connect(folder: str | Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(Path(folder) / SOCKET))
    return connection


def call(folder: str, words: list[str]) -> int:
    """Run the words in a fork and return its exit code; end by the signal that ended it."""
    connection = _connect(folder)
    request = {
        "words": words,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "ignored": [name for name in FORWARDED if signal.getsignal(getattr(signal, name)) == signal.SIG_IGN],
    }
    socket.send_fds(connection, [CALL], [0, 1, 2])
    content = json.dumps(request).encode()
    connection.sendall(len(content).to_bytes(4, "big") + content)
    answers = connection.makefile("r")
    process = int(answers.readline())
    for name in FORWARDED:
        if name not in request["ignored"]:
            signal.signal(getattr(signal, name), lambda number, _: os.kill(process, number))
    code = int(answers.readline())
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


class Server:
    """The process that is forked: calls and leases are connections; a call that is closed kills its fork."""

    def __init__(self, folder: Path, ready: int):
        """Listen in the folder, write a byte to `ready`, then import."""
        import gc

        os.setsid()  # a Ctrl-C is for the calls, which hand it on
        gc.disable()
        self.folder = folder
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / SOCKET))
        self.listener.listen(64)
        os.write(ready, b"1")
        os.close(ready)
        _import_others()
        gc.freeze()  # else each fork would copy all objects when it collects garbage
        self.ended, self.ending = os.pipe()
        os.set_blocking(self.ending, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.ending)
        self.forks: dict[socket.socket, int] = {}
        self.leases: set[socket.socket] = set()
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(self.ended, selectors.EVENT_READ)

    def serve(self) -> dict[str, Any] | None:
        """Return a call in its fork, and None at the end, when every lease is over."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.listener:
                    if call := self.accept():
                        return call
                elif key.fileobj == self.ended:
                    os.read(self.ended, 4096)
                    self.answer_ended()
                elif isinstance(key.fileobj, socket.socket) and key.fileobj.fileno() >= 0:
                    self.drop(key.fileobj)
            if not self.leases and self.close():
                return None

    def accept(self) -> dict[str, Any] | None:
        """Register a lease, or fork for a call and return it in the fork."""
        connection = self.listener.accept()[0]
        kind, files, _, _ = socket.recv_fds(connection, 1, 3)
        if kind == CALL:
            with connection.makefile("rb") as lines:
                call = json.loads(lines.read(int.from_bytes(lines.read(4), "big")))
            process = os.fork()
            if process == 0:
                self.leave(connection, files)
                return call
            for file in files:
                os.close(file)
            with suppress(OSError):  # the caller may be gone
                connection.sendall(f"{process}\n".encode())
            self.forks[connection] = process
        else:
            self.leases.add(connection)
        self.selector.register(connection, selectors.EVENT_READ)
        return None

    def leave(self, connection: socket.socket, files: list[int]) -> None:
        """In a fork: take the files of the call for 0 to 2, and let go of the server's own."""
        import gc

        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.selector.close()
        for each in (self.listener, connection, *self.forks, *self.leases):
            each.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
        for file in (*files, self.ended, self.ending):
            os.close(file)
        gc.enable()

    def answer_ended(self) -> None:
        """Send the exit codes of forks that have ended."""
        for connection, process in [*self.forks.items()]:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                del self.forks[connection]
                with suppress(OSError):
                    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                self.drop(connection)

    def drop(self, connection: socket.socket) -> None:
        """Close a connection, and end its fork."""
        self.selector.unregister(connection)
        self.leases.discard(connection)
        if process := self.forks.pop(connection, 0):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        connection.close()

    def close(self) -> bool:
        """Take the socket and the file to call away, unless somebody has just connected."""
        with _lock(self.folder):
            if any(key.fileobj is self.listener for key, _ in self.selector.select(0)):
                return False
            for name in (SOCKET, SHIM):
                (self.folder / name).unlink()
        return True


def _import_others() -> None:
    """Import what commands need of others' packages; nothing of the project."""
    from diffusers import StableDiffusionPipeline  # noqa: F401


def run(request: dict[str, Any]) -> None:
    """Run the words of a call as Python runs them."""
    import runpy
    import types

    for name in FORWARDED:
        default = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
        signal.signal(getattr(signal, name), signal.SIG_IGN if name in request["ignored"] else default)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.executable = str(Path(sys.argv[2]) / SHIM)
    sys.stdout.reconfigure(write_through=bool(os.environ.get("PYTHONUNBUFFERED")))
    first, *rest = request["words"]
    if first in ("-c", "-m"):
        what, *rest = rest
        beginning, sys.argv = "" if first == "-c" else os.getcwd(), [first, *rest]
    else:
        assert not first.startswith("-"), f"{first} is not for a fork"
        beginning, sys.argv = os.path.dirname(os.path.abspath(first)), [first, *rest]
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [beginning, *map(os.path.abspath, paths), *sys.path[1:]]  # the first is this file's folder
    if first == "-c":
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(what, "<string>", "exec"), main.__dict__)
    elif first == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(first, run_name="__main__")


def run_and_end(request: dict[str, Any]) -> None:
    """Run the call and end the process as Python does, but leave its memory to the system: to free the objects of all
    those modules takes half a second."""
    import atexit
    import threading

    code = 0
    try:
        run(request)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for those that are no daemons
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        file.flush()
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "call":
        sys.exit(call(sys.argv[2], sys.argv[3:]))
    request = Server(Path(sys.argv[2]), int(sys.argv[3])).serve()
    if request:
        run_and_end(request)
