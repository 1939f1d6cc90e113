"""Unix sockets in folders of any depth."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_LOG = logging.getLogger(__name__)
_VISITORS = 8
_END_S = 10.0
_DESCRIPTORS = Path("/proc/self/fd")
_ANYWHERE_BYTES = 100


@contextmanager
def short_address(path: Path) -> Iterator[str]:
    """Give an address of a socket that is short whatever its folder's: the kernel takes 107 bytes.

    Raises:
        OSError: the folder is not there.
    """
    if len(os.fsencode(path)) < _ANYWHERE_BYTES or not _DESCRIPTORS.is_dir():
        yield str(path)
        return
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield str(_DESCRIPTORS / str(descriptor) / path.name)
    finally:
        os.close(descriptor)


class UnixSocketServer:
    """A socket for this user (mode 0600), with a thread that accepts connections until ``close``.

    Args:
        path: of the socket; a file that is there is removed.
        name: of the thread.
        visit: called on that thread with each connection, to be closed by it; an error ends it.
        lost: logged when the thread ends before ``close``.

    Raises:
        OSError: there can be no socket.
    """

    def __init__(
        self, path: Path, name: str, visit: Callable[[socket.socket], None], lost: str
    ) -> None:
        self._path = path
        self._visit = visit
        self._lost = lost
        self._closed = False
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with short_address(self._path) as address:
                self._listener.bind(address)
            self._path.chmod(0o600)
            self._listener.listen(_VISITORS)
        except OSError:
            self._listener.close()
            raise
        self._thread = threading.Thread(target=self._wait, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Remove the socket; open connections are closed."""
        self._closed = True
        # wakes the thread that waits in accept()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(_END_S)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _wait(self) -> None:
        while not self._closed:
            try:
                visitor, _ = self._listener.accept()
            except OSError:
                if not self._closed:
                    _LOG.exception("%s", self._lost)
                return
            self._visit(visitor)
