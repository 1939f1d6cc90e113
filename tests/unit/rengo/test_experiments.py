"""The runs of an experiment, and how runs are put side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fl_server.operations.results.runs import RunReport
from fl_server.runs.definition import parse_definition
from rengo.operator.comparison import Spread, compare
from rengo.operator.sweep import MAX_RUNS, SweptKey, definitions
from rengo.terminal.plot import draw_comparison
from runtime.errors import ConfigError

# --- sweeps -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("algorithm.mu=0,0.1,1", [0, 0.1, 1]),
        ("algorithm.name=fedavg,fedprox", ["fedavg", "fedprox"]),
        ("training.class_weights=[1,2],[3,4]", [[1, 2], [3, 4]]),
        ("cohort.fit=off", ["off"]),
        ('algorithm.name="a,b", "c"', ["a,b", "c"]),
        ("x = 1, 2", [1, 2]),
    ],
)
def test_a_swept_key_has_the_values_between_its_commas(text: str, values: list[Any]) -> None:
    assert [value for _, value in SweptKey.parse(text).values] == values


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("algorithm.mu", "is not of the form key=a,b,c"),
        ("=1,2", "is not of the form"),
        ("a=1,,2", "is not of the form"),
        ("a=", "is not of the form"),
        ("a=1,2,1", "has a value twice"),
        ("seed=1,2", "--seeds N gives several"),
        ("task=a,b", "task is not swept"),
    ],
)
def test_what_is_no_sweep_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SweptKey.parse(text)


def test_several_sweeps_give_every_combination_with_every_seed() -> None:
    base = {"rounds": 3, "seed": 7, "algorithm": {"name": "fedprox"}}
    sweeps = [SweptKey.parse("algorithm.mu=0,0.5"), SweptKey.parse("training.batch_size=8,16")]
    found = definitions(base, sweeps, 2, "mine")
    told = [
        (d["algorithm"]["mu"], d["training"]["batch_size"], d["seed"], d["variant"]) for d in found
    ]
    assert told == [
        (mu, size, seed, f"algorithm.mu={mu}, training.batch_size={size}")
        for mu in (0, 0.5)
        for size in (8, 16)
        for seed in (7, 8)
    ]
    assert {d["group"] for d in found} == {"mine"}
    assert base == {"rounds": 3, "seed": 7, "algorithm": {"name": "fedprox"}}
    for each in found:
        assert parse_definition({**each, "task": "t"}, "test").variant == each["variant"]


def test_seeds_alone_are_one_variant() -> None:
    found = definitions({}, [], 3, "g")
    assert [(d["seed"], d["variant"]) for d in found] == [(0, ""), (1, ""), (2, "")]


@pytest.mark.parametrize(
    ("sweeps", "seeds", "said"),
    [
        (["a=1,2", "a=3,4"], 1, "swept twice: a, a"),
        ([], 0, "--seeds 0: at least 1"),
        ([], MAX_RUNS + 1, "more than 1000 runs"),
    ],
)
def test_what_is_no_experiment_is_refused(sweeps: list[str], seeds: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        definitions({}, [SweptKey.parse(text) for text in sweeps], seeds, "g")


SPREAD = {"version": 3, "devices": 5, "mean": 0.9, "worst_tenth": 0.4, "variance": 0.1}

# --- comparisons ------------------------------------------------------------------------------


def report(run_id: str, values: list[float | None], **more: Any) -> RunReport:
    """Return the report of a run with one value of its metric a round."""
    rows = [
        {
            **{"round": number, "attempt": 1, "outcome": "committed", "reason": "", "seconds": 1.0},
            **{"invited": 2, "updates": 2, "included": [], "refused": {}, "not_evaluated": {}},
            **{"ordered_steps": {}, "accuracy": None, "loss": None, "measured": value},
        }
        for number, value in enumerate(values, 1)
    ]
    fields: dict[str, Any] = {
        **{"run_id": run_id, "task": "t", "algorithm": "fedavg", "status": "completed"},
        **{"reason": "", "phase": "ended", "round": len(rows), "attempt": 1, "rounds": len(rows)},
        **{"cohort_size": 2, "quorum": 2, "fit": "off", "bundled": False, "evaluate_on": "devices"},
        **{"evaluate_every": 1, "rounds_completed": len(rows), "accuracy": None, "loss": None},
        **{"submitted_at": 0.0, "seed": 0, "model_key": "k", "model_sha256": "0" * 64},
        **{"wall_s": 10.0, "round_s": [], "bytes_up": 100, "bytes_down": 200},
        **{"history": rows, "devices": []},
    }
    return RunReport.read({**fields, **more})


def test_the_figures_of_a_variant_are_the_mean_and_the_deviation_of_its_runs() -> None:
    found = compare(
        [
            report("a", [0.5, 0.9, 0.8], group="g", variant="mu=0", bytes_up=100),
            report("b", [0.2, 0.6, 0.6], group="g", variant="mu=0", seed=1, bytes_up=300),
            report("c", [0.7, None, 0.9], group="g", variant="mu=1", wall_s=30.0, spread=SPREAD),
        ],
        target=0.8,
    )
    zero, one = found.variants
    assert (found.headline, found.goal) == ("accuracy", "higher")
    # by hand: the deviation of two values is their difference by the root of 2
    assert zero.final == Spread(pytest.approx(0.7), pytest.approx(0.2 / 2**0.5))
    assert zero.best == Spread(pytest.approx(0.75), pytest.approx(0.3 / 2**0.5))
    assert (zero.rounds_to_target, zero.reached) == (Spread(2, None), 1)
    assert zero.bytes_up == Spread(200, pytest.approx(200 / 2**0.5))
    assert zero.curve()[1] == Spread(pytest.approx(0.35), pytest.approx(0.3 / 2**0.5))
    assert (one.final, one.rounds_to_target) == (Spread(0.9, None), Spread(3, None))
    assert sorted(one.curve()) == [1, 3]
    assert one.wall_s == Spread(30.0, None)
    assert (zero.worst_tenth, one.worst_tenth) == (None, Spread(0.4, None))
    assert found.document()["variants"][0]["runs"][1]["seed"] == 1


def test_lower_may_be_better() -> None:
    runs = [report("a", [0.9, 0.2, 0.4], headline="loss", headline_goal="lower")]
    (row,) = compare(runs, target=0.5).variants
    assert (row.best, row.final) == (Spread(0.2, None), Spread(0.4, None))
    assert row.rounds_to_target == Spread(2, None)


def test_runs_of_no_variant_are_compared_by_their_own_names() -> None:
    found = compare([report("a", [0.5]), report("b", []), report("c", [0.5], group="g")])
    assert [each.variant for each in found.variants] == ["a", "b", "g: g"]
    assert found.variants[1].final is None


def test_the_same_variant_of_two_groups_is_two() -> None:
    runs = [report("a", [0.5], group="g", variant="x"), report("b", [0.5], group="h", variant="x")]
    assert [each.variant for each in compare(runs).variants] == ["g: x", "h: x"]


def test_what_cannot_be_compared_says_so() -> None:
    with pytest.raises(ConfigError, match="a by accuracy, b by loss"):
        compare([report("a", [1.0]), report("b", [1.0], headline="loss")])
    with pytest.raises(ConfigError, match="no runs"):
        compare([])


def test_a_run_of_which_not_all_rounds_are_told_is_named() -> None:
    assert compare([report("a", [0.5], rounds_completed=9), report("b", [0.5])]).cut == ["a"]


def test_the_plot_has_a_line_for_each_variant(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    curves = {"mu=0": {1: (0.5, 0.1), 2: (0.6, 0.1)}, "_mu": {2: (0.7, 0.0)}}
    draw_comparison(curves, "accuracy", 0.65, path)
    assert path.read_bytes().startswith(b"<?xml")
    with pytest.raises(ConfigError, match="no picture"):
        draw_comparison(curves, "accuracy", None, tmp_path / "plot.exe")
