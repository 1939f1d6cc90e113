"""Laws of virtual time, searched: any fleet, any plan, with the real round machine."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_server.flows.events import DeviceBusy, DeviceDeclined, DeviceJoined, DeviceLeft
from fl_server.rounds.events import DevicesJoined
from fl_server.rounds.facts import RoundStarted
from fl_server.rounds.plan import Plan
from rengo.simulation.virtual.devices import DeviceModel
from rengo.simulation.virtual.fleet import Kind, VirtualFleet
from rengo.simulation.virtual.orders import WorkDone
from rengo.simulation.virtual.work import OrderSize, Phase, duration, empty_after, part_at, spent
from tests.virtual_rounds import History, VirtualRun, plan_of

few = st.floats(0, 3)
rates = st.floats(1e3, 1e9)
MODELS = st.builds(
    DeviceModel,
    flops_per_s=st.floats(1e5, 1e9),
    step_s=few,
    start_s=few,
    down_bytes_per_s=rates,
    up_bytes_per_s=rates,
    latency_s=st.floats(0, 1),
    train_w=st.floats(0, 10),
    up_j_per_byte=st.floats(0, 1e-4),
    battery_j=st.sampled_from([0.0, 5.0, 100.0]),
    recharge_w=st.floats(0, 10),
    online_s=st.sampled_from([0.0, 20.0, 300.0]),
    offline_s=st.floats(1, 100),
    speed_sigma=st.floats(0, 2),
    jitter_sigma=st.floats(0, 1),
)
FLEETS = st.builds(
    lambda models, count, seed: VirtualFleet(
        [Kind(f"k{n}", 1.0, model) for n, model in enumerate(models)], count, seed
    ),
    st.lists(MODELS, min_size=1, max_size=3),
    st.integers(1, 8),
    st.integers(0, 100),
)
PLANS = st.builds(
    lambda cohort, over, deadline_s, on: plan_of(
        cohort,
        rounds=3,
        quorum=max(1, cohort // 2),
        over_selection=over,
        deadline_s=deadline_s,
        gather_s=2.0,
        max_attempts=5,
        evaluate_on=on,
    ),
    st.integers(1, 4),
    st.sampled_from([1.0, 1.5]),
    st.sampled_from([5.0, 60.0]),
    st.sampled_from(["none", "devices"]),
)
SIZES = st.builds(
    OrderSize,
    st.integers(1, 200),
    st.integers(1, 20),
    st.floats(1, 1e6),
    st.integers(1, 10**6),
    st.integers(0, 10**6),
)


def history_of(fleet: VirtualFleet, plan: Plan, size: OrderSize) -> History:
    return VirtualRun(fleet, plan, size).run(until_s=2000.0)


@given(FLEETS, PLANS, SIZES)
@settings(max_examples=60, deadline=None)
def test_time_goes_forward_and_every_order_ends_once(
    fleet: VirtualFleet, plan: Plan, size: OrderSize
):
    run = VirtualRun(fleet, plan, size)
    history = run.run(until_s=2000.0)
    times = [at for at, _ in history.events]
    assert times == sorted(times)
    assert all(at >= 0 and math.isfinite(at) for at in times)
    run.world.finish()
    ended = history.ended + run.world.ended
    sent = Counter(map(id, history.sent))
    assert Counter(id(each.order) for each in ended) == sent


@given(FLEETS, PLANS, SIZES)
@settings(max_examples=40, deadline=None)
def test_a_device_comes_and_goes_by_turns_and_works_only_while_it_is_there(
    fleet: VirtualFleet, plan: Plan, size: OrderSize
):
    run = VirtualRun(fleet, plan, size)
    there: set[str] = set()
    for _, event in run.run(until_s=2000.0).events:
        match event:
            case DevicesJoined():
                there.update(event.device_ids)
            case DeviceLeft():
                there.remove(event.device_id)
            case DeviceJoined():
                there.add(event.device_id)
            case DeviceBusy() | DeviceDeclined():
                assert event.device_id in there
            case WorkDone():
                assert event.order.device_id in there


@given(FLEETS, PLANS, SIZES)
@settings(max_examples=40, deadline=None)
def test_energy_and_bytes_add_up(fleet: VirtualFleet, plan: Plan, size: OrderSize):
    history = history_of(fleet, plan, size)
    account = history.account
    assert account.total().joules == pytest.approx(
        math.fsum(each.cost.joules for each in history.ended)
    )
    assert account.total().bytes_up == sum(each.cost.bytes_up for each in history.ended)
    for entry in account.rounds:
        assert 0 <= entry.wasted.joules <= entry.cost.joules + 1e-9
        assert set(entry.dropped) | set(entry.included) == set(entry.cohort) or (
            entry.outcome == "collecting"
        )
        assert not set(entry.dropped) & set(entry.included)
        assert all(entry.dropped.values())
    started = [fact for _, fact in history.facts if isinstance(fact, RoundStarted)]
    assert len(started) == len(account.rounds)


@given(FLEETS, PLANS, SIZES)
@settings(max_examples=30, deadline=None)
def test_the_same_seed_is_the_same_history(fleet: VirtualFleet, plan: Plan, size: OrderSize):
    first, again = history_of(fleet, plan, size), history_of(fleet, plan, size)
    assert first.events == again.events
    assert first.facts == again.facts
    assert first.ended == again.ended


PHASES = st.lists(
    st.builds(
        Phase,
        st.just("training"),
        st.floats(0.001, 100),
        st.floats(0, 100),
        st.floats(0, 1e6),
        st.floats(0, 1e6),
    ),
    min_size=1,
    max_size=4,
).map(tuple)


@given(PHASES, st.floats(0, 500), st.floats(0, 200), st.floats(0, 3))
@settings(deadline=None)
def test_a_battery_is_empty_when_the_work_has_taken_what_was_in_it(
    work: tuple[Phase, ...], seconds: float, charge_j: float, recharge_w: float
):
    whole = spent(work, math.inf)
    assert spent(work, seconds).joules <= whole.joules + 1e-9
    assert whole.seconds == duration(work)
    assert part_at(work, seconds) == "training"
    empty_s = empty_after(work, charge_j, recharge_w)
    if empty_s is None:
        assert whole.joules <= charge_j + recharge_w * duration(work) + 1e-6
    else:
        taken_j = spent(work, empty_s).joules - recharge_w * empty_s
        assert taken_j == pytest.approx(charge_j, abs=1e-6)
