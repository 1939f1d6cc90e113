"""The collector: a process beside the agent that gathers samples, whether a round runs or not.

``python -m fl_client.collectors.process JSON`` ends at SIGTERM, after it has written what it
holds. What it holds and has not written, ``store.flush_s`` of samples at most, a kill costs.
"""

from __future__ import annotations

import logging
import queue
import secrets
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from fl_client.collectors.order import CollectorOrder
from fl_client.datasets.sample import BadSample, Sample, SampleReader
from fl_client.datasets.settings import DataPlace, MqttSource, Schema, SensorSource
from fl_client.datasets.store import SampleStore, StoreDamaged, StoreError, open_store
from runtime.errors import ConfigError, RengoError

_LOG = logging.getLogger(__name__)
_BATCH = 256
_QUEUE_MAX = 2000
_HELD_MAX = 10_000
_TELL_EVERY_S = 600.0


class Feed(Protocol):
    """Where records come from; it puts them into the collector by ``offer``."""

    def start(self) -> None:
        """Begin, on threads of its own."""

    def stop(self) -> None:
        """End; nothing is offered from here on."""


class Collector:
    """Reads records into samples and writes them in batches.

    ``offer``, ``refuse`` and ``fail`` may be called on any thread, the rest on one.
    """

    def __init__(self, place: DataPlace, schema: Schema) -> None:
        self._place = place
        self._reader = SampleReader(schema, place.settings.classes)
        self._named = bool(schema.id or schema.time)
        self._store: SampleStore = open_store(place.folder, place.settings.store)
        self._queue: queue.Queue[Mapping[str, Any]] = queue.Queue(_QUEUE_MAX)
        self._refused: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._held: list[Sample] = []
        self._since_s = 0.0
        self._told_s: float | None = None
        self._wake = threading.Event()
        self._failure: BaseException | None = None

    def offer(self, record: Mapping[str, Any]) -> bool:
        """Take a record; False when there are too many already."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            return False
        return True

    def refuse(self, reason: str) -> None:
        """Count a record that is no sample."""
        with self._lock:
            self._refused[reason] += 1

    def fail(self, error: BaseException) -> None:
        """End the collector with an error of its feed."""
        self._failure = error
        self._wake.set()

    def stop(self) -> None:
        """Ask it to end; a signal handler may call it."""
        self._wake.set()

    def run(self) -> None:
        """Gather until ``stop``; what is held is written then."""
        pause_s = min(0.5, self._place.settings.store.flush_s / 4)
        try:
            while not self._wake.is_set():
                self.gather(pause_s)
                self.flush_if_due(time.monotonic())
            while not self._queue.empty():
                self.gather(0.0)
            self.flush(time.monotonic())
        finally:
            self._store.close()
        if self._failure is not None:
            raise self._failure

    def gather(self, patience_s: float) -> None:
        """Read what has come, after waiting so long for the first of it."""
        try:
            self._read(self._queue.get(timeout=patience_s) if patience_s else self._next())
            for _ in range(_BATCH):
                self._read(self._next())
        except queue.Empty:
            return

    def _next(self) -> Mapping[str, Any]:
        return self._queue.get_nowait()

    def _read(self, record: Mapping[str, Any]) -> None:
        try:
            # without an id or a time, equal readings are still two
            sample = self._reader.read(record, "" if self._named else secrets.token_hex(16))
        except BadSample as error:
            self.refuse(error.reason)
            return
        if not self._held:
            self._since_s = time.monotonic()
        self._held.append(sample)

    def flush_if_due(self, now_s: float) -> None:
        """Write what is held when it is much or old."""
        flush_s = self._place.settings.store.flush_s
        if len(self._held) >= _BATCH or (self._held and now_s - self._since_s >= flush_s):
            self.flush(now_s)

    def flush(self, now_s: float) -> None:
        """Write what is held; a full disk is tried again later, and the oldest goes meanwhile."""
        with self._lock:
            refused, self._refused = self._refused, Counter()
        self._tell(refused, now_s)
        if not self._held and not refused:
            return
        try:
            self._write(refused, now_s)
            self._held.clear()
        except StoreError as error:
            _LOG.error("%s; %d samples are held", error, len(self._held))
            with self._lock:
                self._refused.update(refused)
            self._since_s = now_s
            del self._held[:-_HELD_MAX]

    def _write(self, refused: Counter[str], now_s: float) -> None:
        try:
            self._store.add(self._held, time.time(), now_s, refused)
        except StoreDamaged:
            self._store.close()
            self._store = open_store(self._place.folder, self._place.settings.store)
            self._store.add(self._held, time.time(), now_s, refused)

    def _tell(self, refused: Counter[str], now_s: float) -> None:
        quiet = self._told_s is not None and now_s - self._told_s < _TELL_EVERY_S
        if refused and not quiet:
            self._told_s = now_s
            _LOG.warning("records that are no samples, by reason: %s", dict(refused))


class SensorFeed:
    """Takes what the task's ``samples(device)`` gives, on one thread."""

    def __init__(
        self, samples: Callable[[], Any], source: SensorSource, collector: Collector
    ) -> None:
        self._samples = samples
        self._every_s = source.every_s
        self._collector = collector
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sensor", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end; a sensor that gives nothing is not waited for: the process ends."""
        self._stopping.set()

    def _run(self) -> None:
        try:
            for record in self._samples():
                self._take(record)
                if self._stopping.wait(self._every_s):
                    return
            raise ConfigError("the task's samples(device) has ended; it must go on for ever")
        # the task is the user's own code: whatever it raises ends the collector
        except (Exception, SystemExit) as error:  # noqa: BLE001
            self._collector.fail(error)

    def _take(self, record: Any) -> None:
        if not isinstance(record, Mapping):
            self._collector.refuse("type")
            return
        while not self._collector.offer(record) and not self._stopping.wait(0.1):
            pass


def main(argv: Sequence[str] | None = None) -> int:
    """Gather until SIGTERM; 2 when it cannot begin or its sensor fails."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    (text,) = sys.argv[1:] if argv is None else argv
    order = CollectorOrder.model_validate_json(text)
    try:
        _serve(order)
    except RengoError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def _serve(order: CollectorOrder) -> None:
    source = order.place.settings.source
    if not isinstance(source, SensorSource | MqttSource):
        raise ConfigError(f"a {source.kind} source needs no collector")
    collector = Collector(order.place, source)
    signal.signal(signal.SIGTERM, lambda *_: collector.stop())
    feed = _feed(order, source, collector)
    feed.start()
    try:
        collector.run()
    finally:
        feed.stop()


def _feed(order: CollectorOrder, source: SensorSource | MqttSource, collector: Collector) -> Feed:
    if isinstance(source, MqttSource):
        from fl_client.collectors.mqtt import MqttFeed  # noqa: PLC0415  (a sensor needs no paho)

        return MqttFeed(source, collector)
    from fl_client.tasks.registry import load_task  # noqa: PLC0415  (the user's own code)

    task, device = load_task(order.spec), order.device()
    return SensorFeed(lambda: task.samples(device), source, collector)


if __name__ == "__main__":
    sys.exit(main())
