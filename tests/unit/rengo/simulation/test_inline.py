"""A simulated run in this process: it learns, and is a function of its definition."""

from __future__ import annotations

import numpy as np
import pytest

import rengo
from runtime.errors import ConfigError

LOCAL = {"training": {"local_epochs": 2, "batch_size": 10, "learning_rate": 0.2}}


def simulated(**more: object) -> rengo.SimulationResult:
    given = {"clients": 20, "cohort": 8, "rounds": 12, "settings": LOCAL, **more}
    return rengo.simulate("digits", **given)  # type: ignore[arg-type]


def test_a_simulated_run_learns() -> None:
    found = simulated()
    assert found.status == "completed"
    assert [row.round for row in found.report.history] == list(range(1, 13))
    assert all(row.updates == row.invited == 8 for row in found.report.history)
    assert found.accuracy is not None
    assert found.accuracy > 0.8
    first = found.report.history[0].accuracy
    assert first is not None
    assert first < found.accuracy


def test_a_simulated_run_is_a_function_of_its_definition() -> None:
    first, again, other = simulated(), simulated(), simulated(seed=1)
    assert np.array_equal(first.weights.vector, again.weights.vector)
    assert not np.array_equal(first.weights.vector, other.weights.vector)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"clients": 5}, "a cohort of 8 cannot be drawn from 5 clients"),
        ({"clients": 0}, "0 clients"),
        ({"backend": "inlined"}, "did you mean 'inline'"),
        ({"settings": {"training": {"pace": 1}}}, "pace"),
        ({"clients": 2000, "partition": "shards:2"}, "too few for 2000 parts"),
        ({"settings": {"algorithm": {"name": "fedprocs"}}}, "fedprox"),
    ],
)
def test_what_cannot_be_simulated_is_told(given: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        simulated(**given)
