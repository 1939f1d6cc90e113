"""A simulated run combines single updates as a server does: by a rule, or by the algorithm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rengo

LOCAL = {"training": {"batch_size": 20, "max_steps": 2}}


def vector_of(**settings: Any) -> np.ndarray[Any, Any]:
    found = rengo.simulate("digits", clients=7, cohort=7, rounds=2, settings={**LOCAL, **settings})
    return found.weights.vector


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": {"name": "median"}},
        {"rule": {"name": "multi_krum"}, "cohort": {"quorum": 7}},
        {"algorithm": {"name": "fedmgda"}},
    ],
)
def test_they_change_what_comes_out_and_it_is_a_function_of_the_definition(
    settings: dict[str, Any],
) -> None:
    mean, found = vector_of(), vector_of(**settings)
    assert np.isfinite(found).all()
    assert np.abs(found - mean).max() > 1e-4
    assert np.array_equal(found, vector_of(**settings))
