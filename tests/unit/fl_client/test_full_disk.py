"""A training process whose disk is full: its reason is told, and the order declined for now."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import pytest

from fl_client.training.process import _failure
from runtime.errors import ConfigError

FULL = OSError(errno.ENOSPC, "No space left on device")


class FullStream(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [FULL, ConfigError("the task's data cannot be made")])
def test_a_full_disk_is_told_though_its_log_is_on_that_disk(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", FullStream())
    if error is not FULL:
        error.__cause__ = FULL
    found = _failure(error, Path("task.py"))
    assert str(error) in found.reason
    assert (found.retryable, found.unusable) == (True, False)


def test_other_errors_of_a_task_are_not_taken_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    found = _failure(OSError(errno.ENOENT, "No such file"), Path("task.py"))
    assert not found.retryable
    assert "No such file" in capsys.readouterr().err
