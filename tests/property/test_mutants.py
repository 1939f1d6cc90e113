"""The stateful suite can fail: it finds every bug that is planted in the round machine."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from runtime.errors import InvalidTransition
from tests.laws import Violation
from tests.mutants import BEST_MUTANTS, LEDGER_MUTANTS, ROUND_MUTANTS, Mutant
from tests.property.machine_rounds import Rounds
from tests.support import soaking

LONG = {"takes-the-sum-of-an-older-attempt", "is-patient-for-a-round-too-long"}
QUICK = settings(
    max_examples=6000,
    stateful_step_count=60,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize(
    "mutant",
    soaking(
        [*ROUND_MUTANTS, *BEST_MUTANTS, *LEDGER_MUTANTS],
        lambda each: str(each) in LONG,
    ),
    ids=str,
)
def test_the_stateful_suite_finds(mutant: Mutant) -> None:
    planted = type("Planted", (Rounds,), {"make": mutant.machine()})
    with pytest.raises((Violation, InvalidTransition)):
        run_state_machine_as_test(planted, settings=QUICK)
