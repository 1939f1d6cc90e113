"""Orders of several runs take turns on a device, and training does not starve measurement."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest

from broker.wire.messages import Action, ModelRef, Order, Receipt, UploadRef
from fl_client.session import events as s
from fl_client.session.machine import DeviceSession

OUTCOME = s.JobOutcome(10, {}, header_sha256="a" * 64, size_bytes=100)


def order(run_id: str, action: Action, round_number: int) -> Order:
    return Order(
        epoch=1,
        action=action,
        run_id=run_id,
        round=round_number,
        attempt=1,
        task="digits",
        algorithm="fedavg",
        algorithm_settings={},
        training={},
        seed=0,
        model=ModelRef(url="u", key="g", sha256="0" * 64, size_bytes=1),
        upload=UploadRef(url="u", key="u") if action == "train" else None,
        time_left_s=60.0,
    )


@dataclass
class Device:
    """A device of runs whose next training order comes as soon as the one before is reported."""

    rounds: dict[str, int]
    session: DeviceSession = field(default_factory=DeviceSession)
    done: list[tuple[str, Action]] = field(default_factory=list)

    def begin(self) -> None:
        for run_id in self.rounds:
            self._train_next(run_id)

    def work(self) -> None:
        """Do the active job up to its receipt; its run goes on meanwhile."""
        job = self.session.active
        assert job is not None
        key = job.key
        self.session.handle(s.ModelFetched(key))
        if key.action == "train":
            # its round closes while it uploads, so that both orders wait when the next is chosen
            self.session.handle(s.WorkFinished(key, OUTCOME))
            self._commit(key.run_id)
            self.session.handle(s.UpdateUploaded(key))
        else:
            self.session.handle(s.WorkFinished(key, s.JobOutcome(10, {"accuracy": 0.5})))
        receipt = Receipt(
            action=key.action, run_id=key.run_id, round=key.round, attempt=1, status="accepted"
        )
        self.session.handle(s.ReceiptArrived(receipt))
        self.done.append((key.run_id, key.action))

    def _commit(self, run_id: str) -> None:
        evaluation = order(run_id, "evaluate", self.rounds[run_id])
        self.session.handle(s.OrderArrived(evaluation))
        self._train_next(run_id)

    def _train_next(self, run_id: str) -> None:
        self.rounds[run_id] += 1
        self.session.handle(s.OrderArrived(order(run_id, "train", self.rounds[run_id])))


@pytest.mark.parametrize("runs", [1, 2, 3, 5])
def test_no_run_and_no_measurement_starves(runs: int) -> None:
    # a run that was begun long before does not come last
    device = Device({f"run-{number}": 100 * number for number in range(runs)})
    device.begin()
    for _ in range(40 * runs):
        device.work()
    counts = Counter(device.done)
    trained = [counts[run_id, "train"] for run_id in device.rounds]
    measured = [counts[run_id, "evaluate"] for run_id in device.rounds]
    assert max(trained) - min(trained) <= 1, counts
    assert min(measured) >= 10, counts


def test_each_run_trains_at_most_once_before_a_measurement_that_waits() -> None:
    session = DeviceSession()
    for run_id in ("a", "b"):
        session.handle(s.OrderArrived(order(run_id, "train", 1)))
    session.handle(s.OrderArrived(order("a", "evaluate", 1)))
    started = []
    for round_number in (2, 2, 3, 3):
        job = session.active
        assert job is not None
        started.append((job.key.run_id, job.key.action))
        session.handle(s.OrderArrived(order(job.key.run_id, "train", round_number)))
        session.handle(s.JobFailed(job.key, "no"))
    # the first was active when the measurement came
    assert started[:4] == [("a", "train"), ("b", "train"), ("a", "train"), ("a", "evaluate")]


def test_a_run_in_a_later_round_has_its_turn_before_one_that_has_just_had_one() -> None:
    session = DeviceSession()
    for run_id, number in (("a", 1), ("b", 5), ("a", 2)):
        session.handle(s.OrderArrived(order(run_id, "train", number)))
    assert session.active is not None
    assert session.active.key.run_id == "b"
    assert [job.key.run_id for job in session.waiting] == ["a"]
