"""Training with less at a time, and how a shortage of memory looks."""

from __future__ import annotations

import numpy as np
import pytest

from fl_client.engines.base import TrainingFailed
from fl_client.models.settings import TrainingSettings
from fl_client.training.out_of_memory import ran_short, shrunk


def test_a_micro_batch_is_quartered_until_it_is_one_example() -> None:
    settings = TrainingSettings(batch_size=32)
    assert [shrunk(settings, times).micro_batch for times in range(4)] == [0, 8, 2, 1]
    with pytest.raises(TrainingFailed, match="one example at a time"):
        shrunk(settings, 4)


def test_what_is_set_already_is_where_it_begins() -> None:
    assert shrunk(TrainingSettings(batch_size=32, micro_batch=16), 1).micro_batch == 4
    assert shrunk(TrainingSettings(batch_size=8, micro_batch=64), 1).micro_batch == 2
    with pytest.raises(TrainingFailed):
        shrunk(TrainingSettings(batch_size=1), 1)


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


def test_errors_that_tell_of_memory() -> None:
    assert ran_short(MemoryError())
    assert ran_short(OutOfMemoryError("CUDA out of memory"))
    assert ran_short(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    with pytest.raises(MemoryError) as caught:
        np.empty(1 << 55)
    assert ran_short(caught.value)
    wrapped = ValueError("in a task")
    wrapped.__cause__ = MemoryError()
    assert ran_short(wrapped)
    assert not ran_short(RuntimeError("shapes differ"))
