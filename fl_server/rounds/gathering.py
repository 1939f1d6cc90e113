"""Who is invited to a round, and when: a full cohort at once, else whoever is there after a while.

What stands here is never journalled: after a restart every device is asked and waited for anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fl_server.flows.commands import ArmTimer
from fl_server.rounds.ledger import Ledger, RoundStep
from fl_server.rounds.plan import Plan
from fl_server.rounds.roster import Roster
from fl_server.selection import uniform

LONGEST_REST_S = 900.0
_MAX_DOUBLINGS = 10


class Gathering:
    """Gathers the cohorts of a run.

    Attributes:
        resting: who declined an order of this round for now; asked again after a rest, or once it
            was away.
        silent: who let a deadline pass and was not heard from since; invited where there are not
            enough others, and never waited for where the quorum is met without it.
    """

    def __init__(self, plan: Plan, ledger: Ledger, roster: Roster) -> None:
        self.resting: set[str] = set()
        self.silent: set[str] = set()
        self._plan, self._ledger, self._roster = plan, ledger, roster
        self._there_before: Sequence[str] | None = None
        self._armed: set[str] = set()

    def cohort(self, *, waited: bool) -> tuple[str, ...]:
        """Return the cohort that starts now, empty where more devices are waited for.

        A quorum waits for a full cohort, but not for longer than ``waited`` says, and not where
        everybody is there that was when the last round started.
        """
        here, invited = self._here(), math.ceil(self._plan.cohort_size * self._plan.over_selection)
        is_full = len(here) >= invited or waited
        if len(here) < self._plan.quorum or not (is_full or self._all_back(here)):
            return ()
        heard = here
        if self.silent:
            heard = [device_id for device_id in here if device_id not in self.silent]
        ledger = self._ledger
        self._there_before = here
        self._armed.clear()
        return uniform.select(
            heard if len(heard) >= invited else here,
            invited,
            seed=self._plan.seed,
            round_number=ledger.round,
            attempt=ledger.attempt,
        )

    def wait(self, step: RoundStep) -> None:
        """Arm the timer that ends the wait for more devices, where one is needed."""
        quorum = self._plan.quorum
        if len(self._here()) >= quorum:
            self._arm("gather", self._plan.gather_s, step)
        elif self.resting and len(self._roster.accepting("trainer")) >= quorum:
            doublings = min(max(0, self._ledger.excused - 1), _MAX_DOUBLINGS)
            rest_s = min(self._plan.deadline_s * 2**doublings, LONGEST_REST_S)
            self._arm("rest", max(rest_s, self._plan.deadline_s), step)

    def fired(self, timer: str) -> None:
        """Note that a timer of this attempt fired."""
        self._armed.discard(timer)
        if timer == "rest":
            self.resting.clear()

    def begin(self, *, same_attempt: bool) -> None:
        """Begin to gather for a round, or for it from another base."""
        self.resting.clear()
        if not same_attempt:
            self._armed.clear()

    def heard_from(self, device_id: str, *, is_back: bool = False) -> None:
        """Note that a device said something."""
        self.silent.discard(device_id)
        if is_back:
            self.resting.discard(device_id)

    def _here(self) -> Sequence[str]:
        online = self._roster.accepting("trainer")
        return [each for each in online if each not in self.resting] if self.resting else online

    def _all_back(self, here: Sequence[str]) -> bool:
        """Whether everybody is here that was when the last round started."""
        if self._there_before is None:
            return False
        return set(self._there_before) - self.resting - self._roster.removed <= set(here)

    def _arm(self, timer: str, seconds: float, step: RoundStep) -> None:
        if timer not in self._armed:
            self._armed.add(timer)
            step.commands.append(ArmTimer(timer, self._ledger.round, self._ledger.attempt, seconds))
