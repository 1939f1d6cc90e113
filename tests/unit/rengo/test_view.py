"""What a person sees of a run, told from messages alone."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest
from rich.console import Console
from rich.spinner import Spinner

from broker.wire.messages import DeviceInfo, DeviceState, Message, RunDocument, RunEvent
from broker.wire.topics import Address
from fl_server.operations.results.runs import RunSummary
from rengo.operator.client import News
from rengo.operator.progress import DeviceTable, RunProgress
from rengo.terminal import format as wording
from rengo.terminal import live
from rengo.terminal.event_lines import EventLines, SiteEventLines
from rengo.terminal.select import open_view
from rengo.terminal.view import PlainView

RUN = "digits-1"
USAGE = {"bytes_up": 10_000, "bytes_down": 20_000}


class Play:
    """Plays a run's messages to a follower, on a clock of its own."""

    def __init__(self, cohort_size: int = 2, rounds: int = 3) -> None:
        self.now_s = 100.0
        self.rounds = rounds
        self.follower = RunProgress(RUN, cohort_size=cohort_size, clock=lambda: self.now_s)

    def hear(self, area: str, name: str, leaf: str, message: Message) -> None:
        self.follower.apply(News(Address("main", area, name, leaf), message))  # type: ignore[arg-type]

    def device(
        self, name: str, status: str = "ready", role: str = "trainer", **takes: list[str]
    ) -> None:
        for leaf, message in said_by_device(status, role, **takes).items():
            self.hear("dev", name, leaf, message)

    def know(self, **report: Any) -> None:
        """Have the follower know what the run's report says."""
        usual = {
            "cohort_size": 2,
            "evaluate_on": "evaluators",
            "evaluate_every": 1,
            "headline": "accuracy",
        }
        self.follower.set_definition(
            RunSummary.model_construct(**{**usual, "bundled": False, **report})
        )

    def document(self, phase: str = "collecting", status: str = "running", **more: Any) -> None:
        self.hear("run", RUN, "state", document(phase, status, rounds=self.rounds, **more))

    def event(self, name: str, round_: int, attempt: int = 1, **detail: Any) -> None:
        self.hear("run", RUN, "events", event(name, round_, attempt, **detail))

    def round(
        self, number: int, devices: tuple[str, ...] = ("a", "b"), took_s: float = 2.0
    ) -> None:
        self.event("RoundStarted", number, cohort=list(devices), target=len(devices))
        for name in devices:
            self.event("UpdateAccepted", number, device_id=name, update={"usage": USAGE})
        self.now_s += took_s
        self.event("RoundCommitted", number, model={})

    def measured(self, number: int, accuracy: float, by: str = "e", examples: int = 100) -> None:
        self.event(
            "EvaluationRecorded",
            number,
            device_id=by,
            num_examples=examples,
            metrics={"accuracy": accuracy},
            usage={},
        )


def said_by_device(status: str, role: str, **takes: list[str]) -> dict[str, Message]:
    said = {"status": status, "boot_id": "b", "role": role, "tasks": ["digits"], **takes}
    info: dict[str, Any] = {"cpus": 1, "ram_bytes": 1, "accelerators": [], "versions": {}}
    return {
        "info": DeviceInfo(
            role=role,  # type: ignore[arg-type]
            profile="pi",
            engine="numpy",
            tasks=["digits"],
            **info,
        ),
        "state": DeviceState.model_validate(said),
    }


def document(phase: str, status: str, **more: Any) -> RunDocument:
    values: dict[str, Any] = {
        "run_id": RUN,
        "task": "digits",
        "algorithm": "fedavg",
        "status": status,
        "round": 1,
        "attempt": 1,
        "rounds": 3,
        "epoch": 1,
        "phase": phase,
        "deadline_s": 30.0,
        "cohort": [],
        "answered": [],
        "model_sha256": "",
        "accuracy": None,
        "loss": None,
    }
    return RunDocument(**values | more)


def event(name: str, round_: int, attempt: int, **detail: Any) -> RunEvent:
    return RunEvent(run_id=RUN, name=name, round=round_, attempt=attempt, detail=detail)


def told(play: Play, story: EventLines) -> list[str]:
    return [line.text for line in (*story.run(play.follower), *story.rounds(play.follower))]


@pytest.fixture
def play() -> Play:
    play = Play()
    for name in ("a", "b"):
        play.device(name)
    play.device("e", role="evaluator")
    play.document()
    return play


# --- lines ------------------------------------------------------------------------------------


def test_devices_and_the_run_are_told_once(play: Play) -> None:
    story = EventLines()
    assert told(play, story) == [
        "a joined: pi, numpy",
        "b joined: pi, numpy",
        "e joined: evaluator, numpy",
        "run digits-1: digits, fedavg, 3 rounds",
    ]
    assert told(play, story) == []


def test_a_round_is_told_when_its_accuracy_is_there(play: Play) -> None:
    story = EventLines()
    told(play, story)
    play.round(1)
    assert told(play, story) == []
    play.measured(1, 0.5)
    assert told(play, story) == [
        "round 1/3  2/2 updates    2.0 s   20.0 kB up   40.0 kB down  accuracy 0.5000  loss -"
    ]
    assert told(play, story) == []


def test_an_accuracy_that_comes_late_is_waited_for_but_not_for_ever(play: Play) -> None:
    story = EventLines()
    told(play, story)
    play.round(1)
    play.round(2, took_s=9.0)
    play.round(3, took_s=9.0)
    assert told(play, story) == []
    play.now_s += 3.0
    (first,) = told(play, story)
    assert first.startswith("round 1/3")
    assert first.endswith("accuracy -  loss -")
    play.measured(3, 0.9)
    play.measured(2, 0.8)
    assert [line[:9] for line in told(play, story)] == ["round 2/3", "round 3/3"]


def test_the_end_of_the_run_tells_every_round(play: Play) -> None:
    story = EventLines()
    told(play, story)
    play.round(1)
    play.round(2)
    play.document(phase="ended", status="completed")
    assert told(play, story) == [], "the last events may still be on their way"
    play.measured(2, 0.5)
    play.event("RunCompleted", 3)
    lines = told(play, story)
    assert [line[:9] for line in lines] == ["round 1/3", "round 2/3"]
    assert lines[1].endswith("accuracy 0.5000  loss -")


def test_events_that_never_come_do_not_hold_up_the_end(play: Play) -> None:
    story = EventLines()
    told(play, story)
    play.round(1)
    play.document(phase="ended", status="completed")
    assert not play.follower.is_complete
    play.now_s += 5.0
    assert play.follower.is_complete
    assert [line[:9] for line in told(play, story)] == ["round 1/3"]


@pytest.mark.parametrize(
    ("on", "every", "waited_for"), [("none", 1, set()), ("evaluators", 2, {2, 3})]
)
def test_a_round_that_is_not_to_be_measured_is_told_at_once(
    on: str, every: int, waited_for: set[int], play: Play
) -> None:
    play.know(evaluate_on=on, evaluate_every=every)
    for number in (1, 2, 3):
        play.round(number)
    assert {n for n in (1, 2, 3) if not play.follower.is_measured(n)} == waited_for


def test_where_devices_measure_all_of_them_are_waited_for() -> None:
    play, story = Play(), EventLines()
    play.know(evaluate_on="devices")
    play.device("a")
    play.device("b")
    play.document()
    told(play, story)
    play.round(1)
    play.measured(1, 0.5, by="a", examples=100)
    assert told(play, story) == []
    play.measured(1, 0.8, by="b", examples=200)
    (line,) = told(play, story)
    assert line.endswith("accuracy 0.7000  loss -")


@pytest.mark.parametrize(
    ("name", "detail", "line"),
    [
        (
            "RoundAbandoned",
            {"reason": "1 of at least 2 updates at the deadline"},
            "round 2, attempt 1, was abandoned and is tried again: "
            "1 of at least 2 updates at the deadline",
        ),
        (
            "UpdateRefused",
            {"device_id": "a", "reason": "NaN"},
            "round 2: update of a refused: NaN",
        ),
        ("OrderDeclined", {"device_id": "a", "reason": "no"}, "round 2: a declined: no"),
        ("RunPaused", {}, "paused; `rengo runs resume` lets it go on"),
    ],
)
def test_trouble_is_told_with_its_reason(
    name: str, detail: dict[str, Any], line: str, play: Play
) -> None:
    story = EventLines()
    told(play, story)
    play.event(name, 2, **detail)
    assert told(play, story) == [line]


def test_a_run_without_devices_says_whom_it_waits_for() -> None:
    play, story = Play(cohort_size=2), EventLines()
    play.document(phase="gathering", status="waiting")
    assert "waiting for devices that have task 'digits': 0 of 2" in told(play, story)
    assert told(play, story) == []
    play.device("a")
    play.device("e", role="evaluator")
    assert "waiting for devices that have task 'digits': 1 of 2" in told(play, story)
    play.device("b")
    assert not any("waiting" in line for line in told(play, story))


def test_a_run_of_a_bundle_counts_who_takes_it() -> None:
    play, story = Play(cohort_size=2), EventLines()
    play.know(bundled=True)
    play.document(phase="gathering", status="waiting")
    play.device("a")
    play.device("b", tasks=["faces"], bundles=["faces"])
    text = "waiting for devices that have task 'digits' or take its bundle: "
    assert f"{text}1 of 2" in told(play, story)
    play.device("c", tasks=["faces"], bundles=["digits"])
    assert not any("waiting" in line for line in told(play, story))


def test_who_takes_bundles_is_not_waited_for_in_a_run_without_one() -> None:
    play, story = Play(cohort_size=2), EventLines()
    play.know(bundled=False)
    play.document(phase="gathering", status="waiting")
    play.device("a", tasks=["faces"], bundles=["*"])
    assert "waiting for devices that have task 'digits': 0 of 2" in told(play, story)


@pytest.mark.parametrize(("bundled", "waited_for"), [(False, set()), (True, {1})])
def test_who_takes_the_bundle_measures_too(bundled: bool, waited_for: set[int]) -> None:
    play = Play()
    play.know(evaluate_on="devices", bundled=bundled)
    play.device("a")
    play.device("b", tasks=[], bundles=["*"])
    play.document()
    play.round(1)
    play.measured(1, 0.5, by="a")
    assert {n for n in (1,) if not play.follower.is_measured(n)} == waited_for


def test_who_goes_and_comes_back_is_told(play: Play) -> None:
    story = EventLines()
    told(play, story)
    play.device("a", status="lost")
    assert told(play, story) == ["a is gone (lost)"]
    play.device("a")
    assert told(play, story) == ["a is back"]


def test_a_device_that_left_before_we_came_is_no_news() -> None:
    play, story = Play(), EventLines()
    play.device("old", status="offline")
    assert told(play, story) == []


def test_a_follower_that_comes_late_tells_a_round_without_its_time(play: Play) -> None:
    play.event("UpdateAccepted", 2, device_id="a", update={"usage": USAGE})
    play.event("RoundCommitted", 2, model={})
    play.measured(2, 0.9)
    line = told(play, EventLines())[-1]
    assert line.startswith("round 2/3  1 updates        -")


def test_a_withdrawn_update_no_longer_counts(play: Play) -> None:
    play.event("RoundStarted", 1, cohort=["a", "b"], target=2)
    play.event("UpdateAccepted", 1, device_id="a", update={"usage": USAGE})
    play.event("UpdateWithdrawn", 1, device_id="a", reason="vanished")
    assert play.follower.rounds[1].updates == 0


def test_another_attempt_counts_anew(play: Play) -> None:
    play.event("RoundStarted", 1, cohort=["a", "b"], target=2)
    play.event("UpdateAccepted", 1, device_id="a", update={"usage": USAGE})
    play.event("RoundStarted", 1, attempt=2, cohort=["a", "b"], target=2)
    assert play.follower.rounds[1].updates == 0
    assert play.follower.bytes_up == 10_000


def test_a_site_tells_of_runs_that_begin_and_end() -> None:
    story = SiteEventLines()
    place = Address("main", "run", RUN, "state")

    def heard(phase: str, status: str, **more: Any) -> list[str]:
        return story.take(News(place, document(phase, status, **more)))

    assert heard("gathering", "waiting") == ["run digits-1 begins: digits, fedavg"]
    assert heard("collecting", "running") == []
    assert heard("gathering", "waiting") == []
    assert heard("gathering", "paused") == ["run digits-1 is paused, accuracy -"]
    assert heard("collecting", "running") == ["run digits-1 goes on: digits, fedavg"]
    assert heard("ended", "failed", reason="no quorum") == [
        "run digits-1 is failed, accuracy -: no quorum"
    ]
    assert heard("ended", "failed") == []


def test_a_run_that_ended_before_the_site_came_up_is_no_news() -> None:
    news = News(Address("main", "run", RUN, "state"), document("ended", "completed"))
    assert SiteEventLines().take(news) == []


# --- views ------------------------------------------------------------------------------------


def test_where_output_is_no_terminal_it_is_lines(play: Play) -> None:
    out = io.StringIO()
    view = open_view(out)
    assert isinstance(view, PlainView)
    with view:
        view.phase("Starting")
        view.devices(play.follower.devices, 3)
        view.update(play.follower)
        view.phase("")
    assert out.getvalue().splitlines() == [
        "Starting",
        "a joined: pi, numpy",
        "b joined: pi, numpy",
        "e joined: evaluator, numpy",
        "run digits-1: digits, fedavg, 3 rounds",
    ]
    assert "\x1b" not in out.getvalue()


def test_warnings_of_the_libraries_appear_in_the_open_view_alone() -> None:
    out = io.StringIO()
    log = logging.getLogger("rengo.site.supervisor")
    with PlainView(out):
        log.warning("%s has ended; starting it again", "server")
        log.info("not for a person")
    log.warning("too late")
    assert out.getvalue() == "server has ended; starting it again\n"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class OldTerminal(Terminal):
    encoding = "ascii"


def test_a_terminal_gets_the_picture_and_an_unable_one_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(open_view(Terminal()), live.LiveView)
    assert isinstance(open_view(OldTerminal()), PlainView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_view(Terminal()), PlainView)


def drawn(picture: live.Picture, now_s: float = 100.0) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    console.print(live.draw(picture, Spinner("dots"), now_s, elapsed_s=12.4))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_picture_shows_the_round_who_works_and_how_far_it_is(play: Play) -> None:
    play.round(1)
    play.measured(1, 0.5)
    play.event("RoundStarted", 2, cohort=["a", "b"], target=2)
    play.device("a", status="training")
    play.document(round=2, cohort=["a", "b"], answered=["b"])
    play.now_s += 4.6
    text = drawn(live.picture_of(play.follower), now_s=play.now_s)
    assert "digits-1: digits by fedavg" in text
    assert "Round 2 of 3" in text
    assert "1 of 2 have answered, 25 s left" in text
    rows = {line.split()[0]: line.split()[-1] for line in text.splitlines() if line}
    assert (rows["a"], rows["b"], rows["e"]) == ("training", "answered", "ready")
    assert "accuracy  0.5000" in text
    assert "20.0 kB up, 40.0 kB down" in text
    assert "12 s" in text


def test_the_picture_of_a_large_fleet_stays_small(play: Play) -> None:
    for number in range(40):
        play.device(f"device-{number}")
    text = drawn(live.picture_of(play.follower))
    assert "and 31 more" in text
    assert len(text.splitlines()) < 24


def test_the_picture_says_whom_a_run_waits_for() -> None:
    play = Play(cohort_size=2)
    play.document(phase="gathering", status="waiting")
    text = drawn(live.picture_of(play.follower))
    assert "Waiting for devices that have task 'digits': 0 of 2" in text


def test_before_there_is_a_run_the_picture_says_what_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    out, device_table = Terminal(), DeviceTable()
    with open_view(out) as view:
        view.phase("Starting the broker")
        view.devices(device_table, 7)
        view.note("server has ended; starting it again")
    text = out.getvalue()
    assert "server has ended; starting it again" in text
    assert text.rstrip().endswith("\x1b[?25h"), "the cursor is shown again"


# --- wording ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_940, "999.9 kB"),
        (999_960, "1.0 MB"),
        (2_500_000_000, "2.5 GB"),
        (7_000_000_000_000, "7000.0 GB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert wording.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (59.99, "1 min 00 s"), (3600, "1 h 00 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


def test_a_sparkline_of_nothing_of_one_and_of_many() -> None:
    assert wording.sparkline([], 8) == ""
    assert wording.sparkline([0.5], 8) == "█"
    assert len(wording.sparkline([n / 100 for n in range(100)], 40)) == 40
