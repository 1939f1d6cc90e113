"""Training a cohort at once gives what one client after the other does, or says why not."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

import rengo
from fl_client.models.layers import Conv2d, Flatten, Layers, Linear, Reshape
from fl_client.tasks.digits import Digits
from fl_client.tasks.split import Split
from rengo.simulation.backends import names
from rengo.simulation.choice import choose
from rengo.simulation.definition import Simulation, prepare
from runtime.errors import ConfigError

HALVES = {"algorithm": {"name": "heterofl", "widths": {"cpu": 0.5}}}
LOCAL = {"local_epochs": 2, "batch_size": 10, "learning_rate": 0.1, "momentum": 0.0}


def simulated(backend: str, algorithm: str = "fedavg", **more: object) -> rengo.SimulationResult:
    settings = {"training": LOCAL, "algorithm": {"name": algorithm}}
    given = {"clients": 20, "cohort": 8, "rounds": 5, "settings": settings, **more}
    return rengo.simulate("digits", backend=backend, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_it_learns_what_one_client_after_the_other_does(algorithm: str) -> None:
    alone, together = simulated("inline", algorithm), simulated("batched", algorithm)
    assert not np.array_equal(alone.weights.vector, together.weights.vector), "it was not batched"
    np.testing.assert_allclose(together.weights.vector, alone.weights.vector, atol=1e-5)
    for one, other in zip(alone.rounds, together.rounds, strict=True):
        assert (other.updates, other.num_examples) == (one.updates, one.num_examples)
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-4)


def test_updates_are_transformed_as_a_device_transforms_them() -> None:
    # what the second keeps comes back in its client's next round: 8 of 10 clients train in each
    kinds = [{"name": "clip", "norm": 0.5}, {"name": "sparsify", "share": 0.2}]
    settings = {"training": LOCAL, "transforms": kinds}
    alone, together = (
        simulated(backend, clients=10, settings=settings) for backend in ("inline", "batched")
    )
    plain = simulated("batched", clients=10)
    assert np.abs(plain.weights.vector - together.weights.vector).max() > 0.01
    np.testing.assert_allclose(together.weights.vector, alone.weights.vector, atol=1e-3)
    close = np.isclose(together.weights.vector, alone.weights.vector, atol=1e-5)
    # of two values of about one size, rounding decides which is among the largest
    assert close.mean() > 0.99


def test_a_cohort_that_is_large_trains_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = simulated("batched")
    monkeypatch.setattr("rengo.simulation.backends.batched._AT_ONCE_BYTES", 1)
    np.testing.assert_allclose(simulated("batched").weights.vector, whole.weights.vector, atol=1e-5)


def test_an_algorithm_that_treats_clients_apart_trains_them_one_by_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        found, alone = simulated("batched", "fedrep"), simulated("inline", "fedrep")
    assert np.array_equal(found.weights.vector, alone.weights.vector)
    (said,) = caplog.messages
    assert said == (
        "clients are trained one after the other, not at once: round() of a number that differs "
        "from client to client, in algorithm FedRep"
    )


class Small(Digits):
    """A convolution, which numpy trains."""

    def model(self) -> Layers:
        return [Reshape((1, 8, 8)), Conv2d(1, 2, 3), Flatten(), Linear(72, 10)]


def test_a_model_that_cannot_be_batched_is_trained_one_by_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        found = rengo.simulate(
            f"{__file__}:Small", clients=4, cohort=2, rounds=1, backend="batched"
        )
    assert found.rounds[0].updates == 2
    assert "one after the other, not at once: layer 1, Conv2d of the model" in caplog.text


class Faulty(Digits):
    """A task whose fourth client has no data that fit, and whose fifth has nothing."""

    def data(self, device: rengo.Device) -> tuple[Split, Split]:
        train, held_out = super().data(device)
        if device.role == "trainer" and device.index == 3:
            raise OSError("its disk is away")
        if device.role == "trainer" and device.index == 4:
            return None, held_out
        return train, held_out


def test_a_client_whose_data_fail_declines_as_alone() -> None:
    found = [
        rengo.simulate(
            f"{__file__}:Faulty",
            clients=6,
            cohort=6,
            rounds=1,
            backend=backend,
            settings={"cohort": {"quorum": 4}},
        )
        for backend in ("inline", "batched")
    ]
    alone, together = (each.rounds[0] for each in found)
    assert together.updates == alone.updates == 4
    assert together.refused == alone.refused == 2


@pytest.mark.parametrize(
    ("task", "settings", "name", "reason"),
    [
        ("digits", {}, "batched", "a cohort's models of 2,410 weights"),
        ("digits-cnn", {"rounds": 1}, "", "layer 1, Conv2d of the model of task digits"),
        ("digits-cnn", {"rounds": 100}, "", "the torch engine needs one client"),
        ("digits", {"algorithm": {"name": "moon"}}, "", "the torch engine needs one client"),
        ("digits", HALVES, "", "the model's parts of algorithm HeteroFL"),
    ],
)
def test_auto_says_why(task: str, settings: dict[str, object], name: str, reason: str) -> None:
    setup = prepare(Simulation(task, settings, clients=10)).setup
    for workers, other in ((1, "inline"), (4, "processes")):
        found = choose("auto", replace(setup, workers=workers))
        assert reason in found.reason
        assert found.name == (name or (other if other in names() else "inline"))


def test_a_precision_is_torchs() -> None:
    assert prepare(Simulation("digits", clients=10, precision="bfloat16")).setup.engine == "torch"
    with pytest.raises(ConfigError, match="numpy computes in float32"):
        prepare(Simulation("digits", clients=10, engine="numpy", precision="bfloat16"))


@pytest.mark.parametrize("backend", ["inline", "processes"])
def test_a_precision_reaches_the_clients(backend: str) -> None:
    given = {"clients": 4, "cohort": 2, "rounds": 1, "engine": "torch", "backend": backend}
    whole, half = (
        rengo.simulate("digits", precision=each, **given).weights.vector  # type: ignore[arg-type]
        for each in ("float32", "bfloat16")
    )
    assert 1e-5 < np.abs(whole - half).max() < 0.05
