"""CFL: its splits against all that are possible, and clusters that are known."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import algorithms
from algorithms.base import Mean, Received, Report
from algorithms.cfl import CFL, _bipartition
from tests.federation import Federation, Quadratic, joined, split
from tests.unit.algorithms.trained import SIZE, clients, personal, trained

OPTIMA = np.random.default_rng(11).normal(0, 3, (3, SIZE))


def grouped(groups: list[int]) -> list[Quadratic]:
    """Return clients whose optimum is that of their group, but for a little."""
    random = np.random.default_rng(4)
    a = random.uniform(0.5, 2, SIZE)
    return [Quadratic(a, OPTIMA[group] + random.normal(0, 0.01, SIZE)) for group in groups]


def clusters(after: Federation, of: list[Quadratic]) -> list[int]:
    algorithm, got = after.algorithm, after.received()
    assert isinstance(algorithm, CFL)
    return [algorithm._cluster(got, after.states.get(i, {}), each) for i, each in enumerate(of)]


@pytest.mark.parametrize("groups", [[0, 1, 0, 1, 1, 0], [2, 0, 1, 1, 0, 2, 0, 1]])
def test_clusters_are_recovered_and_reach_their_own_optima(groups: list[int]) -> None:
    of = grouped(groups)
    after = trained("cfl", {}, of, rounds=80)
    found = clusters(after, of)
    assert len(set(found)) == len(set(zip(groups, found, strict=True))) == len(set(groups))
    for index, group in enumerate(groups):
        np.testing.assert_allclose(personal(after, of[index], index), OPTIMA[group], atol=0.03)
    means = [after.vectors[f"model_{number}"] for number in set(found)]
    np.testing.assert_allclose(after.weights, np.mean(means, axis=0), rtol=1e-12)


def test_clients_that_missed_a_split_find_their_cluster() -> None:
    groups = [0, 1, 0, 1, 1, 0, 1, 0, 1]
    of, after = grouped(groups), trained("cfl", {}, grouped(groups), rounds=0)
    for round_ in range(40):
        # two stop before there is a split and go by their last update; the last one never trains
        after.run_round(of, range(8 if round_ < 18 else 6))
    found = clusters(after, of)
    assert len(set(found)) == len(set(zip(groups, found, strict=True))) == 2
    assert sorted(after.states) == list(range(8))


def test_without_a_split_it_is_fedavg() -> None:
    of = clients()
    after = trained("cfl", {"first_split": 1000}, of, rounds=30)
    assert after.weights.tobytes() == trained("fedavg", {}, of, rounds=30).weights.tobytes()


def test_clients_that_agree_are_not_split() -> None:
    of = [replace(client, b=OPTIMA[0]) for client in clients(6)]
    assert trained("cfl", {}, of, rounds=60).scalars["clusters"] == 1


def test_a_sketch_keeps_lengths_and_cosines() -> None:
    random = np.random.default_rng(0)
    begin, common = random.normal(size=(2, 40_000))
    federation = Federation(algorithms.load("cfl"), begin)
    signs = split(federation.vectors["signs"])
    assert set(federation.vectors["signs"]) == {-1, 1}
    assert abs(federation.vectors["signs"].mean()) < 0.02
    changes = [common + random.normal(0, 1, 40_000), common, -common, random.normal(0, 1, 40_000)]
    algorithm: Any = federation.algorithm
    sketches = np.array([algorithm._sketch(split(change), signs) for change in changes])
    found, whole = np.corrcoef(sketches), np.corrcoef(np.array(changes))
    np.testing.assert_allclose(found, whole, atol=0.4)
    lengths = np.linalg.norm(sketches, axis=1) / np.linalg.norm(changes, axis=1)
    assert (abs(lengths - 1) < 0.4).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_split_has_the_lowest_highest_similarity_across(seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(8, 4))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    similar = points @ points.T

    def highest(side: Any) -> float:
        return float(similar[side][:, ~side].max())

    every = [np.array([False, *rest]) for rest in itertools.product([False, True], repeat=7)]
    assert highest(_bipartition(similar)) == min(highest(side) for side in every if side.any())


def reports(*sketches: tuple[float, float], number: float = 0.0) -> list[Report]:
    return [
        Report(
            str(index),
            1,
            {"cluster": number, "squared_norm": 4.0, "sketch_0": one, "sketch_1": other},
        )
        for index, (one, other) in enumerate(sketches)
    ]


APART = reports((2.0, 0.0), (2.0, 0.0), (-1.0, 0.0))


@pytest.mark.parametrize(
    ("given", "mean", "settings", "count"),
    [
        (APART, 0.4, {}, 2),
        (APART, 0.6, {}, 1),
        (APART, 0.6, {"ratio": 0.4}, 2),
        (reports((1.0, 0.0), (-1.0, 0.0)), 0.4, {}, 1),
        (APART, 0.4, {"first_split": 2}, 1),
        (APART, 0.4, {"moving": 0.3}, 1),
        (APART, 0.4, {"clusters": 1}, 1),
        (reports((1.0, 0.0), (1.0, 0.0), (1.0, 5.0)), 0.4, {}, 1),
        (reports((1.0, 0.0), (1.0, 0.0), (1.0, 5.0)), 0.4, {"across": 0.3}, 2),
    ],
    ids=[
        "apart",
        "moving",
        "ratio",
        "of two",
        "too early",
        "at an optimum",
        "full",
        "alike",
        "alike enough",
    ],
)
def test_when_a_cluster_is_split(
    given: list[Report], mean: float, settings: dict[str, Any], count: int
) -> None:
    algorithm = algorithms.load("cfl", {"sketch": 2, "first_split": 1, **settings})
    measured = dict.fromkeys(algorithm.sends, mean**2)
    after = algorithm.advance(Mean({}), given, {"first": 8.0}, measured)
    assert after["clusters"] == count
    if given is APART and count == 2:
        # from the mean of the first side's directions, (1, 0), to that of the second, (-1, 0)
        assert (after["plane_1_0"], after["plane_1_1"], after["parent_1"]) == (-2.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("number", "known", "sketch", "expected"),
    [
        (0, 1, (-1.0, 1.0), 0),
        (0, 1, (1.0, -1.0), 1),
        (0, 1, (1.0, 1.0), 2),
        # a split that it knew of is not asked again, nor one of another cluster
        (0, 2, (1.0, 1.0), 0),
        (1, 2, (-1.0, 1.0), 2),
        (1, 3, (-1.0, 1.0), 1),
        (2, 2, (-1.0, -1.0), 2),
    ],
)
def test_a_client_goes_by_the_splits_since_its_last_update(
    number: int, known: int, sketch: tuple[float, float], expected: int
) -> None:
    algorithm = algorithms.load("cfl", {"sketch": 2, "clusters": 3})
    planes = {"plane_1_0": 1.0, "plane_1_1": 0.0, "plane_2_0": 0.0, "plane_2_1": 1.0}
    vectors = {name: split(np.full(SIZE, n)) for n, name in enumerate(algorithm.sends)}
    scalars = {"clusters": 3.0, "parent_1": 0.0, "parent_2": 1.0, **planes}
    got = Received(split(np.zeros(SIZE)), vectors, scalars)
    state = {
        "cluster": {"number": np.float64(number), "known": np.float64(known)},
        "sketch": {"0": np.float64(sketch[0]), "1": np.float64(sketch[1])},
    }
    w, _ = algorithm.start(got, state, clients(1)[0])
    assert w["body"].tolist() == [expected] * 3


def test_the_new_cluster_begins_as_the_one_that_was_split_wherever_a_vector_is_cut() -> None:
    algorithm = algorithms.load("cfl", {"sketch": 2, "first_split": 1, "clusters": 3})
    w, change = np.random.default_rng(0).normal(size=(2, SIZE)).astype(np.float32)
    state = {**dict.fromkeys(algorithm.sends, w), "signs": w}
    means = {**dict.fromkeys(algorithm.sends, w * 0), "model_0": change}
    scalars = algorithm.advance(Mean({}), APART, {}, dict.fromkeys(algorithm.sends, 0.0))
    whole, kept = algorithm.aggregate(w, Mean(means), state, scalars)
    assert whole.tolist() == kept["model_0"].tolist() == kept["model_1"].tolist()
    assert kept["model_0"].tolist() == (w + change).tolist()
    assert kept["model_2"].tolist() == w.tolist()
    for at in (slice(0, 2), slice(2, SIZE)):
        part, its = algorithm.aggregate(
            w[at],
            Mean({k: v[at] for k, v in means.items()}),
            {k: state[k][at] for k in state},
            scalars,
        )
        assert part.tolist() == whole[at].tolist()
        assert its["model_1"].tolist() == kept["model_1"][at].tolist()
    scalars = algorithm.advance(Mean({}), [], scalars, dict.fromkeys(algorithm.sends, 0.0))
    _, later = algorithm.aggregate(
        w, Mean({**means, "model_0": w * 0, "model_1": w}), kept, scalars
    )
    assert later["model_1"].tolist() == (kept["model_1"] + w).tolist()


def test_a_client_sends_its_clusters_change_and_keeps_its_sketch() -> None:
    (client,) = clients(1)
    before = trained("cfl", {}, [client], rounds=0)
    sent, state = before.train(client, {})
    (vector,) = sent.vectors.values()
    change = joined(vector, SIZE)
    assert list(sent.vectors) == ["model_0"]
    assert sent.scalars["squared_norm"] == pytest.approx(float(change @ change))
    signed = change * before.vectors["signs"]
    found = [sent.scalars[f"sketch_{at}"] for at in range(48)]
    np.testing.assert_allclose(found, [*signed, *[0.0] * (48 - SIZE)], rtol=1e-12)
    assert [float(state["sketch"][str(at)]) for at in range(48)] == found
    assert set(sent.scalars) == set(before.algorithm.reports)
