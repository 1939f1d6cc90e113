"""Submitting operations: who may, with which arguments, and how often each takes effect."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fl_server.kinds.canary import CanaryFlow
from fl_server.operations.call import Caller, Outcome
from fl_server.operations.catalogue import OPERATIONS, Effect
from fl_server.operations.requests import (
    KEPT_PER_CALLER,
    RequestKey,
    RequestLog,
    RequestRecord,
    digest_of,
)
from fl_server.persistence.database import Database, sa
from runtime.security.join_token import JoinToken
from runtime.security.signing import SecretKey
from storage.versions.keys import BundleKeys, RunKeys
from tests import bundles
from tests.operations import Disk, Killed, Life, Mortal
from tests.versions import PROJECT, stored

VIEWER = Caller("guest", "viewer")
BUNDLE, OTHER_BUNDLE = bundles.bundle(), bundles.bundle(version="2")
DEFINITION = {"definition": {"task": "digits", "rounds": 2, "cohort": {"size": 2}}}
SHA = "0a" * 32
TRIAL = {"share": 1.0, "metric": "loss", "max_drop": 0, "deadline_s": 9}
REQUEST = "request-1"


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def device(name: str) -> dict[str, Any]:
    key = SecretKey(sha256_of(name.encode()))
    return {
        "id": name,
        "public_key": key.public.text,
        "client_id": f"{name}-1",
        "password": f"secret-of-{name}",
    }


@dataclass
class World:
    """Something of every kind on a disk, and the names that chance gave."""

    disk: Disk
    prepared: str
    running: str
    paused: str
    stopped: str
    canary: str

    @classmethod
    def make(cls, folder: Path) -> World:
        disk = Disk(folder)
        life = Life(disk)
        names = (_prepared(life), _started(life), _started(life), _started(life))
        life.do("runs_pause", run_id=names[2])
        life.do("runs_stop", run_id=names[3])
        life.registry.commit(stored(disk.store, names[3], 0))
        life.do("devices_admit", devices=[device("d-1")])
        life.do("devices_invite")
        for version in range(3):
            life.registry.commit(stored(disk.store, "old", version))
            life.registry.commit(stored(disk.store, "faces", version, task="faces"))
        life.do("models_promote", name="old:0")
        life.do("models_promote", name="old:1")
        life.do("models_tag", name="old:1", label="kept")
        keys = BundleKeys(PROJECT)
        for data in (BUNDLE, OTHER_BUNDLE):
            disk.store.put(keys.incoming(sha256_of(data)), data)
        size = len(OTHER_BUNDLE)
        life.do("bundles_keep", sha256=sha256_of(OTHER_BUNDLE), size_bytes=size)
        disk.store.put("projects/p/runs/gone/global/000000.safetensors", b"stray")
        stored(disk.store, "lost", 1)
        disk.store.put(RunKeys(PROJECT, "lost").manifest(1), b"not what was written")
        life.do("models_promote", name="faces:0")
        canary_id = life.do("canary_begin", name="faces:1", **TRIAL)["canary_id"]
        life.end()
        return cls(disk, *names, canary_id)

    def copy(self, folder: Path) -> World:
        return replace(self, disk=self.disk.copy(folder))

    def arguments(self, operation: str) -> dict[str, Any]:
        """Return arguments with which an operation succeeds."""
        bundle = {"sha256": sha256_of(BUNDLE), "size_bytes": len(BUNDLE)}
        return {
            "devices_invite": {"uses": 2},
            "devices_admit": {"devices": [device("d-2"), device("d-3")]},
            "devices_rotate": {"device_id": "d-1"},
            "devices_revoke": {"device_id": "d-1"},
            "devices_label": {"device_ids": ["d-1"], "labels": {"room": "attic"}},
            "devices_group": {"device_ids": ["d-1"], "group": "lab"},
            "runs_show": {"run_id": self.running},
            "runs_devices": {"run_id": self.running},
            "runs_prepare": {**DEFINITION, "size_bytes": 9},
            "runs_renew": {"run_id": self.prepared},
            "runs_submit": {"run_id": self.prepared, "sha256": SHA},
            "runs_extend": {"run_id": self.stopped, "rounds": 3},
            "runs_pause": {"run_id": self.running},
            "runs_resume": {"run_id": self.paused},
            "runs_stop": {"run_id": self.running},
            "models_show": {"name": "old:1"},
            "models_production": {"task": "digits"},
            "models_url": {"name": "old:1"},
            "models_promote": {"name": "old:2"},
            "models_rollback": {"name": "old:1"},
            "models_tag": {"name": "old:2", "label": "kept"},
            "models_untag": {"name": "old:1", "label": "kept"},
            "models_rm": {"name": "old:2"},
            "models_discard": {"name": "lost:1"},
            "canary_begin": {"name": "old:2", **TRIAL},
            "canary_show": {"canary_id": self.canary},
            "bundles_prepare": bundle,
            "bundles_keep": bundle,
            "bundles_find": {"name": "tiny"},
            "bundles_rm": {"name": "tiny"},
        }.get(operation, {})


def _prepared(life: Life) -> str:
    return str(life.do("runs_prepare", **DEFINITION, size_bytes=9)["run_id"])


def _started(life: Life) -> str:
    return str(life.do("runs_submit", run_id=_prepared(life), sha256=SHA)["run_id"])


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The world that every test begins with a copy of."""
    return World.make(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="module")
def shared(
    template: World, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[World, Life]]:
    """A world that its tests only look at."""
    world = template.copy(tmp_path_factory.mktemp("world"))
    life = Life(world.disk)
    yield world, life
    life.end()


@pytest.fixture
def world(template: World, tmp_path: Path) -> World:
    return template.copy(tmp_path)


# --- the table --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_caller_without_the_role_is_refused(name: str, shared: tuple[World, Life]) -> None:
    world, life = shared
    before = json.dumps(life.do("audit_ls"))
    outcome = life.submit(name, world.arguments(name), caller=VIEWER)
    if OPERATIONS[name].role == "viewer":
        assert outcome.fault == "", outcome.error
        assert OPERATIONS[name].effect is Effect.NONE, "who only looks changes nothing"
    else:
        assert (outcome.result, outcome.fault) == (None, "forbidden")
        assert outcome.error == f"{name} is for an operator; guest is a viewer"
        assert json.dumps(life.do("audit_ls")) == before


@pytest.mark.parametrize("name", OPERATIONS)
def test_unknown_and_missing_arguments_are_refused(name: str, shared: tuple[World, Life]) -> None:
    world, life = shared
    before = json.dumps(life.do("audit_ls"))
    right = world.arguments(name)
    wrong = life.submit(name, {**right, "more": 1})
    assert (wrong.result, wrong.fault) == (None, "usage")
    assert "unknown key 'more'" in wrong.error
    for key in right:
        if OPERATIONS[name].arguments.model_fields[key].is_required():
            left = {each: value for each, value in right.items() if each != key}
            assert f"'{key}': Field required" in life.submit(name, left).error
    assert json.dumps(life.do("audit_ls")) == before


def test_an_unknown_operation_is_refused(shared: tuple[World, Life]) -> None:
    for name in ("no_such_thing", "", "submit", "__init__"):
        outcome = shared[1].submit(name)
        assert (outcome.result, outcome.fault) == (None, "usage")
        assert outcome.error.startswith(f"no operation {name!r}; there are: server_info, ")


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_succeeds_and_its_result_survives_the_wire(name: str, world: World) -> None:
    life = Life(world.disk)
    outcome = life.submit(name, world.arguments(name))
    result = outcome.result
    assert result is not None, outcome.error
    assert type(result) is OPERATIONS[name].result
    assert type(result).read(json.loads(json.dumps(result.document()))) == result
    assert Outcome.restored(outcome.stored(), OPERATIONS[name]) == outcome
    life.end()


# --- once and no more -------------------------------------------------------------------------

CHANGES = [name for name, each in OPERATIONS.items() if each.effect is not Effect.NONE]
_CHANCE = re.compile(r"[0-9a-f]{8,}|rengo_[A-Za-z0-9_-]+")


def plain(value: Any) -> str:
    """Return a document without what chance gives."""
    return _CHANCE.sub("#", json.dumps(value, sort_keys=True))


def told(outcome: Outcome) -> str:
    document = None if outcome.result is None else outcome.result.document()
    for key in ("submitted_at",):
        if document is not None:
            document.pop(key, None)
    return plain([document, outcome.error, outcome.fault])


def state(life: Life) -> str:
    """Return all that operations change, in the words of those that look."""
    acts = [
        [each["act"], each["subject"], each["detail"]] for each in life.do("audit_ls")["entries"]
    ]
    rows = [{**row, "submitted_at": 0} for row in life.do("runs_ls")["runs"]]
    devices = [{**row, "admitted_at": 0} for row in life.do("devices_ls")["devices"]]
    rotations = [each.rotation for each in life.members.devices.values()]
    tokens = [each.uses for each in life.members.tokens.values()]
    models = [
        {**row, "promotions": life.registry.find(row["name"]).record.promotions}
        for row in life.do("models_ls")["models"]
    ]
    keys = sorted(_CHANCE.sub("#", info.key) for info in life.disk.store.list(""))
    prepared = len(life.journal.prepared())
    kept = life.do("bundles_ls")
    canaries = [each.plan.candidate.name for each in life.runner.of(CanaryFlow).values()]
    return plain(
        [acts, rows, devices, sorted(tokens), models, keys, prepared, kept, canaries, rotations]
    )


@dataclass
class Undisturbed:
    """What an operation answers and leaves, and in how many steps."""

    answer: str
    state: str
    steps: int


def undisturbed(name: str, template: World, folder: Path) -> Undisturbed:
    world = template.copy(folder)
    life = Life(world.disk, mortal := Mortal())
    before = mortal.steps
    outcome = life.submit(name, world.arguments(name), REQUEST)
    steps = mortal.steps - before
    assert outcome.result is not None, outcome.error
    found = Undisturbed(told(outcome), state(life), steps)
    life.end()
    return found


@pytest.mark.parametrize("name", CHANGES)
def test_the_same_request_again_has_the_same_answer_and_no_other_effect(
    name: str, world: World, template: World, tmp_path: Path
) -> None:
    expected = undisturbed(name, template, tmp_path / "undisturbed")
    life = Life(world.disk)
    first = life.submit(name, world.arguments(name), REQUEST)
    assert (told(first), state(life)) == (expected.answer, expected.state)
    again = life.submit(name, world.arguments(name), REQUEST)
    assert (again, state(life)) == (first, expected.state)
    life.end()
    later = Life(world.disk)
    assert later.submit(name, world.arguments(name), REQUEST) == first
    assert state(later) == expected.state
    later.end()


@pytest.mark.parametrize("name", CHANGES)
def test_a_kill_at_any_step_changes_neither_the_answer_nor_the_effect(
    name: str, template: World, tmp_path: Path
) -> None:
    """Every step of every operation: the process ends, the next one is asked again."""
    expected = undisturbed(name, template, tmp_path / "undisturbed")
    assert expected.steps >= 2
    for step in range(expected.steps):
        world = template.copy(tmp_path / str(step))
        life = Life(world.disk, mortal := Mortal())
        mortal.at = mortal.steps + step
        with pytest.raises(Killed):
            life.submit(name, world.arguments(name), REQUEST)
        life.end()
        again = Life(world.disk)
        outcome = again.submit(name, world.arguments(name), REQUEST)
        assert told(outcome) == expected.answer, f"killed at step {step}"
        assert state(again) == expected.state, f"killed at step {step}"
        again.end()


@pytest.mark.parametrize(
    "name", [each for each in CHANGES if OPERATIONS[each].effect is Effect.RESUMED]
)
def test_what_a_kill_interrupted_is_completed_without_being_asked_again(
    name: str, template: World, tmp_path: Path
) -> None:
    expected = undisturbed(name, template, tmp_path / "undisturbed")
    for step in range(3, expected.steps):  # the third step stores the request
        world = template.copy(tmp_path / str(step))
        life = Life(world.disk, mortal := Mortal())
        mortal.at = mortal.steps + step
        with pytest.raises(Killed):
            life.submit(name, world.arguments(name), REQUEST)
        life.end()
        again = Life(world.disk)
        assert state(again) == expected.state, f"killed at step {step}"
        again.end()


def test_an_id_stands_for_one_request(world: World) -> None:
    life = Life(world.disk)
    life.do("server_info")
    life.submit("models_tag", {"name": "old:2", "label": "one"}, REQUEST)
    for name, arguments in (
        ("models_tag", {"name": "old:2", "label": "two"}),
        ("models_untag", {"name": "old:2", "label": "one"}),
    ):
        outcome = life.submit(name, arguments, REQUEST)
        assert (outcome.result, outcome.fault) == (None, "usage")
        assert "a new request needs a new id" in outcome.error
    others = life.submit(
        "models_tag", {"name": "old:2", "label": "two"}, REQUEST, Caller("o", "operator")
    )
    assert others.fault == "", "another caller's ids are its own"
    life.end()


def test_what_failed_fails_again_with_the_same_id(world: World) -> None:
    life = Life(world.disk)
    wanted = {"device_id": "d-9"}
    first = life.submit("devices_rotate", wanted, REQUEST)
    assert (first.result, first.fault) == (None, "not_found")
    life.do("devices_admit", devices=[device("d-9")])
    assert life.submit("devices_rotate", wanted, REQUEST) == first
    assert life.submit("devices_rotate", wanted, "request-2").fault == ""
    life.end()


def test_a_request_that_is_underway_is_not_begun_again(world: World) -> None:
    life = Life(world.disk)
    arguments = {"name": "old:2"}
    first = life.begin("models_promote", arguments, REQUEST)
    assert life.begin("models_promote", arguments, REQUEST) is first
    other = life.begin("models_promote", {"name": "old:0"}, REQUEST)
    assert other.outcome is not None
    assert "a new request needs a new id" in other.outcome.error
    assert first.outcome is None
    life.plane.run()
    assert first.outcome is not None
    assert first.outcome.fault == ""
    life.end()


def test_nothing_comes_between_what_a_kill_interrupted_and_its_end(world: World) -> None:
    """Promoting old:2 was interrupted; promoting old:0 is asked for first after the restart."""
    life = Life(world.disk, mortal := Mortal())
    mortal.at = mortal.steps + 3
    with pytest.raises(Killed):
        life.submit("models_promote", {"name": "old:2"}, REQUEST)
    life.end()
    again = Life(world.disk, settled=False)
    other = again.begin("models_promote", {"name": "old:0"}, "request-2")
    first = again.begin("models_promote", {"name": "old:2"}, REQUEST)
    again.plane.run()
    assert first.outcome is not None
    assert other.outcome is not None
    assert (first.outcome.fault, other.outcome.fault) == ("", "")
    promotions = {n: again.registry.find(f"old:{n}").record.promotions for n in (0, 1, 2)}
    assert promotions[2][-1] < promotions[0][-1], "in the order in which they were accepted"
    again.end()


# --- what lies in the database ----------------------------------------------------------------


def test_no_secret_lies_in_the_database(world: World) -> None:
    life = Life(world.disk)
    made = life.submit("devices_invite", {}, REQUEST).result
    assert made is not None
    token = made.document()["token"]
    prepared = life.submit("runs_prepare", {**DEFINITION, "size_bytes": 9}, "request-2").result
    assert prepared is not None
    life.end()
    data = b"".join(each.read_bytes() for each in world.disk.folder.glob("journal.sqlite*"))
    assert REQUEST.encode() in data, "what is looked at is the table"
    parsed = JoinToken.parse(token)
    for secret in (token.encode(), parsed.secret, parsed.secret.hex().encode(), b"method=PUT"):
        assert secret not in data


def test_the_latest_requests_of_each_caller_are_kept(world: World) -> None:
    life = Life(world.disk)
    log = RequestLog(life.journal.database)
    kept = RequestKey("other", REQUEST)
    life.submit("devices_rotate", {"device_id": "d-1"}, REQUEST, Caller("other", "operator"))
    with life.journal.database.begin() as connection:
        for number in range(KEPT_PER_CALLER + 5):
            key = RequestKey("operator", f"r-{number}")
            log.write(connection, RequestRecord(key, "devices_rotate", "", outcome="{}"))
    found = [log.find(RequestKey("operator", f"r-{n}")) is not None for n in range(6)]
    assert found == [False] * 5 + [True]
    assert log.find(kept) is not None, "one caller's requests do not push out another's"
    life.end()


def test_requests_of_a_removed_caller_go_at_the_next_start(world: World) -> None:
    life = Life(world.disk)
    log = RequestLog(life.journal.database)
    rows = {
        ("operator", "kept"): "",
        ("removed", "answered"): "",
        ("removed", "unfinished"): '{"device_id":"d-1"}',
    }
    for (caller, request_id), arguments in rows.items():
        key = RequestKey(caller, request_id)
        digest = digest_of("devices_revoke", {"device_id": "d-1"})
        log.save(RequestRecord(key, "devices_revoke", digest, arguments=arguments, outcome="{}"))
    life.end()
    again = Life(world.disk)
    log = RequestLog(again.journal.database)
    found = {(c, r): log.find(RequestKey(c, r)) is not None for c, r in rows}
    assert found == {
        ("operator", "kept"): True,
        ("removed", "answered"): False,
        ("removed", "unfinished"): True,
    }
    again.end()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("arguments = replace(arguments, 'old:2', 'old:0')", "is damaged in the journal"),
        ("arguments = replace(arguments, '{', '[')", "is damaged in the journal"),
        ("arguments = CAST(X'FB7D' AS TEXT)", "is damaged in the journal"),
        ("operation = 'models_archive'", "is damaged in the journal"),
        ("digest = 'x'", "is damaged in the journal"),
        ("operation = 'models_blend', digest = :digest", "has no operation 'models_blend'"),
    ],
)
def test_a_damaged_request_is_given_up_and_the_server_goes_on(
    world: World, change: str, said: str
) -> None:
    """One flipped bit: another version would be promoted, or no server would ever start again."""
    life = Life(world.disk, mortal := Mortal())
    mortal.at = mortal.steps + 4
    with pytest.raises(Killed):
        life.submit("models_promote", {"name": "old:2"}, REQUEST)
    before = life.registry.production("digits")
    life.end()
    database = Database(world.disk.url)
    with database.begin() as connection:
        text = sa.text(f"UPDATE rengo_requests SET {change} WHERE arguments != ''")
        digest = digest_of("models_blend", {"name": "old:2", "reason": ""})
        values = {"digest": digest} if ":digest" in change else {}
        assert connection.execute(text, values).rowcount == 1
    database.close()
    again = Life(world.disk)
    assert again.registry.production("digits") == before
    record = RequestLog(again.journal.database).find(RequestKey("operator", REQUEST))
    assert record is not None
    assert record.arguments == ""
    assert said in record.outcome
    assert again.submit("models_promote", {"name": "old:2"}, "request-2").fault == ""
    again.end()
