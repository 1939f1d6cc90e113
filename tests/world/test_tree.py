"""Histories of a tree, of three rounds, with faults at each level: 500, and 2,000 with soak."""

from __future__ import annotations

from collections import Counter

import pytest

from fl_server.rounds import ledger, machine
from fl_server.rounds.facts import RoundClosed, UpdateAccepted
from tests.mutants import Mutant
from tests.support import soaking
from tests.world.report import explain
from tests.world.tree import ROUNDS, TreeWorld, live

HISTORIES = 2000
CHUNK = 100
OF_EVERY_RUN = 500
MUTANT_SEEDS = 200


@pytest.mark.parametrize(
    "first", soaking(range(0, HISTORIES, CHUNK), lambda first: first >= OF_EVERY_RUN)
)
def test_histories_of_a_tree(first: int) -> None:
    for seed in range(first, first + CHUNK):
        outcome = live(seed)
        if outcome.failure:
            pytest.fail(explain(outcome, "--tree"), pytrace=False)


@pytest.mark.parametrize("seed", range(10))
def test_without_faults_every_device_is_in_every_model(seed: int) -> None:
    world = TreeWorld(seed, faults=False)
    world.run()
    closed = [fact for fact in world.server.journal if isinstance(fact, RoundClosed)]
    assert [(fact.round, fact.attempt) for fact in closed] == [
        (number, 1) for number in range(1, ROUNDS + 1)
    ]
    if world.full:
        assert world.server.values == world.undisturbed()


def test_full_cohorts_make_the_flat_model_through_every_fault() -> None:
    found = 0
    for seed in range(HISTORIES, HISTORIES + 30):
        world = TreeWorld(seed)
        if world.full:
            world.run()
            found += world.server.values == world.undisturbed()
    assert found >= 5


def test_a_seed_is_a_history_of_a_tree() -> None:
    assert live(7, history=True).lines == live(7, history=True).lines
    assert live(7, history=True).lines != live(8, history=True).lines


STRIKES = {
    "a domain dies": "domain-1  dies",
    "a domain's server starts again": "domain-1/server  starts epoch 2",
    "a domain in a domain": "domain-2/server  journals RoundCommitted",
    "a link is cut": "has no way to its parent",
    "a domain declines": "nobody else is awaited",
    "another round is requested": "was requested from another model",
    "sums come again": "domain-1  reports",
    "sums are refused": "<- UpdateRejected(device_id=domain-",
    "a requested round is given up": "journals RequestFailed",
    "a domain takes no orders": "DeviceJoined(device_id=domain-1, role=trainer, accepting=False",
    "a late result of a domain": "status=late",
}


def test_every_kind_of_fault_strikes_a_tree() -> None:
    counts: Counter[str] = Counter(dict.fromkeys(STRIKES, 0))
    for seed in range(50):
        text = "\n".join(live(seed, history=True).lines)
        counts.update(name for name, mark in STRIKES.items() if mark in text)
    assert not [name for name, count in counts.items() if not count], counts


MUTANTS = [
    Mutant(
        "reports nothing to a request that comes again",
        machine,
        {"            self._report(step)\n            return\n": "            return\n"},
    ),
    Mutant(
        "loses a domain for ever whose few devices were refused twice",
        machine,
        {"if not self.plan.on_request or ledger.attempt >= MAX_ROUNDS:": "if True:"},
    ),
    Mutant(
        "forgets what it made",
        ledger,
        {"                    self.made = fact.model\n": "                    self.made = None\n"},
    ),
]


# which the search takes twenty histories to find
LATE = {"loses-a-domain-for-ever-whose-few-devices-were-refused-twice"}


@pytest.mark.parametrize("mutant", soaking(MUTANTS, lambda each: str(each) in LATE), ids=str)
def test_the_world_with_a_tree_finds(mutant: Mutant) -> None:
    make = mutant.machine()
    assert any(live(seed, make).failure for seed in range(MUTANT_SEEDS))


class Doubled(TreeWorld):
    """A platform that counts a domain's sums as one device's update of twice its weight."""

    def run(self) -> None:
        aggregate = self.server._aggregate

        def doubled(command: machine.Aggregate) -> bool:
            added = self.server.sums.get((command.round, command.attempt), {})
            for name, part in list(added.items()):
                if part.summed is not None:
                    added[name] = type(part)(0, part.examples, part.sha256, summed=2 * part.summed)
            return aggregate(command)

        self.server._aggregate = doubled  # type: ignore[method-assign]
        super().run()


def test_a_sum_that_is_not_the_flat_one_is_found() -> None:
    with pytest.raises(AssertionError, match="the included make the model"):
        Doubled(0, faults=False).run()


def test_what_a_domain_is_told_was_accepted_is_in_its_parents_journal() -> None:
    class Forgetful(TreeWorld):
        """A platform that journals no accepted update."""

        def run(self) -> None:
            journal = self.server.journal

            class Lossy(list):  # type: ignore[type-arg]
                def __iadd__(self, facts):  # type: ignore[no-untyped-def]
                    kept = [each for each in facts if not isinstance(each, UpdateAccepted)]
                    self.extend(kept)
                    return self

            self.server.journal = Lossy(journal)
            super().run()

    with pytest.raises(AssertionError, match="nothing acknowledged is lost"):
        Forgetful(1, faults=False).run()
