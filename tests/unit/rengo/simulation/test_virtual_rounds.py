"""Virtual rounds: small histories worked out by hand, and what strategies cost."""

from __future__ import annotations

import pytest

from fl_server.flows.events import DeviceDeclined, DeviceJoined, DeviceLeft
from fl_server.rounds.facts import RoundAbandoned, RoundClosed
from rengo.simulation.virtual.availability import Period
from rengo.simulation.virtual.devices import DeviceModel
from rengo.simulation.virtual.fleet import Kind, VirtualFleet
from rengo.simulation.virtual.presets import PRESETS
from rengo.simulation.virtual.work import OrderSize
from tests.virtual_rounds import VirtualRun, fleet_of, plan_of

# 100 examples of 1e6 operations in 10 steps, 1 MB down, 0.5 MB up
SIZE = OrderSize(100, 10, 1e6, 1_000_000, 500_000)


def device(**given: float) -> DeviceModel:
    """Return a device that takes 1 + 10 * 0.1 + 100e6 / 1e8 = 3 s to train, 0.1 + 0.5 s to send."""
    usual = {
        "flops_per_s": 1e8,
        "step_s": 0.1,
        "start_s": 1.0,
        "down_bytes_per_s": 1e7,
        "up_bytes_per_s": 1e6,
        "latency_s": 0.25,
        "train_w": 2.0,
        "down_j_per_byte": 1e-6,
        "up_j_per_byte": 4e-6,
    }
    return DeviceModel(**(usual | given))


def closes(history: object) -> list[float]:
    return [at for at, fact in history.facts if isinstance(fact, RoundClosed)]  # type: ignore[attr-defined]


def test_a_round_takes_what_its_parts_take_by_hand():
    history = VirtualRun(fleet_of([device()]), plan_of(1, rounds=2), SIZE).run()
    # 0.25 order, 0.1 down, 3 training, 0.5 up, 0.25 answer
    assert closes(history) == pytest.approx([4.1, 8.2])
    first = history.account.rounds[0]
    # 1 J down, 6 J of training, 2 J up; the time to the order's arrival is no work
    assert first.cost.joules == pytest.approx(9.0)
    assert first.cost.seconds == pytest.approx(3.85)
    assert (first.cost.bytes_down, first.cost.bytes_up) == (1_000_000, 500_000)
    assert first.wasted.joules == 0
    assert first.dropped == {}


def test_the_slowest_of_a_cohort_closes_it_by_hand():
    slow = device(flops_per_s=1e7)  # 1 + 1 + 10 s of training
    history = VirtualRun(fleet_of([device(), slow, device()]), plan_of(3, rounds=1), SIZE).run()
    assert closes(history) == pytest.approx([0.25 + 0.1 + 12 + 0.5 + 0.25])
    assert history.status == "completed"


def test_a_measured_speed_takes_the_place_of_the_arithmetic():
    measured = device(examples_per_s=50.0)  # 1 + 100 / 50 s
    history = VirtualRun(fleet_of([measured]), plan_of(1, rounds=1), SIZE).run()
    assert closes(history) == pytest.approx([4.1])


def test_a_straggler_is_dropped_at_the_deadline_by_hand():
    pi = device(flops_per_s=1e6, start_s=0.0, step_s=0.0)  # 100 s of training
    plan = plan_of(2, rounds=1, deadline_s=10.0)
    fleet = fleet_of([device(), pi])
    history = VirtualRun(fleet, plan, SIZE).run()
    assert closes(history) == [10.0]
    entry = history.account.rounds[0]
    [straggler] = entry.dropped
    assert fleet.kind(int(straggler[1:])).model is pi
    assert entry.dropped[straggler] == "the round closed without it during the training"
    # from 0.25 on: the download's 1 J, and 10 - 0.35 s of training at 2 W
    assert entry.wasted.joules == pytest.approx(1 + 9.65 * 2)
    assert entry.wasted.bytes_up == 0
    assert entry.cost.joules == pytest.approx(9.0 + 20.3)


def test_a_device_that_works_is_not_ordered_again():
    slow = device(flops_per_s=1e6)
    history = VirtualRun(fleet_of([slow]), plan_of(1, rounds=1, deadline_s=300.0), SIZE).run()
    assert [each.end for each in history.ended] == ["answered"]
    assert len(history.sent) == 1


class Scripted:
    """Periods as a test lists them for each device."""

    def __init__(self, *devices: list[Period]) -> None:
        self._devices = devices

    digest = "scripted"

    def period(self, index: int, number: int, from_s: float) -> Period:
        return self._devices[index][number]


def test_a_device_that_leaves_in_a_round_is_dropped_and_begins_anew():
    away = [Period(2.0, online=True), Period(3.0, online=False), Period(float("inf"), online=True)]
    run = VirtualRun(fleet_of([device()]), plan_of(1, rounds=1), SIZE, Scripted(away))
    history = run.run()
    # left at 2, back at 3, ordered again at once, and 4.1 s from there
    assert closes(history) == pytest.approx([7.1])
    assert [each.end for each in history.ended] == ["left", "answered"]
    assert history.ended[0].reason == "it went offline during the training"
    told = [type(event) for _, event in history.events]
    assert told.index(DeviceLeft) < told.index(DeviceJoined)
    # 1 J down and 2 - 0.35 s of training came to nothing, then a whole order
    assert history.account.rounds[0].cost.joules == pytest.approx(1 + 1.65 * 2 + 9)


def test_an_order_to_a_device_that_just_left_is_lost():
    away = [Period(0.1, online=True), Period(float("inf"), online=False)]
    here = [Period(float("inf"), online=True)]
    run = VirtualRun(
        fleet_of([device(), device()]), plan_of(2, rounds=1), SIZE, Scripted(away, here)
    )
    history = run.run()
    assert history.status == "completed"
    assert history.account.rounds[0].dropped == {"d000": "it was offline when the order came"}


def test_an_empty_battery_ends_an_order_and_the_device_is_away():
    # 4 J at most, and an order takes 9
    weak = device(battery_j=4.0, battery_floor=0.0)
    strong = device(flops_per_s=1e7)
    history = VirtualRun(fleet_of([weak, strong]), plan_of(2, rounds=2), SIZE).run(until_s=200)
    [empty] = [each for each in history.ended if each.end == "empty"]
    # what was in it is what it spent
    assert 0 < empty.cost.joules <= 4.0
    assert empty.reason.startswith("its battery was empty during the ")
    included = [fact.included for _, fact in history.facts if isinstance(fact, RoundClosed)]
    assert included[0] == included[1] != (empty.order.device_id,)


def test_a_low_battery_declines_for_now_and_is_charged_while_offline():
    # 20 J, an order takes 9: it is at most twice above 60% (12 J)
    weak = device(battery_j=20.0, battery_floor=0.6, recharge_w=1.0)
    shift = [Period(30.0 * n, online=n % 2 == 1, charging=n % 2 == 0) for n in range(1, 400)]
    plan = plan_of(1, rounds=4, deadline_s=20.0)
    history = VirtualRun(fleet_of([weak]), plan, SIZE, Scripted(shift)).run()
    assert history.status == "completed"
    declines = [event for _, event in history.events if isinstance(event, DeviceDeclined)]
    assert declines
    assert all("below 60%" in event.reason and not event.permanent for event in declines)
    assert any(isinstance(fact, RoundAbandoned) and fact.excused for _, fact in history.facts)


def heavy_tail(over_selection: float, rounds: int = 20, **settings: float) -> float:
    """Return when the last round closed, of a fleet with log-normal speeds."""
    model = device(speed_sigma=1.0)
    fleet = VirtualFleet([Kind("phone", 1.0, model)], 200, seed=3)
    plan = plan_of(10, rounds=rounds, over_selection=over_selection, **settings)
    return closes(VirtualRun(fleet, plan, SIZE).run())[-1]


def test_over_selection_is_faster_than_sync_under_a_heavy_tail():
    assert heavy_tail(1.3, deadline_s=1e6) < 0.75 * heavy_tail(1.0, deadline_s=1e6)


def test_a_deadline_is_faster_than_sync_under_a_heavy_tail():
    assert heavy_tail(1.0, deadline_s=8.0, quorum=5) < 0.75 * heavy_tail(1.0, deadline_s=1e6)


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_does_a_round(name: str):
    model = PRESETS[name].model_copy(update={"online_s": 0.0})
    history = VirtualRun(fleet_of([model]), plan_of(1, rounds=1), SIZE).run()
    assert history.status == "completed"
    assert history.account.total().joules > 0
