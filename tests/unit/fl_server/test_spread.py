"""How a run's metric differs between the devices that measured its last version."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from fl_server.kinds.sync import SyncFlow
from fl_server.operations.handlers.run_report import report_of
from fl_server.operations.results.runs import RunReport
from fl_server.rounds.facts import (
    EvaluationOrdered,
    EvaluationRecorded,
    Fact,
    RoundClosed,
    RoundCommitted,
    RoundStarted,
    UpdateAccepted,
)
from fl_server.rounds.ledger import Ledger
from fl_server.rounds.model import Model, Update
from fl_server.rounds.spread import spread_over_devices
from fl_server.runs.definition import parse_definition
from fl_server.runs.record import FactRecord, RunRecord
from runtime.bounds import MAX_FINITE
from tests.unit.fl_server.test_run import opened

INITIAL = Model(0, "k/0", "0" * 64, 1)
UPDATE = Update("u", 10, "a" * 64, 5, {}, {})


def measured(version: int, values: dict[str, float], metric: str = "accuracy") -> list[Fact]:
    """Commit a version and have each device measure it, with ever more examples."""
    return [
        RoundStarted(version, 1, ("t",), 1),
        UpdateAccepted(version, 1, "t", UPDATE),
        RoundClosed(version, 1, ("t",)),
        RoundCommitted(version, 1, Model(version, f"k/{version}", "1" * 64, 1)),
        EvaluationOrdered(version, tuple(values)),
        *(
            EvaluationRecorded(version, name, 10**place, {metric: value})
            for place, (name, value) in enumerate(values.items())
        ),
    ]


def ledger_of(facts: list[Fact], rounds: int = 9) -> Ledger:
    ledger = Ledger(rounds, INITIAL)
    for fact in facts:
        ledger.apply(fact)
    return ledger


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("count", [1, 9, 10, 11, 25])
def test_the_figures_are_those_of_numpy_each_device_counting_alike(count: int, lower: bool) -> None:
    values = np.random.default_rng(count).uniform(0, 1, count)
    named = {f"d-{place}": float(value) for place, value in enumerate(values)}
    found = spread_over_devices(ledger_of(measured(1, named)), "accuracy", lower=lower)
    assert found is not None
    worst = np.sort(values)[::-1] if lower else np.sort(values)
    tenth = -(-count // 10)
    assert (found.version, found.devices) == (1, count)
    assert found.mean == pytest.approx(values.mean())
    assert found.worst_tenth == pytest.approx(worst[:tenth].mean())
    assert found.variance == pytest.approx(values.var())


def test_it_is_of_the_latest_measured_version_and_of_those_who_have_the_metric() -> None:
    facts = measured(1, {"a": 0.1, "b": 0.9}) + measured(2, {"a": 0.4, "b": 0.6})
    others = measured(3, {"c": 0.2}, "loss")
    found = spread_over_devices(ledger_of(facts), "accuracy", lower=False)
    assert found is not None
    assert (found.version, found.mean, found.variance) == (2, 0.5, pytest.approx(0.01))
    assert spread_over_devices(ledger_of(facts + others), "accuracy", lower=False) is None
    assert spread_over_devices(Ledger(2, INITIAL), "accuracy", lower=False) is None


def told(on: str, facts: list[Fact], **evaluation: Any) -> RunReport:
    values = {"task": "digits", "rounds": 9, "evaluation": {"on": on, **evaluation}}
    definition = parse_definition(values, "test")
    plan = definition.plan("r", evaluators_online=True)
    flow: SyncFlow = opened(RunRecord("r", definition, plan, INITIAL, 0.0), *facts)
    rows = [FactRecord(fact, 1.0) for fact in facts]
    return report_of(flow.record, flow, rows, flow.document(1), {})


def test_a_report_has_it_where_devices_measure_on_data_of_their_own() -> None:
    facts = measured(1, {"a": 0.5, "b": 0.7})
    spread = told("devices", facts).spread
    assert spread is not None
    assert (spread.devices, spread.worst_tenth) == (2, 0.5)
    assert told("evaluators", facts).spread is None, "evaluators share their data"
    assert told("devices", []).spread is None
    report = told("devices", facts)
    assert RunReport.read(json.loads(json.dumps(report.document()))) == report


def test_the_worst_is_what_the_definition_says_is_worse() -> None:
    facts = measured(1, {"a": 0.5, "b": 0.7}, "gap")
    spread = told("devices", facts, metrics={"gap": "lower"}).spread
    assert spread is not None
    assert spread.worst_tenth == 0.7


def test_what_is_out_of_bounds_is_not_told() -> None:
    spread = told("devices", measured(1, {"a": MAX_FINITE, "b": -MAX_FINITE})).spread
    assert spread is not None
    assert (spread.mean, spread.worst_tenth, spread.variance) == (0.0, -MAX_FINITE, None)
