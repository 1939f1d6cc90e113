"""The collector: a process beside the agent that gathers samples, whether a round runs or not.

``python -m fl_client.collectors.process JSON`` ends at SIGTERM, after writing the samples that it
has in memory. A kill loses those, at most the samples of ``store.flush_s``.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from fl_client.collectors.order import CollectorOrder
from fl_client.datasets.sample import BadSample, Sample, SampleReader
from fl_client.datasets.settings import DataPlace, MqttSource, Schema, SensorSource
from fl_client.datasets.store import SampleStore, SampleStoreDamaged, SampleStoreError, open_store
from runtime.errors import ConfigError, RengoError

_LOG = logging.getLogger(__name__)
_BATCH = 256
_QUEUE_MAX = 2000
_BUFFER_MAX = 10_000
_LOG_EVERY_S = 600.0


class Feed(Protocol):
    """A source of records, which it passes to the collector by ``offer``."""

    def start(self) -> None:
        """Start, on threads of its own."""

    def stop(self) -> None:
        """Stop: nothing more is offered."""


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
        self._buffer: list[Sample] = []
        self._since_s = 0.0
        self._logged_s: float | None = None
        self._wake = threading.Event()
        self._failure: BaseException | None = None

    def offer(self, record: Mapping[str, Any]) -> bool:
        """Queue a record; False when the queue is full."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            return False
        return True

    def refuse(self, reason: str) -> None:
        """Count a record that cannot be used."""
        with self._lock:
            self._refused[reason] += 1

    def fail(self, error: BaseException) -> None:
        """Stop the collector with an error of its feed."""
        self._failure = error
        self._wake.set()

    def stop(self) -> None:
        """Tell it to stop; a signal handler may call it."""
        self._wake.set()

    def run(self) -> None:
        """Gather until ``stop``, then write all samples."""
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

    def gather(self, timeout_s: float) -> None:
        """Read the queued records, after waiting so long for the first one."""
        try:
            self._read(self._queue.get(timeout=timeout_s) if timeout_s else self._next())
            for _ in range(_BATCH):
                self._read(self._next())
        except queue.Empty:
            return

    def _next(self) -> Mapping[str, Any]:
        return self._queue.get_nowait()

    def _read(self, record: Mapping[str, Any]) -> None:
        try:
            # without an id or a time, two equal readings are still two samples
            sample = self._reader.read(record, "" if self._named else secrets.token_hex(16))
        except BadSample as error:
            self.refuse(error.reason)
            return
        if not self._buffer:
            self._since_s = time.monotonic()
        self._buffer.append(sample)

    def flush_if_due(self, now_s: float) -> None:
        """Write the samples in memory if they are many or old."""
        flush_s = self._place.settings.store.flush_s
        if len(self._buffer) >= _BATCH or (self._buffer and now_s - self._since_s >= flush_s):
            self.flush(now_s)

    def flush(self, now_s: float) -> None:
        """Write the samples in memory; if that fails they stay there, up to a bound."""
        with self._lock:
            refused, self._refused = self._refused, Counter()
        self._log_refused(refused, now_s)
        if not self._buffer and not refused:
            return
        try:
            self._write(refused, now_s)
            self._buffer.clear()
        except SampleStoreError as error:
            _LOG.error("%s; %d samples stay in memory", error, len(self._buffer))
            with self._lock:
                self._refused.update(refused)
            self._since_s = now_s
            del self._buffer[:-_BUFFER_MAX]

    def _write(self, refused: Counter[str], now_s: float) -> None:
        try:
            self._store.add(self._buffer, time.time(), now_s, refused)
        except SampleStoreDamaged:
            self._store.close()
            self._store = open_store(self._place.folder, self._place.settings.store)
            self._store.add(self._buffer, time.time(), now_s, refused)

    def _log_refused(self, refused: Counter[str], now_s: float) -> None:
        quiet = self._logged_s is not None and now_s - self._logged_s < _LOG_EVERY_S
        if refused and not quiet:
            self._logged_s = now_s
            _LOG.warning("records that cannot be used, by reason: %s", dict(refused))


class SensorFeed:
    """Reads what the task's ``samples(device)`` yields, on one thread."""

    def __init__(
        self, samples: Callable[[], Any], source: SensorSource, collector: Collector
    ) -> None:
        self._samples = samples
        self._every_s = source.every_s
        self._collector = collector
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sensor", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Tell the thread to stop, without waiting for a sensor that yields nothing."""
        self._stopping.set()

    def _run(self) -> None:
        try:
            for record in self._samples():
                self._offer(record)
                if self._stopping.wait(self._every_s):
                    return
            raise ConfigError("the task's samples(device) has ended; it must go on for ever")
        # the task is the user's own code: whatever it raises ends the collector
        except (Exception, SystemExit) as error:  # noqa: BLE001
            self._collector.fail(error)

    def _offer(self, record: Any) -> None:
        if not isinstance(record, Mapping):
            self._collector.refuse("type")
            return
        while not self._collector.offer(record) and not self._stopping.wait(0.1):
            pass


def main(argv: Sequence[str] | None = None) -> int:
    """Gather until SIGTERM; return 2 if it cannot start or its sensor fails."""
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
    # the user's own code
    from fl_client.tasks.registry import load_task  # noqa: PLC0415
    from fl_client.tasks.user_code import calling  # noqa: PLC0415

    task, device = load_task(order.spec), order.device()

    def samples() -> Iterator[Any]:
        with calling(task, "samples"):
            yield from task.samples(device)

    return SensorFeed(samples, source, collector)


if __name__ == "__main__":
    sys.exit(main())
