"""Recognises an error as a lack of memory, and shrinks the training that ran into it."""

from __future__ import annotations

from dataclasses import replace

from fl_client.engines.base import TrainingFailed
from fl_client.models.settings import TrainingSettings

_LESS = 4


def shrunk(settings: TrainingSettings, times: int) -> TrainingSettings:
    """Return the settings with a micro batch that was quartered so many times.

    The sum of the gradients stays what it was, but for the order of the additions.

    Raises:
        TrainingFailed: one example at a time was too much already.
    """
    if not times:
        return settings
    whole = min(settings.micro_batch or settings.batch_size, settings.batch_size)
    if whole <= _LESS ** (times - 1):
        raise TrainingFailed("out of memory with one example at a time: this device is too small")
    return replace(settings, micro_batch=-(-whole // _LESS**times))


def ran_short(error: BaseException) -> bool:
    """Return whether an error is a lack of memory: Python's own, numpy's, or torch's.

    Torch is not imported here. Its error on an accelerator has a name of its own; on the CPU it is
    a RuntimeError of its allocator.
    """
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return False
        if isinstance(seen, MemoryError) or type(seen).__name__ == "OutOfMemoryError":
            return True
        if isinstance(seen, RuntimeError) and "can't allocate memory" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
