"""What the round machine is told where client and server share their memory."""

from __future__ import annotations

from pydantic import TypeAdapter

from fl_server.flows.commands import SendReceipt
from fl_server.rounds.commands import Aggregate, DiscardUpdate, FoldUpdate, VerifyUpdate
from fl_server.rounds.events import DevicesJoined, UpdateDelivered, UpdatesDelivered
from fl_server.rounds.facts import RoundClosed, RoundStarted, UpdateAccepted
from fl_server.rounds.ledger import Ledger
from fl_server.rounds.machine import RoundMachine
from fl_server.selection import uniform
from tests.rounds import INITIAL, Run, of_type, ordered, update

MANY = tuple(f"d{number:03d}" for number in range(50))


def delivered(*devices: str, round_number: int = 1) -> UpdatesDelivered:
    return UpdatesDelivered(
        tuple(UpdateDelivered(d, round_number, 1, update(d, round_number)) for d in devices)
    )


def test_the_first_cohort_is_drawn_from_all_who_are_there() -> None:
    run = Run.of(cohort_size=5)
    commands = run.give(DevicesJoined(MANY))
    drawn = uniform.select(MANY, 5, seed=0, round_number=1, attempt=1)
    assert ordered(commands) == set(drawn)
    assert drawn != MANY[:5]
    (started,) = [fact for fact in run.facts if isinstance(fact, RoundStarted)]
    assert (started.cohort, started.population) == (drawn, 50)


def test_an_update_that_came_with_its_values_is_not_checked_again() -> None:
    run = Run.of("a", "b", "c")
    commands = run.give(delivered("a"))
    assert of_type(commands, VerifyUpdate) == []
    assert [fold.device_id for fold in of_type(commands, FoldUpdate)] == ["a"]
    assert [receipt.status for receipt in of_type(commands, SendReceipt)] == ["accepted"]
    assert run.phase == "collecting"


def test_updates_that_come_at_once_close_the_round_and_the_rest_is_late() -> None:
    run = Run.of("a", "b", "c", "d", cohort_size=2, over_selection=2.0)
    commands = run.give(delivered("a", "b", "c", "d"))
    (closed,) = [fact for fact in run.facts if isinstance(fact, RoundClosed)]
    assert closed.included == ("a", "b")
    assert [fold.device_id for fold in of_type(commands, FoldUpdate)] == ["a", "b"]
    assert len(of_type(commands, Aggregate)) == 1
    statuses = [receipt.status for receipt in of_type(commands, SendReceipt)]
    assert statuses == ["accepted", "accepted", "late", "late"]
    assert len(of_type(commands, DiscardUpdate)) == 2


def test_the_same_updates_one_by_one_decide_the_same() -> None:
    together, apart = (Run.of("a", "b", "c", "d", cohort_size=3, over_selection=1.3) for _ in "12")
    together.give(delivered("a", "b", "c", "d"))
    apart.give(*delivered("a", "b", "c", "d").updates)
    assert together.facts == apart.facts
    assert sum(isinstance(fact, UpdateAccepted) for fact in apart.facts) == 3


def test_a_ledger_forgets_what_earlier_rounds_counted_and_measured() -> None:
    run = Run.of("a", "b", "c", "e1", rounds=4)
    for number in (1, 2, 3):
        run.give(delivered("a", "b", "c", round_number=number))
        run.commits()
    ledger = run.machine.ledger
    assert sorted(ledger.evaluators) == [1, 2, 3]
    ledger.forget_before(3)
    assert sorted(ledger.evaluators) == [3]
    assert ledger.counted(3, 1, "a") is not None
    assert ledger.counted(2, 1, "a") is None


def test_a_machine_goes_on_from_a_ledger_as_from_its_facts() -> None:
    run = Run.of("a", "b", "c")
    run.give(delivered("a", "b", "c"))
    run.commits()
    adapter = TypeAdapter(Ledger)
    kept = adapter.validate_python(adapter.dump_python(run.machine.ledger, exclude={"_counted"}))
    other = RoundMachine(run.plan, INITIAL, ledger=kept)
    assert other.ledger.phase == "collecting"
    assert other.ledger.model == run.machine.ledger.model
    other.resume()
    orders = ordered(other.handle(DevicesJoined(("a", "b", "c"))).commands)
    assert orders == {"a", "b", "c"}
