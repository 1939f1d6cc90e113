"""A domain, simulated: a server to its members and a device to its parent, one process.

What a real domain's shell must do as well: put the model of its parent's order where its devices
find it, and request a round from it; answer an order with the sums of the round that it requested;
decline where nobody is left that could do the round; say that it takes no orders while nobody below
does; end the run when its parent's has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from broker.wire.messages import DeviceState
from fl_client.session import events as s
from fl_client.session.machine import DeviceSession
from fl_server.flows.flow import Step
from fl_server.rounds.commands import Aggregate, Command, ReportRound
from fl_server.rounds.events import (
    AggregationFailed,
    AggregationFinished,
    CompletionReported,
    Event,
    RoundRequested,
)
from fl_server.rounds.facts import (
    Fact,
    RequestFailed,
    RoundAbandoned,
    RoundClosed,
    RoundCommitted,
    RoundOpened,
    UpdateAccepted,
)
from fl_server.rounds.machine import RoundMachine
from fl_server.rounds.model import Model
from fl_server.rounds.plan import Plan
from tests.laws import require
from tests.world.broker import Broker
from tests.world.device import Device
from tests.world.kernel import Kernel
from tests.world.server import Server, sha_of, update_key
from tests.world.store import Object, Store


@dataclass(frozen=True)
class Sums:
    """Which updates of devices a domain's sums were made of, as it journalled them."""

    round: int
    base: int
    parts: tuple[Object, ...]


class TreeServer(Server):
    """A server some of whose members are domains.

    Attributes:
        domains: those members, by name.
    """

    domains: Mapping[str, Domain] = {}

    def _parts(self, device_id: str, number: int, sha256: str) -> list[Object]:
        domain = self.domains.get(device_id)
        if domain is None:
            return super()._parts(device_id, number, sha256)
        sums = domain.server.made.get(sha256)
        require(sums is not None, "sums are of what their domain journalled", device_id)
        assert sums is not None
        of_round = (sums.round, sums.base) == (number, self.base_of(number))
        require(of_round, "sums are of their round and its model", (device_id, sums))
        return list(sums.parts)

    def base_of(self, number: int) -> int:
        """Return the value that the devices of a round begin with."""
        del number
        return self.values[-1]

    def _included(self, fact: RoundClosed) -> list[Object]:
        parts = super()._included(fact)
        names = [part.sha256 for part in parts]
        require(len(set(names)) == len(names), "no device counts twice", fact)
        return parts


class DomainServer(TreeServer):
    """Its rounds are requested, begin with the parent's model, and end with sums.

    Attributes:
        made: by the hash of sums, what they were made of.
    """

    def __init__(
        self,
        kernel: Kernel,
        broker: Broker,
        store: Store,
        plan: Plan,
        make: Callable[..., RoundMachine],
        url_life_s: float,
    ) -> None:
        super().__init__(kernel, broker, store, plan, make, url_life_s)
        self.made: dict[str, Sums] = {}
        self.domain: Domain | None = None
        self._bases: dict[int, int] = {}
        self._closed: dict[tuple[int, int], list[Object]] = {}

    def die(self) -> None:
        """End with the whole domain."""
        if self.alive and self.domain is not None:
            self.domain.die()

    def base_of(self, number: int) -> int:
        """Return the value of the parent's model for a round."""
        return self._bases[number]

    def _take(self, event: Event | None, step: Step, *, dies: bool = False) -> None:
        super()._take(event, step, dies=dies)
        if self.alive and self.domain is not None:
            for fact in step.facts:
                if isinstance(fact, RequestFailed):
                    self.domain.agent.given_up(fact.round, fact.reason, permanent=True)
                elif isinstance(fact, RoundAbandoned) and not self.trainers:
                    self.domain.agent.given_up(fact.round, fact.reason)
            self.domain.agent.look_down()

    @property
    def trainers(self) -> list[str]:
        """Who is there that takes orders."""
        return self.machine._roster.accepting("trainer") if self.alive else []

    def _book(self, fact: Fact) -> None:
        match fact:
            case RoundOpened():
                self._bases[fact.round] = self.store.objects[fact.base.key].value
                self.values[-1] = self._bases[fact.round]
            case UpdateAccepted():
                self._parts(fact.device_id, fact.round, fact.update.header_sha256)
            case RoundClosed():
                self._closed[(fact.round, fact.attempt)] = self._included(fact)
            case RoundCommitted():
                self._committed(fact)

    def _committed(self, fact: RoundCommitted) -> None:
        parts = self._closed[(fact.round, fact.attempt)]
        found = self.store.objects[fact.model.key]
        exact = (sum(part.weighted for part in parts), sum(part.examples for part in parts))
        require((found.summed, found.examples) == exact, "the included make the sums", fact)
        self.made[found.sha256] = Sums(fact.round, self.base_of(fact.round), tuple(parts))

    def _do(self, command: Command) -> None:
        if isinstance(command, ReportRound) and self.domain is not None:
            self.domain.agent.reported(command)
        else:
            super()._do(command)

    def _aggregate(self, command: Aggregate) -> bool:
        pair, kernel = (command.round, command.attempt), self.kernel
        added = self.sums.pop(pair, {})
        if kernel.happens(kernel.odds.aggregation_fails):
            self.give(AggregationFailed(*pair, "no space left"))
            return True
        if tuple(sorted(added)) != command.included:
            self.give(AggregationFailed(*pair, "an update is missing"))
            return True
        parts = [added[name] for name in command.included]
        total, examples = sum(each.weighted for each in parts), sum(p.examples for p in parts)
        names = " ".join(each.sha256 for each in parts)
        made = Object(0, examples, sha_of(f"sums {pair} {names}"), summed=total)
        key = f"sums/{command.round}/{command.attempt}"
        self.store.put(key, made)
        model = Model(command.round, key, made.sha256, 100)
        finished = AggregationFinished(*pair, model)
        kernel.after(kernel.between(0, 0.5), self._aggregated, self.life, finished)
        return True

    def _sweep_run(self) -> bool:
        return all(self._delete(key) for key in list(self.store.objects))

    def end(self) -> None:
        """End the run: the parent's has ended."""
        if self.alive and not self.ended:
            self.give(CompletionReported("the parent's run has ended"))


class DomainAgent(Device):
    """The domain as its parent sees it: a device whose work is done by those below it."""

    server: DomainServer
    accepting = False
    awaited: s.JobKey | None = None
    run_over = False

    def boot(self) -> None:
        """Start, awaiting nothing."""
        if self.alive:
            return
        self.awaited, self.accepting = None, False
        self.sums: dict[s.JobKey, Object] = getattr(self, "sums", {})
        super().boot()

    def die(self) -> None:
        """End with the whole domain."""
        if self.alive:
            self.server.die()

    # --- what the parent says ---------------------------------------------------------------

    def receive(self, leaf: str, sender: str, body: Any) -> bool:
        """Take a message; the end of the run is the end of the domain's."""
        taken = super().receive(leaf, sender, body)
        if leaf == "run" and body.ended and self.alive:
            self.run_over = True
            self.kernel.after(0.01, self.server.end)
        return taken

    def _answered(self, receipt: Any) -> None:
        parent = self.parent
        if receipt.status == "accepted" and receipt.action == "train":
            journalled = any(
                isinstance(fact, UpdateAccepted)
                and (fact.device_id, fact.round, fact.attempt)
                == (self.name, receipt.round, receipt.attempt)
                for fact in parent.journal
            )
            require(journalled, "nothing acknowledged is lost", receipt)
        super()._answered(receipt)

    def _state(self, status: str) -> DeviceState:
        return _of_domain(super()._state(status))

    def _say(self) -> None:
        draining, self.draining = self.draining, not self.accepting
        super()._say()
        self.draining = draining

    def look_down(self) -> None:
        """Say so where somebody below takes orders by now, or nobody any more."""
        accepting = bool(self.server.trainers)
        if self.alive and accepting != self.accepting:
            self.accepting = accepting
            self._say()

    # --- the work ---------------------------------------------------------------------------

    def _do(self, command: s.Command) -> None:
        if isinstance(command, s.DoWork) and command.job.key.action == "train":
            self.transfer += 1
            self.awaited = command.job.key
            self.kernel.after(0.02, self._request, self.life, command.job)
        else:
            if isinstance(command, s.CancelJob) and command.key == self.awaited:
                self.awaited = None
            super()._do(command)

    def _request(self, life: int, job: s.Job) -> None:
        server = self.server
        if life != self.life or self.awaited != job.key or not server.alive:
            return
        sha256 = job.model.sha256
        base = Model(job.key.round - 1, f"base/{job.key.round}/{sha256[:8]}", sha256, 100)
        server.store.put(base.key, Object(self.base, 0, sha256))
        if server.ended:
            self.given_up(job.key.round, "the run is over in this domain")
            return
        server.give(RoundRequested(job.key.round, base))

    def reported(self, report: ReportRound) -> None:
        """Answer the order with what its round made."""
        self.kernel.after(0.02, self._finish, self.life, report)

    def _finish(self, life: int, report: ReportRound) -> None:
        key = self.awaited
        if life != self.life or key is None or key.round != report.round:
            return
        found = self.server.store.get(report.model.key)
        self.awaited = None
        if found is None:
            self.give(s.JobFailed(key, "the sums are not there"))
            return
        self.sums[key] = found
        self.disk.updates[key] = self.base
        outcome = s.JobOutcome(
            found.examples, {}, header_sha256=found.sha256, size_bytes=100 + key.round
        )
        self.give(s.WorkFinished(key, outcome))

    def given_up(self, number: int, reason: str, *, permanent: bool = False) -> None:
        """Decline an order whose round nobody here can do now, or can do at all."""
        self.kernel.after(0.02, self._decline, self.life, (number, reason, permanent))

    def _decline(self, life: int, given_up: tuple[int, str, bool]) -> None:
        number, reason, permanent = given_up
        key = self.awaited
        if life == self.life and key is not None and key.round == number:
            self.awaited = None
            self.give(s.JobFailed(key, reason, permanent=permanent))

    def _put(self, key: s.JobKey) -> None:
        kernel, where = self.kernel, update_key(key.round, key.attempt, self.name)
        kernel.note(self.name, "stores", where)
        self.store.put(where, self.sums[key])
        if kernel.happens(kernel.odds.upload_flipped):
            kernel.note(self.name, "stores with one flipped bit", where)
            self.store.damage(where)

    parent: Server


@lru_cache(maxsize=4096)
def _as_domain(status: Any, boot_id: str, role: Any) -> DeviceState:
    return DeviceState.model_construct(
        status=status, boot_id=boot_id, role=role, tasks=["digits"], domain=True
    )


def _of_domain(state: DeviceState) -> DeviceState:
    """Return a presence message as that of a domain."""
    return _as_domain(state.status, state.boot_id, state.role)


class Domain:
    """The two halves, which live and die together."""

    def __init__(self, server: DomainServer, agent: DomainAgent, parent: Server) -> None:
        self.server, self.agent = server, agent
        server.domain, server.label = self, f"{agent.name}/server"
        agent.server, agent.parent = server, parent

    @classmethod
    def make(
        cls,
        name: str,
        parent: Server,
        plan: Plan,
        machine: Callable[..., RoundMachine],
        session: Callable[[], DeviceSession],
    ) -> Domain:
        """Return a domain with a broker and a store of its own, below a parent's server."""
        kernel = parent.kernel
        server = DomainServer(kernel, Broker(kernel), Store(), plan, machine, parent.url_life_s)
        server.store.objects.clear()  # it begins with no model of its own
        agent = DomainAgent(name, kernel, parent.broker, parent.store, session, "trainer")
        return cls(server, agent, parent)

    def boot(self) -> None:
        """Start, or start again from the disk."""
        self.server.boot()
        self.agent.boot()

    def die(self) -> None:
        """Lose everything but the disks."""
        kernel = self.server.kernel
        if not self.agent.alive and not self.server.alive:
            return  # it comes back by itself
        if self.agent.alive:
            self.agent.fall()
        if self.server.alive:
            self.server.fall()
        away = 60 if kernel.random() < 0.15 else 10
        kernel.after(kernel.between(0.5, away), self.boot)
