"""One seed, one history: a run of five rounds with eight devices while things go wrong.

The seed chooses the plan, which kinds of faults there are and how often they come. After a while
faults stop; then the run must end, every device must come to rest and nothing may be left over.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

from fl_client.session.events import JobKey, JobOutcome
from fl_client.session.machine import DeviceSession
from fl_server.flows.events import PauseRequested, ResumeRequested, StopRequested
from fl_server.rounds.facts import Fact, RunStopped
from fl_server.rounds.machine import RoundMachine
from fl_server.rounds.plan import BestRule, EvaluateOn, Plan
from tests.laws import require
from tests.world.broker import SERVER, Broker, Session
from tests.world.device import Device
from tests.world.kernel import Kernel, Odds
from tests.world.server import RUN, Server, mean_step, model_key, update_key, update_of
from tests.world.store import Store

ROUNDS = 5
DEVICES = 8
# Odds are drawn up to these; a kind is absent from most histories, so that others show.
HIGHEST = Odds(
    message_lost=0.15,
    message_doubled=0.3,
    message_delayed=0.3,
    will_late=1.0,
    download_fails=0.3,
    upload_fails=0.3,
    upload_torn=0.2,
    upload_answer_lost=0.4,
    upload_flipped=0.4,
    upload_hopeless=0.1,
    cancelled_upload_lands=1.0,
    transfer_slow=0.2,
    work_fails=0.2,
    work_breaks=0.2,
    check_slow=0.2,
    delete_fails=0.5,
    aggregation_fails=0.6,
    server_dies_in_step=0.03,
    device_dies_in_step=0.02,
)
Machines = Callable[..., RoundMachine]
Sessions = Callable[[], DeviceSession]


@dataclass
class Outcomes:
    """What a history came to."""

    seed: int
    failure: str = ""
    law: str = ""
    status: str = ""
    events: int = 0
    value: int = 0
    journal: list[Fact] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


class World:
    """The parts of one history, put together by its seed."""

    def __init__(
        self,
        seed: int,
        machine: Machines = RoundMachine,
        session: Sessions = DeviceSession,
        *,
        faults: bool = True,
    ) -> None:
        self.kernel = Kernel(seed)
        self.calm = False
        self.plan = replace(self._plan(), best=self._best(seed, faults=faults))
        self.broker = Broker(self.kernel)
        self.store = Store()
        life = self.kernel.rng.choice([4.0, 20.0, 600.0])
        self.server = Server(
            self.kernel, self.broker, self.store, self.plan, machine, life if faults else 600.0
        )
        self.devices = [
            Device(
                f"d{index}",
                self.kernel,
                self.broker,
                self.store,
                session,
                "evaluator" if index > self.trainers else "trainer",
            )
            for index in range(1, DEVICES + 1)
        ]
        self._begin(faults=faults)

    def _plan(self) -> Plan:
        rng = self.kernel.rng
        where: EvaluateOn = rng.choice(["evaluators", "evaluators", "devices", "none"])
        self.trainers = DEVICES - (where == "evaluators")
        full = rng.random() < 0.4
        cohort = self.trainers if full else rng.randint(3, self.trainers - 1)
        return Plan(
            RUN,
            ROUNDS,
            cohort_size=cohort,
            quorum=cohort if full and rng.random() < 0.5 else max(2, cohort - rng.randint(1, 4)),
            seed=rng.randint(0, 1000),
            over_selection=1.0 if full else rng.choice([1.0, 1.2, 1.5]),
            deadline_s=rng.choice([12.0, 20.0, 40.0]),
            gather_s=rng.choice([1.0, 4.0]),
            max_attempts=rng.choice([1, 2]) if rng.random() < 0.1 else 500,
            evaluate_every=rng.randint(1, 2),
            evaluate_on=where,
            evaluation_deadline_s=15.0,
        )

    def _best(self, seed: int, *, faults: bool) -> BestRule | None:
        """Return how the best version is found; by numbers of its own, as it came later."""
        rng = random.Random(f"best {seed}")
        if rng.random() < 0.6:
            return None
        return BestRule("accuracy", patience=rng.choice([0, 1, 2]) if faults else 0)

    @property
    def is_full(self) -> bool:
        """Whether every round must include every trainer."""
        return self.plan.quorum == self.trainers

    # --- faults ---------------------------------------------------------------------------------

    @property
    def kinds(self) -> list[Callable[..., None]]:
        """The kinds of faults of this world."""
        return KINDS

    def _boots(self) -> list[Callable[[], None]]:
        return [device.boot for device in self.devices]

    def _stores(self) -> list[Store]:
        return [self.store]

    def _begin(self, *, faults: bool) -> None:
        kernel = self.kernel
        rng = kernel.rng
        kernel.after(0.0, self.server.boot)
        for boot in self._boots():
            late = 20.0 if faults and rng.random() < 0.1 else 0.5
            kernel.after(rng.uniform(0, late), boot)
        if not faults:
            self.calm = True
            return
        wildness = rng.choice([0.3, 0.6, 1.0])
        for odd in fields(Odds):
            if rng.random() < 0.35:
                highest = getattr(HIGHEST, odd.name)
                setattr(kernel.odds, odd.name, highest * rng.random() * wildness)
        lasting = rng.choice([10.0, 25.0, 60.0])
        kinds = [kind for kind in self.kinds if rng.random() < 0.4]
        when = 0.0
        while kinds and (when := when + rng.expovariate(0.45 * wildness)) < lasting:
            kernel.after(when, rng.choice(kinds), self)
        kernel.after(lasting, self._stop_faults)

    def _stop_faults(self) -> None:
        self.kernel.note("world", "faults stop")
        self.calm = True
        self.kernel.odds.stop()
        for device in self.devices:
            device.drain(on=False)
        self._wake()

    def _wake(self) -> None:
        """Let the operator resume a run that is still paused, also after a crash."""
        if self.server.alive:
            self.server.give(ResumeRequested())
        else:
            self.kernel.after(1.0, self._wake)

    def server_dies(self) -> None:
        self.server.die()

    def device_dies(self) -> None:
        self.kernel.rng.choice(self.devices).die()

    def most_devices_die(self) -> None:
        for device in self.devices:
            if self.kernel.random() < 0.7:
                device.die()

    def connection_drops(self) -> None:
        device = self.kernel.rng.choice(self.devices)
        self.kernel.note(device.name, "loses its connection")
        device.lose_connection()

    def server_connection_drops(self) -> None:
        self.kernel.note(SERVER, "loses its connection")
        self.server.lose_connection()

    def connection_dies_silently(self) -> None:
        parties: list[Device | Server] = [*self.devices, self.server]
        party = self.kernel.rng.choice(parties)
        name = SERVER if isinstance(party, Server) else party.name
        self._dies_silently(party, self.broker.sessions[name])

    def _dies_silently(self, party: Device | Server, session: Session) -> None:
        name = party.label if isinstance(party, Server) else party.name
        if session.up:
            self.kernel.note(name, "has a dead connection")
            session.dead = True
            generation = session.generation

            def notice() -> None:
                if session.generation == generation:
                    party.lose_connection()

            self.kernel.after(self.kernel.between(1, 12), notice)

    def _broker_restarts(self) -> None:
        self.server.lose_connection()
        for device in self.devices:
            device.lose_connection()

    def broker_restarts(self) -> None:
        self.kernel.note("broker", "restarts")
        self._broker_restarts()

    def broker_forgets_sessions(self) -> None:
        self.kernel.note("broker", "restarts without its sessions")
        self._broker_restarts()
        self._forgets(retained=False)

    def broker_forgets_all(self) -> None:
        self.kernel.note("broker", "restarts with nothing")
        self._broker_restarts()
        self._forgets(retained=True)

    def _forgets(self, *, retained: bool) -> None:
        self.broker.forget(retained=retained)

    def device_drains(self) -> None:
        device = self.kernel.rng.choice(self.devices)
        device.drain(on=True)
        self.kernel.after(self.kernel.between(2, 15), lambda: device.drain(on=False))

    def operator_pauses(self) -> None:
        if self.server.alive:
            self.server.give(PauseRequested())
        self.kernel.after(self.kernel.between(1, 10), self._wake)

    def operator_stops(self) -> None:
        if self.server.alive and self.kernel.random() < 0.2:
            self.server.give(StopRequested())

    def object_is_lost(self) -> None:
        self._harm_an_update("loses an object", Store.delete)

    def object_rots(self) -> None:
        self._harm_an_update("flips a bit at rest", Store.damage)

    def _harm_an_update(self, what: str, harm: Callable[[Store, str], None]) -> None:
        found = [
            (store, key)
            for store in self._stores()
            for key in store.objects
            if key.startswith("updates/")
        ]
        if found:
            store, key = self.kernel.rng.choice(found)
            self.kernel.note("store", what, key)
            harm(store, key)

    def result_is_forged(self) -> None:
        """A device reports another device's object as its own."""
        thief, victim = self.kernel.rng.sample(self.devices, 2)
        round_number, attempt = self.server.laws.pair
        outcome = JobOutcome(10_000, {}, header_sha256="f" * 64, size_bytes=1)
        key = JobKey(RUN, "train", round_number, attempt)
        stolen = update_key(round_number, attempt, victim.name)
        self.broker.publish(thief.name, "result", thief.name, (key, outcome, stolen))

    def evaluation_is_forged(self) -> None:
        """A device measures a version that it was not ordered to."""
        device = self.kernel.rng.choice(self.devices)
        version = self.server.laws.committed
        if (version, device.name) not in self.server.laws.evaluation_orders:
            outcome = JobOutcome(1 << 40, {"accuracy": -1e300})
            key = JobKey(RUN, "evaluate", max(1, version), 1)
            self.broker.publish(device.name, "result", device.name, (key, outcome, ""))

    # --- the end --------------------------------------------------------------------------------

    def run(self) -> None:
        """Live through the history and judge its end."""
        finite = self.kernel.run()
        require(finite, "the world comes to rest", f"{self.kernel.events} events")
        require(self.server.ended, "the run ends when faults stop", self.server.machine.ledger)
        ledger = self.server.machine.ledger
        for device in self.devices:
            self._require_at_rest(device)
        kept = {model_key(version) for version in range(ledger.model.version + 1)}
        left = set(self.store.objects) - kept
        require(not left, "no orphan object at the end", sorted(left))
        require(kept <= set(self.store.objects), "every version is there", sorted(kept))
        if ledger.status == "completed" and self.is_full:
            made = ledger.model.version + 1
            require(
                self.server.values[:made] == self.undisturbed()[:made],
                "the undisturbed model",
                ledger,
            )
        stopped = any(isinstance(fact, RunStopped) for fact in self.server.journal)
        # a cohort that was refused twice for one reason ends its run
        if self.plan.max_attempts > 100 and not stopped and not self.server.laws.repeated:
            require(ledger.status == "completed", "a run with devices completes", ledger)

    def _require_at_rest(self, device: Device) -> None:
        require(device.alive, "every device is back", device.name)
        session, disk = device.session, device.disk
        busy = (session.active, session.waiting, session.reporting)
        require(not any(busy), "every device is at rest", (device.name, busy))
        owed = (disk.kept, disk.outbox, disk.updates)
        require(not any(owed), "every result got its receipt", (device.name, owed))

    def undisturbed(self) -> list[int]:
        """Return the models of a run in which every trainer is in every round."""
        values = [1_000_000]
        names = [device.name for device in self.devices if device.role == "trainer"]
        for round_number in range(1, ROUNDS + 1):
            parts = [update_of(name, round_number, values[-1]) for name in names]
            values.append(mean_step(values[-1], parts))
        return values


KINDS: list[Callable[[World], None]] = [
    World.server_dies,
    World.device_dies,
    World.most_devices_die,
    World.connection_drops,
    World.server_connection_drops,
    World.connection_dies_silently,
    World.broker_restarts,
    World.broker_forgets_sessions,
    World.broker_forgets_all,
    World.device_drains,
    World.operator_pauses,
    World.operator_stops,
    World.object_is_lost,
    World.object_rots,
    World.result_is_forged,
    World.evaluation_is_forged,
]


def live(
    seed: int,
    machine: Machines = RoundMachine,
    session: Sessions = DeviceSession,
    *,
    faults: bool = True,
    history: bool = False,
) -> Outcomes:
    """Return what a seed's history came to; its lines only when it failed or when asked."""
    return outcome_of(seed, World(seed, machine, session, faults=faults), history=history)


def outcome_of(seed: int, world: World, *, history: bool) -> Outcomes:
    """Let a world live; return what its history came to."""
    outcome = Outcomes(seed)
    try:
        world.run()
    except Exception as error:  # noqa: BLE001 - whatever a planted bug raises is a finding
        outcome.failure = f"{type(error).__name__}: {error}"
        outcome.law = getattr(error, "law", type(error).__name__)
    server = world.server
    outcome.status = server.laws.shadow.status
    outcome.events, outcome.value = world.kernel.events, server.values[-1]
    outcome.journal = server.journal
    if outcome.failure or history:
        outcome.lines = [str(world.plan), *world.kernel.lines()]
    return outcome
