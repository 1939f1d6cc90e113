"""While a task's file is loaded, nothing else is to be started by it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import ConfigError

# a variable, so that the processes which the file starts know it too
_VARIABLE = "RENGO_LOADING_TASK"


@contextmanager
def loading(path: Path) -> Iterator[None]:
    """Within the block, the file is loaded for a task that it defines."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = str(path.resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before


def require_not_loading(what: str) -> None:
    """Raise ConfigError where a task's file starts ``what`` when it is loaded.

    Every process that needs the task loads the file, and each would start another one.
    """
    path = os.environ.get(_VARIABLE)
    if path:
        raise ConfigError(
            f"{path} starts {what} when its task is loaded: put what starts it below "
            "`if __name__ == '__main__':`"
        )
