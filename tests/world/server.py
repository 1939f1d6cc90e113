"""The server's shell, simulated: a journal that survives, everything else that does not.

What a real shell must do as well: journal a step's facts at once and before its commands; drop a
result whose key is not the expected one; run sums, deletes and sweeps one after another, so that a
sweep comes after the sum that was under way; try a failed delete again.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from broker.wire.messages import DeviceState, ModelRef, Order, Receipt, UploadRef
from fl_client.session.events import RunChanged
from fl_server.flows.commands import ArmTimer, SendReceipt
from fl_server.flows.events import DeviceDeclined, OrderRequested, TimerFired
from fl_server.flows.flow import Step
from fl_server.members.presence import PresenceTable
from fl_server.rounds.commands import (
    Aggregate,
    Command,
    DiscardUpdate,
    FoldUpdate,
    SendOrder,
    SweepRound,
    SweepRun,
    VerifyUpdate,
)
from fl_server.rounds.events import (
    AggregationFailed,
    AggregationFinished,
    EvaluationReceived,
    Event,
    ResultReceived,
    UpdateRejected,
    UpdateVanished,
    UpdateVerified,
)
from fl_server.rounds.facts import Fact, RoundAbandoned, RoundClosed, RoundCommitted, UpdateAccepted
from fl_server.rounds.machine import RoundMachine
from fl_server.rounds.model import Model, Update
from fl_server.rounds.plan import Plan
from tests.laws import RoundLaws, require
from tests.world.broker import SERVER, Broker, Letter
from tests.world.kernel import Kernel
from tests.world.store import Object, Store, url

RUN = "run"
Job = Callable[[], bool]


def sha_of(text: str) -> str:
    """Return a name for some bytes, in the form of a sha256."""
    return hashlib.sha256(text.encode()).hexdigest()


def model_key(version: int) -> str:
    return f"global/{version}"


def update_key(round_number: int, attempt: int, device_id: str) -> str:
    return f"updates/{round_number}/{attempt}/{device_id}"


def pair_of(key: str) -> tuple[int, int]:
    """Return the (round, attempt) of an update's key."""
    _, round_number, attempt, _ = key.split("/")
    return int(round_number), int(attempt)


@lru_cache(maxsize=4096)
def update_of(device_id: str, round_number: int, base: int) -> Object:
    """Return what a device makes of a model in a round: a function of these alone."""
    text = f"update {device_id}/{round_number}/{base}"
    digest = sha_of(text)
    return Object(int(digest[:6], 16), 10 + 7 * int(device_id[1:]), digest)


class Server:
    """One run on one server, which may die at any step and comes back by itself."""

    def __init__(
        self,
        kernel: Kernel,
        broker: Broker,
        store: Store,
        plan: Plan,
        make: Callable[..., RoundMachine],
        url_life_s: float,
    ) -> None:
        self.kernel, self.broker, self.store = kernel, broker, store
        self.plan, self.make, self.url_life_s = plan, make, url_life_s
        first = Object(1_000_000, 0, sha_of("model 1000000"))
        store.put(model_key(0), first)
        self.initial = Model(0, model_key(0), first.sha256, 100)
        ledger = type(make(plan, self.initial).ledger)
        self.laws = RoundLaws.of(plan, self.initial, ledger)
        self.journal: list[Fact] = []
        self.values = [first.value]
        self.expected = [first.value]
        self.epoch = 0
        self.life = 0
        self.alive = False
        self.label = SERVER
        broker.add(SERVER, self)

    @property
    def ended(self) -> bool:
        """Whether the journal says that the run is over."""
        return self.laws.over

    # --- life and death -------------------------------------------------------------------------

    def boot(self) -> None:
        """Start, or start again from the journal."""
        if self.alive:
            return
        self.life += 1
        self.epoch += 1
        self.alive = True
        self.kernel.note(self.label, "starts", f"epoch {self.epoch}")
        self.presence = PresenceTable()
        self.jobs: deque[Job] = deque()
        self.spool: dict[str, Object] = {}
        self.sums: dict[tuple[int, int], dict[str, Object]] = {}
        self.said: object = None
        self.machine = self.make(self.plan, self.initial, tuple(self.journal))
        same = vars(self.machine.ledger) == vars(self.laws.shadow)
        require(same, "a restart finds the same state", "")
        self._take(None, self.machine.resume())
        self.kernel.after(self.kernel.between(0, 0.5), self._connect, self.life)

    def die(self) -> None:
        """Lose everything but the journal and the epoch, and come back."""
        if self.alive:
            self.fall()
            self.kernel.after(self.kernel.between(0.2, 6), self.boot)

    def fall(self) -> None:
        """Lose everything but the journal and the epoch."""
        self.kernel.note(self.label, "dies")
        self.alive = False
        self.life += 1
        self.laws.crashed()
        self.broker.disconnect(SERVER)

    def lose_connection(self) -> None:
        """Notice that the connection is gone, and make another."""
        self.broker.disconnect(SERVER)
        if self.alive:
            self.kernel.after(self.kernel.between(0.1, 3), self._connect, self.life)

    def _connect(self, life: int) -> None:
        if life == self.life and not self.broker.is_up(SERVER):
            self.broker.connect(SERVER, Letter("server", SERVER, (self.epoch, "offline"), True))

    def connected(self) -> None:
        """Say again what others must know."""
        self.presence.reconnected()
        self._publish("server", SERVER, (self.epoch, "online"), retained=True)
        self.said = None
        self._publish_document()

    # --- what devices say -----------------------------------------------------------------------

    def receive(self, leaf: str, sender: str, body: Any) -> bool:
        """Take a message; not acknowledged when the server died of it."""
        if not self.alive:
            return False
        life = self.life
        event = self._event(leaf, sender, body)
        if event is not None:
            self.give(event)
        return self.life == life

    def _event(self, leaf: str, sender: str, body: Any) -> Event | None:
        match leaf:
            case "state":
                assert isinstance(body, DeviceState)
                return self.presence.apply_state(sender, body)
            case "result":
                return self._result(sender, *body)
            case "ack":
                key, reason, permanent = body
                place = (sender, key.action, key.round, key.attempt)
                return DeviceDeclined(*place, reason, permanent=permanent)
            case "request":
                return OrderRequested(sender, body.action, body.round, body.attempt)
        raise AssertionError(leaf)

    def _result(self, sender: str, key: Any, outcome: Any, object_key: str) -> Event | None:
        if key.action == "evaluate":
            metrics = outcome.metrics
            return EvaluationReceived(sender, key.round, key.attempt, outcome.num_examples, metrics)
        own_key, fault = update_key(key.round, key.attempt, sender), ""
        if object_key != own_key:
            self.kernel.note(self.label, "hears of a foreign key", (sender, object_key))
            fault = f"the result names {object_key}"
        update = Update(own_key, outcome.size_bytes, outcome.header_sha256, outcome.num_examples)
        return ResultReceived(sender, key.round, key.attempt, update, fault)

    # --- the machine ----------------------------------------------------------------------------

    def give(self, event: Event) -> None:
        """Let the machine take an event, and do what follows."""
        kernel = self.kernel
        dies = kernel.happens(kernel.odds.server_dies_in_step)
        kernel.note(self.label, "<-", event)
        step = self.machine.handle(event)
        if dies and kernel.random() < 0.3:
            kernel.note(self.label, "dies before it has journalled", step.facts)
            self.die()
            return
        self._take(event, step, dies=dies)

    def _take(self, event: Event | None, step: Step, *, dies: bool = False) -> None:
        for fact in step.facts:
            self.kernel.note(self.label, "journals", fact)
            self._book(fact)
        self.journal += step.facts
        self.laws.observe(self.machine, event, step)
        done = len(step.commands)
        if dies:
            done = int(self.kernel.random() * (done + 1))
        for command in step.commands[:done]:
            self._do(command)
        if dies:
            self.die()
        elif step.facts:
            self._publish_document()

    def _book(self, fact: Fact) -> None:
        """Work out each version again from what was journalled alone."""
        match fact:
            case UpdateAccepted():
                self._parts(fact.device_id, fact.round, fact.update.header_sha256)
            case RoundClosed():
                self.expected.append(mean_step(self.expected[-1], self._included(fact)))
            case RoundAbandoned() if len(self.expected) > fact.round:
                self.expected.pop()
            case RoundCommitted():
                self.values.append(self.store.objects[fact.model.key].value)
                require(self.values == self.expected, "the included make the model", fact)

    def _parts(self, device_id: str, number: int, sha256: str) -> list[Object]:
        """Return the updates of devices that an accepted update stands for: itself alone."""
        true = update_of(device_id, number, self.values[-1])
        law = "an update is of its device, its round and its model"
        require(sha256 == true.sha256, law, (device_id, number))
        return [true]

    def _included(self, fact: RoundClosed) -> list[Object]:
        accepted = self.machine.ledger.accepted
        return [
            part
            for name in fact.included
            for part in self._parts(name, fact.round, accepted[name].header_sha256)
        ]

    def _do(self, command: Command) -> None:
        kernel, life = self.kernel, self.life
        match command:
            case SendOrder():
                kernel.note(self.label, "orders", command)
                self._publish("task", command.device_id, self._order(command))
            case SendReceipt():
                kernel.note(self.label, "answers", command)
                self._publish("receipt", command.device_id, _receipt(command))
            case ArmTimer():
                kernel.after(command.seconds, self._fire, life, command)
            case VerifyUpdate():
                slow = 20 if kernel.happens(kernel.odds.check_slow) else 1
                kernel.after(kernel.between(0.05, 0.3) * slow, self._check, life, command)
            case FoldUpdate():
                self._queue(lambda: self._fold(command))
            case Aggregate():
                self._queue(lambda: self._aggregate(command))
            case DiscardUpdate():
                self._queue(lambda: self._delete(command.key))
            case SweepRound():
                self._queue(lambda: self._sweep_round((command.round, command.attempt)))
            case SweepRun():
                self._queue(self._sweep_run)

    def _fire(self, life: int, command: ArmTimer) -> None:
        if life == self.life:
            self.give(TimerFired(command.timer, command.round, command.attempt))

    # --- messages out ---------------------------------------------------------------------------

    def _publish(self, leaf: str, about: str, body: Any, *, retained: bool = False) -> None:
        self.broker.publish(SERVER, leaf, about, body, retained=retained)

    def _publish_document(self) -> None:
        ledger = self.machine.ledger
        closed = ledger.phase in {"aggregating", "evaluating", "ended"}
        document = RunChanged(
            RUN, self.epoch, ledger.phase == "ended", ledger.round, ledger.attempt, closed
        )
        if document != self.said:
            self.said = document
            self._publish("run", RUN, document, retained=True)

    def _order(self, command: SendOrder) -> Order:
        train = command.action == "train"
        ledger = self.machine.ledger
        model, expires = ledger.model, self.kernel.now + self.url_life_s
        key = update_key(command.round, command.attempt, command.device_id)
        return Order.model_construct(
            epoch=self.epoch,
            action=command.action,
            run_id=RUN,
            round=command.round,
            attempt=command.attempt,
            task="digits",
            algorithm="fedavg",
            algorithm_settings={},
            training={},
            seed=self.plan.seed,
            model=ModelRef.model_construct(
                url=url(model.key, expires), key=model.key, sha256=model.sha256, size_bytes=100
            ),
            upload=UploadRef.model_construct(url=url(key, expires), key=key) if train else None,
            time_left_s=self.plan.deadline_s,
        )

    # --- jobs -----------------------------------------------------------------------------------

    def _check(self, life: int, command: VerifyUpdate) -> None:
        if life != self.life:
            return
        where = (command.device_id, command.round, command.attempt, command.update)
        found = self.store.get(command.update.key)
        if found is None:
            self.give(UpdateRejected(*where, "no such object"))
        elif found.damaged or found.sha256 != command.update.header_sha256:
            self.give(UpdateRejected(*where, "the bytes are not what the header says"))
        else:
            self.spool[command.update.key] = found
            self.give(UpdateVerified(*where))

    def _queue(self, job: Job) -> None:
        """Run the job after those before it; a job that returns False is tried again."""
        self.jobs.append(job)
        if len(self.jobs) == 1:
            self.kernel.after(0.02, self._work, self.life)

    def _work(self, life: int) -> None:
        if life != self.life:
            return
        done = self.jobs[0]()
        if life != self.life:
            return
        if done:
            self.jobs.popleft()
        if self.jobs:
            self.kernel.after(0.02 if done else 1.0, self._work, life)

    def _fold(self, command: FoldUpdate) -> bool:
        pair, key = (command.round, command.attempt), command.update.key
        found = self.spool.pop(key, None) or self.store.get(key)
        if found is None or found.damaged or found.sha256 != command.update.header_sha256:
            reason = "gone" if found is None else "damaged"
            self.give(UpdateVanished(command.device_id, *pair, reason))
            return True
        added = self.sums.setdefault(pair, {})
        require(command.device_id not in added, "nothing is added twice", command)
        added[command.device_id] = found
        return True

    def _aggregate(self, command: Aggregate) -> bool:
        pair, kernel = (command.round, command.attempt), self.kernel
        added = self.sums.pop(pair, {})
        if kernel.happens(kernel.odds.aggregation_fails):
            self.give(AggregationFailed(*pair, "no space left"))
            return True
        if tuple(sorted(added)) != command.included:
            self.give(AggregationFailed(*pair, "an update is missing"))
            return True
        base = self.store.objects[model_key(command.round - 1)].value
        value = mean_step(base, [added[name] for name in command.included])
        made = Object(value, 0, sha_of(f"model {value}"))
        self.store.put(model_key(command.round), made)
        model = Model(command.round, model_key(command.round), made.sha256, 100)
        kernel.after(
            kernel.between(0, 0.5), self._aggregated, self.life, AggregationFinished(*pair, model)
        )
        return True

    def _aggregated(self, life: int, event: AggregationFinished) -> None:
        if life == self.life:
            self.give(event)

    def _delete(self, key: str) -> bool:
        if self.kernel.happens(self.kernel.odds.delete_fails):
            return False
        self.store.delete(key)
        return True

    def _sweep_round(self, pair: tuple[int, int]) -> bool:
        keys = [k for k in self.store.objects if k.startswith("updates/") and pair_of(k) <= pair]
        return all(self._delete(key) for key in keys)

    def _sweep_run(self) -> bool:
        kept = {model_key(version) for version in range(self.laws.committed + 1)}
        return all(self._delete(key) for key in list(self.store.objects) if key not in kept)


def mean_step(value: int, parts: list[Object]) -> int:
    """Return a model's next value: federated averaging in integers."""
    total = sum(part.examples for part in parts)
    return value + sum(part.weighted for part in parts) // total


@lru_cache(maxsize=4096)
def _receipt(command: SendReceipt) -> Receipt:
    return Receipt.model_construct(
        action=command.action,
        run_id=RUN,
        round=command.round,
        attempt=command.attempt,
        status=command.status,
        reason=command.reason,
    )
