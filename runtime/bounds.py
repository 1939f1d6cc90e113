"""The bounds of what devices, operators and the server tell each other, and of what lies on disks.

A value is plausible, not only finite: whatever is computed of values within these bounds (a mean
over 100,000 devices with 2^40 examples each, a time for a step, a sum over a million rounds) is
finite and may be told too. One set serves the way in, the disk and the way out, so that nothing is
accepted that cannot be passed on. Without pydantic, for which the training process has no memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

# more than the largest float32, in which engines compute
MAX_FINITE = 1e39
MAX_METRICS = 64
MAX_METRIC_NAME = 64
# of what is done to updates in one run
MAX_TRANSFORMS = 8
# of numbers that an algorithm's server keeps
MAX_SCALARS = 1024
MAX_EXAMPLES = 1 << 40
# of an object in bytes, and of what is counted in one round
MAX_SIZE = 1 << 40
MAX_SECONDS = 31_536_000.0
MAX_ROUNDS = 1_000_000
# of sums and of counters that grow: readers of JSON have no larger whole numbers
MAX_TOTAL = (1 << 53) - 1
# no computer takes a step of training in less
SHORTEST_STEP_S = 1e-9
# of hyper-parameters, either sign
MAX_HYPER_PARAMETER = 1e6
# of the end of a traceback, in lines and in characters of each
MAX_TRACEBACK_LINES = 16
MAX_TRACEBACK_LINE = 240
# of a model whose classes are weighted
MAX_CLASSES = 10_000
MAX_SETTINGS = 128
# of the devices that a run knows below one domain
MAX_POPULATION = 1_000_000
MAX_SETTINGS_NESTING = 8
# of a database and of msgpack
MAX_INTEGER = (1 << 63) - 1


def total(counts: Iterable[int]) -> int:
    """Return the sum of counts, at most what may be told."""
    return min(sum(counts), MAX_TOTAL)


def is_plausible(value: float) -> bool:
    """Whether a metric lies within its bounds; no number that is not finite does."""
    return -MAX_FINITE <= value <= MAX_FINITE


def plausible(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics whose values lie within their bounds."""
    return {name: value for name, value in metrics.items() if is_plausible(value)}


def require_plain(value: Any, where: str = "", depth: int = 0) -> None:
    """Check that settings are plain data: what TOML, JSON and msgpack all hold.

    Raises:
        ValueError: which value is none, and why.
    """
    match value:
        case None | bool():
            return
        case int():
            if abs(value) > MAX_INTEGER:
                raise ValueError(f"{where or 'it'} must be within 64 bits")
        case float():
            if not math.isfinite(value):
                raise ValueError(f"{where or 'it'} must be a finite number")
        case str():
            if not is_encodable(value):
                raise ValueError(f"{where or 'it'} is no valid Unicode")
        case list() | dict() if depth >= MAX_SETTINGS_NESTING:
            raise ValueError(f"{where} is nested deeper than {MAX_SETTINGS_NESTING}")
        case list():
            for at, each in enumerate(value):
                require_plain(each, f"{where}.{at}", depth + 1)
        case dict():
            for key, each in value.items():
                if not isinstance(key, str) or not is_encodable(key):
                    raise ValueError(f"{where or 'it'} has a key that is no text")
                require_plain(each, f"{where}.{key}" if where else key, depth + 1)
        case _:
            kind = type(value).__name__
            raise ValueError(f"{where or 'it'} is a {kind}, which settings cannot hold")


def is_encodable(text: str) -> bool:
    """Whether a text can be sent and written: it holds no half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
