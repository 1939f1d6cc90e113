"""The server is killed in a run whose orders are fitted to speed: what it asked for, it asks again.

Speeds are seconds, and no two runs measure the same. So the run is not held against an undisturbed
one but against its own journal: every order that went out, in any life of the server, is as the
round's fact says; that is what the measured speeds give; and a training of its own, by that work
alone, gives every version bit for bit.
"""

from __future__ import annotations

import hashlib
import queue
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.wire.messages import Order
from fl_client.tasks.registry import load_task
from fl_client.training.child import ChildEvent, ChildFinished, ChildSettings, TrainingChild
from fl_client.training.frames import TrainingJob
from fl_server.rounds.facts import RoundClosed, RoundCommitted, RoundStarted, UpdateAccepted
from fl_server.rounds.workload import PROBE_STEPS, FitRule, OrderWork, Speed, fit, measured
from rengo.site.device_process import DeviceSpec
from storage.updates.header import read_header
from storage.updates.stream import verified_blocks
from storage.weights import Weights, write_safetensors
from tests.chaos.arena import PATIENCE_S, REPOSITORY, Arena, Opened, honest_rounds
from tests.chaos.moments import Moment, draw
from tests.chaos.mortal_server import read_orders
from tests.exactness import summed

FILE = REPOSITORY / "tests" / "chaos" / "uneven.py"
TASK, QUICKLY = f"{FILE}:Uneven", f"{FILE}:Even"
FAST, SLOW = "fast", "slow"
SPECS = [
    DeviceSpec(name, engine="numpy", index=index, count=2)
    for index, name in enumerate((FAST, SLOW))
]
SEED, DEADLINE_S = 39, 120.0
# Moments at which the device whose work was cut is among those asked again, whatever the machine's
# speed: the first or the second update is about to be counted.
UNTAKEN = ((1, 1), (2, 2), (3, 1), (4, 2))


@dataclass(frozen=True)
class Plan:
    """So many kills at drawn moments in the first rounds, and some of those above in the rest."""

    kills: int
    killed_rounds: int
    untaken: int

    @property
    def rounds(self) -> int:
        return self.killed_rounds + self.untaken

    @property
    def moments(self) -> list[Moment]:
        after = self.killed_rounds - 1
        return [
            *draw(SEED, 1, self.kills, self.killed_rounds)[0],
            *(
                Moment("verifying", "before-accept", after + number, nth)
                for number, nth in UNTAKEN[: self.untaken]
            ),
        ]


PLANS = [
    pytest.param(Plan(1, 2, 2), id="short"),
    pytest.param(Plan(6, 8, 4), id="long", marks=pytest.mark.soak),
]


def run_of(rounds: int) -> dict[str, Any]:
    cohort = {"size": 2, "quorum": 2, "gather_s": 5.0, "deadline_s": DEADLINE_S, "fit": "time"}
    return {"rounds": rounds, "seed": SEED, "cohort": cohort, "evaluation": {"on": "devices"}}


@pytest.fixture(scope="module")
def arena(folder: Path) -> Iterator[Arena]:
    with Opened(folder, TASK, mortal=True) as opened:
        opened.start_fleet(SPECS)
        yield opened


@pytest.fixture(scope="module", params=PLANS)
def run_id(arena: Arena, request: pytest.FixtureRequest) -> str:
    """A run that was completed although its server was killed at all the moments."""
    plan: Plan = request.param
    before = arena.site.restarts("server")
    arena.plan(plan.moments)
    report = arena.run(run_of(plan.rounds))
    assert arena.moments_left() == []
    assert arena.site.restarts("server") - before == len(plan.moments)
    assert report["rounds_completed"] == plan.rounds
    honest_rounds(arena, report["run_id"], {FAST, SLOW})
    return str(report["run_id"])


def journalled(arena: Arena, run_id: str) -> dict[int, Mapping[str, OrderWork]]:
    return {fact.round: fact.work for fact in arena.of(run_id, RoundStarted)}


def test_every_order_is_as_the_journal_has_it_and_those_after_a_kill_too(
    arena: Arena, run_id: str
) -> None:
    work = journalled(arena, run_id)
    said: dict[tuple[int, str], list[Order]] = defaultdict(list)
    for device_id, order in read_orders(arena.site.plan):
        if order.run_id == run_id:
            said[order.round, device_id].append(order)
    assert said.keys() == {(number, name) for number in work for name in (FAST, SLOW)}
    for (number, name), orders in said.items():
        assert all(order.training == work[number][name].overrides() for order in orders)
    again = [orders for orders in said.values() if len({order.epoch for order in orders}) > 1]
    # of a round whose speeds were measured, to a device that was still at it
    assert [order for orders in again for order in orders[1:] if order.round > 1 and order.training]


def test_the_devices_did_what_the_journal_says(arena: Arena, run_id: str) -> None:
    work = journalled(arena, run_id)
    assert work[1] == {FAST: OrderWork(PROBE_STEPS), SLOW: OrderWork(PROBE_STEPS)}
    for fact in arena.of(run_id, UpdateAccepted):
        usage = fact.update.usage
        wanted = work[fact.round][fact.device_id].max_steps or usage["full_steps"]
        assert usage["steps"] == wanted
    fitted = [work[number] for number in range(2, len(work) + 1)]
    assert all(each[FAST].max_steps == 0 for each in fitted), "who is faster does all"
    assert all(each[SLOW].max_steps > 0 for each in fitted)


def test_the_work_is_what_the_journalled_speeds_give(arena: Arena, run_id: str) -> None:
    """No life of the server forgot a measurement, or took one twice."""
    speeds: dict[str, Speed] = {}
    rule = FitRule(None, DEADLINE_S)
    for fact in arena.facts(run_id):
        if isinstance(fact, RoundStarted):
            assert fact.work == fit(fact.cohort, speeds, rule)
        if isinstance(fact, UpdateAccepted):
            speed = measured(fact.update.usage)
            assert speed is not None
            before = speeds.get(fact.device_id)
            speeds[fact.device_id] = before.followed_by(speed) if before else speed


def test_a_training_by_the_journalled_work_alone_gives_every_version(
    arena: Arena, run_id: str, tmp_path: Path
) -> None:
    work = journalled(arena, run_id)
    included = {fact.round: fact.included for fact in arena.of(run_id, RoundClosed)}
    weights = load_task(TASK).initial_weights(SEED)
    trainers = {spec.name: Trainer.of(spec, run_id, tmp_path) for spec in SPECS}
    try:
        for fact in arena.of(run_id, RoundCommitted):
            of_round = {name: work[fact.round][name] for name in included[fact.round]}
            updates = [
                trainers[name].train(weights, fact.round, each.overrides())
                for name, each in of_round.items()
            ]
            weights = averaged(weights, updates)
            assert sha256_of(weights, tmp_path) == fact.model.sha256, f"round {fact.round}"
    finally:
        for trainer in trainers.values():
            trainer.child.stop()


@dataclass
class Trainer:
    """A device's training without its agent, a server or a network."""

    name: str
    run_id: str
    folder: Path
    child: TrainingChild
    events: queue.SimpleQueue[ChildEvent]

    @classmethod
    def of(cls, spec: DeviceSpec, run_id: str, folder: Path) -> Trainer:
        events: queue.SimpleQueue[ChildEvent] = queue.SimpleQueue()
        settings = ChildSettings(QUICKLY, "numpy", spec.name, spec.index, spec.count)
        child = TrainingChild(settings, events.put, log=folder / "training.log")
        return cls(spec.name, run_id, folder, child, events)

    def train(
        self, weights: Weights, number: int, training: dict[str, Any]
    ) -> tuple[np.ndarray[Any, np.dtype[np.float32]], int]:
        """Return the update of a round, and how many examples it is of."""
        update = self.folder / f"{self.name}.upd"
        base = sha256_of(weights, self.folder)
        self.child.submit(
            TrainingJob(
                run_id=self.run_id,
                round=number,
                attempt=1,
                device_id=self.name,
                seed=SEED,
                training=training,
                model_path=str(self.folder / "model.safetensors"),
                base_sha256=base,
                update_path=str(update),
            )
        )
        while not isinstance(event := self.events.get(timeout=PATIENCE_S), ChildFinished):
            pass
        with update.open("rb") as stream:
            sha256 = str(event.result.header_sha256)
            header = read_header(stream, header_sha256=sha256, max_bytes=1 << 26)
            blocks = list(verified_blocks(stream, header, header.parameters))
        return np.concatenate(blocks), event.result.num_examples


def averaged(
    weights: Weights, updates: list[tuple[np.ndarray[Any, np.dtype[np.float32]], int]]
) -> Weights:
    total = summed(updates, weights.vector.size).total()
    mean = total / sum(count for _, count in updates)
    return weights.with_vector(np.ascontiguousarray(weights.vector + mean, np.float32))


def sha256_of(weights: Weights, folder: Path) -> str:
    """Write a model where the trainings read it, and return its sha256."""
    path = folder / "model.safetensors"
    with path.open("wb") as out:
        write_safetensors(weights, out)
    return hashlib.sha256(path.read_bytes()).hexdigest()
