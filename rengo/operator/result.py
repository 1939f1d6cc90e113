"""The outcome of a run, of a fleet's or a simulated one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_server.operations.results.runs import RoundRow, RunReport


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run.

    Attributes:
        accuracy: of the last measured version; None where nobody measured.
        history: a row for each round's attempt: outcome, seconds, included, refused, accuracy.
        report: the server's whole report.
        model_path: the final model, once it was fetched.
        best_model_path: the best version, likewise, where the run looked for it.
    """

    run_id: str
    status: str
    accuracy: float | None
    history: list[RoundRow]
    report: RunReport
    model_path: Path | None = None
    best_model_path: Path | None = None

    def document(self) -> dict[str, Any]:
        """Return the JSON document of ``--json``."""
        report = self.report
        device_keys = {"id", "profile", "engine", "rounds", "peak_rss_bytes"}
        device_keys |= {"width", "bytes_up", "bytes_down"}
        return {
            "run_id": report.run_id,
            "task": report.task,
            "rounds_completed": report.rounds_completed,
            "accuracy": report.accuracy,
            "loss": report.loss,
            "headline": report.headline,
            "measured": report.measured,
            "spread": None if report.spread is None else report.spread.document(),
            "best_version": report.best_version,
            "best_value": report.best_value,
            "model_path": None if self.model_path is None else str(self.model_path),
            "best_model_path": None if self.best_model_path is None else str(self.best_model_path),
            "model_sha256": report.model_sha256,
            "wall_s": report.wall_s,
            "round_s": report.round_s,
            "bytes_up": report.bytes_up,
            "bytes_down": report.bytes_down,
            "devices": [
                each.model_dump(mode="json", include=device_keys) for each in report.devices
            ],
        }
