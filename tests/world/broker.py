"""A simulated MQTT broker: QoS 1, persistent sessions, retained documents, wills.

At least once: a message stays in the session until its receiver acknowledged it. Retained topics
keep their order; others may overtake each other. A connection can die silently: what is published
into it is gone, and both sides notice later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.world.kernel import Kernel

SERVER = "server"
REDELIVERED = 3


class Client(Protocol):
    """Who owns a connection."""

    def connected(self) -> None:
        """The connection is there; retained documents follow."""

    def receive(self, leaf: str, sender: str, body: Any) -> bool:
        """Take a message; returns whether it may be acknowledged."""


@dataclass(frozen=True)
class Letter:
    """One message on its way. ``sender`` is whose topic it is on."""

    leaf: str
    sender: str
    body: Any
    retained: bool


@dataclass
class Session:
    """What the broker keeps of a client, connected or not."""

    client: Client
    name: str
    generation: int = 0
    up: bool = False
    dead: bool = False
    will: Letter | None = None
    queue: dict[int, Letter] = field(default_factory=dict)
    recent: deque[Letter] = field(default_factory=lambda: deque(maxlen=REDELIVERED))
    not_before: float = 0.0


class Broker:
    """Routes by leaf: what devices say goes to the server, the rest to its device or to all."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.sessions: dict[str, Session] = {}
        self.retained: dict[tuple[str, str], Letter] = {}
        self._mid = 0

    def add(self, name: str, client: Client) -> None:
        """Let a client be known."""
        self.sessions[name] = Session(client, name)

    # --- connections ----------------------------------------------------------------------------

    def connect(self, name: str, will: Letter) -> None:
        """Connect a client, taking over what may be left of an older connection of it."""
        session, kernel = self.sessions[name], self.kernel
        if session.will is not None:
            if kernel.happens(kernel.odds.will_late):
                kernel.after(kernel.between(0, 2), self._publish_will, session.will)
            else:
                self._publish_will(session.will)
        session.generation += 1
        session.up, session.dead, session.will = True, False, will
        if kernel.odds.message_doubled:
            again, session.queue = list(session.recent), dict(session.queue)
            waiting = list(session.queue.values())
            session.queue.clear()
            for letter in [*again, *waiting]:
                self._enqueue(session, letter, send=False)
        for mid in list(session.queue):
            self._send(session, mid)
        session.client.connected()
        for letter in self._documents(name):
            self._enqueue(session, letter)

    def disconnect(self, name: str) -> None:
        """Close a client's connection without a good-bye; its will is published by and by."""
        session = self.sessions[name]
        if session.up:
            session.up = False
            session.generation += 1
            self.kernel.after(self.kernel.between(0, 5), self._notice, session, session.generation)

    def is_up(self, name: str) -> bool:
        """Whether the client believes that it is connected."""
        return self.sessions[name].up

    def forget(self, *, retained: bool) -> None:
        """Lose every session's queue, and the retained documents too if asked."""
        for session in self.sessions.values():
            session.queue.clear()
            session.recent.clear()
            session.will = None
        if retained:
            self.retained.clear()

    def _notice(self, session: Session, generation: int) -> None:
        if session.generation == generation and session.will is not None:
            will, session.will = session.will, None
            self._publish_will(will)

    def _publish_will(self, will: Letter) -> None:
        self.kernel.note("broker", "publishes the will of", (will.sender, will.body))
        self._accept(will)

    # --- messages -------------------------------------------------------------------------------

    def publish(
        self, name: str, leaf: str, about: str, body: Any, *, retained: bool = False
    ) -> bool:
        """Publish; returns False when the client knows that it is not connected."""
        session, kernel = self.sessions[name], self.kernel
        if not session.up:
            return False
        if session.dead or (not retained and kernel.happens(kernel.odds.message_lost)):
            kernel.note("broker", "loses", (leaf, about, body))
            return True
        self._accept(Letter(leaf, about, body, retained))
        return True

    def _accept(self, letter: Letter) -> None:
        if letter.retained:
            self.retained[(letter.leaf, letter.sender)] = letter
        for session in self._targets(letter):
            self._enqueue(session, letter)

    def _targets(self, letter: Letter) -> Iterable[Session]:
        if letter.leaf in {"task", "receipt"}:
            return (self.sessions[letter.sender],)
        if letter.leaf in {"server", "run"}:
            return (s for name, s in self.sessions.items() if name != SERVER)
        return (self.sessions[SERVER],)

    def _documents(self, name: str) -> list[Letter]:
        mine = {"state"} if name == SERVER else {"server", "run"}
        return [letter for (leaf, _), letter in self.retained.items() if leaf in mine]

    def _enqueue(self, session: Session, letter: Letter, *, send: bool = True) -> None:
        self._mid += 1
        session.queue[self._mid] = letter
        if send and session.up:
            self._send(session, self._mid)

    def _send(self, session: Session, mid: int) -> None:
        kernel, letter = self.kernel, session.queue[mid]
        at = kernel.now + 0.01 + 0.05 * kernel.random()
        if kernel.happens(kernel.odds.message_delayed):
            at += kernel.between(0, 6)
        if letter.retained:
            at = session.not_before = max(at, session.not_before + 1e-6)
        kernel.after(at - kernel.now, self._deliver, session, session.generation, mid)

    def _deliver(self, session: Session, generation: int, mid: int) -> None:
        letter = session.queue.get(mid)
        if session.generation != generation or session.dead or letter is None:
            return
        if not session.client.receive(letter.leaf, letter.sender, letter.body):
            return
        session.queue.pop(mid, None)
        session.recent.append(letter)
        if not letter.retained and self.kernel.happens(self.kernel.odds.message_doubled):
            self.kernel.after(
                self.kernel.between(0, 8), self._double, session, session.generation, letter
            )

    def _double(self, session: Session, generation: int, letter: Letter) -> None:
        if session.generation == generation and not session.dead:
            session.client.receive(letter.leaf, letter.sender, letter.body)
