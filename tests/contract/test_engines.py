"""Every engine does the same steps: gradients, whole rounds and evaluations agree."""

from __future__ import annotations

from typing import Any, ClassVar, get_args

import numpy as np
import pytest
import torch

import algorithms
from fl_client.engines import base
from fl_client.engines.base import Dtype, TrainingFailed, batches, load_engine, run_epochs
from fl_client.models.layers import (
    Conv2d,
    Flatten,
    Layers,
    Linear,
    MaxPool2d,
    ReLU,
    Reshape,
    Sigmoid,
    Tanh,
)
from fl_client.models.local_round import LocalRound
from fl_client.models.settings import Objective, TrainingSettings
from fl_client.tasks.base import Task
from runtime.errors import ConfigError
from storage.weights import Weights
from tests.updates import change_of

MODELS: dict[str, tuple[Layers, tuple[int, ...]]] = {
    "mlp": ([Linear(12, 9), ReLU(), Linear(9, 4)], (12,)),
    "tanh": ([Linear(12, 9), Tanh(), Linear(9, 6, bias=False), Sigmoid(), Linear(6, 4)], (12,)),
    "cnn": (
        [Reshape((1, 9, 9)), Conv2d(1, 3, 3), ReLU(), MaxPool2d(2), Flatten(), Linear(27, 4)],
        (81,),
    ),
    "strided": (
        [
            Conv2d(2, 3, 3, stride=2, padding=1),
            Tanh(),
            Conv2d(3, 4, 2, padding=1, bias=False),
            MaxPool2d(2),
            Flatten(),
            Linear(36, 4),
        ],
        (2, 9, 10),
    ),
}


class Declarative(Task):
    training = TrainingSettings(local_epochs=3, batch_size=8, learning_rate=0.1, momentum=0.5)
    layers: ClassVar[Layers] = []

    def model(self) -> Layers:
        return self.layers


def task_of(model: str, loss: Objective) -> Task:
    made = type("Made", (Declarative,), {"layers": MODELS[model][0], "objective": loss})
    return made()  # type: ignore[no-any-return]


def data_of(model: str, loss: Objective, count: int = 20) -> tuple[Any, Any]:
    generator = np.random.default_rng(7)
    x = generator.standard_normal((count, *MODELS[model][1])).astype(np.float32)
    if loss == "cross_entropy":
        return x, generator.integers(0, 4, count)
    if loss == "binary_cross_entropy":
        return x, generator.integers(0, 2, (count, 4))
    return x, generator.standard_normal((count, 4)).astype(np.float32)


def plan_of(task: Task, algorithm: str = "fedavg", **settings: Any) -> LocalRound:
    return LocalRound(
        algorithms.load(algorithm), task.training.overridden(settings), 11, 4, "edge-1"
    )


def test_both_engines_are_found() -> None:
    assert base.names() == ["numpy", "torch"]
    with pytest.raises(ConfigError, match="there are: numpy, torch"):
        load_engine("tensorflow", Declarative())


@pytest.mark.parametrize("loss", get_args(Objective))
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-8), ("float32", 1e-4)])
def test_gradients_agree(model: str, loss: Objective, dtype: Dtype, rtol: float) -> None:
    task, data = task_of(model, loss), data_of(model, loss)
    weights = task.initial_weights(3)
    (ours_loss, ours), (theirs_loss, theirs) = (
        load_engine(name, task, dtype=dtype).gradients(weights, data) for name in base.names()
    )
    assert ours_loss == pytest.approx(theirs_loss, rel=rtol)
    assert list(ours) == list(theirs)
    for name, gradient in ours.items():
        assert gradient.dtype == dtype
        scale = np.abs(theirs[name]).max()
        assert scale > 0
        np.testing.assert_allclose(gradient, theirs[name], rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("model", ["tanh", "cnn"])
def test_the_numpy_gradient_is_that_of_its_loss(model: str) -> None:
    # an oracle of its own: central differences of the loss, in float64
    task, data = task_of(model, "cross_entropy"), data_of(model, "cross_entropy")
    weights = task.initial_weights(3)
    engine = load_engine("numpy", task, dtype="float64")
    _, gradient = engine.gradients(weights, data)
    flat = np.concatenate([gradient[spec.name].ravel() for spec in weights.layout.floats])
    for index in np.random.default_rng(0).choice(flat.size, 12, replace=False):
        sides = []
        for step in (2e-5, -2e-5):
            vector = weights.vector.copy()
            vector[index] += step
            sides.append((engine.gradients(weights.with_vector(vector), data)[0], vector[index]))
        slope = (sides[0][0] - sides[1][0]) / float(sides[0][1] - sides[1][1])
        assert flat[index] == pytest.approx(slope, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox"])
@pytest.mark.parametrize("model", MODELS)
def test_a_round_of_training_agrees(model: str, algorithm: str) -> None:
    task, data = task_of(model, "cross_entropy"), data_of(model, "cross_entropy")
    weights = task.initial_weights(3)
    ours, theirs = (
        load_engine(name, task).train(weights, data, plan_of(task, algorithm))
        for name in base.names()
    )
    assert ours.num_examples == theirs.num_examples == 20
    assert np.abs(ours.vector).max() > 1e-2
    np.testing.assert_allclose(ours.vector, theirs.vector, rtol=1e-3, atol=1e-5)
    assert ours.metrics["train_loss"] == pytest.approx(theirs.metrics["train_loss"], rel=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_local_step_is_that_of_torch_sgd(momentum: float) -> None:
    task, (x, y) = task_of("mlp", "cross_entropy"), data_of("mlp", "cross_entropy")
    weights, plan = task.initial_weights(3), plan_of(task, momentum=momentum)
    model = torch.nn.Sequential(torch.nn.Linear(12, 9), torch.nn.ReLU(), torch.nn.Linear(9, 4))
    model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.arrays().items()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)

    def step(chosen: Any) -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            model(torch.from_numpy(x[chosen])), torch.from_numpy(y[chosen])
        )
        loss.backward()
        optimizer.step()
        return loss.item()

    run_epochs(plan, 20, step)
    after = Weights.from_arrays({k: v.numpy() for k, v in model.state_dict().items()})
    for name in base.names():
        update = load_engine(name, task).train(weights, (x, y), plan)
        np.testing.assert_allclose(
            update.vector, after.vector - weights.vector, rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize("engine", base.names())
def test_the_same_round_again_is_bit_identical_and_another_is_not(engine: str) -> None:
    task, data = task_of("cnn", "cross_entropy"), data_of("cnn", "cross_entropy")
    weights, found = task.initial_weights(3), load_engine(engine, task)
    plan = plan_of(task)
    first = found.train(weights, data, plan).vector.tobytes()
    assert found.train(weights, data, plan).vector.tobytes() == first
    assert load_engine(engine, task).train(weights, data, plan).vector.tobytes() == first
    other = LocalRound(plan.algorithm, plan.settings, plan.seed, plan.round + 1, plan.device_id)
    assert found.train(weights, data, other).vector.tobytes() != first


@pytest.mark.parametrize("loss", get_args(Objective))
def test_evaluations_agree(loss: Objective) -> None:
    task, data = task_of("mlp", loss), data_of("mlp", loss, 600)
    weights = task.initial_weights(3)
    ours, theirs = (load_engine(name, task).evaluate(weights, data) for name in base.names())
    assert ours.num_examples == theirs.num_examples == 600
    assert set(ours.metrics) == ({"loss"} if loss == "mean_squared_error" else {"loss", "accuracy"})
    assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-5)
    x, y = data
    w = weights.arrays()
    hidden = np.maximum(x @ w["0.weight"].T + w["0.bias"], 0)
    outputs = hidden @ w["2.weight"].T + w["2.bias"]
    if loss == "cross_entropy":
        assert ours.metrics["accuracy"] == pytest.approx((outputs.argmax(1) == y).mean())
    if loss == "binary_cross_entropy":
        yes = 1 / (1 + np.exp(-outputs.astype(np.float64)))
        assert ours.metrics["accuracy"] == pytest.approx(((yes > 0.5) == y).mean())
        mean = -np.log(np.where(y, yes, 1 - yes)).mean()
        assert ours.metrics["loss"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("engine", base.names())
def test_divergence_and_empty_data_and_a_foreign_model_are_told(engine: str) -> None:
    task, (x, y) = task_of("mlp", "mean_squared_error"), data_of("mlp", "mean_squared_error")
    weights, found = task.initial_weights(3), load_engine(engine, task)
    with (
        np.errstate(all="ignore"),
        pytest.raises(TrainingFailed, match=r"diverged.*learning_rate 1000"),
    ):
        found.train(weights, (x, y), plan_of(task, learning_rate=1000.0, local_epochs=50))
    with pytest.raises(ConfigError, match="no examples"):
        found.train(weights, (x[:0], y[:0]), plan_of(task))
    with pytest.raises(ConfigError, match="inputs of shape"):
        found.train(weights, (x, y[:3]), plan_of(task))
    with pytest.raises(ConfigError, match=r"does not fit task made: '0.weight'"):
        found.evaluate(Weights.from_arrays({"0.weight": np.zeros((2, 2))}), (x, y))


def test_batches_are_a_permutation_in_pieces() -> None:
    found = list(batches(np.random.default_rng(1), 10, 4))
    assert [piece.size for piece in found] == [4, 4, 2]
    assert sorted(np.concatenate(found).tolist()) == list(range(10))


def test_the_local_seed_is_of_run_round_and_device() -> None:
    plan = plan_of(Declarative())
    seeds = {
        LocalRound(plan.algorithm, plan.settings, seed, number, device).local_seed
        for seed in (1, 2)
        for number in (1, 2)
        for device in ("a", "b")
    }
    assert len(seeds) == 8
    # sha256("11/4/edge-1"), first eight bytes: fixed for ever, or runs could not be repeated
    assert plan.local_seed == 0xC2688CA740899942


# --- torch modules -------------------------------------------------------------------------------


class Normed(Task):
    """A module with buffers, dropout and a Dataset: what only torch can do."""

    training = TrainingSettings(local_epochs=2, batch_size=8, learning_rate=0.1)

    def model(self) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(6, 8),
            torch.nn.BatchNorm1d(8),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(8, 3),
        )


class Rows(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        return torch.randn(6, generator=generator), index % 3


def test_a_torch_module_with_a_dataset_trains_and_its_buffers_travel() -> None:
    task = Normed()
    weights = task.initial_weights(1)
    assert weights.vector.tobytes() == task.initial_weights(1).vector.tobytes()
    assert set(weights.others) == {"1.num_batches_tracked"}
    engine, plan = load_engine("torch", task), plan_of(task)
    before = torch.get_rng_state()
    update = engine.train(weights, Rows(), plan)
    assert torch.equal(torch.get_rng_state(), before)
    assert update.num_examples == 20
    changed = weights.with_vector(change_of(update)).arrays()
    assert np.abs(changed["1.running_mean"]).max() > 0
    # dropout draws from this round's seed, so that it is the same again
    assert engine.train(weights, Rows(), plan).vector.tobytes() == update.vector.tobytes()
    after = weights.with_vector(weights.vector + change_of(update))
    found = engine.evaluate(after, Rows())
    assert set(found.metrics) == {"loss", "accuracy"}


def test_the_numpy_engine_refuses_what_needs_torch() -> None:
    with pytest.raises(ConfigError, match="only the torch engine"):
        load_engine("numpy", Normed())

    class OwnLoss(Declarative):
        layers = MODELS["mlp"][0]

        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return outputs.sum()

    with pytest.raises(ConfigError, match=r"overrides loss\(\)"):
        load_engine("numpy", OwnLoss())
    engine = load_engine("numpy", task_of("mlp", "cross_entropy"))
    with pytest.raises(ConfigError, match="pair of arrays"):
        engine.evaluate(task_of("mlp", "cross_entropy").initial_weights(0), Rows())


def test_overrides_of_a_torch_task_are_used() -> None:
    class Own(Normed):
        def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
            return torch.optim.SGD(parameters, lr=0.0)

        def metrics(self, outputs: Any, targets: Any) -> dict[str, float]:
            return {"share_of_zero": float((outputs.argmax(1) == 0).mean())}

    task = Own()
    weights, engine = task.initial_weights(1), load_engine("torch", task)
    update = engine.train(weights, Rows(), plan_of(task))
    moved = weights.with_vector(change_of(update)).arrays()
    assert not moved["0.weight"].any()
    assert set(engine.evaluate(weights, Rows()).metrics) == {"loss", "share_of_zero"}


def test_an_algorithm_that_needs_the_loss_gets_it_on_torch_alone() -> None:
    class Pull(algorithms.algorithm_class("fedavg")):  # type: ignore[misc]
        needs = ("loss",)

        def loss(self, forward: Any, w: Any, got: Any, state: Any, local: Any) -> Any:
            return forward.loss * 0 + sum((tensor**2).sum() for tensor in w.values()) / 2

    task, data = task_of("mlp", "cross_entropy"), data_of("mlp", "cross_entropy", 8)
    weights = task.initial_weights(3)
    plan = LocalRound(Pull(), TrainingSettings(local_epochs=1, learning_rate=0.5), 0, 1, "d")
    update = load_engine("torch", task).train(weights, data, plan)
    # the gradient of |w|^2 / 2 is w: one step at 0.5 halves every weight
    np.testing.assert_allclose(update.vector, -weights.vector / 2, rtol=1e-5)
    with pytest.raises(ConfigError, match="changes the loss"):
        load_engine("numpy", task).train(weights, data, plan)
