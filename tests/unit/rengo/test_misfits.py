"""What a person sees of whom a run addresses, while it waits for devices."""

from __future__ import annotations

from fl_server.operations.results.runs import MisfitCount, RunAddressed, RunMisfit
from rengo.terminal import live
from rengo.terminal.event_lines import EventLines
from rengo.terminal.fitting import misfit_lines
from tests.unit.rengo.test_view import Play, told

FOUND = RunAddressed(
    run_id="digits-1",
    devices=9,
    fitting=1,
    causes=[MisfitCount(cause="not profile=pi", devices=7), MisfitCount(cause="lost", devices=1)],
    first=[RunMisfit(id=f"d-{number}", reason="profile is cpu, not pi") for number in range(7)],
    note="no device is in group lap; did you mean lab?",
)


def test_a_run_that_addresses_some_waits_for_those_alone() -> None:
    play, story = Play(cohort_size=2), EventLines()
    play.document(phase="gathering", status="waiting", target=["group:lap"], where=["profile=pi"])
    for name in ("a", "b", "c"):
        play.device(name)
    assert not any(line.startswith("waiting") for line in told(play, story)), "it asks first"
    play.follower.addressed = FOUND
    lines = told(play, story)
    whom = "of group:lap, with profile=pi"
    assert lines[0] == f"waiting for devices that have task 'digits', {whom}: 1 of 2"
    assert lines[1:4] == [FOUND.note, "7 devices: not profile=pi", "1 device: lost"]
    assert lines[4:] == [*(f"  d-{n} profile is cpu, not pi" for n in range(5)), "  and 3 more"]
    assert told(play, story) == [], "once"
    play.follower.addressed = FOUND.model_copy(update={"fitting": 2})
    assert told(play, story) == []
    assert not play.follower.short_of_devices


def test_the_live_picture_says_why_as_well() -> None:
    play = Play(cohort_size=2)
    play.document(phase="gathering", status="waiting", where=["profile=pi"])
    play.follower.addressed = FOUND
    picture = live.picture_of(play.follower)
    assert picture.busy.startswith("Waiting for devices")
    assert "7 devices: not profile=pi" in picture.misfits


def test_where_everybody_fits_there_is_nothing_to_say() -> None:
    empty = RunAddressed(run_id="r", devices=2, fitting=2, causes=[], first=[])
    assert misfit_lines(empty) == []
    assert misfit_lines(empty.model_copy(update={"devices": 0, "fitting": 0})) == [
        "no device was ever admitted"
    ]
