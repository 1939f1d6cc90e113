"""Which devices the runs address: by each run's target and by what is known of each device.

What is known may change at any time. The flows are told of a device once it fits, and that it has
left once it does not any more. Called on the owner's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from broker.wire.messages import DeviceState
from fl_server.runs.record import RunRecord
from fl_server.selection.targets import RunTarget
from fl_server.selection.traits import DeviceTraits


@dataclass
class AddressedRun:
    """A run's target, and the latest answer for each device that was asked about."""

    target: RunTarget
    answers: dict[str, bool] = field(default_factory=dict)


class RunAddressing:
    """Says which devices a run addresses, and remembers what it said.

    Args:
        records: of the open runs.
        open_runs: where what was said is kept, by run.
        traits: what is known of a device.
    """

    def __init__(
        self,
        records: Mapping[str, RunRecord[Any]],
        open_runs: dict[str, AddressedRun],
        traits: Callable[[str], DeviceTraits],
    ) -> None:
        self._records, self._runs, self._traits = records, open_runs, traits

    def admits(self, run_id: str, device_id: str, state: DeviceState) -> bool:
        """Whether a run addresses a device; evaluators measure for every run."""
        run = self._run(run_id)
        if run.target.is_everybody or state.role == "evaluator":
            return True
        answer = run.target.misfit(self._traits(device_id)) is None
        run.answers[device_id] = answer
        return answer

    def changed(self, run_id: str, device_id: str, state: DeviceState) -> bool | None:
        """Return whether a run addresses a device by now; None where it is as it was."""
        before = self._run(run_id).answers.get(device_id)
        answer = self.admits(run_id, device_id, state)
        return None if before is None or answer == before else answer

    def _run(self, run_id: str) -> AddressedRun:
        if run_id not in self._runs:
            self._runs[run_id] = AddressedRun(self._records[run_id].definition.addressed)
        return self._runs[run_id]
