"""A metric is the mean over the examples that it was reported for, in every engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fl_client.engines import base
from fl_client.engines.base import Means, load_engine
from fl_client.models.layers import Linear
from fl_client.tasks.base import Task
from storage.weights import Weights


class Recall(Task):
    """Two classes; the model finds every positive, and most batches have none."""

    missing: Any = None

    def model(self) -> list[Linear]:
        return [Linear(1, 2)]

    def metrics(self, outputs: Any, targets: Any) -> dict[str, float]:
        positives = targets == 1
        if not positives.any():
            return {} if self.missing is None else {"recall": self.missing}
        return {"recall": float((outputs.argmax(1) == 1)[positives].mean())}


WEIGHTS = Weights.from_arrays(
    {"0.weight": np.array([[-1], [1]], np.float32), "0.bias": np.zeros(2, np.float32)}
)


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan")])
@pytest.mark.parametrize("engine", base.names())
def test_a_metric_that_a_batch_leaves_out_does_not_count_there(engine: str, missing: Any) -> None:
    task = Recall()
    vars(task)["missing"] = missing
    targets = np.zeros(1000, np.int64)
    targets[600:620] = 1
    inputs = np.where(targets == 1, 1, -1).astype(np.float32)[:, None]
    found = load_engine(engine, task).evaluate(WEIGHTS, (inputs, targets))
    assert found.num_examples == 1000
    assert found.metrics["recall"] == 1.0


def test_each_metric_has_examples_of_its_own() -> None:
    means = Means()
    means.add(3, {"loss": 1.0, "a": 0.5})
    means.add(1, {"loss": 5.0, "b": np.float32(0.25), "a": float("nan")})
    means.add(2, {"loss": 2.0, "a": 1.0, "b": float("inf")})
    found = means.evaluation()
    assert found.num_examples == 6
    assert found.metrics == {"loss": 2.0, "a": pytest.approx(3.5 / 5), "b": float("inf")}


def test_a_loss_that_is_not_a_number_is_no_missing_loss() -> None:
    means = Means()
    means.add(3, {"loss": 1.0})
    means.add(1, {"loss": float("nan")})
    assert np.isnan(means.evaluation().metrics["loss"])
