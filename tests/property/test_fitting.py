"""What fitted orders keep, whatever the devices' speeds."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fl_server.rounds.workload import PROBE_STEPS, FitRule, OrderWork, Speed, fit

SPEEDS = st.builds(
    Speed,
    step_s=st.floats(1e-4, 10),
    fixed_s=st.floats(0, 100),
    full_steps=st.integers(1, 10_000),
    micro_batch=st.integers(0, 64),
)
COHORTS = st.dictionaries(st.sampled_from("abcdefgh"), SPEEDS, min_size=1)
RULES = st.builds(
    FitRule,
    target_s=st.none() | st.floats(0.1, 1_000),
    deadline_s=st.floats(1, 10_000),
    max_steps=st.sampled_from([0, 1, 50]),
)


def steps_of(work: OrderWork, speed: Speed, rule: FitRule) -> int:
    """Return the steps that the device will take."""
    whole = min(speed.full_steps, rule.max_steps or speed.full_steps)
    return min(work.max_steps, whole) if work.max_steps else whole


@given(COHORTS, RULES)
def test_everybody_gets_a_step_and_nobody_more_than_its_epochs(
    speeds: dict[str, Speed], rule: FitRule
) -> None:
    work = fit(speeds, speeds, rule)
    assert work.keys() == speeds.keys()
    for name, speed in speeds.items():
        assert 1 <= steps_of(work[name], speed, rule) <= speed.full_steps
        assert work[name].max_steps <= (rule.max_steps or speed.full_steps)
        assert work[name].micro_batch == 0


@given(COHORTS, st.floats(0.1, 1_000))
def test_whoever_is_not_bounded_is_done_within_one_step_before_the_target(
    speeds: dict[str, Speed], target_s: float
) -> None:
    rule = FitRule(target_s, deadline_s=10_000)
    work = fit(speeds, speeds, rule)
    for name, speed in speeds.items():
        steps = steps_of(work[name], speed, rule)
        if 1 < steps < speed.full_steps:
            slack_s = 1e-5 * speed.step_s
            assert speed.seconds(steps) <= target_s + slack_s < speed.seconds(steps + 1) + slack_s


@given(COHORTS, RULES, st.floats(1, 100))
def test_a_faster_device_is_never_asked_for_less(
    speeds: dict[str, Speed], rule: FitRule, factor: float
) -> None:
    # under one target: without it the target itself would move with the device
    rule = replace(rule, target_s=rule.target_s or 5.0)
    name = min(speeds)
    faster = replace(speeds[name], step_s=speeds[name].step_s / factor)
    before, after = (fit(speeds, {**speeds, name: each}, rule) for each in (speeds[name], faster))
    assert steps_of(after[name], faster, rule) >= steps_of(before[name], speeds[name], rule)


@given(COHORTS)
def test_without_a_target_half_of_the_cohort_does_all_its_epochs(speeds: dict[str, Speed]) -> None:
    rule = FitRule(None, deadline_s=1e9)
    work = fit(speeds, speeds, rule)
    whole = [
        name
        for name in speeds
        if steps_of(work[name], speeds[name], rule) == speeds[name].full_steps
    ]
    assert 2 * len(whole) >= len(speeds)


@given(COHORTS, RULES, st.sets(st.sampled_from("abcdefgh"), max_size=4))
def test_whoever_was_never_measured_gets_a_probe(
    speeds: dict[str, Speed], rule: FitRule, unknown: set[str]
) -> None:
    known = {name: speed for name, speed in speeds.items() if name not in unknown}
    work = fit(speeds, known, rule)
    probe = min(PROBE_STEPS, rule.max_steps or PROBE_STEPS)
    assert {name: work[name] for name in speeds if name in unknown} == {
        name: OrderWork(probe) for name in speeds if name in unknown
    }
    assert work == fit(sorted(speeds, reverse=True), known, rule)
