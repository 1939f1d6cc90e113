"""What systemd lets a service's processes call, for machines on which no systemd runs.

    python -m tests.seccomp UNIT COMMAND…

replaces itself with the command, under the filters that a unit asks for by SystemCallFilter and
MemoryDenyWriteExecute. They are made by libseccomp as systemd makes them
(src/shared/seccomp-util.c): which calls a set holds is what this machine's systemd-analyze says.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from pathlib import Path

_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_MASKED_EQ = 7
_NO_NEW_PRIVILEGES = 38
_WRITE, _EXEC, _SHM_EXEC = 0x2, 0x4, 0o100000


class _Argument(ctypes.Structure):
    """``struct scmp_arg_cmp``: a call's argument, masked, held against a value."""

    _fields_ = (
        ("index", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


class Filter:
    """One filter of libseccomp."""

    def __init__(self, default: int) -> None:
        self._library = ctypes.CDLL(find_library("seccomp"), use_errno=True)
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(default)))
        if not self._context:
            raise OSError("no filter could be made")

    def add(self, action: int, name: str, *arguments: _Argument) -> None:
        """Add a rule; a call that this machine does not know is left out."""
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return
        array = (_Argument * len(arguments))(*arguments)
        _check(
            self._library.seccomp_rule_add_array(
                self._context, ctypes.c_uint32(action), number, len(arguments), array
            ),
            name,
        )

    def load(self) -> None:
        """Have the kernel enforce it, on this process and on all that it becomes and starts."""
        _check(self._library.seccomp_load(self._context), "the filter")


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")


def allowed_calls(group: str) -> set[str]:
    """Return the calls of a set such as ``@system-service``, those of the sets in it too."""
    argv = ["systemd-analyze", "syscall-filter", group, "@default"]
    listed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    found: set[str] = set()
    for line in listed.splitlines():
        # the heading of a set stands at the margin
        if not line.startswith(" ") or (word := line.strip()).startswith("#") or not word:
            continue
        found |= allowed_calls(word) if word.startswith("@") else {word}
    return found


def settings_of(unit: str) -> dict[str, str]:
    """Return the assignments of a unit's text."""
    return dict(_assignments(unit))


def _assignments(unit: str) -> Iterator[tuple[str, str]]:
    for line in unit.splitlines():
        name, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            yield name, value


def deny_write_execute() -> None:
    """Refuse memory that is or becomes executable where it could be written."""
    made = Filter(_ALLOW)
    both = _Argument(2, _MASKED_EQ, _WRITE | _EXEC, _WRITE | _EXEC)
    made.add(_REFUSE, "mmap", both)
    for name in ("mprotect", "pkey_mprotect"):
        made.add(_REFUSE, name, _Argument(2, _MASKED_EQ, _EXEC, _EXEC))
    made.add(_REFUSE, "shmat", _Argument(2, _MASKED_EQ, _SHM_EXEC, _SHM_EXEC))
    made.load()


def enforce(settings: dict[str, str]) -> None:
    """Bind this process by a unit's settings.

    Raises:
        OSError: the kernel or libseccomp cannot.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    names = [
        name for group in settings["SystemCallFilter"].split() for name in allowed_calls(group)
    ]
    if settings.get("MemoryDenyWriteExecute") == "yes":
        deny_write_execute()
    made = Filter(_REFUSE)
    # what starts the command stands outside the service's filter with systemd, too
    for name in sorted({*names, "execve"}):
        made.add(_ALLOW, name)
    made.load()


if __name__ == "__main__":
    enforce(settings_of(Path(sys.argv[1]).read_text()))
    os.execv(sys.argv[2], sys.argv[2:])
