"""Reports to the service manager, and decides when an installation on trial has failed."""

from __future__ import annotations

import logging

from runtime.errors import TransportError
from runtime.processes.environments import TRIAL_S, UpdateTrial, this_environment
from runtime.processes.memory import freeze_heap
from runtime.processes.notify import Notifier

_LOG = logging.getLogger(__name__)
_READY_ANYWAY_S = 10.0


class ServiceWatchdog:
    """Reports that the agent is ready and alive. The agent's owner thread calls it.

    Args:
        notifier: the service manager.
        trial: this installation is on trial; it is kept once the broker was reached.
        started_s: when the agent started, by the monotonic clock.
    """

    def __init__(self, notifier: Notifier, trial: UpdateTrial | None, started_s: float) -> None:
        self._notifier = notifier
        self._trial = trial
        self._started_s = started_s
        self._ready = False
        self._beat_s = 0.0

    @property
    def on_trial(self) -> bool:
        """Whether it is not decided yet that this installation is kept."""
        return self._trial is not None

    def poll(self, now_s: float) -> None:
        """Send the reports that are due; the owner thread calls this between two events.

        Raises:
            TransportError: the trial of this installation has failed.
        """
        every_s = self._notifier.beat_every_s
        if every_s is not None and now_s >= self._beat_s:
            self._notifier.alive()
            self._beat_s = now_s + every_s
        if self._trial is not None and now_s >= self._started_s + TRIAL_S:
            raise TransportError(
                f"this new installation did not reach the broker within {TRIAL_S:.0f} s; "
                "the earlier one comes back"
            )
        if not self._ready and self._trial is None and self._ready_left_s(now_s) == 0:
            self._say_ready("serves without a connection")

    def left_s(self, now_s: float) -> float | None:
        """Return how long until ``poll`` has something to do, None for never."""
        waits = []
        if self._notifier.beat_every_s is not None:
            waits.append(max(0.0, self._beat_s - now_s))
        if self._trial is not None:
            waits.append(max(0.0, self._started_s + TRIAL_S - now_s))
        elif not self._ready:
            waits.append(self._ready_left_s(now_s))
        return min(waits, default=None)

    def connected(self, broker: str) -> None:
        """Say that the broker has admitted this device; a trial has then succeeded."""
        if self._trial is not None:
            self._trial.commit()
            self._trial = None
            _LOG.info("this installation has proved itself: %s", this_environment())
        if self._ready:
            self._notifier.status(f"connected to {broker}")
        else:
            self._say_ready(f"connected to {broker}")

    def disconnected(self, reason: str) -> None:
        """Say that the connection is lost."""
        self._notifier.status(f"not connected: {reason}")

    def stopping(self) -> None:
        """Say that the agent stops."""
        self._notifier.stopping()

    def _ready_left_s(self, now_s: float) -> float:
        return max(0.0, self._started_s + _READY_ANYWAY_S - now_s)

    def _say_ready(self, status: str) -> None:
        self._ready = True
        self._notifier.ready(status)
        freeze_heap()
