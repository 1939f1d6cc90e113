"""``rengo simulate`` as its users meet it: what it prints and leaves, and refuses in one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.integration.commands import rengo

QUICK = (
    *("--clients", "12", "--cohort", "4", "--rounds", "6", "--set", "training.local_epochs=1"),
    *("--set", "training.learning_rate=0.2"),
)
DIVERGING = ("--set", "training.learning_rate=1e6", "--set", "training.weight_decay=1e6")
DONE, FAILED, USAGE = 0, 3, 2


def test_a_run_is_simulated_without_a_site(tmp_path: Path) -> None:
    told = rengo("simulate", "digits", *QUICK, "--json", "-", home=tmp_path)
    assert told.code == DONE
    document = json.loads(told.out)
    assert document["rounds_completed"] == 6
    assert document["model_path"] is None
    assert len(document["round_s"]) == 6
    assert sum(each["rounds"] for each in document["devices"]) == 24
    assert {"backend", "backend_reason", "rounds_per_s"} <= document.keys()
    assert f"completed: accuracy {document['accuracy']:.4f} after 6 rounds" in told.err
    assert "round 6/6" in told.err
    assert list(tmp_path.iterdir()) == []


def test_seeds_and_sweeps_are_compared_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = rengo(
        *("simulate", "digits", *QUICK, "--seeds", "2", "--sweep", "algorithm.mu=0,1"),
        *("--set", "algorithm.name=fedprox", "--group", "mus", "--out", str(out)),
        home=tmp_path,
    )
    assert told.code == DONE, told.err
    assert "run 4 of 4: algorithm.mu=1, seed 1" in told.out
    folders = sorted(path.name for path in out.iterdir())
    assert folders == [f"run-{number:04d}" for number in range(1, 5)]
    for folder in out.iterdir():
        document = json.loads((folder / "result.json").read_text())
        assert Path(document["model_path"]).is_file()
        with (folder / "rounds.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["round"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
        assert float(rows[-1]["accuracy"]) == document["accuracy"]
    compared = rengo("runs", "compare", str(out), "--json", "-", home=tmp_path)
    variants = json.loads(compared.out)["variants"]
    assert [each["variant"] for each in variants] == ["algorithm.mu=0", "algorithm.mu=1"]
    assert [len(each["runs"]) for each in variants] == [2, 2]
    nothing = rengo("runs", "compare", str(tmp_path), home=tmp_path)
    assert nothing.code == USAGE
    assert "no results of a simulation" in nothing.line


def test_what_was_done_is_told_again(tmp_path: Path) -> None:
    command = ("simulate", "digits", *QUICK, "--out", str(tmp_path / "out"))
    first, again = (rengo(*command, home=tmp_path) for _ in range(2))
    assert (first.code, again.code) == (DONE, DONE)
    assert "it was there already" in again.out
    other = rengo(*command, "--set", "seed=3", home=tmp_path)
    assert other.code == USAGE
    assert "holds another simulation, which differs in definition.seed" in other.line


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("nothing",), USAGE, "no task 'nothing'"),
        (("digits", "--clients", "2000"), USAGE, "too few for 2000 clients"),
        (("digits", "--clients", "4", "--cohort", "9"), USAGE, "cannot be drawn from 4 clients"),
        (("digits", "--backend", "proceses"), USAGE, "did you mean 'processes'"),
        (("digits", "--partition", "dirichlets"), USAGE, "did you mean 'dirichlet'"),
        (("digits", "--set", "algorithm.name=fedprx"), USAGE, "fedprox"),
        (("digits", "--set", "flow=canary"), USAGE, "runs of the flow sync"),
        (("digits", "--sweep", "training.momentum"), USAGE, "not of the form key=a,b,c"),
        (("digits", "--data", "/nowhere"), USAGE, "/nowhere cannot be read"),
        (("digits", *DIVERGING), FAILED, "the simulated run failed: round 1, attempt 2: every"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    words: tuple[str, ...], code: int, line: str, tmp_path: Path
) -> None:
    told = rengo("simulate", *words, "--rounds", "3", home=tmp_path)
    assert told.code == code, told.err
    assert line in told.line
