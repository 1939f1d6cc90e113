"""A simulated run in this process: it learns, and is a function of its definition."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import rengo
from runtime.errors import ConfigError

TASK = """
import numpy as np
from rengo import Linear, Task

class Lines(Task):
    objective = "mean_squared_error"

    def model(self):
        return [Linear(2, 1)]

    def data(self, device):
        if device.role == "evaluator":
            return None, None
        x = np.random.default_rng(device.index).standard_normal((20, 2)).astype(np.float32)
        y = x @ np.float32([[1], [2]])
        return (x[:15], y[:15]), (x[15:], y[15:])
"""
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


def test_a_task_class_is_simulated_as_its_file_is(tmp_path: Path) -> None:
    path = tmp_path / "lines.py"
    path.write_text(TASK)
    found = importlib.util.spec_from_file_location("lines_of_a_test", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["lines_of_a_test"] = module
    try:
        found.loader.exec_module(module)
        given = {"clients": 4, "cohort": 2, "rounds": 2}
        one, other = (rengo.simulate(task, **given) for task in (module.Lines, f"{path}:Lines"))  # type: ignore[arg-type]
    finally:
        del sys.modules["lines_of_a_test"]
    assert one.report.task == "lines"
    assert np.array_equal(one.weights.vector, other.weights.vector)
    assert one.report.spread is not None, "clients measure where nobody else has data"


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
