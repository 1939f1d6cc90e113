"""What a task may return, at its bounds and beyond, through one real training process.

Each is reported, or refused with the limit; the process lives on, and what it reports can be sent.
"""

from __future__ import annotations

import hashlib
import json
import queue
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

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
from storage.weights import read_safetensors, write_safetensors
from tests.bounds import ANYWHERE, SIZES, WILD, found_by
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
# what a call returns is written as Python, so that it may be anything
SOURCE = """
import json
from decimal import Decimal
from fractions import Fraction
from math import inf, nan
from pathlib import Path

import numpy as np

from rengo import Linear, Task
from storage.weights import Weights

RETURNS = json.loads(Path(__file__).with_name("returns.json").read_text())

class Own(Task):
    name = "own"
    calls = 0

    def initial_weights(self, seed):
        return Weights.from_arrays({"w": np.zeros(10, np.float32)})

    def next(self, weights, context):
        Own.calls += 1
        return eval(RETURNS[Own.calls - 1])

    local_update = evaluate = next

    def exchange(self, context):
        return self.next(None, context)

class Measured(Own):
    def initial_weights(self, seed):
        return Task.initial_weights(self, seed)

    def model(self):
        return [Linear(2, 2)]

    def data(self, device):
        return None, (np.ones((4, 2), np.float32), np.zeros(4, np.int64))

    def evaluate(self, weights, context):
        return Task.evaluate(self, weights, context)

    def metrics(self, outputs, targets):
        return self.next(None, None)
"""


@dataclass
class Training:
    """One training process and what it says."""

    folder: Path
    task: str
    events: queue.Queue[ChildEvent]
    process: TrainingChild
    pids: set[int | None] = field(default_factory=set)

    @property
    def starts(self) -> int:
        """How many processes there were."""
        return len(self.pids)

    @classmethod
    def of(cls, folder: Path, task: str, returns: list[str]) -> Training:
        path = folder / "own.py"
        path.write_text(SOURCE)
        (folder / "returns.json").write_text(json.dumps(returns))
        spec = f"{path}:{task}"
        with (folder / "model").open("wb") as out:
            write_safetensors(load_task(spec).initial_weights(0), out)
        events: queue.Queue[ChildEvent] = queue.Queue()
        settings = ChildSettings(spec, "numpy", "edge-1")
        process = TrainingChild(settings, events.put, log=folder / "training.log")
        return cls(folder, spec, events, process)

    def carry_out(self, action: Any) -> ChildFinished | ChildFailed:
        """Return how one job ended, of which the update is whole and the state can be read."""
        model = self.folder / "model"
        trains = action == "train"
        self.process.submit(
            TrainingJob(
                action=action,
                run_id="r",
                round=1,
                attempt=1,
                device_id="edge-1",
                model_path=str(model),
                base_sha256=hashlib.sha256(model.read_bytes()).hexdigest(),
                update_path=str(self.folder / "out.upd") if trains else None,
                state_path=None if action == "evaluate" else str(self.folder / "state"),
            )
        )
        self.pids.add(self.process.pid)
        event = ended(self.events)
        if isinstance(event, ChildFinished):
            assert wire(told(action, event))
            if event.result.keeps_state:
                read_safetensors(self.folder / "state.next")
        return event


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[str, list[str]], Training]]:
    made: list[Training] = []

    def begun(task: str, returns: list[str]) -> Training:
        made.append(Training.of(tmp_path, task, returns))
        return made[-1]

    yield begun
    for each in made:
        each.process.kill()


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
        payload=done.payload,
        usage=Usage(train_s=done.train_s, peak_rss_bytes=done.peak_rss_bytes),
    )


@pytest.mark.parametrize("action", ["train", "evaluate"])
def test_whatever_a_task_returns_is_reported_or_told(
    begin: Callable[[str, list[str]], Training], action: Any
) -> None:
    vector = "weights * 0, " if action == "train" else ""
    training = begin("Own", [f"({vector}{count!r}, {metrics!r})" for count, metrics in TABLE])
    for count, metrics in TABLE:
        event = training.carry_out(action)
        reportable = 1 <= count <= MAX_EXAMPLES
        named = len(metrics) <= 64 and all(1 <= len(name) <= 64 for name in metrics)
        assert isinstance(event, ChildFinished) is (reportable and named), (count, event)
        if isinstance(event, ChildFinished):
            continue
        if not named:
            assert "at most 64 metrics, with names of 1 to 64" in event.reason
        elif count > MAX_EXAMPLES:
            assert str(MAX_EXAMPLES) in event.reason
    assert training.starts == 1, "the process lives on"


# --- a search -----------------------------------------------------------------------------------

numbers = st.one_of(
    st.sampled_from([*ANYWHERE, *WILD, 1 << 64, 1 << 5000, 1j, {1}]).map(repr),
    st.floats().map(repr),
    st.sampled_from(NUMBERS).map(lambda it: f"np.asarray({it!r})"),
    st.sampled_from(
        [
            *("np.int8(3)", "np.uint64(2**64 - 1)", "np.float16(inf)", "np.float32(0.5)"),
            *("np.longdouble('1e4000')", "np.array([0.5])", "np.array([1, 2])", "np.bool_(1)"),
            *("np.datetime64('2020')", "Decimal('NaN')", "Fraction(1, 3)", "object()", "10"),
            *("np.ma.masked", "np.complex64(1)", "np.array(None)", "np.float64", "..."),
        ]
    ),
)
names = st.one_of(
    st.sampled_from([*NAMES, "update", "\ud800", "\x1b[2J", "a\nb", "accuracy", "loss"]).map(repr),
    st.sampled_from(["1", "None", "b'x'", "('a',)", "np.str_('a')", "nan", "True"]),
)
metrics = st.one_of(
    st.dictionaries(names, numbers, max_size=3).map(
        lambda found: "{" + ", ".join(f"{key}: {each}" for key, each in found.items()) + "}"
    ),
    st.integers(60, 70).map(lambda many: f"{{str(n): 0.5 for n in range({many})}}"),
    st.sampled_from(["{}", "None", "[('loss', 1)]", "0.5", "np.zeros(3)", "'loss'", "dict"]),
)
counts = st.one_of(st.sampled_from(["1", "10", "np.int64(7)"]), numbers)
vectors = st.sampled_from(
    [
        *(["weights * 0", "weights", "weights + 1"] * 4),
        *("weights[:3]", "weights.reshape(-1, 1)", "weights.tolist()", "list(weights)", "None"),
        *("weights + nan", "weights - inf", "np.full(10, 1e39)", "np.full(10, 3.4e38)", "'x'"),
        *(f"weights.astype('{kind}')" for kind in ("f2", "f8", "g", "i8", "c8", "?", "O", "U")),
        *("np.array([object()] * 10)", "np.zeros(10, 'M8[s]')", "memoryview(weights)", "weights.T"),
        *("np.ma.array(weights, mask=True)", "np.zeros((10, 0))", "10", "[weights]", "b'x' * 40"),
        *("np.zeros(10, [('a', 'f4')])", "[[1], [2, 3]]", "[1 << 5000] * 10", "weights[::-1]"),
    ]
)
states = st.sampled_from(
    [
        *("{}", "{'c': weights}", "{'c': np.zeros(0)}", "{'c': np.float32(1)}", "{'c': [1.0]}"),
        *("{'c': None}", "{'': np.zeros(1)}", "{1: np.zeros(1)}", "{'c': np.array(['a'])}"),
        *(
            "{'c': np.zeros(2, 'c8')}",
            "{'c': np.zeros(2, 'O')}",
            "None",
            "[1]",
            "{'\\ud800': weights}",
        ),
        *("{'c': np.zeros(2, 'M8[s]')}", "{'c': np.full(2, nan)}", "{'x' * 70_000: np.zeros(1)}"),
        *("{'c': np.zeros((0, 3))}", "{'c': weights[::2]}", "{'__metadata__': np.zeros(1)}"),
        *("{'c': np.zeros(2, 'g')}", "{'c': np.zeros(2, '>f4')}", "weights", "'x'"),
    ]
)
sections = st.one_of(
    st.sampled_from(["{}", "None", "[weights]", "{i: weights for i in range(70)}", "{1: weights}"]),
    st.tuples(names, vectors).map(lambda it: f"{{{it[0]}: {it[1]}}}"),
    st.integers(60, 70).map(lambda many: f"{{str(n): weights for n in range({many})}}"),
)
scalars = st.one_of(
    st.sampled_from(["{}", "{'c': 0.5}", "{'update': 1.0}", "{'c': 1e39}"]), metrics
)
payloads = st.sampled_from(
    [
        *("b''", "b'x'", "bytearray(3)", "memoryview(b'abc')", "bytes(131_072)", "bytes(131_073)"),
        *("memoryview(np.zeros(3))", "memoryview(np.zeros((2, 2)).T)", "'x'", "None", "1", "[1]"),
        *("np.zeros(2)", "memoryview(b'abcd')[::2]", "(b'x',)", "(b'x', {}, {})", "[b'x', {}]"),
    ]
)
RETURNS: dict[str, tuple[str, Any, SearchStrategy[str]]] = {
    "local_update": (
        "Own",
        "train",
        st.one_of(
            st.tuples(vectors, counts, metrics).map(lambda it: f"({', '.join(it)})"),
            st.tuples(vectors, counts, metrics, states).map(lambda it: f"({', '.join(it)})"),
            st.tuples(vectors, counts, metrics, states, sections, scalars).map(
                lambda it: f"({', '.join(it)})"
            ),
            st.one_of(numbers, vectors),
        ),
    ),
    "evaluate": (
        "Own",
        "evaluate",
        st.one_of(
            st.tuples(counts, metrics).map(lambda it: f"[{', '.join(it)}]"),
            st.one_of(numbers, metrics),
        ),
    ),
    "metrics": ("Measured", "evaluate", st.one_of(metrics, numbers)),
    "exchange": (
        "Own",
        "exchange",
        st.tuples(payloads, metrics, states, st.integers(0, 2)).map(
            lambda it: (
                it[0],
                f"({it[0]}, {it[1]})",
                f"(context.keep({it[2].replace('weights', 'np.ones(2)')}), {it[0]})[1]",
            )[it[3]]
        ),
    ),
}


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("method", RETURNS)
def test_whatever_a_method_returns_is_reported_or_told_with_the_method(
    begin: Callable[[str, list[str]], Training], method: str, count: int
) -> None:
    task, action, search = RETURNS[method]
    returns = found_by(search, count)
    training = begin(task, returns)
    outcomes = Counter[str]()
    for source in returns:
        event = training.carry_out(action)
        outcomes[type(event).__name__] += 1
        if isinstance(event, ChildFailed):
            assert is_told(event.reason, method), (source, event)
            assert len(event.reason) <= 2000
    assert outcomes["ChildFinished"] > 0
    assert outcomes["ChildFailed"] > 0
    assert training.starts == 1, "the process lives on"


def is_told(reason: str, method: str) -> bool:
    """Whether the reason names the task and its method, or the place in the task's file."""
    of_the_task = reason.startswith(("task own: ", "task measured: ")) and method in reason
    of_the_update = reason.startswith(("training diverged", "the update is of"))
    return of_the_task or of_the_update or bool(re.search(r"own\.py:[0-9]+\)$", reason))
