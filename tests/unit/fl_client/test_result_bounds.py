"""What a task may report: checked where it trains, and never journalled where it cannot be sent."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import algorithms
from broker.session.inbox import Connected
from broker.wire.messages import Decline, Progress
from fl_client.datasets.device import Device
from fl_client.engines.base import TrainingFailed
from fl_client.models.layers import Linear
from fl_client.models.local_round import LocalRound
from fl_client.models.settings import TrainingSettings
from fl_client.session.events import Job, JobKey, JobOutcome
from fl_client.tasks.base import Task
from fl_client.tasks.user_code import TaskError
from fl_client.training.child import ChildProgressed
from fl_client.training.frames import Done, TrainingJob, read_answer, write_frame
from fl_client.training.participant import Participant
from runtime.bounds import MAX_EXAMPLES, MAX_FINITE
from runtime.errors import ConfigError, PeerError
from tests.agent_bench import Bench, order


def outcome(num_examples: int, metrics: dict[str, float], **changes: Any) -> JobOutcome:
    return JobOutcome(num_examples, metrics, header_sha256="a" * 64, size_bytes=7, **changes)


UNSENDABLE = [
    outcome(10, {str(n): 0.0 for n in range(65)}),
    outcome(10, {"x" * 65: 0.0}),
    outcome(10, {"": 0.0}),
    outcome(10, {"loss": 1e300}),
    outcome(10, {"loss": math.nan}),
    outcome((1 << 40) + 1, {}),
    outcome(0, {}),
    outcome(10, {}, train_s=math.inf),
    outcome(10, {}, steps=1 << 63),
]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.agent.start()
    made.parts.inbox.put(Connected(False, 1))
    made.run()
    yield made
    made.agent.close()


@pytest.mark.parametrize("found", UNSENDABLE)
def test_a_result_that_cannot_be_sent_is_declined_and_not_journalled(
    bench: Bench, found: JobOutcome
) -> None:
    """Seen before: it was journalled, and the agent ended by it at every start."""
    bench.worker.gives = found
    published = bench.run(order())
    (decline,) = [each for each in published if isinstance(each, Decline)]
    assert "its result cannot be sent" in decline.reason
    assert decline.unusable
    assert bench.parts.journal.jobs() == []
    assert bench.session.waiting() == []


@pytest.mark.parametrize("found", UNSENDABLE)
@pytest.mark.parametrize("stage", ["uploading", "reporting"])
def test_a_row_of_an_earlier_version_that_cannot_be_sent_is_dropped(
    tmp_path: Path, found: JobOutcome, stage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    asked, made = order(), Bench(tmp_path)
    made.parts.journal.store(Job(JobKey.of(asked), asked, stage, found))
    sound = order(round=3)
    made.parts.journal.store(Job(JobKey.of(sound), sound, "reporting", outcome(10, {})))
    with caplog.at_level(logging.ERROR):
        made.agent.start()
    assert [job.key for job in made.parts.journal.jobs()] == [JobKey.of(sound)]
    assert "cannot be sent, and is dropped" in caplog.text
    made.agent.close()


@pytest.mark.parametrize("loss", [math.nan, math.inf, -1e300, 0.5, None])
def test_progress_tells_no_loss_that_no_message_holds(bench: Bench, loss: float | None) -> None:
    job = TrainingJob(run_id="r", round=1, attempt=1, device_id="d")
    for fraction in (math.nan, -1.0, 0.5, math.inf):
        bench.parts.inbox.put(ChildProgressed(job, fraction, loss))
    bench.run()
    told = [each for each in bench.session.published if isinstance(each, Progress)]
    assert {each.loss for each in told} <= {loss if loss == 0.5 else None}


# --- in the training process --------------------------------------------------------------------


class Own(Task):
    """A task that reports what it is told to."""

    metrics: Any = None
    count: Any = 10
    vector: Any = None
    state: Any = {}  # noqa: RUF012 (never changed)

    def model(self) -> list[Linear]:
        return [Linear(2, 2)]

    def local_update(self, weights: Any, context: Any) -> Any:
        del context
        vector = weights * 0 if self.vector is None else self.vector
        return vector, self.count, self.metrics or {}, self.state


def trained(**changes: Any) -> Any:
    task = Own()
    vars(task).update(changes)
    plan = LocalRound(algorithms.load("fedavg"), TrainingSettings(), 0, 1, "d")
    return Participant(task, Device("d"), "numpy").train(task.initial_weights(0), plan)


def test_as_many_metrics_as_a_message_holds_are_reported() -> None:
    metrics = {str(n).rjust(64, "x"): float(n) for n in range(64)}
    assert trained(metrics=metrics).metrics == metrics
    assert trained(metrics={"l": MAX_FINITE, "m": -MAX_FINITE}).metrics["l"] == MAX_FINITE


@pytest.mark.parametrize("metrics", [{str(n): 0.0 for n in range(65)}, {"x" * 65: 0.0}])
def test_more_metrics_or_longer_names_are_told_with_the_limit(metrics: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="at most 64 metrics, with names of 1 to 64"):
        trained(metrics=metrics)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -1e40])
def test_a_value_out_of_bounds_is_left_out_and_logged(
    value: float, caplog: pytest.LogCaptureFixture
) -> None:
    assert trained(metrics={"loss": value, "f1": 0.5}).metrics == {"f1": 0.5}
    assert "metric loss" in caplog.text
    assert "left out" in caplog.text


@pytest.mark.parametrize(
    "vector",
    [
        *(np.zeros(6, kind) for kind in ("c8", "U", "M8[s]", "O")),
        *([1 << 5000] * 6, ["0.5"] * 6, [[1], [2, 3]], "x", b"x" * 24),
    ],
    ids=repr,
)
def test_what_is_no_vector_of_numbers_is_told_and_not_converted(vector: Any) -> None:
    """Seen before: texts and dates became numbers, and half of a complex number was dropped."""
    with pytest.raises(TaskError, match=r"task own: local_update\(\) gave no vector"):
        trained(vector=vector)


@pytest.mark.parametrize(
    "state",
    [
        *(None, [1], np.zeros(2), {1: np.zeros(2)}, {"": np.zeros(2)}, {"\ud800": np.zeros(2)}),
        *({"c": None}, {"c": np.array(["a"])}, {"c": np.full(2, 1e300)}, {"c": np.zeros(2, "c8")}),
        *({"x" * 513: np.zeros(2)}, {"__metadata__": np.zeros(2)}, {"c": [[1], [2, 3]]}),
    ],
    ids=repr,
)
def test_what_no_run_can_keep_is_told_with_the_method(state: Any) -> None:
    """Seen before: an error of ours in a file of ours, or one that was tried again for ever."""
    with pytest.raises(TaskError, match=r"task own: local_update\(\) gave .* state"):
        trained(state=state)


def test_what_a_run_keeps_is_kept_as_it_is() -> None:
    state = {"c": np.float32(1), "d": np.zeros((0, 3)), "e": np.arange(4)[::-2], "f": [1.0]}
    kept = trained(state=state).state
    assert {name: each.tolist() for name, each in kept.items()} == {
        **{"c": 1.0, "d": [], "e": [3, 1], "f": [1.0]}
    }


@pytest.mark.parametrize("count", [MAX_EXAMPLES + 1, 1 << 70])
def test_more_examples_than_the_limit_are_told_with_it(count: int) -> None:
    with pytest.raises(TrainingFailed, match=str(MAX_EXAMPLES)):
        trained(count=count)


@pytest.mark.parametrize("found", UNSENDABLE)
def test_an_answer_of_the_training_process_is_bounded_as_a_message(found: JobOutcome) -> None:
    if found.num_examples == 0 or "" in found.metrics:
        return  # an exchange has no examples; an empty name is the participant's to find
    stream = BytesIO()
    fields = {"num_examples": found.num_examples, "metrics": found.metrics}
    done = Done(**fields, train_s=found.train_s, peak_rss_bytes=1, steps=found.steps)  # type: ignore[arg-type]
    write_frame(stream, replace(done))
    stream.seek(0)
    with pytest.raises(PeerError, match="malformed Done"):
        read_answer(stream)
