"""A run whose aggregation gives values that are not finite: no such version is made or kept."""

from __future__ import annotations

import io
import math
import queue
from pathlib import Path

import numpy as np
import pytest

from algorithms.base import Algorithm
from algorithms.fedavg import FedAvg
from fl_server.aggregation.aggregator import SubmittedUpdate
from fl_server.dataplane.plane import DataPlane
from fl_server.dataplane.workers import Done
from fl_server.flows.events import FailureReported
from fl_server.rounds.commands import Aggregate, FoldUpdate
from fl_server.rounds.model import Model
from fl_server.runs.definition import parse_definition
from fl_server.runs.record import RunRecord
from rengo.operator.models import FetchedVersion
from rengo.operator.runs import version_0
from runtime.errors import ConfigError
from runtime.security.signing import SecretKey
from storage.registry.registry import ModelRegistry
from storage.weights import NotFinite, Weights, write_safetensors
from tests.unit.fl_server.test_streaming import KEYS, SIZE, Bench, Momentum, weights


def model_of(bench: Bench, found: Weights) -> Model:
    data = io.BytesIO()
    write_safetensors(found, data)
    return bench.put_model(0, data.getvalue())


def equal_update(bench: Bench, value: float) -> SubmittedUpdate:
    submission = bench.submit("a", np.full(SIZE, value, np.float32))
    bench.fold(submission)
    return submission


def two_rounds(bench: Bench) -> None:
    for _ in range(2):
        bench.model = bench.aggregate(equal_update(bench, 1e30))


@pytest.mark.parametrize(
    "algorithm", [FedAvg(1e308), FedAvg(1e38), Momentum(1e300), Momentum(1e38), FedAvg(3e38)]
)
def test_no_version_is_made_that_is_not_finite(tmp_path: Path, algorithm: Algorithm) -> None:
    bench = Bench(tmp_path, algorithm)
    with pytest.raises(NotFinite, match="would not be finite"):
        two_rounds(bench)
    stored = bench.keys()
    made = [key for key in stored if not key.startswith("updates/")]
    latest = bench.model.version
    assert [key for key in made if key.startswith("global/")][
        -1
    ] == f"global/{latest:06d}.safetensors"
    assert np.isfinite(bench.weights_of(bench.model).vector).all()
    assert not any(f"{latest + 1:06d}" in key for key in made), "nothing of it is in the store"


@pytest.mark.parametrize("algorithm", [FedAvg(), Momentum()])
def test_an_infinite_constant_stays_and_the_rest_is_trained(
    tmp_path: Path, algorithm: Algorithm
) -> None:
    bench = Bench(tmp_path, algorithm)
    initial = weights()
    initial.vector[[0, SIZE - 1]] = -math.inf
    bench.model = model_of(bench, initial)
    found = bench.weights_of(bench.aggregate(equal_update(bench, 0.5))).vector
    assert found[[0, SIZE - 1]].tolist() == [-math.inf, -math.inf]
    np.testing.assert_array_equal(found[1:-1], initial.vector[1:-1] + np.float32(0.5))


def plane_of(bench: Bench, folder: Path) -> DataPlane:
    """Return a data plane with one run whose aggregation cannot be finite."""
    ended: queue.SimpleQueue[Done] = queue.SimpleQueue()
    registry = ModelRegistry(bench.store, "default", SecretKey("5e" * 32))
    registry.rebuild()
    plane = DataPlane(bench.store, registry, folder, ended.put)
    values = {
        "task": "digits",
        "cohort": {"size": 1},
        "algorithm": {"name": "fedavg", "server_learning_rate": 1e6},
    }
    definition = parse_definition(values, "definition")
    plan = definition.plan(KEYS.run_id, evaluators_online=False, speeds={})
    plane.open_run(RunRecord(KEYS.run_id, definition, plan, bench.model, 0.0))
    return plane


def test_the_run_ends_with_that_cause_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "bench")
    plane = plane_of(bench, tmp_path / "plane")
    try:
        made = bench.submit("a", np.full(SIZE, 1e36, np.float32))
        fold = FoldUpdate("a", made.round, made.attempt, made.update)
        assert plane.perform(KEYS.run_id, fold, bench.model) is None
        event = plane.perform(KEYS.run_id, Aggregate(1, 1, ("a",), 1), bench.model)
    finally:
        plane.stop()
    assert isinstance(event, FailureReported)
    assert "round 1: tensor '0.weight' would not be finite in the next version" in event.reason


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_version_0_is_checked_by_the_server(tmp_path: Path, bad: float) -> None:
    bench = Bench(tmp_path / "bench")
    plane = plane_of(bench, tmp_path / "plane")
    found = weights()
    found.vector[SIZE - 3] = bad
    try:
        plane.check_initial(KEYS.run_id, bench.model)
        model = model_of(bench, found)
        with pytest.raises(NotFinite, match=r"version 0: tensor '0\.bias'"):
            plane.check_initial(KEYS.run_id, model)
    finally:
        plane.stop()


class TaskOf:
    """A task whose model has these weights."""

    name = "t"

    def __init__(self, model: Weights) -> None:
        self.model = model

    def initial_weights(self, seed: int) -> Weights:
        del seed
        return self.model


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_given_are_checked_before_anything_is_sent(bad: float) -> None:
    fresh = weights()
    fresh.vector[0] = -math.inf
    given = fresh.with_vector(fresh.vector.copy())
    task = TaskOf(fresh)
    assert version_0(task, 0, FetchedVersion("f", given)) is given  # type: ignore[arg-type]
    given.vector[SIZE - 1] = bad
    with pytest.raises(ConfigError, match=r"f: tensor '0\.bias' has a value that is not finite"):
        version_0(task, 0, FetchedVersion("f", given))  # type: ignore[arg-type]
