"""A simulated run has rules, transforms and algorithms on single updates as a server has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rengo

LOCAL = {"training": {"batch_size": 20, "max_steps": 2}}


def vector_of(backend: str = "auto", **settings: Any) -> np.ndarray[Any, Any]:
    given = {**LOCAL, **settings}
    found = rengo.simulate("digits", clients=7, cohort=7, rounds=2, settings=given, backend=backend)
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


@pytest.mark.parametrize("backend", ["processes", "batched"])
def test_transforms_are_done_whatever_computes(backend: str) -> None:
    transforms = [{"name": "sparsify", "share": 0.1}, {"name": "clip", "norm": 0.2}]
    expected = vector_of("inline", transforms=transforms)
    assert np.abs(expected - vector_of()).max() > 1e-4
    # a cohort's products round otherwise
    np.testing.assert_allclose(vector_of(backend, transforms=transforms), expected, atol=1e-6)


def test_noise_is_drawn_in_a_simulation_too() -> None:
    clip = {"name": "clip", "norm": 0.2}
    noisy = vector_of(transforms=[clip, {"name": "noise", "multiplier": 0.5}])
    plain = vector_of(transforms=[clip])
    assert 0.001 < float(np.std(noisy - plain)) < 0.1
