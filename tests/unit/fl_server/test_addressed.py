"""What an operator is told of whom a run addresses, and how devices are labelled and grouped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.wire.messages import DeviceInfo, DeviceState
from fl_server.members.presence import DevicePresence
from fl_server.operations.call import Outcome
from fl_server.operations.handlers.addressed import Candidate, addressed
from fl_server.operations.mqtt import RESULT_BYTES
from fl_server.operations.results.base import encoded_bytes
from fl_server.operations.results.members import DeviceRow
from fl_server.persistence.database import sa
from fl_server.runs.definition import parse_definition
from fl_server.selection.traits import DeviceTraits
from tests.operations import Disk, Life
from tests.unit.fl_server.test_addressing import info
from tests.unit.fl_server.test_operations import SHA, device


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    made = Life(Disk(tmp_path))
    made.do("devices_admit", devices=[device(name) for name in ("d-1", "d-2", "d-3", "d-4")])
    yield made
    made.end()


def here(life: Life, name: str, told: DeviceInfo | None = None, **said: Any) -> None:
    """Have a device say that it is there, and what it is."""
    values = {"status": "ready", "boot_id": "b", "tasks": ["digits"], **said}
    if told is not None:
        life.presence.store_info(name, told)
    life.presence.apply_state(name, DeviceState.model_validate(values))


def prepare(life: Life, **definition: Any) -> Outcome:
    values = {"definition": {"task": "digits", **definition}, "size_bytes": 9}
    return life.submit("runs_prepare", values)


def submit(life: Life, **definition: Any) -> str:
    outcome = prepare(life, **definition)
    assert outcome.result is not None, outcome.error
    run_id = outcome.result.document()["run_id"]
    life.do("runs_submit", run_id=run_id, sha256=SHA)
    return str(run_id)


def audit(life: Life) -> list[tuple[str, str, str, dict[str, Any]]]:
    entries = life.do("audit_ls")["entries"]
    return [(each["actor"], each["act"], each["subject"], each["detail"]) for each in entries]


# --- labels and groups ----------------------------------------------------------------------------


def test_labels_are_kept_audited_and_listed(life: Life) -> None:
    life.do("devices_label", device_ids=["d-1", "d-2"], labels={"room": "attic", "floor": "3"})
    done = life.do("devices_label", device_ids=["d-1"], labels={"room": "hall"}, remove=["floor"])
    assert done == {"devices": [{"id": "d-1", "labels": {"room": "hall"}}]}
    detail = {"labels": {"room": "hall"}, "removed": ["floor"]}
    assert audit(life)[0] == ("operator", "labels changed", "d-1", detail)
    life.end()
    again = Life(life.disk)
    rows = {row["id"]: row.get("operator_labels") for row in again.do("devices_ls")["devices"]}
    assert rows["d-1"] == {"room": "hall"}
    assert rows["d-2"] == {"room": "attic", "floor": "3"}
    assert rows["d-3"] is None
    again.end()


def test_what_changes_nothing_is_no_act(life: Life) -> None:
    life.do("devices_label", device_ids=["d-1"], labels={"room": "attic"})
    acts = len(audit(life))
    life.do("devices_label", device_ids=["d-1"], labels={"room": "attic"}, remove=["floor"])
    life.do("devices_group", device_ids=["d-1"], group="")
    assert len(audit(life)) == acts


def test_a_group_is_changed_and_audited(life: Life) -> None:
    assert life.do("devices_group", device_ids=["d-1", "d-2"], group="lab")["group"] == "lab"
    assert audit(life)[0] == ("operator", "group changed", "d-2", {"group": "lab"})
    assert life.traits.of("d-1").group == "lab"
    life.end()
    again = Life(life.disk)
    assert again.members.devices["d-2"].group == "lab"
    again.end()


@pytest.mark.parametrize(
    ("operation", "arguments", "words"),
    [
        ("devices_label", {"labels": {"a": "b"}}, "no active device 'd-11'; did you mean d-1?"),
        ("devices_group", {"group": "lab"}, "no active device 'd-11'; did you mean d-1?"),
        ("devices_label", {"device_ids": ["d-1"], "labels": {"1a": "b"}}, "labels.1a"),
        ("devices_label", {"device_ids": ["d-1"], "labels": {"a": "b,c"}}, "labels.a"),
        ("devices_label", {"device_ids": ["d-1"], "labels": {"a": "b" * 201}}, "labels.a"),
        (
            "devices_label",
            {"device_ids": ["d-1"], "labels": {"a": "b"}, "remove": ["a"]},
            "label a cannot be set and removed at once",
        ),
        ("devices_label", {"device_ids": []}, "device_ids"),
    ],
)
def test_wrong_labels_change_nothing(
    life: Life, operation: str, arguments: dict[str, Any], words: str
) -> None:
    acts = len(audit(life))
    outcome = life.submit(operation, {"device_ids": ["d-2", "d-11"], **arguments})
    assert words in outcome.error
    assert len(audit(life)) == acts
    assert not life.labels.of("d-2")


def test_more_labels_than_a_device_may_have_are_refused(life: Life) -> None:
    life.do("devices_label", device_ids=["d-1"], labels={f"a{n}": "" for n in range(64)})
    outcome = life.submit("devices_label", {"device_ids": ["d-1"], "labels": {"b": ""}})
    assert "d-1 would have 65 labels, at most 64" in outcome.error


def test_damaged_labels_are_removed_and_named(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    life.do("devices_label", device_ids=["d-1", "d-2"], labels={"room": "attic"})
    with life.journal.database.begin() as connection:
        change = 'UPDATE rengo_device_labels SET labels = \'{"room": "hall"}\' '
        connection.execute(sa.text(f"{change} WHERE device_id = 'd-1'"))
    life.end()
    again = Life(life.disk)
    assert again.labels.of("d-1") == {}
    assert again.labels.of("d-2") == {"room": "attic"}
    assert audit(again)[0][1:3] == ("labels damaged", "d-1")
    assert "labels of device d-1 are damaged" in caplog.text
    again.end()


# --- whom a run addresses -------------------------------------------------------------------------


def test_a_run_that_fits_nobody_says_why_device_by_device(life: Life) -> None:
    life.do("devices_group", device_ids=["d-1", "d-2", "d-3", "d-4"], group="lab")
    life.do("devices_admit", devices=[device("d-5")])
    here(life, "d-1", info("cpu"))
    here(life, "d-2", info("pi"), tasks=["faces"])
    here(life, "d-3", info("pi"), status="offline")
    run_id = submit(life, target=["group:lab"], where=["profile=pi"])
    told = life.do("runs_devices", run_id=run_id)
    assert (told["devices"], told["fitting"]) == (6, 0)
    assert {each["id"]: each["reason"] for each in told["first"]} == {
        "d-1": "profile is cpu, not pi",
        "d-2": "has not task 'digits'; its tasks: faces",
        "d-3": "is offline",
        "d-4": "has never been here",
        "d-5": "is in no group, and not of the target",
        "e-1": "is in no group, and not of the target",
    }
    assert {each["cause"]: each["devices"] for each in told["causes"]} == {
        "not group:lab": 2,
        "not profile=pi": 1,
        "without task digits": 1,
        "offline": 1,
        "never here": 1,
    }
    shown = life.do("runs_show", run_id=run_id)
    assert shown["addressed"] == told
    assert (shown["target"], shown["where"]) == (["group:lab"], ["profile=pi"])


def test_a_label_lets_a_waiting_run_begin(life: Life) -> None:
    here(life, "d-1", info())
    run_id = submit(life, where=["room=attic"], cohort={"size": 1})
    assert life.do("runs_show", run_id=run_id)["phase"] == "gathering"
    life.do("devices_label", device_ids=["d-1"], labels={"room": "attic"})
    shown = life.do("runs_show", run_id=run_id)
    assert shown["phase"] == "collecting"
    assert shown["addressed"] is None, "it does not wait any more"


def test_a_group_lets_a_waiting_run_begin(life: Life) -> None:
    here(life, "d-1", info())
    run_id = submit(life, target=["group:lab"], cohort={"size": 1})
    assert life.do("runs_devices", run_id=run_id)["note"] == (
        "no device is in group lab; there are: none"
    )
    life.do("devices_group", device_ids=["d-2"], group="lap")
    note = life.do("runs_devices", run_id=run_id)["note"]
    assert note == "no device is in group lab; did you mean lap?"
    life.do("devices_group", device_ids=["d-1"], group="lab")
    assert life.do("runs_show", run_id=run_id)["phase"] == "collecting"
    assert life.do("runs_devices", run_id=run_id)["note"] == ""


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        ({"target": ["d-11"]}, "target: there is no device or domain 'd-11'; did you mean d-1?"),
        ({"target": ["zzz"]}, "'zzz'; `rengo devices ls` lists them"),
        ({"where": ["profle=pi"]}, "did you mean profile?"),
        ({"where": ["ram>=4"]}, "4 has no unit"),
        ({"target": ["groups:a"]}, "'groups:a' is no target"),
    ],
)
def test_a_run_with_a_wrong_target_is_refused_in_one_line(
    life: Life, definition: dict[str, Any], words: str
) -> None:
    outcome = prepare(life, **definition)
    assert words in outcome.error
    assert outcome.fault == "usage"
    assert "\n" not in outcome.error


def test_ten_thousand_devices_are_told_of_in_one_message() -> None:
    state = DeviceState(status="ready", boot_id="b", tasks=["digits"])
    told = info("c" * 500)
    candidates = [
        Candidate(
            DeviceTraits(f"d-{number:05}", told, labels={"n": str(number)}),
            DevicePresence(f"d-{number:05}", state, told),
        )
        for number in range(10_000)
    ]
    conditions = [f"profile={'p' * 200}{number}" for number in range(31)]
    definition = parse_definition({"task": "digits", "where": ["n>=5000", *conditions]}, "test")
    found = addressed("r", definition, candidates)
    assert (found.devices, found.fitting) == (10_000, 0)
    assert [each.devices for each in found.causes] == [5000, 5000]
    assert len(found.first) == 20
    assert encoded_bytes(found) < RESULT_BYTES / 10


def test_a_row_of_the_list_says_what_runs_choose_by(life: Life) -> None:
    here(life, "d-1", info("pi", floor="2"))
    life.do("devices_group", device_ids=["d-1"], group="lab")
    life.do("devices_label", device_ids=["d-1"], labels={"room": "attic"})
    [row] = [each for each in life.do("devices_ls")["devices"] if each["id"] == "d-1"]
    assert DeviceRow.read(row).traits == life.traits.of("d-1")
