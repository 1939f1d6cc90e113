"""Calls of a task's own code: what it raises or returns wrongly is told with file and line.

This module imports neither numpy nor torch.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from runtime.errors import ConfigError, RengoError

if TYPE_CHECKING:
    from fl_client.datasets.device import Device
    from fl_client.tasks.split import Split
    from storage.weights import Weights


class TaskCode(Protocol):
    """A task, as far as it is called here."""

    name: ClassVar[str]

    def model(self) -> Any:
        """Return the model."""
        ...

    def data(self, device: Device) -> Any:
        """Return the device's two splits."""
        ...

    def initial_weights(self, seed: int) -> Weights:
        """Return version 0 of the model."""
        ...


class TaskError(ConfigError):
    """A task's own code raised an error, or returned what it must not."""


@contextmanager
def calling(task: TaskCode, method: str) -> Iterator[None]:
    """Raise whatever the task's ``method`` raises as a TaskError that names file and line.

    Rengo's own errors pass: their text already says what is wrong.
    """
    try:
        yield
    except RengoError:
        raise
    except (Exception, SystemExit) as error:
        where = place_of(error, _file_of(task))
        raise TaskError(
            f"task {task.name}: {method}() raised {type(error).__name__}: {error} ({where})"
        ) from error


def wrong(task: TaskCode, method: str, what: str) -> TaskError:
    """Return the error of a method that returned something wrong, with the place of the method."""
    code = getattr(getattr(type(task), method, None), "__code__", None)
    where = f"{code.co_filename}:{code.co_firstlineno}" if code is not None else _file_of(task)
    return TaskError(f"task {task.name}: {method}() {what} ({where})")


def place_of(error: BaseException, task_file: Path) -> str:
    """Return ``file:line`` of the innermost frame in the task's folder, else the innermost."""
    frames = traceback.extract_tb(error.__traceback__)
    folder = task_file.resolve().parent
    own = [frame for frame in frames if Path(frame.filename).resolve().is_relative_to(folder)]
    if not frames:
        return str(task_file)
    found = (own or frames)[-1]
    return f"{found.filename}:{found.lineno}"


def model_of(task: TaskCode) -> Any:
    """Return the task's model: a list of layers or a torch module.

    Raises:
        TaskError: ``model()`` failed.
    """
    with calling(task, "model"):
        return task.model()


def initial_weights_of(task: TaskCode, seed: int) -> Weights:
    """Return version 0 of the task's model.

    Raises:
        ConfigError: the task's code failed; the text says where.
    """
    with calling(task, "initial_weights"):
        return task.initial_weights(seed)


def splits_of(task: TaskCode, device: Device) -> tuple[Split, Split]:
    """Return the device's training split and its held-out split.

    Raises:
        TaskError: ``data()`` failed, or returned something else.
    """
    with calling(task, "data"):
        given: Any = task.data(device)
    rule = (
        "it must return two splits, to train on and held out, each of them None, a pair of arrays "
        "(inputs, targets) or a torch Dataset"
    )
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise wrong(task, "data", f"returned {_described(given)}: {rule}")
    for number, split in enumerate(given, 1):
        if not _is_split(split):
            raise wrong(task, "data", f"returned {_described(split)} as split {number}: {rule}")
    return given[0], given[1]


def _is_split(split: Any) -> bool:
    if split is None:
        return True
    if isinstance(split, tuple | list):
        return len(split) == 2
    is_array = hasattr(split, "dtype")
    return hasattr(split, "__len__") and hasattr(split, "__getitem__") and not is_array


def _described(given: Any) -> str:
    if isinstance(given, tuple | list):
        return f"a {type(given).__name__} of {len(given)}"
    if hasattr(given, "shape"):
        return f"an array of shape {tuple(given.shape)}"
    return "nothing (None)" if given is None else f"a {type(given).__name__}"


def numbers_of(task: TaskCode, method: str, given: Any) -> dict[str, float]:
    """Return metrics that the task's ``method`` gave, as plain numbers by name.

    Raises:
        TaskError: they are no mapping, a name is no text or a value no number.
    """
    if not isinstance(given, Mapping):
        raise wrong(task, method, f"gave {_described(given)} for metrics, which are a dict")
    found: dict[str, float] = {}
    for name, value in given.items():
        if not isinstance(name, str):
            raise wrong(task, method, f"gave a metric the name {name!r}, which must be text")
        try:
            if isinstance(value, str | bytes):
                raise TypeError
            found[name] = float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise wrong(
                task, method, f"gave {value!r:.80} for the metric {name!r}, which must be a number"
            ) from None
    return found


def _file_of(task: TaskCode) -> Path:
    module = sys.modules.get(type(task).__module__)
    return Path(getattr(module, "__file__", None) or ".")
