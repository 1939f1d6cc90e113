"""Keeps a site's processes alive: starts them in order, restarts what dies, stops in reverse.

One thread starts, watches and stops them all, since on Linux a child ends with the thread that
started it. Another asks whether those that are alive are of use, which may take its time, and looks
whether their disks have room: what a full disk has ended is started again until it may write.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from runtime.backoff import Backoff
from runtime.disk import DiskRoom, disk_room
from runtime.errors import InvalidTransition, RengoError

_LOG = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.1
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_STABLE_S = 10.0
_PROBE_EVERY_S = 5.0
# between two new starts of what is of no use, which may not help; it doubles
_FIRST_RESPITE_S = 10.0
_LONGEST_RESPITE_S = 300.0


class SupervisedService(Protocol):
    """A process that can be started, watched and stopped."""

    @property
    def running(self) -> bool:
        """Whether it is alive now."""
        ...

    def stop(self) -> None:
        """End it in order."""
        ...


@dataclass
class _Watched:
    name: str
    service: SupervisedService
    start: Callable[[], None]
    backoff: Backoff
    fault: Callable[[], str] | None = None
    folder: Path | None = None
    useless: str = ""
    has_room: bool = True
    respite: Backoff = field(
        default_factory=lambda: Backoff(_FIRST_RESPITE_S, _LONGEST_RESPITE_S, least=1.0)
    )
    respite_until_s: float = 0.0
    restarts: int = 0
    started_s: float = 0.0
    due_s: float | None = None


class Supervisor:
    """The processes of one site.

    ``add`` and ``remove`` return when the thread has done it; what fails there is raised here.

    Args:
        longest_pause_s: the bound on the pause before a start, which doubles while a service keeps
            dying young.
        probe_every_s: the pause between two questions whether services are of use.
    """

    def __init__(
        self, longest_pause_s: float = _LONGEST_PAUSE_S, probe_every_s: float = _PROBE_EVERY_S
    ) -> None:
        self._longest_pause_s = longest_pause_s
        self._probe_every_s = probe_every_s
        self._watched: dict[str, _Watched] = {}
        self._requests: list[_Request] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._prober = threading.Thread(target=self._probe, name="probe", daemon=True)
        self._full_disks: set[int] = set()  # the prober's

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()
        self._prober.start()

    def add(
        self,
        name: str,
        service: SupervisedService,
        start: Callable[[], None],
        fault: Callable[[], str] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Start a service and keep it alive from then on; raises what ``start`` raises.

        Args:
            fault: returns why the service is of no use although it is alive, "" where it is;
                called on a thread of its own.
            folder: where it writes. While the disk there is full a new start would not help.
        """
        backoff = Backoff(_FIRST_PAUSE_S, self._longest_pause_s, least=1.0)
        self.call(lambda: self._begin(_Watched(name, service, start, backoff, fault, folder)))

    def remove(self, name: str) -> None:
        """Stop a service and watch it no more."""
        self.call(lambda: self._end(name))

    def call(self, action: Callable[[], None]) -> None:
        """Run ``action`` on the supervisor's thread and raise what it raises."""
        request = _Request(action)
        with self._changed:
            if self._stopping or not self._thread.is_alive():
                raise InvalidTransition("the supervisor does not run")
            self._requests.append(request)
            self._changed.notify_all()
        request.done.wait()
        if request.error is not None:
            raise request.error

    def restarts(self) -> dict[str, int]:
        """Return how often each service was started again."""
        return {name: each.restarts for name, each in self._watched.items()}

    def stop(self) -> None:
        """Stop every service, the latest first; returns when all are gone."""
        self._stopped.set()
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._prober.is_alive():
            self._prober.join()
        if self._thread.is_alive():
            self._thread.join()

    # --- the supervisor's thread --------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                # a thread cannot wait for a child's end and a condition at once
                self._changed.wait_for(lambda: self._requests or self._stopping, _LOOK_EVERY_S)
                requests, self._requests = self._requests, []
                stopping = self._stopping
            for request in requests:
                request.carry_out()
            if stopping:
                break
            for watched in list(self._watched.values()):
                self._look_after(watched)
        for name in list(self._watched)[::-1]:
            self._end(name)

    def _probe(self) -> None:
        """Look, on the prober's thread, whether there is room, and what is alive is of use."""
        while not self._stopped.wait(self._probe_every_s):
            watched_now = list(self._watched.values())
            self._look_at_disks(watched_now)
            for watched in watched_now:
                if watched.fault is None or not watched.has_room or not watched.service.running:
                    continue
                try:
                    watched.useless = watched.fault()
                except (RengoError, OSError) as error:
                    _LOG.warning("%s cannot be probed: %s", watched.name, error)

    def _look_at_disks(self, watched_now: Sequence[_Watched]) -> None:
        """Note who has room; say in one line which disk is full, and when it is not any more."""
        lacking: dict[int, tuple[DiskRoom, list[_Watched]]] = {}
        for watched in watched_now:
            room = _room(watched)
            watched.has_room = room is None or not room.lack
            if room is not None and room.lack:
                lacking.setdefault(room.device, (room, []))[1].append(watched)
        for device in lacking.keys() - self._full_disks:
            room, those = lacking[device]
            names = ", ".join(each.name for each in those)
            _LOG.warning(
                "the disk of %s is %s: it holds the data of %s, which goes on when there is room",
                *(those[0].folder, room.lack, names),
            )
        if self._full_disks - lacking.keys():
            _LOG.warning("a disk that was full has room again")
        self._full_disks = set(lacking)

    def _begin(self, watched: _Watched) -> None:
        watched.start()
        watched.started_s = time.monotonic()
        self._watched[watched.name] = watched

    def _end(self, name: str) -> None:
        watched = self._watched.pop(name, None)
        if watched is not None:
            watched.service.stop()

    def _look_after(self, watched: _Watched) -> None:
        now = time.monotonic()
        useless, watched.useless = watched.useless, ""
        if useless and watched.service.running and now >= watched.respite_until_s:
            _LOG.warning("%s is alive but of no use; starting it again: %s", watched.name, useless)
            watched.service.stop()
            watched.due_s = now
            watched.respite_until_s = now + watched.respite.next_s()
        if watched.service.running:
            if now - watched.started_s > _STABLE_S:
                watched.backoff.reset()
            if now - watched.started_s > _LONGEST_RESPITE_S:
                watched.respite.reset()
            return
        # of a full disk one line is said, whatever ends by it meanwhile
        level = logging.WARNING if watched.has_room else logging.INFO
        if watched.due_s is None:
            _LOG.log(level, "%s has ended; starting it again", watched.name)
            watched.due_s = now + watched.backoff.next_s()
        if now < watched.due_s:
            return
        watched.due_s = None
        watched.restarts += 1
        watched.started_s = now
        try:
            watched.service.stop()  # frees what a dead process held: locks, sockets
            watched.start()
        except (RengoError, OSError) as error:
            _LOG.log(level + 10, "%s did not start again: %s", watched.name, error)


def _room(watched: _Watched) -> DiskRoom | None:
    if watched.folder is None:
        return None
    try:
        return disk_room(watched.folder)
    except OSError as error:
        _LOG.warning("the disk of %s cannot be looked at: %s", watched.folder, error)
        return None


class _Request:
    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self.done = threading.Event()
        self.error: BaseException | None = None

    def carry_out(self) -> None:
        try:
            self._action()
        except BaseException as error:  # noqa: BLE001 (raised again in the asking thread)
            self.error = error
        finally:
            self.done.set()
