"""The virtual world alone: orders, timers and batteries, one event after another."""

from __future__ import annotations

import pytest

from fl_server.flows.commands import ArmTimer
from fl_server.flows.events import DeviceBusy, DeviceJoined, DeviceLeft, TimerFired
from rengo.simulation.virtual.availability import DrawnAvailability
from rengo.simulation.virtual.devices import DeviceModel
from rengo.simulation.virtual.fleet import Traits
from rengo.simulation.virtual.orders import TimedOrder, WorkDone
from rengo.simulation.virtual.state import VirtualDevice
from rengo.simulation.virtual.work import OrderSize
from rengo.simulation.virtual.world import VirtualWorld
from tests.virtual_rounds import fleet_of

# 5 s of training, 1 s each way
SLOW = DeviceModel(examples_per_s=20.0, down_bytes_per_s=1e6, up_bytes_per_s=1e6, train_w=1.0)
SIZE = OrderSize(100, 10, 1.0, 1_000_000, 1_000_000)
MEASURED = OrderSize(20, 0, 1.0, 1_000_000, 0)


def world_of(*models: DeviceModel) -> VirtualWorld:
    fleet = fleet_of(models)
    return VirtualWorld(fleet, DrawnAvailability(fleet), [f"d{n}" for n in range(len(models))])


def train(number: int, device: str = "d0") -> TimedOrder:
    return TimedOrder(device, "train", number, 1, SIZE)


def evaluate(version: int) -> TimedOrder:
    return TimedOrder("d0", "evaluate", version, 1, MEASURED)


def left(world: VirtualWorld) -> list[tuple[float, object]]:
    """Return all that still happens, with its time."""
    events = []
    while (event := world.next()) is not None:
        events.append((world.now_s, event))
    return events


def ends(world: VirtualWorld) -> list[tuple[str, int, str]]:
    return [(each.order.action, each.order.round, each.end) for each in world.ended]


def test_a_timer_that_is_armed_again_fires_once_at_the_later_time():
    world = world_of(SLOW)
    world.arm(ArmTimer("deadline", 1, 1, 10.0))
    world.arm(ArmTimer("deadline", 1, 1, 30.0))
    world.arm(ArmTimer("resend", 1, 1, 20.0))
    assert left(world) == [(20.0, TimerFired("resend", 1, 1)), (30.0, TimerFired("deadline", 1, 1))]


def test_a_timer_that_fired_may_be_armed_again():
    world = world_of(SLOW)
    for _ in range(2):
        world.arm(ArmTimer("resend", 1, 1, 10.0))
        assert world.next() == TimerFired("resend", 1, 1)
    assert world.now_s == 20.0


def test_a_closed_round_stops_who_trains_for_it_and_they_are_free_again():
    world = world_of(SLOW)
    world.send(train(1))
    assert world.next() == DeviceBusy("d0")
    world.arm(ArmTimer("deadline", 1, 1, 3.0))
    world.next()
    world.close(1, 1)
    assert left(world) == [(3.0, DeviceJoined("d0"))]
    [ended] = world.ended
    assert (ended.end, ended.cost.joules) == ("late", pytest.approx(2.0))
    assert ended.cost.bytes_down == 1_000_000


def test_an_order_that_comes_after_its_round_closed_is_not_begun():
    world = world_of(SLOW.model_copy(update={"latency_s": 1.0}))
    world.send(train(1))
    world.close(1, 1)
    assert left(world) == []
    assert ends(world) == [("train", 1, "late")]


def test_a_newer_order_takes_the_place_of_the_one_that_is_trained():
    world = world_of(SLOW)
    world.send(train(1))
    world.next()
    world.send(train(2))
    done = [event for _, event in left(world) if isinstance(event, WorkDone)]
    assert done == [WorkDone(train(2))]
    assert ends(world) == [("train", 1, "replaced"), ("train", 2, "answered")]


def test_the_same_order_again_is_not_begun_anew():
    world = world_of(SLOW)
    world.send(train(1))
    world.next()
    world.send(train(1))
    assert left(world) == [(7.0, WorkDone(train(1))), (7.0, DeviceJoined("d0"))]
    assert ends(world) == [("train", 1, "repeated"), ("train", 1, "answered")]


def test_training_comes_before_evaluations_that_wait():
    world = world_of(SLOW)
    for order in (evaluate(1), evaluate(2), train(3)):
        world.send(order)
    done = [(at, event.order) for at, event in left(world) if isinstance(event, WorkDone)]
    assert done == [(2.0, evaluate(1)), (9.0, train(3)), (11.0, evaluate(2))]


def test_of_too_many_evaluations_that_wait_the_oldest_goes_unmeasured():
    world = world_of(SLOW)
    for order in (train(1), evaluate(1), evaluate(2), evaluate(3)):
        world.send(order)
    left(world)
    assert ("evaluate", 1, "replaced") in ends(world)
    assert ends(world)[-2:] == [("evaluate", 2, "answered"), ("evaluate", 3, "answered")]


def test_a_battery_holds_no_more_than_it_can_and_no_less_than_nothing():
    model = DeviceModel(battery_j=10.0, recharge_w=1.0, battery_floor=0.5)
    device = VirtualDevice(Traits(model, 1.0, 1.0), online=True, charging=True, charge_j=4.0)
    assert device.is_low
    device.settle(3.0, device.recharge_w)
    assert (device.charge_j, device.is_low) == (7.0, False)
    device.settle(100.0, device.recharge_w)
    assert device.charge == 1.0
    device.settle(100.0, 0.0, spent_j=11.0)
    assert device.charge_j == 0.0


def test_a_device_whose_battery_stays_empty_lets_the_world_come_to_its_end():
    weak = SLOW.model_copy(
        update={"battery_j": 1.0, "battery_floor": 0.0, "online_s": 1e5, "offline_s": 1.0}
    )
    world = world_of(weak)
    world.begin()
    world.send(train(1))
    events = left(world)
    assert [each.end for each in world.ended] == ["empty"]
    assert isinstance(events[-1][1], DeviceLeft)
