"""Errors that nobody foresaw: they end what they concern, and not the process.

Each is counted, and logged once with where it comes from under an id, which whoever asked is told.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fl_server.persistence.database import JournalError

_LOG = logging.getLogger(__name__)
_ID_CHARS = 8
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


def _ends_process(error: BaseException) -> bool:
    """Whether the server must end: it could not write what it decides, or has no memory left."""
    is_disk = isinstance(error, OSError) and error.errno in _DISK
    return is_disk or isinstance(error, JournalError | MemoryError)


class Faults:
    """The unforeseen errors of one server. One thread uses it, the owner's.

    Attributes:
        counted: how many there were, by id.
    """

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()

    @contextmanager
    def caught(
        self, doing: str, then: Callable[[str], object], but: tuple[type[Exception], ...] = ()
    ) -> Iterator[None]:
        """Give ``then`` the reason of an unforeseen error in the block, which ends there.

        Args:
            doing: what is being done, for the log.
            then: handles it; it is called outside the block.
            but: what somebody else handles. What must end the process is raised too.
        """
        try:
            yield
        except but:
            raise
        except Exception as error:
            if _ends_process(error):
                raise
            failed = error
        else:
            return
        then(self.reason(doing, failed))

    def note(self, doing: str, error: BaseException) -> str:
        """Return the id of an error: the same whenever the same code fails in the same way.

        Args:
            doing: what was being done, for the log.
        """
        frames = traceback.extract_tb(error.__traceback__)
        places = [f"{frame.filename}:{frame.lineno}" for frame in frames]
        text = "\n".join([type(error).__name__, *places])
        fault_id = hashlib.sha256(text.encode()).hexdigest()[:_ID_CHARS]
        self.counted[fault_id] += 1
        if self.counted[fault_id] == 1:
            _LOG.error("internal error %s: %s", fault_id, doing, exc_info=error)
        else:
            _LOG.debug("internal error %s again: %s: %s", fault_id, doing, error)
        return fault_id

    def reason(self, doing: str, error: BaseException) -> str:
        """Note an error; return what is told of it."""
        fault_id = self.note(doing, error)
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return f"internal error {fault_id}, which the server's log has: {said}"[:2000]
