"""What a task may return, at its bounds and beyond, through one real training process.

Each is reported, or refused with the limit; the process lives on, and what it reports can be sent.
"""

from __future__ import annotations

import hashlib
import queue
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.wire.messages import Result, UpdateRef, Usage
from fl_client.tasks.registry import load_task
from fl_client.training.child import (
    ChildDied,
    ChildEvent,
    ChildFailed,
    ChildFinished,
    ChildSettings,
    TrainingChild,
)
from fl_client.training.frames import TrainingJob
from runtime.bounds import MAX_EXAMPLES
from storage.weights import write_safetensors
from tests.bounds import ANYWHERE
from tests.messages import wire

NUMBERS = [each for each in ANYWHERE if not isinstance(each, bool)]
COUNTS = [each for each in NUMBERS if isinstance(each, int)]
NAMES = ["", "a", "x" * 64, "x" * 65, "ü" * 64, "\0"]
TABLE: list[tuple[int, dict[str, Any]]] = [
    *((10, {"loss": number}) for number in NUMBERS),
    *((count, {"loss": 0.5}) for count in COUNTS),
    *((10, {name: 0.5}) for name in NAMES),
    *((10, {str(number): 0.5 for number in range(size)}) for size in (0, 64, 65, 5000)),
]
SOURCE = """
from math import inf, nan

import numpy as np

from rengo import Task
from storage.weights import Weights

TABLE = {table}

class Own(Task):
    name = "own"
    calls = 0

    def initial_weights(self, seed):
        return Weights.from_arrays({{"w": np.zeros(10, np.float32)}})

    def next(self):
        Own.calls += 1
        return TABLE[(Own.calls - 1) % len(TABLE)]

    def local_update(self, weights, context):
        return weights * 0, *self.next()

    def evaluate(self, weights, context):
        return self.next()
"""


@pytest.fixture
def child(tmp_path: Path) -> Iterator[tuple[TrainingChild, queue.Queue[ChildEvent]]]:
    path = tmp_path / "own.py"
    path.write_text(textwrap.dedent(SOURCE).format(table=repr(TABLE)))
    with (tmp_path / "model").open("wb") as out:
        write_safetensors(load_task(f"{path}:Own").initial_weights(0), out)
    events: queue.Queue[ChildEvent] = queue.Queue()
    settings = ChildSettings(f"{path}:Own", "numpy", "edge-1")
    made = TrainingChild(settings, events.put, log=tmp_path / "training.log")
    yield made, events
    made.kill()


def ended(events: queue.Queue[ChildEvent]) -> ChildFinished | ChildFailed:
    while True:
        event = events.get(timeout=60)
        assert not isinstance(event, ChildDied), event.reason
        if isinstance(event, ChildFinished | ChildFailed):
            return event


def told(action: Any, event: ChildFinished) -> Result:
    """Return the message that the agent sends of it."""
    done = event.result
    trains = action == "train"
    update = UpdateRef(
        key="k", size_bytes=done.size_bytes, header_sha256=done.header_sha256 or "0" * 64
    )
    return Result(
        action=action,
        run_id="r",
        round=1,
        attempt=1,
        num_examples=done.num_examples,
        metrics=done.metrics,
        update=update if trains else None,
        usage=Usage(train_s=done.train_s, peak_rss_bytes=done.peak_rss_bytes),
    )


@pytest.mark.parametrize("action", ["train", "evaluate"])
def test_whatever_a_task_returns_is_reported_or_told(
    child: tuple[TrainingChild, queue.Queue[ChildEvent]], tmp_path: Path, action: Any
) -> None:
    process, events = child
    model = tmp_path / "model"
    job = TrainingJob(
        action=action,
        run_id="r",
        round=1,
        attempt=1,
        device_id="edge-1",
        model_path=str(model),
        base_sha256=hashlib.sha256(model.read_bytes()).hexdigest(),
        update_path=str(tmp_path / "out.upd") if action == "train" else None,
    )
    pids = set()
    for count, metrics in TABLE:
        process.submit(job)
        pids.add(process.pid)
        event = ended(events)
        reportable = 1 <= count <= MAX_EXAMPLES
        named = len(metrics) <= 64 and all(1 <= len(name) <= 64 for name in metrics)
        assert isinstance(event, ChildFinished) is (reportable and named), (count, event)
        if isinstance(event, ChildFinished):
            assert wire(told(action, event))
        elif not named:
            assert "at most 64 metrics, with names of 1 to 64" in event.reason
        elif count > MAX_EXAMPLES:
            assert str(MAX_EXAMPLES) in event.reason
    assert len(pids) == 1, "the process lives on"
