"""Runs in virtual time: the same training, whose results arrive as a fleet's devices would send."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rengo
from rengo.simulation import run
from rengo.simulation.states import BoundedStates
from runtime.errors import ConfigError, RunNotCompleted

LOCAL = {"training": {"local_epochs": 1, "batch_size": 10, "learning_rate": 0.2}}


def simulated(fleet: str = "pi-4", cohort: Any = None, **more: Any) -> rengo.SimulationResult:
    settings = {**LOCAL, "cohort": {"size": 5, "deadline_s": 600, **(cohort or {})}}
    given = {"clients": 20, "rounds": 5, "backend": "inline", "settings": settings, **more}
    return rengo.simulate("digits", fleet=fleet, **given)


def test_where_nobody_is_dropped_the_model_is_that_of_clients_that_answer_at_once():
    at_once, paced = simulated(""), simulated("pi-4=3,edge-cpu=1")
    assert np.array_equal(at_once.weights.vector, paced.weights.vector)
    assert at_once.accuracy == paced.accuracy
    assert at_once.account is None
    assert paced.account is not None
    rows = [entry.document() for entry in paced.account.rounds]
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(row["included"] == 5 and not row["dropped"] for row in rows)
    assert [row.virtual_s for row in paced.rounds] == [row["virtual_s"] for row in rows]
    assert all(row["round_virtual_s"] > 1.0 for row in rows)


def test_a_straggler_is_dropped_and_its_update_is_not_in_the_model(tmp_path: Path):
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(
        '[[device]]\npreset = "edge-cpu"\nshare = 4\n'
        '[[device]]\nname = "slow"\npreset = "pi-zero-2"\nstart_s = 900\n'
    )
    found = simulated(str(fleet), rounds=8)
    assert found.account is not None
    dropped = [entry for entry in found.account.rounds if entry.dropped]
    assert dropped
    for entry in dropped:
        assert entry.document()["round_virtual_s"] == pytest.approx(600)
        assert set(entry.dropped.values()) == {"the round closed without it during the training"}
        assert found.rounds[entry.round - 1].updates == 5 - len(entry.dropped)
        assert entry.wasted.joules > 0
    assert not np.array_equal(found.weights.vector, simulated("", rounds=8).weights.vector)


def test_over_selection_takes_the_first_answers_in_less_virtual_time():
    fleet = "phone=3,pi-zero-2=1"
    whole = simulated(fleet, rounds=10)
    over = simulated(fleet, {"over_selection": 1.6}, rounds=10)
    assert over.account is not None
    assert all(entry.document()["included"] == 5 for entry in over.account.rounds)
    assert over.rounds[-1].virtual_s < whole.rounds[-1].virtual_s
    assert over.account.total().joules > sum(
        entry.cost.joules - entry.wasted.joules for entry in over.account.rounds
    )


def test_the_same_seed_is_the_same_history_and_another_is_another():
    first, again = (simulated("phone", {"over_selection": 1.4}) for _ in range(2))
    other = simulated("phone", {"over_selection": 1.4}, seed=7)
    documents = [
        [entry.document() for entry in found.account.rounds]
        for found in (first, again, other)
        if found.account is not None
    ]
    assert documents[0] == documents[1] != documents[2]
    assert np.array_equal(first.weights.vector, again.weights.vector)


def test_a_trace_decides_who_is_there(tmp_path: Path):
    trace = tmp_path / "trace.csv"
    # half of the clients come after an hour, the other half leave then
    rows = ["device,from_s,to_s,online", "a,0,3600,1", "a,3600,9e9,0", "b,0,3600,0", "b,3600,9e9,1"]
    trace.write_text("\n".join(rows))
    found = simulated("pi-4", trace=trace, rounds=4)
    assert found.account is not None
    for entry in found.account.rounds:
        numbers = {int(name.removeprefix("client-")) % 2 for name in entry.included}
        assert numbers == {0 if entry.started_s < 3600 else 1}


def test_evaluation_on_the_devices_takes_their_time_and_gives_their_metrics():
    settings = {**LOCAL, "cohort": {"size": 5}, "evaluation": {"on": "devices"}}
    found = simulated("pi-4", settings=settings, rounds=3)
    at_once = simulated("", settings=settings, rounds=3)
    assert found.account is not None
    assert found.account.evaluation.joules > 0
    assert found.rounds[-1].metrics.keys() == at_once.rounds[-1].metrics.keys()
    assert found.accuracy == pytest.approx(at_once.accuracy)


def test_a_folder_of_results_tells_time_energy_and_who_was_dropped(tmp_path: Path):
    cohort = {"over_selection": 1.6}
    found = simulated("phone=3,pi-zero-2=1", cohort, out=tmp_path / "out")
    with (tmp_path / "out" / "rounds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["dropped"] for row in rows] == ["3"] * 5
    told = json.loads((tmp_path / "out" / "result.json").read_text())["virtual"]
    assert told["seconds"] == float(rows[-1]["virtual_s"]) == found.rounds[-1].virtual_s
    energy = sum(float(row["energy_j"]) for row in rows) + told["evaluation_energy_j"]
    assert told["energy_j"] == pytest.approx(energy)
    assert 0 < told["wasted_energy_j"] < told["energy_j"]
    assert all(len(row["dropped"]) == 3 for row in told["rounds"])
    # another fleet is another simulation
    with pytest.raises(ConfigError, match="holds another simulation"):
        simulated("phone", cohort, out=tmp_path / "out")
    again = simulated("phone=3,pi-zero-2=1", cohort, out=tmp_path / "out")
    assert again.was_there


def test_client_states_beyond_memory_change_no_bit(monkeypatch: pytest.MonkeyPatch):
    settings = {**LOCAL, "algorithm": {"name": "scaffold"}, "cohort": {"size": 5}}
    in_memory = simulated(settings=settings)
    monkeypatch.setattr(run, "BoundedStates", lambda: BoundedStates(0))
    in_file = simulated(settings=settings)
    assert np.array_equal(in_memory.weights.vector, in_file.weights.vector)


def test_devices_that_are_never_there_together_end_the_run(tmp_path: Path):
    trace = tmp_path / "trace.csv"
    trace.write_text("device,from_s,to_s,online\na,0,9e9,1\nb,0,9e9,0\nc,0,9e9,0\nd,0,9e9,0\n")
    with pytest.raises(RunNotCompleted, match="waits for clients that never come"):
        simulated("pi-4", {"quorum": 5, "size": 6}, trace=trace, clients=8)
    trace.write_text("device,from_s,to_s,online\na,0,21600,1\na,21600,43200,0\nb,0,43200,0\n")
    with pytest.raises(RunNotCompleted, match="not committed within 30 days of virtual time"):
        simulated("pi-4", {"quorum": 5, "size": 6}, trace=trace, clients=8)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"fleet": "fone"}, "there is no preset 'fone'"),
        ({"fleet": "none.toml"}, "none.toml does not exist"),
        ({"fleet": "", "trace": "trace.csv"}, "a fleet has to say what they are"),
        ({"fleet": "phone", "trace": "none.csv"}, "does not exist"),
    ],
)
def test_what_cannot_be_is_told(given: dict[str, str], told: str):
    with pytest.raises(ConfigError, match=told):
        simulated(**given)
