"""Virtual fleets: how they are described, and how devices are drawn."""

from __future__ import annotations

import math
import statistics

import pytest

from rengo.simulation.virtual.availability import DrawnAvailability
from rengo.simulation.virtual.clock import VirtualClock
from rengo.simulation.virtual.devices import DeviceModel
from rengo.simulation.virtual.draws import exponential, lognormal, uniform
from rengo.simulation.virtual.fleet import Kind, VirtualFleet, parse_shares, parse_tables
from rengo.simulation.virtual.presets import PHONE, PI_4, PRESETS
from runtime.errors import ConfigError


def test_shares_are_dealt_as_whole_numbers():
    fleet = VirtualFleet(parse_shares("phone=80, pi-4=20"), 1000, seed=1)
    assert fleet.sizes() == {"phone": 800, "pi-4": 200}
    assert VirtualFleet(parse_shares("phone,pi-4,gpu"), 10, seed=1).sizes() == {
        "phone": 4,
        "pi-4": 3,
        "gpu": 3,
    }


def test_who_is_of_which_kind_is_of_the_seed():
    kinds = parse_shares("phone=1,pi-4=1")
    names = [[VirtualFleet(kinds, 40, seed).kind(n).name for n in range(40)] for seed in (1, 1, 2)]
    assert names[0] == names[1] != names[2]


def test_a_device_is_the_same_whoever_was_asked_for_before():
    fleet = VirtualFleet(parse_shares("phone"), 100, seed=5)
    forth = [fleet.traits(index) for index in range(100)]
    back = [fleet.traits(index) for index in reversed(range(100))]
    assert forth == back[::-1]
    assert len({traits.speed for traits in forth}) == 100


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("fone=2", "there is no preset 'fone'; the presets are pi-zero-2, pi-4, phone,"),
        ("phone=2,fone", "did you mean 'phone'?"),
        ("phone=0", "the share '0' is not a number above 0"),
        ("phone=nan", "the share 'nan' is not a number above 0"),
        ("phone=many", "the share 'many' is not a number above 0"),
        ("phone=1,phone=2", "phone is named twice"),
        ("", "there is no preset ''"),
    ],
)
def test_a_wrong_fleet_is_told_in_one_line(text: str, told: str):
    with pytest.raises(ConfigError) as error:
        parse_shares(text)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_tables_lay_values_over_a_preset():
    tables = {
        "device": [
            {"preset": "phone", "share": 3, "up_bytes_per_s": 2e6},
            {"name": "board", "flops_per_s": 1e9},
        ]
    }
    phone, board = parse_tables(tables, "fleet.toml")
    assert phone.model == PHONE.model_copy(update={"up_bytes_per_s": 2e6})
    assert (phone.share, board.name, board.model) == (3, "board", DeviceModel(flops_per_s=1e9))


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({}, "fleet.toml: 'device': Field required"),
        ({"device": [{"share": 1}]}, "fleet.toml, device 1: it needs a name or a preset"),
        ({"device": [{"preset": "pi-5"}]}, "device 1: there is no preset 'pi-5'"),
        (
            {"device": [{"preset": "pi-4"}, {"preset": "pi-4"}]},
            "device 2: there are two devices 'pi-4'; give one a name",
        ),
        ({"device": [{"preset": "pi-4", "speed": 2}]}, "device 1: unknown key 'speed' (known: "),
        ({"device": [{"preset": "pi-4", "train_w": -1}]}, "device 1: 'train_w': Input should be"),
    ],
)
def test_a_wrong_fleet_file_is_told_in_one_line(tables: dict[str, object], told: str):
    with pytest.raises(ConfigError) as error:
        parse_tables(tables, "fleet.toml")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_presets_are_ordered_by_their_speed():
    names = ["pi-zero-2", "pi-4", "phone", "edge-cpu", "gpu"]
    assert list(PRESETS) == names
    speeds = [PRESETS[name].flops_per_s for name in names]
    assert speeds == sorted(speeds)


def test_draws_have_the_moments_that_they_are_named_for():
    drawn = [uniform("u", n) for n in range(4000)]
    assert 0 < min(drawn) < max(drawn) < 1
    assert statistics.fmean(drawn) == pytest.approx(0.5, abs=0.02)
    waits = [exponential(60, "e", n) for n in range(4000)]
    assert statistics.fmean(waits) == pytest.approx(60, rel=0.05)
    logs = [math.log(lognormal(0.5, "l", n)) for n in range(4000)]
    assert statistics.fmean(logs) == pytest.approx(0, abs=0.03)
    assert statistics.stdev(logs) == pytest.approx(0.5, rel=0.05)


def test_as_many_are_online_at_first_as_later():
    model = PI_4.model_copy(update={"online_s": 100.0, "offline_s": 300.0})
    fleet = VirtualFleet([Kind("board", 1.0, model)], 2000, seed=9)
    availability = DrawnAvailability(fleet)
    for moment_s in (0.0, 50.0, 1000.0):
        online = 0
        for index in range(fleet.count):
            number, period = 0, availability.period(index, 0, 0.0)
            while period.until_s <= moment_s:
                number += 1
                period = availability.period(index, number, period.until_s)
            online += period.online
        assert online / fleet.count == pytest.approx(0.25, abs=0.03)


def test_the_clock_keeps_the_order_of_what_is_due_at_one_moment():
    clock: VirtualClock[str] = VirtualClock()
    for when_s, what in [(2.0, "c"), (1.0, "a"), (2.0, "d"), (1.0, "b")]:
        clock.at(when_s, what)
    assert [clock.advance() for _ in range(5)] == ["a", "b", "c", "d", None]
    assert clock.now_s == 2.0


@pytest.mark.parametrize("when_s", [0.5, math.nan])
def test_nothing_is_planned_for_the_past(when_s: float):
    clock: VirtualClock[str] = VirtualClock()
    clock.at(1.0, "a")
    clock.advance()
    with pytest.raises(ValueError, match="cannot happen at"):
        clock.at(when_s, "b")
