"""The mean over devices, for runs and canaries alike."""

from __future__ import annotations

import math

import pytest

from fl_server.flows.mean import weighted_mean
from fl_server.rounds.facts import EvaluationRecorded
from fl_server.rounds.ledger import Ledger
from fl_server.rounds.model import Model
from runtime.bounds import MAX_EXAMPLES, MAX_FINITE, is_plausible


def ledger(*measured: tuple[float, int]) -> Ledger:
    made = Ledger(3, Model(0, "k", "0" * 64, 4))
    for number, (loss, examples) in enumerate(measured):
        made.apply(EvaluationRecorded(1, f"d-{number}", examples, {"loss": loss}))
    return made


def test_each_value_counts_by_its_weight() -> None:
    assert weighted_mean([(1.0, 1), (4.0, 3)]) == 3.25
    assert weighted_mean([(7.0, 0), (2.0, 5)]) == 2.0
    assert weighted_mean([]) is weighted_mean([(1.0, 0)]) is None


@pytest.mark.parametrize("value", [0.1, 1.0, -0.3, 1e-300, MAX_FINITE, -MAX_FINITE, 5e-324])
@pytest.mark.parametrize("devices", [1, 3, 7, 1000])
def test_the_mean_of_equal_values_is_that_value(value: float, devices: int) -> None:
    assert weighted_mean([(value, 3 + number) for number in range(devices)]) == value


def test_no_values_overflow_it() -> None:
    """Seen before: -inf, which no document holds, so that the server ended at every start."""
    poison = [(-1e300, MAX_EXAMPLES)] * 4
    assert weighted_mean(poison) == -1e300
    assert weighted_mean([(1.7e308, MAX_EXAMPLES), (-1.7e308, 1)] * 1000) is not None
    assert weighted_mean([(MAX_FINITE, MAX_EXAMPLES)] * 10_000) == MAX_FINITE


def test_a_run_leaves_out_what_an_earlier_version_let_in() -> None:
    made = ledger((-1e300, MAX_EXAMPLES), (0.5, 4), (math.inf, 1), (math.nan, 9), (1.0, 4))
    assert made.metric(1, "loss") == 0.75
    assert made.metrics(1) == {"loss": 0.75}
    alone = ledger((-1e300, MAX_EXAMPLES))
    assert alone.metric(1, "loss") is None
    extreme = ledger(*[(MAX_FINITE, MAX_EXAMPLES)] * 100).metric(1, "loss")
    assert extreme is not None
    assert is_plausible(extreme)
