"""One seed, one history of a tree: domains between a platform and devices while things go wrong.

The platform has two domains and up to two devices of its own; one domain may have a domain below
it. Each domain has a broker and a store of its own. The laws are those of every server and every
device, and: what the platform's included sets make is the flat exact sum of the devices that the
domains journalled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fl_client.session.events import JobKey, JobOutcome
from fl_client.session.machine import DeviceSession
from fl_server.rounds.machine import RoundMachine
from fl_server.rounds.plan import Plan
from tests.laws import require
from tests.world.broker import SERVER, Broker
from tests.world.device import Device
from tests.world.domain import Domain, TreeServer
from tests.world.history import Machines, Outcomes, Sessions, World, outcome_of
from tests.world.kernel import Kernel
from tests.world.server import RUN, Server, mean_step, update_key, update_of
from tests.world.store import Store

ROUNDS = 3


class TreeWorld(World):
    """The parts of one history with a tree, put together by its seed."""

    def __init__(
        self,
        seed: int,
        machine: Machines = RoundMachine,
        session: Sessions = DeviceSession,
        *,
        faults: bool = True,
    ) -> None:
        self.kernel = Kernel(f"tree {seed}")
        self.calm = False
        self._machine, self._session = machine, session
        self.rounds = ROUNDS
        self.leaves: list[Device] = []
        self.domains: list[Domain] = []
        rng = self.kernel.rng
        self.full = rng.random() < 0.4
        life = rng.choice([4.0, 20.0, 600.0]) if faults else 600.0
        direct = rng.randint(0, 2)
        self.broker, self.store = Broker(self.kernel), Store()
        self.plan = replace(self._root_plan(2 + direct), deadline_s=rng.choice([30.0, 60.0]))
        self.server: TreeServer = TreeServer(
            self.kernel, self.broker, self.store, self.plan, machine, life
        )
        for _ in range(2):
            self._add_domain(self.server, deeper=rng.random() < 0.3)
        for _ in range(direct):
            self._add_leaf(self.server)
        self.devices = [*(each.agent for each in self.domains), *self.leaves]
        self._begin(faults=faults)

    def _root_plan(self, members: int) -> Plan:
        rng = self.kernel.rng
        quorum = members if self.full else rng.randint(1, members)
        return Plan(
            RUN,
            self.rounds,
            cohort_size=members,
            quorum=quorum,
            seed=rng.randint(0, 1000),
            gather_s=rng.choice([1.0, 4.0]),
            max_attempts=500,
            evaluate_on=rng.choice(["none", "devices"]),
            evaluation_deadline_s=15.0,
        )

    def _add_domain(self, parent: TreeServer, *, deeper: bool) -> None:
        rng = self.kernel.rng
        devices = rng.randint(1, 3)
        members = devices + deeper
        plan = replace(
            self._root_plan(members),
            rounds=1000,
            on_request=True,
            evaluate_on="none",
            deadline_s=parent.plan.deadline_s * 0.6,
        )
        name = f"domain-{len(self.domains) + 1}"
        domain = Domain.make(name, parent, plan, self._machine, self._session)
        self.domains.append(domain)
        parent.domains = {**parent.domains, name: domain}
        if deeper:
            self._add_domain(domain.server, deeper=False)
        for _ in range(devices):
            self._add_leaf(domain.server)

    def _add_leaf(self, parent: Server) -> None:
        name = f"d{len(self.leaves) + 1}"
        place = (self.kernel, parent.broker, parent.store)
        self.leaves.append(Device(name, *place, self._session, "trainer"))

    @property
    def is_full(self) -> bool:
        """Whether every round must include every device."""
        return self.full

    # --- faults ---------------------------------------------------------------------------------

    @property
    def kinds(self) -> list[Callable[[World], None]]:
        """The kinds of faults of this world."""
        return KINDS

    def _boots(self) -> list[Callable[[], None]]:
        return [*(each.boot for each in self.domains), *(each.boot for each in self.leaves)]

    def _servers(self) -> list[Server]:
        return [self.server, *(each.server for each in self.domains)]

    def domain_dies(self) -> None:
        self.kernel.rng.choice(self.domains).die()

    def domain_loses_its_parent(self) -> None:
        """Cut a domain's link upwards for longer than a round takes."""
        agent = self.kernel.rng.choice(self.domains).agent
        self.kernel.note(agent.name, "has no way to its parent")
        agent.lose_connection()
        for pause in range(1, 40):
            self.kernel.after(float(pause), agent.lose_connection)

    def server_connection_drops(self) -> None:
        server = self.kernel.rng.choice(self._servers())
        self.kernel.note(server.label, "loses its connection")
        server.lose_connection()

    def connection_dies_silently(self) -> None:
        party: Device | Server = self.kernel.rng.choice([*self.devices, *self._servers()])
        name = SERVER if isinstance(party, Server) else party.name
        self._dies_silently(party, party.broker.sessions[name])

    def _broker_restarts(self) -> None:
        self._struck = self.kernel.rng.choice([each.broker for each in self._servers()])
        for party in [*self._servers(), *self.devices]:
            if party.broker is self._struck:
                party.lose_connection()

    def _forgets(self, *, retained: bool) -> None:
        self._struck.forget(retained=retained)

    def _stores(self) -> list[Store]:
        return [each.store for each in self._servers()]

    def result_is_forged(self) -> None:
        """A device reports another device's object as its own."""
        server = self.kernel.rng.choice(self._servers())
        known = [each for each in self.devices if each.broker is server.broker]
        if len(known) < 2:
            return
        thief, victim = self.kernel.rng.sample(known, 2)
        outcome = JobOutcome(10_000, {}, header_sha256="f" * 64, size_bytes=1)
        key = JobKey(RUN, "train", *server.laws.pair)
        stolen = update_key(*server.laws.pair, victim.name)
        server.broker.publish(thief.name, "result", thief.name, (key, outcome, stolen))

    # --- the end --------------------------------------------------------------------------------

    def run(self) -> None:
        """Live through the history and judge its end, in every domain too."""
        super().run()
        for domain in self.domains:
            ledger = domain.server.machine.ledger
            require(domain.server.alive, "every domain is back", domain.agent.name)
            begun = domain.server.journal
            require(
                domain.server.ended or not begun, "a domain's run ends with its parent's", ledger
            )
            left = sorted(domain.server.store.objects) if domain.server.ended else []
            require(not left, "no orphan object in a domain", left)

    def undisturbed(self) -> list[int]:
        """Return the models of a flat run in which every device is in every round."""
        values = [1_000_000]
        for number in range(1, self.rounds + 1):
            parts = [update_of(each.name, number, values[-1]) for each in self.leaves]
            values.append(mean_step(values[-1], parts))
        return values


KINDS: list[Callable[[TreeWorld], None]] = [
    TreeWorld.server_dies,
    TreeWorld.domain_dies,
    TreeWorld.domain_loses_its_parent,
    TreeWorld.device_dies,
    TreeWorld.most_devices_die,
    TreeWorld.connection_drops,
    TreeWorld.server_connection_drops,
    TreeWorld.connection_dies_silently,
    TreeWorld.broker_restarts,
    TreeWorld.broker_forgets_sessions,
    TreeWorld.broker_forgets_all,
    TreeWorld.device_drains,
    TreeWorld.operator_pauses,
    TreeWorld.operator_stops,
    TreeWorld.object_is_lost,
    TreeWorld.object_rots,
    TreeWorld.result_is_forged,
]


def live(
    seed: int,
    machine: Machines = RoundMachine,
    session: Sessions = DeviceSession,
    *,
    faults: bool = True,
    history: bool = False,
) -> Outcomes:
    """Return what a seed's history of a tree came to."""
    return outcome_of(seed, TreeWorld(seed, machine, session, faults=faults), history=history)
