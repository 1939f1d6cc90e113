"""A run that goes on where another ended: what the new run is, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from fl_server.dataplane.plane import DataPlane
from fl_server.rounds.facts import RoundCommitted
from fl_server.rounds.model import Model
from fl_server.runs.schedule import training_of
from runtime.errors import Corrupt, NotFound
from storage.registry.registry import ModelRegistry
from storage.store.memory import MemoryStore
from storage.versions.keys import RunKeys
from tests.operations import Disk, Life
from tests.versions import KEY, PROJECT, model_file, stored

ROUNDS = {"task": "digits", "rounds": 4, "seed": 5}


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


SHA = sha256_of(b"model")


@pytest.fixture
def life(tmp_path: Path) -> Any:
    found = Life(Disk(tmp_path))
    yield found
    found.end()


def ended(life: Life, version: int = 4, **more: Any) -> str:
    definition = {**ROUNDS, **more}
    prepared = life.do("runs_prepare", definition=definition, size_bytes=9)
    run_id: str = life.do("runs_submit", run_id=prepared["run_id"], sha256=SHA)["run_id"]
    life.do("runs_stop", run_id=run_id)
    for number in range(version - 1, version + 1):
        life.registry.commit(stored(life.disk.store, run_id, number))
    return run_id


def extended(life: Life, run_id: str, rounds: int = 3) -> Any:
    new = life.do("runs_extend", run_id=run_id, rounds=rounds)["run_id"]
    assert new != run_id
    return life.runner.records[new]


def test_the_new_run_has_the_definition_and_the_last_version(life: Life) -> None:
    more = {"training": {"momentum": 0.5}, "algorithm": {"name": "fedprox", "mu": 0.5}}
    run_id = ended(life, **more)
    record = extended(life, run_id)
    definition, before = record.definition, life.runner.definition(run_id)
    assert before is not None
    assert (definition.rounds, record.plan.rounds) == (3, 3)
    assert definition.training == {"momentum": 0.5}
    assert definition.algorithm == before.algorithm
    assert definition.seed != before.seed, "cohorts and batches do not repeat"
    parent = definition.models.parent
    last = life.registry.find(f"{run_id}:4").manifest
    assert (parent.run_id, parent.version, parent.sha256) == (run_id, 4, last.sha256)
    assert (record.initial.version, record.initial.sha256) == (0, last.sha256)
    assert record.initial.key == RunKeys(PROJECT, record.run_id).version(0)
    entries = [entry["act"] for entry in life.do("audit_ls")["entries"]]
    assert entries[0] == "run submitted"


def test_a_schedule_goes_on_as_if_all_rounds_had_been_of_one_run(life: Life) -> None:
    whole = {"schedule": {"name": "exponential", "decay": 0.5}, "training": {"learning_rate": 1}}
    record = extended(life, ended(life, **whole))
    rates = [training_of(record.definition, number)["learning_rate"] for number in (1, 2)]
    assert rates == [0.5**4, 0.5**5]
    life.do("runs_stop", run_id=record.run_id)
    life.registry.commit(stored(life.disk.store, record.run_id, 3))
    again = extended(life, record.run_id)
    assert training_of(again.definition, 1)["learning_rate"] == 0.5**7


def refused(life: Life, run_id: str, rounds: Any = 3) -> str:
    outcome = life.submit("runs_extend", {"run_id": run_id, "rounds": rounds})
    assert outcome.result is None
    return outcome.error


def test_what_cannot_go_on_says_why(life: Life) -> None:
    prepared = life.do("runs_prepare", definition=ROUNDS, size_bytes=9)
    running = life.do("runs_submit", run_id=prepared["run_id"], sha256=SHA)["run_id"]
    assert "has not ended: let it end or stop it first" in refused(life, running)
    assert "no run 'none'" in refused(life, "none")
    life.do("runs_stop", run_id=running)
    assert "has no version to go on from" in refused(life, running)
    assert "'rounds'" in refused(life, ended(life), rounds=0)


def test_the_scalars_of_the_server_come_with_the_facts_and_are_not_made_up(life: Life) -> None:
    run_id = ended(life, algorithm={"name": "term"})
    error = refused(life, run_id)
    assert "is no longer kept, and with it a part of the algorithm's server state" in error
    assert f"--from {run_id}" in error
    last = life.registry.find(f"{run_id}:4").manifest
    model = Model(4, last.key, last.sha256, last.size_bytes, scalars=(("step", 4.0),))
    life.journal.append(run_id, [RoundCommitted(4, 1, model)])
    assert extended(life, run_id).initial.scalars == (("step", 4.0),)


# --- the bytes --------------------------------------------------------------------------------


def test_the_version_and_its_server_state_are_copied(tmp_path: Path) -> None:
    store = MemoryStore()
    registry = ModelRegistry(store, PROJECT, KEY)
    plane = DataPlane(store, registry, tmp_path, lambda _: None)
    old, new = RunKeys(PROJECT, "old"), RunKeys(PROJECT, "new")
    body, state = model_file(b"model"), model_file(b"state", (7.0,))
    source = Model(
        *(4, old.version(4), sha256_of(body), len(body), old.state(4), sha256_of(state)),
        changed=((0, 8),),
        scalars=(("step", 4.0),),
    )
    store.put(source.key, body)
    with pytest.raises(NotFound):
        plane.adopt_version(source, "new")
    store.put(source.state_key, state)
    model = plane.adopt_version(source, "new")
    assert model == Model(
        *(0, new.version(0), sha256_of(body), len(body), new.state(0), sha256_of(state)),
        state_bytes=len(state),
        scalars=(("step", 4.0),),
    )
    for key, data in ((new.version(0), body), (new.state(0), state)):
        with store.open(key) as stream:
            assert stream.read(1 << 20) == data
    store.put(source.state_key, model_file(b"other"))
    with pytest.raises(Corrupt):
        DataPlane(store, registry, tmp_path / "other", lambda _: None).adopt_version(source, "n")
