"""Arrays of several clients: arithmetic is each client's own, and what needs one number is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fl_client.engines.stacked.per_client import CannotBatch, PerClient, of_client, stacked

Array = np.ndarray[Any, Any]
A = np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32)
B = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
SHARED = np.random.default_rng(2).standard_normal((2, 4)).astype(np.float32)
S = np.array([1.0, 2.0, -3.0], np.float32)

ARITHMETIC: dict[str, Callable[[Any, Any, Any], Any]] = {
    "add": lambda a, b, s: a + b - 1,
    "of-a-number-each": lambda a, b, s: s * a,
    "number-on-the-right": lambda a, b, s: a / (s + 5),
    "with-shared": lambda a, b, s: SHARED * a - SHARED,
    "shared-and-a-number-each": lambda a, b, s: SHARED * s,
    "python-number": lambda a, b, s: 2 * a**2 + a / 3,
    "norm": lambda a, b, s: 0.1 / ((a * a).sum() ** 0.5 + 1e-12) * a,
    "axis": lambda a, b, s: a.sum(0) + b,
    "last-axis": lambda a, b, s: a.mean(-1).sum(),
    "extremes": lambda a, b, s: a.max() - a.min(),
    "abs": lambda a, b, s: abs(-a).round(),
    "clip": lambda a, b, s: (s * a).clip(0, 1),
    "shape": lambda a, b, s: a.reshape(-1)[1::3] + a.reshape((8,))[1::3],
    "index": lambda a, b, s: a[1] + a[0, 1:3].sum(),
    "compare": lambda a, b, s: (a > b) * 1,
    "function": lambda a, b, s: np.exp(a) + np.sqrt(abs(b)),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_is_each_clients_own(name: str) -> None:
    compute = ARITHMETIC[name]
    found = compute(PerClient(A), PerClient(B), PerClient(S))
    alone = [compute(a, b, s) for a, b, s in zip(A, B, S, strict=True)]
    assert isinstance(found, PerClient)
    np.testing.assert_allclose(found.stack, np.stack(alone), rtol=1e-6)
    assert found.dtype == np.stack(alone).dtype


def test_what_is_added_in_place_stays_each_clients_own() -> None:
    mine = PerClient(A.copy())
    mine += PerClient(S)
    mine -= 1
    np.testing.assert_array_equal(mine.stack, A + S[:, np.newaxis, np.newaxis] - 1)


@pytest.mark.parametrize(
    ("use", "told"),
    [
        (lambda a: 1 if a.sum() > 0 else 2, "a condition on a number"),
        (lambda a: float(a.sum()), r"float\(\)"),
        (lambda a: int(a.sum()), r"int\(\)"),
        (lambda a: [1, 2][a.sum()], "an index"),
        (lambda a: round(a.sum()), r"round\(\)"),
        (lambda a: max(a.sum(), 0), "a condition"),
        (lambda a: a.tolist(), ".tolist of an array"),
        (list, "a loop"),
        (np.asarray, "a function of numpy's"),
        (lambda a: a @ a.reshape(4, 2), "matmul"),
        (lambda a: a[[0, 1]], "an index that is an array"),
        (lambda a: np.add(SHARED, a, out=SHARED.copy()), "an array that clients share"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_needs_one_client_is_named(use: Callable[[PerClient], Any], told: str) -> None:
    with pytest.raises(CannotBatch, match=told):
        use(PerClient(A))


def test_states_are_stacked_and_taken_apart() -> None:
    states = [{"own": {"w": a, "n": np.float32(s)}} for a, s in zip(A, S, strict=True)]
    together = stacked(states)
    for number, state in enumerate(states):
        found = of_client({**together, "flag": {"x": 2.0}}, number)
        np.testing.assert_array_equal(found["own"]["w"], state["own"]["w"])
        assert found["own"]["n"] == state["own"]["n"]
        assert found["flag"] == {"x": 2.0}
    found = of_client(together, 0)
    found["own"]["w"] += 1
    np.testing.assert_array_equal(together["own"]["w"].stack, A)
