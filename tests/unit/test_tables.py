"""The tables of published results: what is read off runs, claimed, stored and shown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import algorithms
from benchmarks.tables import __main__ as tables
from benchmarks.tables import curves, page
from benchmarks.tables.claims import (
    Ahead,
    Alike,
    Last,
    Recovered,
    RoundsTo,
    Within,
    deviation,
    mean,
)
from benchmarks.tables.results import FILE, Results, Run
from benchmarks.tables.rows import ROWS, Row, task_of
from benchmarks.tables.setting import Outcome, Setting
from benchmarks.tables.simulation import definition_of, simulate
from fl_client.datasets.device import Device
from fl_client.models.local_round import LocalRound
from fl_client.tasks.registry import load_task
from fl_client.training.participant import Participant
from fl_server.runs.definition import parse_definition
from tests.examples import pages

TINY = Setting("digits", clients=3, rounds=2, training={"local_epochs": 1})
ACCURACY = Last()
TINY_ROW = Row(
    name="tiny",
    title="Two rounds on digits",
    source="nobody",
    variants={"plain": TINY, "prox": replace(TINY, algorithm="fedprox", options={"mu": 0.1})},
    quantities=(ACCURACY, RoundsTo(0.999)),
    references={"plain": "97 to 98"},
    claims=(Ahead(("plain",), "prox", ACCURACY.title, by=99.0),),
    seeds=(0, 1),
    family="drift",
    shortened="much",
)


def outcome(*accuracies: float, **further: Sequence[float]) -> Outcome:
    rows = {number: {"accuracy": each} for number, each in enumerate(accuracies, 1)}
    for name, values in further.items():
        for number, value in enumerate(values, 1):
            rows[number][name] = value
    return Outcome(rows)


def test_the_first_round_that_reaches_a_target_counts() -> None:
    assert RoundsTo(0.9).of(outcome(0.5, 0.91, 0.8, 0.95)) == 2
    assert math.isnan(RoundsTo(0.99).of(outcome(0.5, 0.91)))


def test_a_metric_s_mean_is_over_the_last_versions() -> None:
    assert Last(over=2).of(outcome(0.1, 0.5, 0.7)) == pytest.approx(60)
    own = Last("personal_accuracy", otherwise="accuracy", scale=1)
    assert own.of(outcome(0.5, personal_accuracy=[0.75])) == 0.75
    assert own.of(outcome(0.5)) == 0.5
    assert math.isnan(Last("variance").of(outcome(0.5)))
    assert math.isnan(ACCURACY.of(replace(outcome(0.5), diverged=2)))


def test_clusters_are_told_apart_by_pairs() -> None:
    # of six pairs, (0, 2) and (1, 3) are of one kind; a model for all gets those two right
    assert Recovered(2).of(replace(outcome(), chosen={0: 5, 1: 3, 2: 5, 3: 3})) == 100
    one_model = Recovered(2).of(replace(outcome(), chosen=dict.fromkeys(range(4), 0)))
    assert one_model == pytest.approx(100 * 2 / 6)
    assert math.isnan(Recovered(2).of(outcome()))


VALUES = {"x": {"a": [1.0, 3.0], "b": [4.0, 4.0], "none": [math.nan, 5.0]}}


@pytest.mark.parametrize(
    ("claim", "holds"),
    [
        (Within("a", 2.0, 2.0, "x"), True),
        (Within("a", 2.1, 9.0, "x"), False),
        (Within("none", 0.0, 9.0, "x"), False),
        (Ahead(("b",), "a", "x", by=2.0), True),
        (Ahead(("b",), "a", "x", by=2.1), False),
        (Ahead(("a",), "b", "x"), False),
        (Ahead(("a",), "b", "x", lower=True), True),
        (Ahead(("b", "none"), "a", "x"), False),
        (Ahead(("a",), "none", "x", lower=True), True),
        (Ahead(("none",), "none", "x"), False),
        (Ahead(("a",), "a", "x"), False),
        (Alike("a", "b", 2.0, "x"), True),
        (Alike("a", "b", 1.9, "x"), False),
        (Alike("a", "none", 9.0, "x"), False),
    ],
    ids=str,
)
def test_claims_are_of_means(claim: Ahead | Within | Alike, holds: bool) -> None:
    assert claim.holds(VALUES) is holds
    assert "x" in claim.text


def test_means_and_deviations_by_hand() -> None:
    assert (mean([1.0, 3.0]), deviation([1.0, 3.0])) == (2.0, pytest.approx(math.sqrt(2)))
    assert (mean([5.0]), deviation([5.0])) == (5.0, 0.0)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    setting = replace(TINY, task=task_of("FewerMnist"))
    measured = replace(outcome(0.25, 0.5, worst_tenth=[0.125]), chosen={3: 1}, backend="inline")
    results = Results(tmp_path / "results.json")
    results.add(Run("row", "plain", 0, setting, measured))
    results.add(Run("row", "plain", 1, setting, replace(measured, diverged=7)))
    assert str(FILE.parent) not in (tmp_path / "results.json").read_text()
    found = Results(tmp_path / "results.json").find("row", "plain", 0, setting)
    assert found is not None
    assert found.outcome == measured
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found.date)
    assert "numpy" in found.versions
    again = Results(tmp_path / "results.json")
    assert again.find("row", "plain", 0, replace(setting, rounds=9)) is None
    again.keep([("row", "plain", 1)])
    left = Results(tmp_path / "results.json")
    assert left.find("row", "plain", 0, setting) is None
    assert left.find("row", "plain", 1, setting) is not None


def made(tmp_path: Path, values: Mapping[str, Sequence[float]]) -> Results:
    results = Results(tmp_path / "results.json")
    for variant, accuracies in values.items():
        for seed, accuracy in enumerate(accuracies):
            results.add(Run("tiny", variant, seed, TINY_ROW.variants[variant], outcome(accuracy)))
    return results


def test_the_page_shows_values_beside_their_references(tmp_path: Path) -> None:
    shown = page.render(made(tmp_path, {"plain": [0.9, 1.0], "prox": [0.5, 0.6]}), [TINY_ROW])
    assert "| plain | 95.0 ± 7.1 | none, 1 | 97 to 98 |" in shown
    assert "| prox | 55.0 ± 7.1 | none |  |" in shown
    assert "**Does not hold**: accuracy, %: plain at least 99 above prox." in shown
    assert "Shortened: much." in shown
    assert "| [tiny](#tiny) | 0 of 1 | yes |" in shown
    assert 'make tables ARGS="--rows tiny --again"' in shown


def test_a_row_that_lacks_a_run_is_left_out(tmp_path: Path) -> None:
    results = made(tmp_path, {"plain": [0.9, 1.0], "prox": [0.5]})
    assert page.runs_of(TINY_ROW, results) is None
    shown = page.render(results, [TINY_ROW])
    assert "## tiny" not in shown
    assert "Two rounds on digits: not measured yet" in shown
    assert curves.draw(results, tmp_path, [TINY_ROW]) == []


def test_curves_are_means_over_the_seeds(tmp_path: Path) -> None:
    results = made(tmp_path, {"plain": [0.25, 0.75], "prox": [0.5, 0.5]})
    runs = page.runs_of(TINY_ROW, results)
    assert runs is not None
    assert curves.curve_of(runs["plain"], "accuracy") == {1: (0.5, pytest.approx(0.125**0.5))}
    (drawn,) = curves.draw(results, tmp_path, [TINY_ROW])
    text = drawn.read_text()
    assert "prox" in text
    assert curves.draw(results, tmp_path, [TINY_ROW]) == [drawn]
    assert drawn.read_text() == text


def test_a_row_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    tables.measure(TINY_ROW, Results(path))
    shown = page.render(Results(path), [TINY_ROW])
    assert "backend `" in shown
    monkeypatch.setattr(tables, "simulate", None)
    tables.measure(TINY_ROW, Results(path))
    with pytest.raises(TypeError):
        tables.measure(TINY_ROW, Results(path), again=True)


def test_a_run_ends_where_it_is_to() -> None:
    longer = replace(TINY, rounds=30, stop_at=0.3)
    found = simulate(longer, 0).curve
    assert max(found) < 30
    assert (
        found[max(found)]["accuracy"]
        >= 0.3
        > found.get(max(found) - 1, {"accuracy": 0})["accuracy"]
    )
    assert 2 in simulate(TINY, 0).curve


def test_a_run_that_diverges_says_in_which_round() -> None:
    wild = replace(TINY, training={"learning_rate": 1e6, "weight_decay": 10.0})
    with np.errstate(all="ignore"):
        assert simulate(wild, 0).diverged == 1


def test_what_devices_measure_has_a_spread() -> None:
    found = simulate(replace(TINY, measured_on="devices", algorithm="ditto"), 0).last
    assert {"personal_accuracy", "worst_tenth", "variance"} <= found.keys()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_can_be_run(row: Row) -> None:
    for setting in row.variants.values():
        task = load_task(setting.task)
        values = definition_of(setting, 0)
        definition = parse_definition({**values, "task": task.name}, "a row")
        algorithms.load(definition.algorithm.name, definition.algorithm.settings)
        task.training.overridden(definition.training)
    assert row.references.keys() <= row.variants.keys()
    nothing = {
        name: [Run(row.name, name, 0, each, outcome())] for name, each in row.variants.items()
    }
    assert not any(page.verdicts(row, nothing).values())


def test_the_page_is_that_of_the_results() -> None:
    shown = (pages.ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert shown == page.render(Results()), "python -m benchmarks.tables --page"
    pictures = list((pages.ROOT / "docs" / "images").glob("results-*.svg"))
    measured = [row for row in ROWS if row.family and page.runs_of(row, Results())]
    assert {each.stem for each in pictures} == {f"results-{row.family}" for row in measured}
    assert sum(each.stat().st_size for each in pictures) < 300_000


def test_unequal_steps_have_a_known_minimum() -> None:
    task = load_task(task_of("UnequalSteps"))
    clients = [task.data(Device("d", n, 10))[0] for n in range(10)]
    assert [len(each[0]) for each in clients] == [16, 32, 48, 64, 80] * 2
    # the normal equations, from what the clients have
    a = sum(inputs.T.astype(float) @ inputs for inputs, _ in clients)
    b = sum(inputs.T.astype(float) @ targets for inputs, targets in clients)
    least = np.linalg.solve(a, b).T.astype(np.float32)
    weights = task.initial_weights(0)
    evaluator = Participant(task, Device("e", 0, 10, "evaluator"), "numpy")
    plan = LocalRound(algorithms.load("fedavg"), task.training, 0, 1, "e")
    excess = [
        evaluator.evaluate(weights.with_vector(vector), plan).metrics["excess"]
        for vector in (least.reshape(-1), weights.vector)
    ]
    assert excess[0] == pytest.approx(0, abs=1e-5)
    assert excess[1] > 0.1
