"""Weight decay, clipping and class weights: the engines agree, and do what torch's own do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from algorithms.base import Arrays, Batch, Local, Received, State
from algorithms.fedavg import FedAvg
from fl_client.engines import base
from fl_client.engines._descent import clip_factor
from fl_client.engines.base import load_engine, run_epochs
from fl_client.models.layers import Conv2d
from fl_client.models.local_round import LocalRound
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.base import Task
from runtime.errors import ConfigError
from runtime.records import FieldError
from tests.contract.test_engine_steps import cut_and_go_on
from tests.contract.test_engines import Normed, Rows, data_of, plan_of, task_of

CLASS_WEIGHTS = [0.5, 3.0, 0.0, 1.25]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def hot(classes: Any) -> Any:
    """Return smoothed one-hot rows."""
    return (np.eye(4, dtype=np.float32)[classes] * 0.9 + 0.025).astype(np.float32)


def by_torch(
    plan: LocalRound, data: tuple[Any, Any], optimizer: str, loss: Loss | None = None, **own: Any
) -> Any:
    """Train with torch alone: its optimisers, its clipping, its losses."""
    x, y = data
    weights = task_of("mlp", "cross_entropy").initial_weights(3)
    model = torch.nn.Sequential(torch.nn.Linear(12, 9), torch.nn.ReLU(), torch.nn.Linear(9, 4))
    model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.arrays().items()})
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    steps = kind(model.parameters(), lr=plan.settings.learning_rate, **own)
    loss = loss or torch.nn.functional.cross_entropy

    def step(chosen: Any) -> float:
        steps.zero_grad()
        found = loss(model(torch.from_numpy(x[chosen])), torch.from_numpy(y[chosen]))
        found.backward()
        if plan.settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), plan.settings.clip_norm)
        steps.step()
        return found.item()

    run_epochs(plan, len(x), step)
    after = np.concatenate([v.detach().numpy().ravel() for v in model.parameters()])
    return after - weights.vector


@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
@pytest.mark.parametrize(
    ("optimizer", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adam", 0.0)], ids=str
)
@pytest.mark.parametrize("engine", base.names())
def test_decay_and_clipping_are_those_of_torch(
    engine: str, optimizer: str, momentum: float, clip_norm: float
) -> None:
    task, data = task_of("mlp", "cross_entropy"), data_of("mlp", "cross_entropy")
    plan = plan_of(
        task,
        optimizer=optimizer,
        momentum=momentum,
        learning_rate=0.02,
        weight_decay=0.4,
        clip_norm=clip_norm,
    )
    own = {"weight_decay": 0.4} | ({"momentum": momentum} if optimizer == "sgd" else {})
    expected = by_torch(plan, data, optimizer, **own)
    update = load_engine(engine, task).train(task.initial_weights(3), data, plan)
    np.testing.assert_allclose(update.vector, expected, rtol=1e-3, atol=1e-5)
    without = plan_of(task, **{**vars(plan.settings), "weight_decay": 0.0, "clip_norm": 0.0})
    plain = load_engine(engine, task).train(task.initial_weights(3), data, without)
    assert np.abs(plain.vector - update.vector).max() > 1e-3


def test_a_gradient_is_scaled_to_its_largest_norm_and_a_short_one_is_left() -> None:
    assert clip_factor([3.0, 4.0], 0.0) == 1.0
    assert clip_factor([3.0, 4.0], 5.1) == 1.0
    assert clip_factor([3.0, 4.0], 2.5) == pytest.approx(0.5)
    # what is not finite goes on to the loss, which says so
    assert clip_factor([3.0, float("inf")], 1.0) == 1.0
    assert clip_factor([float("nan")], 1.0) == 1.0


class AddsOne(FedAvg):
    """Adds 1 to every number of the gradient."""

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        return {name: grad + 1 for name, grad in batch.gradient(w).items()}, state


@pytest.mark.parametrize("engine", base.names())
def test_clipping_comes_before_what_the_algorithm_adds_and_the_decay_after(engine: str) -> None:
    task, data = task_of("mlp", "cross_entropy"), data_of("mlp", "cross_entropy")
    weights = task.initial_weights(3)
    plan = plan_of(task, clip_norm=1e-4, weight_decay=0.5, local_epochs=1, batch_size=20)
    update = load_engine(engine, task).train(weights, data, replace(plan, algorithm=AddsOne()))
    # one step at 0.1: of the gradient itself no more than 1e-4 is left
    np.testing.assert_allclose(update.vector, -0.1 * (1 + 0.5 * weights.vector), atol=2e-5)


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("engine", base.names())
def test_class_weights_are_those_of_torch_over_the_number_of_examples(
    engine: str, kind: str
) -> None:
    task, (x, classes) = task_of("mlp", "cross_entropy"), data_of("mlp", "cross_entropy")
    y = classes if kind == "classes" else hot(classes)
    plan = plan_of(task, class_weights=CLASS_WEIGHTS, momentum=0.0)
    weighted = torch.nn.CrossEntropyLoss(weight=torch.tensor(CLASS_WEIGHTS), reduction="sum")
    expected = by_torch(plan, (x, y), "sgd", lambda out, targets: weighted(out, targets) / len(out))
    update = load_engine(engine, task).train(task.initial_weights(3), (x, y), plan)
    np.testing.assert_allclose(update.vector, expected, rtol=1e-3, atol=1e-5)
    plain = load_engine(engine, task).train(task.initial_weights(3), (x, y), plan_of(task))
    assert plain.metrics["train_loss"] != pytest.approx(update.metrics["train_loss"], rel=1e-2)


@pytest.mark.parametrize("engine", base.names())
def test_weights_of_one_change_nothing_and_evaluation_is_never_weighted(engine: str) -> None:
    task, data = task_of("mlp", "cross_entropy"), data_of("mlp", "cross_entropy")
    weights, found = task.initial_weights(3), load_engine(engine, task)
    plain = found.train(weights, data, plan_of(task))
    ones = found.train(weights, data, plan_of(task, class_weights=[1, 1, 1, 1]))
    np.testing.assert_allclose(ones.vector, plain.vector, rtol=1e-5, atol=1e-7)
    before = found.evaluate(weights, data)
    found.train(weights, data, plan_of(task, class_weights=CLASS_WEIGHTS))
    assert found.evaluate(weights, data) == before


@pytest.mark.parametrize("engine", base.names())
def test_micro_batches_take_the_weighted_and_clipped_steps_of_the_batch(engine: str) -> None:
    task, data = task_of("mlp", "cross_entropy"), data_of("mlp", "cross_entropy")
    weights, found = task.initial_weights(3), load_engine(engine, task)
    settings: dict[str, Any] = {"class_weights": CLASS_WEIGHTS, "clip_norm": 0.2}
    whole = found.train(weights, data, plan_of(task, **settings))
    for size in (1, 3):
        split = found.train(weights, data, plan_of(task, micro_batch=size, **settings))
        np.testing.assert_allclose(split.vector, whole.vector, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("engine", base.names())
def test_places_of_several_axes_are_weighted_alike(engine: str) -> None:
    task = Places()
    generator = np.random.default_rng(2)
    x = generator.standard_normal((6, 2, 5, 5)).astype(np.float32)
    y = generator.integers(0, 3, (6, 5, 5))
    weights = task.initial_weights(3)
    plan = plan_of(task, class_weights=[0.5, 2.0, 1.0], local_epochs=1, batch_size=6)
    update = load_engine(engine, task).train(weights, (x, y), plan)
    named = {k: torch.from_numpy(v).requires_grad_() for k, v in weights.arrays().items()}
    outputs = torch.nn.functional.conv2d(torch.from_numpy(x), *named.values(), padding=1)
    targets = torch.from_numpy(y)
    rows = torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
    (rows * torch.tensor([0.5, 2.0, 1.0])[targets]).mean().backward()  # type: ignore[no-untyped-call]
    gradient = np.concatenate([v.grad.numpy().ravel() for v in named.values()])  # type: ignore[union-attr]
    np.testing.assert_allclose(update.vector, -0.1 * gradient, rtol=1e-3, atol=1e-6)


class Places(Task):
    """A class at each place of a picture."""

    training = TrainingSettings(learning_rate=0.1)

    def model(self) -> Any:
        return [Conv2d(2, 3, 3, padding=1)]


@pytest.mark.parametrize("engine", base.names())
def test_with_all_of_it_training_after_a_power_cut_is_bit_equal(engine: str) -> None:
    task, data = task_of("cnn", "cross_entropy"), data_of("cnn", "cross_entropy")
    plan = plan_of(task, weight_decay=0.1, clip_norm=0.2, class_weights=CLASS_WEIGHTS)
    undisturbed = load_engine(engine, task).train(task.initial_weights(3), data, plan)
    resumed = cut_and_go_on(engine, task, data, plan, 4)
    assert resumed.vector.tobytes() == undisturbed.vector.tobytes()


class OwnLoss(Normed):
    def loss(self, outputs: Any, targets: Any) -> Any:
        return torch.nn.functional.cross_entropy(outputs, targets)


class OwnOptimizer(Normed):
    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.01)


def test_what_would_have_no_effect_is_refused_and_says_why() -> None:
    cases = [
        (OwnLoss(), {"class_weights": [1, 2]}, "has a loss of its own"),
        (OwnOptimizer(), {"weight_decay": 0.1}, r"makes its own optimizer\(\)"),
    ]
    for task, settings, reason in cases:
        with pytest.raises(ConfigError, match=reason):
            load_engine("torch", task).train(
                task.initial_weights(3), Rows(), plan_of(task, **settings)
            )


@pytest.mark.parametrize("engine", base.names())
def test_class_weights_fit_the_model(engine: str) -> None:
    for loss, weights, reason in (
        ("cross_entropy", [1, 2], "has 2 numbers, and the model of task made gives 4 classes"),
        ("binary_cross_entropy", [1, 2, 3, 4], "binary_cross_entropy, and they are of"),
        ("mean_squared_error", [1, 2, 3, 4], "mean_squared_error, and they are of cross_entropy"),
    ):
        task, data = task_of("mlp", loss), data_of("mlp", loss)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=reason):
            load_engine(engine, task).train(
                task.initial_weights(3), data, plan_of(task, class_weights=weights)
            )


def test_an_own_optimiser_is_given_clipped_gradients() -> None:
    task = OwnOptimizer()
    weights = task.initial_weights(3)
    plan = plan_of(task, clip_norm=1e-6, local_epochs=1)
    update = load_engine("torch", task).train(weights, Rows(), plan)
    trained = [spec.name for spec in weights.layout.floats if "running" not in spec.name]
    changed = weights.with_vector(update.vector).arrays()
    moved = np.sqrt(sum(float((changed[name] ** 2).sum()) for name in trained))
    assert 0 < moved < 1e-6


@pytest.mark.parametrize(
    ("weights", "reason"),
    [([0, 0], "not all be 0"), ([1, -1], "at least 0"), ("1,2", "list"), ([1, "2"], "float")],
)
def test_weights_that_weigh_nothing_are_refused(weights: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        TrainingSettings().overridden({"class_weights": weights})
    with pytest.raises(FieldError, match=reason):
        TrainingSettings(class_weights=weights)
