"""Every order of what is done with versions, with a kill or an outage at any request to the store.

The books below are kept from the calls alone. After a kill, another process reads the store: what
it finds must be what the books say either before the act or after it, never a third thing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, TypeAlias

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from runtime.errors import ConfigError, NotFound, Unavailable
from storage.registry.registry import ModelRegistry
from storage.store.memory import MemoryStore
from storage.store.objects import ObjectInfo, ObjectStream
from storage.versions.keys import RunKeys
from storage.versions.manifest import Manifest
from tests.laws import require
from tests.versions import KEY, PROJECT, DictCache, manifest_of, model_file

TASK_OF = {"r1": "a", "r2": "a", "r3": "b"}
LABELS = ("best", "old")
Id: TypeAlias = tuple[str, int]
When: TypeAlias = Literal["before", "after", "partly"]
End: TypeAlias = Literal["kill", "retry", "go on"]
Fault: TypeAlias = tuple[int, When] | None
AuditEvent: TypeAlias = Callable[[ModelRegistry], object]

IDS: tuple[Id, ...] = (("r1", 0), ("r1", 1), ("r1", 2), ("r2", 1), ("r3", 1))
ids = st.sampled_from(IDS)
whens: tuple[When, ...] = ("before", "after", "partly")


def faults(requests: int) -> st.SearchStrategy[Fault]:
    """Return faults of an act that makes so many requests, none among them now and then."""
    where = st.sampled_from([(left, when) for left in range(requests) for when in whens])
    return st.one_of(where, where, where, st.none())


ends: st.SearchStrategy[End] = st.sampled_from(["kill", "retry", "go on"])
tasks = st.sampled_from(["a", "a", "a", "b"])
labels = st.sampled_from(LABELS)
metrics = st.sampled_from([{}, {"accuracy": 0.5}, {"loss": 0.25}, {}])


class Killed(Exception):
    """The process is gone."""


class Refused(Exception):
    """The books say that this cannot be done."""


class Connection(MemoryStore):
    """One process's way to the objects, which breaks at the request that a fault names."""

    def __init__(self, objects: MemoryStore) -> None:
        super().__init__()
        self._objects = objects._objects
        self._left = 0
        self._when: When = "before"
        self._error: Exception | None = None

    def break_at(self, fault: Fault, error: Exception) -> None:
        """Let a request fail: one that comes after as many others as the fault says."""
        self._error = None
        if fault is not None:
            self._left, self._when = fault
            self._error = error

    def heal(self) -> None:
        """Let all requests through."""
        self._error = None

    def _through(self, part: int | None = None) -> int | None:
        """Return how much of a request is done, all of it if None; raises where none is."""
        if self._error is None:
            return None
        self._left -= 1
        if self._left >= 0:
            return None
        when, self._when = self._when, "before"
        if self._left < -1 or when == "before":
            raise self._error
        return part if when == "partly" else -1

    def _done(self, done: int | None) -> None:
        if done is not None:
            assert self._error is not None
            raise self._error

    def put(self, key: str, source: bytes | BinaryIO, size: int | None = None) -> ObjectInfo:
        done = self._through(-1)
        info = super().put(key, source, size)
        self._done(done)
        return info

    def delete(self, keys: Iterable[str]) -> None:
        wanted = list(keys)
        done = self._through(len(wanted) // 2)
        super().delete(wanted if done in (None, -1) else wanted[:done])
        self._done(done)

    def open(
        self, key: str, start: int = 0, end: int | None = None
    ) -> AbstractContextManager[ObjectStream]:
        self._done(self._through(-1))
        return super().open(key, start, end)

    def head(self, key: str) -> ObjectInfo:
        self._done(self._through(-1))
        return super().head(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._done(self._through(-1))
        return super().list(prefix)


@dataclass
class Entry:
    """What the books say of a version; ``promoted`` counts, 0 for never."""

    sha256: str
    stage: str = "none"
    tags: set[str] = field(default_factory=set)
    metrics: dict[str, float] = field(default_factory=dict)
    withdrawn: bool = False
    promoted: int = 0


@dataclass
class Books:
    """What should be known after a number of calls.

    Attributes:
        unanswered: task -> what was in production when a rollback failed: the next call for the
            task is that rollback once more, and goes no further back where it took place.
    """

    entries: dict[Id, Entry] = field(default_factory=dict)
    promotions: int = 0
    unanswered: dict[str, Id | None] = field(default_factory=dict)

    def production(self, task: str) -> Id | None:
        found = [
            key
            for key, entry in self.entries.items()
            if TASK_OF[key[0]] == task and entry.stage == "production"
        ]
        assert len(found) <= 1
        return found[0] if found else None

    def order(self, task: str) -> list[Id]:
        """Return what was ever in production, the latest first."""
        found = [key for key in self.entries if TASK_OF[key[0]] == task]
        ever = [key for key in found if self.entries[key].promoted]
        return sorted(ever, key=lambda key: -self.entries[key].promoted)

    def view(self) -> dict[str, Any]:
        """Return what a registry has to show."""
        shown: dict[str, Any] = {
            f"{run}:{number}": (e.sha256, e.stage, sorted(e.tags), e.metrics, e.withdrawn)
            for (run, number), e in self.entries.items()
        }
        for task in ("a", "b"):
            shown[f"{task}@production"] = self.production(task)
            shown[f"{task} in order"] = self.order(task)
        return shown

    # --- acts ---------------------------------------------------------------------------------

    def at(self, key: Id) -> Entry:
        if key not in self.entries:
            raise Refused
        return self.entries[key]

    def commit(self, key: Id, sha256: str, found: dict[str, float]) -> None:
        self.entries.setdefault(key, Entry(sha256)).metrics |= found

    def measure(self, key: Id, found: dict[str, float]) -> None:
        self.at(key).metrics |= found

    def stage(self, key: Id, stage: str) -> None:
        entry = self.at(key)
        if stage == "candidate" and entry.stage == "production":
            raise Refused
        if stage == "archived":
            self.unanswered.pop(TASK_OF[key[0]], None)
        entry.stage = stage

    def promote(self, key: Id) -> None:
        entry = self.at(key)
        self.unanswered.pop(TASK_OF[key[0]], None)
        before = self.production(TASK_OF[key[0]])
        if before == key:
            return
        if before is not None:
            self.entries[before].stage = "archived"
        self.promotions += 1
        entry.stage, entry.withdrawn, entry.promoted = "production", False, self.promotions

    def rollback(self, task: str) -> None:
        now = self.production(task)
        if task in self.unanswered and now not in (None, self.unanswered.pop(task)):
            return
        back = [
            key
            for key in self.order(task)
            if self.entries[key].stage == "archived" and not self.entries[key].withdrawn
        ]
        if not back:
            raise Refused
        self.promote(back[0])
        if now is not None:
            self.entries[now].withdrawn = True

    def tag(self, key: Id, label: str) -> None:
        self.at(key)
        for entry in self.entries.values():
            entry.tags.discard(label)
        self.entries[key].tags.add(label)

    def untag(self, key: Id, label: str) -> None:
        if label not in self.at(key).tags:
            raise Refused
        self.entries[key].tags.discard(label)

    def remove(self, key: Id) -> None:
        if self.at(key).stage in ("production", "candidate"):
            raise Refused
        del self.entries[key]

    def gone(self, run_id: str, latest: int, keep: int, every: int) -> set[Id]:
        """Return what a sweep takes."""
        return {
            key
            for key, entry in self.entries.items()
            if key[0] == run_id
            and not latest - keep < key[1] <= latest
            and not (every and key[1] % every == 0 and key[1] <= latest)
            and entry.stage == "none"
            and not entry.tags
        }


class Registry(RuleBasedStateMachine):
    """A server's registry, the store that outlives it, and its database's cache."""

    make: Callable[..., ModelRegistry] = ModelRegistry

    def __init__(self) -> None:
        super().__init__()
        self.objects = MemoryStore()
        self.cache = DictCache()
        self.books = Books()
        self.now_ms = 1_000_000_000
        self.checked: dict[str, bytes] = {}
        self.checks = 0
        self.outages = 0
        # what a kill left of removed versions: with a model of the same bytes, one is back
        self.leftovers: dict[Id, Entry] = {}

    # --- processes ----------------------------------------------------------------------------

    def clock(self) -> int:
        return self.now_ms

    def start(self, fault: Fault = None) -> None:
        """Begin a process, which may be killed while it reads, and then another."""
        self.connection = Connection(self.objects)
        self.connection.break_at(fault, Killed())
        self.registry = type(self).make(self.connection, PROJECT, KEY, self.cache, self.clock)
        try:
            self.registry.rebuild()
        except Killed:
            self.start()

    def view(self, registry: ModelRegistry) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        for version in registry.versions():
            record = version.record
            shown[version.name] = (
                version.manifest.sha256,
                record.stage,
                sorted(record.tags),
                dict(record.metrics),
                record.withdrawn,
            )
        for task in ("a", "b"):
            production = registry.production(task)
            shown[f"{task}@production"] = None if production is None else production.id
            ever = [version for version in registry.versions(task=task) if version.promoted]
            order = sorted(ever, key=lambda version: version.promoted, reverse=True)
            shown[f"{task} in order"] = [version.id for version in order]
        return shown

    # --- acts ---------------------------------------------------------------------------------

    def act(
        self,
        act: AuditEvent,
        apply: Callable[[Books], None],
        fault: Fault,
        *,
        end: End,
        middle: Iterable[Callable[[Books], None]] = (),
    ) -> None:
        """Do an act and enter it into the books.

        Args:
            middle: what may hold beside nothing and all of the act, where a kill cuts it.
        """
        outcomes = [self.books]
        for change in (*middle, apply):
            outcomes.append(copy.deepcopy(self.books))
            try:
                change(outcomes[-1])
            except Refused:
                self.must_refuse(act)
                return
        error = Killed() if end == "kill" else Unavailable("an outage")
        self.connection.break_at(fault, error)
        try:
            act(self.registry)
        except Killed:
            self.start(fault)
            self.books = self.one_of(outcomes)
            self.books.unanswered.clear()
        except Unavailable:
            self.connection.heal()
            if end == "retry":
                self.again(act)
                self.books = outcomes[-1]
            else:
                self.outages += 1
                self.do_something_else()
                self.books = self.one_of(outcomes)
        else:
            self.books = outcomes[-1]
        self.connection.heal()

    def must_refuse(self, act: AuditEvent) -> None:
        try:
            act(self.registry)
        except (ConfigError, NotFound):
            return
        require(False, "refused", "what cannot be done was done")

    def do_something_else(self) -> None:
        """Do an act that changes nothing, but finds out first what became of the one before."""
        try:
            self.registry.measure("none", 0, {})
        except NotFound:
            return

    def again(self, act: AuditEvent) -> None:
        try:
            act(self.registry)
        except NotFound:
            # it was done the first time, and so is not there to be done
            return

    def one_of(self, outcomes: list[Books]) -> Books:
        found = self.view(self.registry)
        for books in reversed(outcomes):
            if books.view() == found:
                return books
        require(False, "all or nothing", (found, [books.view() for books in outcomes]))
        raise AssertionError

    def manifest(self, key: Id) -> Manifest:
        body = model_file(f"{key}".encode())
        manifest = manifest_of(*key, body, task=TASK_OF[key[0]])
        MemoryStore.put(self.objects, manifest.key, body)
        return manifest

    @initialize(promoted=st.lists(ids, max_size=4, unique=True))
    def begin(self, promoted: list[Id]) -> None:
        self.start()
        for key in IDS:
            self.commit(key, {"loss": 1.0}, None, end="kill")
        for key in promoted:
            self.promote(key, None, end="kill")

    @rule(back=st.booleans())
    def time_passes(self, back: bool) -> None:
        self.now_ms += -500 if back else 700

    @rule(key=ids, found=metrics, fault=faults(2), end=ends)
    def commit(self, key: Id, found: dict[str, float], fault: Fault, end: End) -> None:
        missing = [each for each in IDS if each not in self.books.entries]
        key = missing[0] if missing else key
        manifest = self.manifest(key)
        left = self.leftovers.pop(key, None)
        # a commit that failed is repeated until it is done or the process ends
        end = "kill" if end == "kill" else "retry"
        self.act(
            lambda registry: registry.commit(manifest, found),
            lambda books: books.commit(key, manifest.sha256, found),
            fault,
            end=end,
            middle=[
                lambda books: books.entries.update(
                    {key: copy.copy(left)} if left is not None else {}
                ),
                lambda books: books.commit(key, manifest.sha256, {}),
            ],
        )

    @rule(
        key=ids,
        change=st.sampled_from(["candidate", "archived", "measure", "untag"]),
        label=labels,
        fault=faults(1),
        end=ends,
    )
    def change(self, key: Id, change: str, label: str, fault: Fault, end: End) -> None:
        """An act that writes one record."""
        found = {"loss": self.now_ms / 1000}

        def act(registry: ModelRegistry) -> object:
            version = registry.get(*key)
            match change:
                case "candidate":
                    return registry.candidate(version, "why")
                case "archived":
                    return registry.archive(version, "why")
                case "measure":
                    return registry.measure(*key, found)
            return registry.untag(version, label)

        def apply(books: Books) -> None:
            match change:
                case "measure":
                    books.measure(key, found)
                case "untag":
                    books.untag(key, label)
                case stage:
                    books.stage(key, stage)

        self.act(act, apply, fault, end=end)

    @rule(key=ids, fault=faults(3), end=ends)
    def promote(self, key: Id, fault: Fault, end: End) -> None:
        self.act(
            lambda registry: registry.promote(registry.get(*key), "why"),
            lambda books: books.promote(key),
            fault,
            end=end,
        )

    @rule(task=tasks, fault=faults(4), end=ends)
    def rollback(self, task: str, fault: Fault, end: End) -> None:
        before, calls = self.books.production(task), self.outages
        self.act(
            lambda registry: registry.rollback(task, "bad"),
            lambda books: books.rollback(task),
            fault,
            end=end,
        )
        if self.outages > calls:
            self.books.unanswered[task] = before

    @rule(key=ids, label=labels, fault=faults(2), end=ends)
    def tag(self, key: Id, label: str, fault: Fault, end: End) -> None:
        self.act(
            lambda registry: registry.tag(registry.get(*key), label),
            lambda books: books.tag(key, label),
            fault,
            end=end,
        )

    @rule(key=ids, fault=faults(2), end=ends)
    def remove(self, key: Id, fault: Fault, end: End) -> None:
        entries = self.books.entries
        free = [each for each in IDS if each in entries and entries[each].stage == "none"]
        key = free[-1] if free and key not in entries else key
        if key not in entries:
            return
        version = self.registry.get(*key)
        self.leftovers[key] = copy.deepcopy(entries[key])
        self.act(
            lambda registry: registry.remove(version),
            lambda books: books.remove(key),
            fault,
            end=end,
        )
        if key not in self.books.entries and fault is None:
            keys = RunKeys(PROJECT, key[0])
            left = [each for each in self.objects._objects if keys.version_of(each) == key[1]]
            require(not left, "a removed version leaves nothing", left)

    @rule(
        run_id=st.sampled_from(sorted(TASK_OF)),
        latest=st.integers(0, 4),
        every=st.sampled_from([0, 2]),
        fault=faults(1),
    )
    def sweep(self, run_id: str, latest: int, every: int, fault: Fault) -> None:
        """What the server does at a round's end, and a kill within it."""
        latest = max([latest, *(number for run, number in self.books.entries if run == run_id)])
        keys = RunKeys(PROJECT, run_id)
        gone = self.books.gone(run_id, latest, 2, every)
        kept = self.registry.retained(run_id, latest, 2, every)
        self.leftovers |= {key: copy.deepcopy(self.books.entries[key]) for key in gone}
        listed = [info.key for info in self.objects.list(keys.prefix)]
        self.connection.break_at(fault, Killed())
        try:
            self.connection.delete(key for key in listed if keys.version_of(key) not in kept)
            self.registry.forget_others(run_id, kept)
        except Killed:
            self.start(fault)
            self.books.unanswered.clear()
            gone = {key for key in gone if not self.registry.has(*key)}
        self.connection.heal()
        self.books = copy.deepcopy(self.books)
        for key in gone:
            del self.books.entries[key]

    # --- laws ---------------------------------------------------------------------------------

    @invariant()
    def what_is_known_is_what_was_done(self) -> None:
        found, wanted = self.view(self.registry), self.books.view()
        require(found == wanted, "memory", (found, wanted))

    @invariant()
    def a_listing_rebuilds_it(self) -> None:
        if self.objects._objects == self.checked:
            return
        self.checked = dict(self.objects._objects)
        self.checks += 1
        copied = MemoryStore()
        copied._objects.update(self.checked)
        cache = copy.deepcopy(self.cache) if self.checks % 2 else None
        again = type(self).make(copied, PROJECT, KEY, cache, self.clock)
        again.rebuild()
        found, wanted = self.view(again), self.books.view()
        require(found == wanted, "rebuild", (found, wanted))

    @invariant()
    def whatever_has_a_stage_or_a_tag_stays(self) -> None:
        for (run_id, number), entry in self.books.entries.items():
            if entry.stage != "none" or entry.tags:
                kept = self.registry.retained(run_id, 3, 1, 0)
                require(number in kept, "retained", (run_id, number))
