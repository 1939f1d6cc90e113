"""The canary machine under every ordering that hypothesis finds, and with bugs planted in it."""

from __future__ import annotations

import types
from collections.abc import Mapping

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from fl_server.canary import machine as canary
from fl_server.canary import state as canary_state
from runtime.errors import InvalidTransition
from tests.laws import Violation
from tests.mutants import Mutant, load_patched
from tests.property.machine_canary import Canary
from tests.property.test_mutants import QUICK
from tests.support import soaking


class TestCanary(Canary.TestCase):
    settings = settings(max_examples=100, stateful_step_count=40)


@pytest.mark.soak
class TestCanaryForLong(Canary.TestCase):
    settings = settings(max_examples=1000, stateful_step_count=40)


def planted(name: str, module: types.ModuleType, patches: Mapping[str, str]) -> Mutant:
    return Mutant(name, module, patches, in_world=False)


MUTANTS = [
    planted(
        "counts a duplicate",
        canary_state,
        {"if side not in self.measured.get(device_id, {})]": "]"},
    ),
    planted("judges below the quorum", canary_state, {"< plan.quorum": "< plan.quorum - 1"}),
    planted(
        "takes a loss for an accuracy",
        canary_state,
        {"candidate - production if is_lower_better(plan) else ": ""},
    ),
    planted(
        "allows too much of a drop",
        canary_state,
        {"worse_by <= plan.max_drop + _TOLERANCE": "worse_by <= 2 * plan.max_drop + _TOLERANCE"},
    ),
    planted(
        "does not weigh by examples",
        canary_state,
        {
            "(pair.candidate, pair.weight)": "(pair.candidate, 1)",
            "(pair.production, pair.weight)": "(pair.production, 1)",
        },
    ),
    planted(
        "takes a half for a pair",
        canary_state,
        {"if len(sides) == len(ATTEMPTS)": "if len(sides) >= 1"},
    ),
    planted(
        "passes a metric that is no number",
        canary_state,
        {"    if broken:": "    if False:"},
    ),
    planted(
        "waits for who has declined",
        canary_state,
        {"if not here or device_id in self.declined:": "if not here:"},
    ),
    planted(
        "counts who is not in the cohort",
        canary_state,
        {"device_id in self.cohort": "True"},
    ),
    planted("waits for the dead", canary, {"not pending - self._left and": "not pending and"}),
    planted(
        "does not wait for the living",
        canary,
        {"not pending - self._left and self._enough()": "self._enough()"},
    ),
    planted(
        "forgets the orders of who comes back",
        canary,
        {
            "self._online.add(event.device_id)\n            self._order(event.device_id, step)": (
                "self._online.add(event.device_id)"
            )
        },
    ),
    planted("orders who drains", canary, {"if device_id in self._online:": "if True:"}),
    planted(
        "settles nothing after a crash",
        canary,
        {'            case "settling":\n                self._carry_out(step)\n': ""},
    ),
    planted(
        "arms no deadline after a crash",
        canary,
        {
            'case "measuring":\n                step.commands.append(': (
                'case "measuring":\n                repr('
            )
        },
    ),
    planted(
        "drops the receipt of a duplicate",
        canary,
        {'{}):\n            self._receipt(event, "accepted", step)': "{}):\n            pass"},
    ),
    planted(
        "goes on when production has moved",
        canary,
        {"if event.name != self.plan.production.name and": "if False and"},
    ),
]


def with_bug(mutant: Mutant) -> type[canary.CanaryMachine]:
    """Return the machine with the bug in it or in the state that it keeps."""
    if mutant.module is canary:
        found: type[canary.CanaryMachine] = load_patched(mutant)["CanaryMachine"]
        return found
    whole = load_patched(planted("the state in it", canary, {}))
    state = load_patched(mutant)
    whole.update({name: state[name] for name in ("CanaryState", "judge", "measured_pairs")})
    machine: type[canary.CanaryMachine] = whole["CanaryMachine"]
    return machine


@pytest.mark.parametrize(
    "mutant", soaking(MUTANTS, lambda each: str(each) == "waits-for-the-dead"), ids=str
)
def test_the_search_finds(mutant: Mutant) -> None:
    suspect = type("Planted", (Canary,), {"make": with_bug(mutant)})
    with pytest.raises((Violation, InvalidTransition, IndexError, KeyError)):
        run_state_machine_as_test(suspect, settings=QUICK)
