"""Who else may use this machine: people with an account of their own."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable

_FIRST_PERSON, _NOBODY = 1000, 65534
_NO_LOGIN = ("nologin", "false", "sync")


def other_people(accounts: Iterable[pwd.struct_passwd] | None = None) -> list[str]:
    """Return the names of other people's accounts that can log in.

    Args:
        accounts: of the machine; None for those that its system lists.
    """
    listed = pwd.getpwall() if accounts is None else accounts
    return sorted(
        each.pw_name
        for each in listed
        if _FIRST_PERSON <= each.pw_uid < _NOBODY
        and each.pw_uid != os.getuid()
        and not each.pw_shell.endswith(_NO_LOGIN)
    )
