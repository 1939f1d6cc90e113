"""What a simulated run reports: the same document as a run of a fleet, which commands compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fl_server.flows.report import FlowReport
from fl_server.operations.handlers.run_summary import finite, report
from fl_server.operations.handlers.run_summary import summary as summary_of
from fl_server.operations.results.runs import RoundRow, RunDevice, RunReport
from fl_server.rounds.ledger import Ledger
from fl_server.rounds.model import Model
from fl_server.rounds.spread import spread_over_devices
from fl_server.runs.record import RunRecord
from rengo.simulation.clients import ClientsSpec
from rengo.simulation.coordinator import SimulatedRun
from rengo.simulation.history import RoundFigures, RoundHistory
from rengo.simulation.virtual.world import VirtualWorld
from storage.weights import Weights, encode_header
from storage.weights.safetensors import encode_others


def sha256_of(weights: Weights) -> str:
    """Return the sha256 of the weights' stored form, in hex."""
    digest = hashlib.sha256(encode_header(weights.layout))
    digest.update(weights.vector.astype("<f4", copy=False).data)
    digest.update(encode_others(weights))
    return digest.hexdigest()


def digest_of(described: Mapping[str, Any]) -> str:
    """Return what two descriptions of one simulation share, as 64 hex digits."""
    text = json.dumps(described, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def description_of(
    run: SimulatedRun, engine: str, world: VirtualWorld | None = None
) -> dict[str, Any]:
    """Return all that a simulation's model depends on, as plain data.

    How it is computed is not in it: every backend, whatever its workers, may go on with it.
    """
    spec = run.clients.spec
    paced = {} if world is None else {"fleet": world.description()}
    return {
        **paced,
        "definition": run.definition.model_dump(mode="json"),
        "clients": {
            "task": spec.task,
            "count": spec.count,
            "seed": spec.seed,
            "partition": spec.partition,
            "folders": [str(folder) for folder in spec.folders],
            "evaluator_folder": str(spec.evaluator_folder or ""),
            "ids": list(spec.ids),
            "profile": spec.profile,
        },
        "engine": engine,
        "initial_sha256": sha256_of(run.initial.weights),
    }


def run_report(
    run_id: str, run: SimulatedRun, told: tuple[Ledger, RoundHistory], model: Weights, at: float
) -> RunReport:
    """Return the report of a run that has ended.

    Args:
        told: the run's ledger and history.
        model: its last version.
        at: when it began, in Unix time.
    """
    ledger, history = told
    definition = run.definition
    key = f"simulations/{run_id}"
    initial = Model(0, f"{key}/0", sha256_of(run.initial.weights), 0)
    record = RunRecord(run_id, definition, run.plan, initial, at)
    flow = FlowReport(model_key=f"{key}/{ledger.model.version}", model_sha256=sha256_of(model))
    headline = definition.evaluation.headline
    if run.plan.evaluate_on == "devices":
        lower = definition.goal_of(headline) == "lower"
        flow.spread = spread_over_devices(ledger, headline, lower=lower)
    found = report(record, summary_of(record, ledger), flow, history.wall_s)
    return found.model_copy(
        update={
            "round_s": [round(row.seconds, 6) for row in history.rounds],
            "bytes_up": history.bytes_up,
            "bytes_down": history.bytes_down,
            "history": [_round_row(row, headline) for row in history.rounds],
            "devices": _devices(run.clients.spec, history),
        }
    )


def _round_row(row: RoundFigures, headline: str) -> RoundRow:
    metrics = row.metrics
    return RoundRow(
        round=row.round,
        attempt=row.attempts,
        outcome="committed",
        reason="",
        seconds=row.seconds,
        invited=row.invited,
        updates=row.updates,
        included=[],
        refused={},
        not_evaluated={},
        ordered_steps={},
        accuracy=finite(metrics.get("accuracy")),
        loss=finite(metrics.get("loss")),
        measured=finite(metrics.get(headline)),
    )


def _devices(spec: ClientsSpec, history: RoundHistory) -> list[RunDevice]:
    nothing = dict.fromkeys(
        ("bytes_up", "bytes_down", "peak_rss_bytes", "steps", "full_steps", "step_s"), 0
    )
    return [
        RunDevice(id=device_id, rounds=count, profile=spec.profile, engine="", **nothing)
        for device_id, count in sorted(history.taken_part.items())
    ]
