"""Processes of the ``rengo`` command without the half second in which each imports the same.

One process has imported what the command line needs, and is forked for each command: a process of
its own, with its own environment, folder, output, signals and exit code. Started as

    python -m tests.prepared SOCKET

it serves until its standard input is closed. A connection brings one command as a line of JSON, and
gets the process id and, at its end, the exit code.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tests.support import standing

_REPOSITORY = Path(__file__).parents[1]
_READY_S = 60.0


class Prepared:
    """The prepared process of this one, started at the first command."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._starting = threading.Lock()  # some tests run several commands at a time

    def run(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        patience_s: float,
        constants: Mapping[str, Any],
    ) -> tuple[int, str, str]:
        """Run a command to its end; return its exit code and what it wrote.

        ``constants`` of modules, by their whole name, have another value in it.

        Raises:
            TimeoutError: it did not end in time, and was killed.
        """
        with (
            tempfile.TemporaryFile(dir="/tmp") as out,
            tempfile.TemporaryFile(dir="/tmp") as err,
            socket.socket(socket.AF_UNIX) as line,
        ):
            line.connect(str(self._socket()))
            request = {
                "arguments": list(arguments),
                "environment": dict(environment),
                "folder": str(Path.cwd()),
                "constants": dict(constants),
            }
            socket.send_fds(line, [b"x"], [out.fileno(), err.fileno()])
            line.sendall(json.dumps(request).encode() + b"\n")
            with line.makefile("r") as answers:
                pid = int(answers.readline())
                line.settimeout(patience_s)
                try:
                    code = int(answers.readline())
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise TimeoutError(f"{arguments} ran for {patience_s} s") from None
            texts = []
            for stream in (out, err):
                stream.seek(0)
                texts.append(stream.read().decode("utf-8", "replace"))
        return code, texts[0], texts[1]

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is None or self._folder is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(_READY_S)
        standing.remove(self._process.pid)
        self._folder.cleanup()
        self._process = self._folder = None

    def _socket(self) -> Path:
        """Return where the process listens; it is started if it was not."""
        with self._starting:
            if self._folder is None:
                # not where a test looks for what was left behind
                self._folder = tempfile.TemporaryDirectory(prefix="rengo-prepared-", dir="/tmp")
            path = Path(self._folder.name) / "socket"
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "tests.prepared", str(path)],
                    cwd=_REPOSITORY,
                    stdin=subprocess.PIPE,
                )
                standing.add(self._process.pid)
            deadline = time.monotonic() + _READY_S
            while not path.exists():
                assert self._process.poll() is None, "the prepared process ended"
                assert time.monotonic() < deadline, "the prepared process does not come"
                time.sleep(0.01)
            return path


def serve(path: Path) -> None:
    """Fork a process for each connection until standard input is closed."""
    from rengo.cli.main import build_parser  # noqa: PLC0415  (in the prepared process alone)

    build_parser()  # imports every command's module
    _import_what_commands_import_late()
    gc.freeze()  # so that a collection in a fork does not write to, and copy, all that is here
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that serve one command
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{path}.new")
        server.listen(64)
        Path(f"{path}.new").rename(path)
        selector = selectors.DefaultSelector()
        selector.register(server, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while all(key.fileobj is server for key, _ in selector.select()):
            line, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _attend(line)
            line.close()


def _import_what_commands_import_late() -> None:
    import boto3  # noqa: F401, PLC0415
    import sqlalchemy  # noqa: F401, PLC0415

    import fl_client.agent  # noqa: F401, PLC0415
    import fl_server.server  # noqa: F401, PLC0415


def _attend(line: socket.socket) -> NoReturn:
    """Run one command in a process of its own, and tell its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, files, _, _ = socket.recv_fds(line, 1, 2)
    with line.makefile("r") as lines:
        request = json.loads(lines.readline())
    pid = os.fork()
    if pid == 0:
        line.close()
        _become(request, *files)
    with contextlib.suppress(BrokenPipeError):
        line.sendall(b"%d\n" % pid)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        line.sendall(b"%d\n" % code)
    os._exit(0)


def _become(request: dict[str, Any], out: int, err: int) -> NoReturn:
    from rengo.cli.main import main  # noqa: PLC0415  (imported long ago)

    null = os.open(os.devnull, os.O_RDONLY)
    for kept, number in ((null, 0), (out, 1), (err, 2)):
        os.dup2(kept, number)
        os.close(kept)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]
    for name, value in request["constants"].items():
        module, _, constant = name.rpartition(".")
        assert hasattr(importlib.import_module(module), constant)
        setattr(sys.modules[module], constant, value)
    sys.argv = ["rengo", *request["arguments"]]
    sys.exit(main())


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
