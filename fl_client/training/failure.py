"""Why a job of the training failed, in a line: what the task's own code raises included."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from fl_client.engines.base import TrainingFailed
from fl_client.tasks.base import Task
from fl_client.tasks.user_code import TaskError, place_of
from fl_client.training.frames import Failed
from fl_client.training.out_of_memory import ran_short
from runtime.bounds import MAX_TRACEBACK_LINE, MAX_TRACEBACK_LINES
from runtime.disk import met_full_disk
from runtime.errors import RengoError, StorageError

_MAX_REASON_CHARS = 1500
_MAX_PLACE_CHARS = 490


def failure_of(error: BaseException, task_file: Path) -> Failed:
    """Return an error in a line, with the end of its traceback.

    Args:
        task_file: where the task's code lies, for the place that is named.
    """
    full = met_full_disk(error)
    if isinstance(error, RengoError):
        is_of_task = isinstance(error, TaskError)
        return Failed(
            reason=_encodable(str(error), _MAX_REASON_CHARS),
            # a file that is damaged or missing can be fetched again, and a full disk be freed;
            # nothing else gets better
            retryable=isinstance(error, StorageError) or full,
            unusable=isinstance(error, TrainingFailed),
            # the task's own code may have been what ran short
            out_of_memory=is_of_task and ran_short(error),
            traceback=_end_of_traceback(error.__cause__ if is_of_task else None),
        )
    text = _encodable(f"{type(error).__name__}: {error}", _MAX_REASON_CHARS)
    place = _encodable(place_of(error, task_file), _MAX_PLACE_CHARS)
    return Failed(
        reason=f"{text} ({place})",
        retryable=full,
        out_of_memory=ran_short(error),
        traceback=_end_of_traceback(error),
    )


def file_of(task: Task) -> Path:
    """Return the file of a task's class."""
    module = sys.modules[type(task).__module__]
    return Path(module.__file__ or ".")


def _end_of_traceback(error: BaseException | None) -> list[str]:
    """Return the last lines of an error's traceback, without the marks below the code."""
    if error is None:
        return []
    text = "".join(traceback.format_exception(error))
    lines = [line for line in text.splitlines() if line.strip(" ^~")]
    return [_encodable(line, MAX_TRACEBACK_LINE) for line in lines[-MAX_TRACEBACK_LINES:]]


def _encodable(text: str, most: int) -> str:
    # halves of characters, as the name of a file may have them, travel in no frame
    return text[:most].encode("utf-8", "backslashreplace").decode()[:most]
