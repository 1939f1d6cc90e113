"""What every engine's loop keeps: resumed training is bit-equal, micro batches mean the same."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from fl_client.engines import base
from fl_client.engines import numpy as numpy_engine
from fl_client.engines.base import TrainingFailed, load_engine, run_epochs
from fl_client.models.local_round import LocalRound
from fl_client.models.memory import memory_needed
from fl_client.models.settings import TrainingSettings
from runtime.processes.rss import rss_bytes
from tests.contract.test_engines import Normed, Rows, data_of, plan_of, task_of


class PowerCutError(Exception):
    """The process is gone."""


@dataclass
class Kept:
    """A checkpoint in memory that saves before the cut, which comes after so many steps."""

    cut_after: int = 0
    steps: int = 0
    saved: dict[str, Any] | None = None
    loads: list[bool] = field(default_factory=list)

    def load(self) -> dict[str, Any] | None:
        self.loads.append(self.saved is not None)
        return None if self.saved is None else dict(self.saved)

    def due(self) -> bool:
        self.steps += 1
        return self.steps == self.cut_after

    def save(self, arrays: dict[str, Any]) -> None:
        self.saved = {name: np.array(array) for name, array in arrays.items()}
        raise PowerCutError


def cut_and_go_on(engine: str, task: Any, data: Any, plan: LocalRound, cut_after: int) -> Any:
    kept = Kept(cut_after)
    cut = replace(plan, checkpoint=kept)
    weights = task.initial_weights(3)
    with pytest.raises(PowerCutError):
        load_engine(engine, task).train(weights, data, cut)
    kept.steps = cut_after  # no second cut
    found = load_engine(engine, task).train(weights, data, cut)
    assert kept.loads == [False, True]
    return found


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("engine", base.names())
@pytest.mark.parametrize("cut_after", [1, 3, 5])
def test_training_after_a_power_cut_is_bit_equal(
    engine: str, optimizer: str, cut_after: int
) -> None:
    # three steps an epoch: within one, at its end, within the next
    task, data = task_of("cnn", "cross_entropy"), data_of("cnn", "cross_entropy")
    plan = plan_of(task, optimizer=optimizer, learning_rate=0.01)
    undisturbed = load_engine(engine, task).train(task.initial_weights(3), data, plan)
    resumed = cut_and_go_on(engine, task, data, plan, cut_after)
    assert resumed.vector.tobytes() == undisturbed.vector.tobytes()
    assert resumed.metrics == undisturbed.metrics


class OwnAdam(Normed):
    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=0.01)


@pytest.mark.parametrize("kind", [Normed, OwnAdam])
def test_so_it_is_with_buffers_dropout_and_an_optimiser_of_the_task(kind: type[Normed]) -> None:
    task = kind()
    plan = plan_of(task)
    undisturbed = load_engine("torch", task).train(task.initial_weights(3), Rows(), plan)
    resumed = cut_and_go_on("torch", task, Rows(), plan, 4)
    assert resumed.vector.tobytes() == undisturbed.vector.tobytes()


@pytest.mark.parametrize("engine", base.names())
def test_what_another_training_saved_is_not_continued(engine: str) -> None:
    task, data = task_of("mlp", "cross_entropy"), data_of("mlp", "cross_entropy")
    plan, kept = plan_of(task), Kept(2)
    weights = task.initial_weights(3)
    with pytest.raises(PowerCutError):
        load_engine(engine, task).train(weights, data, replace(plan, checkpoint=kept))
    for other in (replace(plan, round=5), plan_of(task, learning_rate=0.2)):
        fresh = load_engine(engine, task).train(weights, data, other)
        kept.steps = 2
        given = load_engine(engine, task).train(weights, data, replace(other, checkpoint=kept))
        assert given.vector.tobytes() == fresh.vector.tobytes()
    wider = task_of("tanh", "cross_entropy")
    fresh = load_engine(engine, wider).train(wider.initial_weights(3), data, plan)
    given = load_engine(engine, wider).train(
        wider.initial_weights(3), data, replace(plan, checkpoint=kept)
    )
    assert given.vector.tobytes() == fresh.vector.tobytes()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("engine", base.names())
def test_micro_batches_take_the_steps_of_the_batch(engine: str, optimizer: str) -> None:
    task, data = task_of("mlp", "cross_entropy"), data_of("mlp", "cross_entropy")
    weights, found = task.initial_weights(3), load_engine(engine, task)
    settings: dict[str, Any] = {"optimizer": optimizer, "learning_rate": 0.01}
    whole = found.train(weights, data, plan_of(task, "fedprox", **settings))
    # batches of 8, 8 and 4: a micro batch of 3 divides none of them
    for size in (1, 3, 8):
        split = found.train(weights, data, plan_of(task, "fedprox", micro_batch=size, **settings))
        np.testing.assert_allclose(split.vector, whole.vector, rtol=1e-3, atol=2e-6)
        assert split.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"], rel=1e-5)


@pytest.mark.parametrize("engine", base.names())
def test_the_adam_step_is_that_of_torch(engine: str) -> None:
    task, (x, y) = task_of("mlp", "cross_entropy"), data_of("mlp", "cross_entropy")
    weights = task.initial_weights(3)
    plan = plan_of(task, optimizer="adam", learning_rate=0.01)
    model = torch.nn.Sequential(torch.nn.Linear(12, 9), torch.nn.ReLU(), torch.nn.Linear(9, 4))
    model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.arrays().items()})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def step(chosen: Any) -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            model(torch.from_numpy(x[chosen])), torch.from_numpy(y[chosen])
        )
        loss.backward()
        optimizer.step()
        return loss.item()

    run_epochs(plan, 20, step)
    after = np.concatenate([v.detach().numpy().ravel() for v in model.parameters()])
    update = load_engine(engine, task).train(weights, (x, y), plan)
    np.testing.assert_allclose(update.vector, after - weights.vector, rtol=1e-3, atol=1e-5)


def steps_of(count: int, **settings: Any) -> tuple[list[int], dict[str, float], list[Any]]:
    """Train nothing: each step's loss is its number."""
    sizes: list[int] = []
    told: list[Any] = []

    def step(chosen: Any) -> float:
        sizes.append(len(chosen))
        return float(len(sizes))

    plan = LocalRound(
        plan_of(Normed()).algorithm,
        TrainingSettings(batch_size=4, **settings),
        1,
        1,
        "d",
        progress=lambda fraction, mean: told.append((fraction, mean)),
    )
    return sizes, run_epochs(plan, count, step), told


def test_max_steps_ends_training_early_and_never_makes_it_longer() -> None:
    assert steps_of(10, local_epochs=2)[0] == [4, 4, 2, 4, 4, 2]
    assert steps_of(10, local_epochs=2, max_steps=4)[0] == [4, 4, 2, 4]
    assert steps_of(10, local_epochs=2, max_steps=60)[0] == [4, 4, 2, 4, 4, 2]
    assert steps_of(10, max_steps=1)[0] == [4]


def test_the_loss_is_that_of_the_last_whole_epoch_else_of_what_was_seen() -> None:
    _, metrics, told = steps_of(10, local_epochs=2)
    assert metrics == {"train_loss": (4 * 4 + 5 * 4 + 6 * 2) / 10}
    assert [round(fraction * 6) for fraction, _ in told] == [1, 2, 3, 4, 5, 6, 6]
    first = (1 * 4 + 2 * 4 + 3 * 2) / 10
    assert [mean for _, mean in told[:5]] == [None, None, first, first, first]
    assert steps_of(10, local_epochs=2, max_steps=4)[1] == {"train_loss": first}
    assert steps_of(10, max_steps=2)[1] == {"train_loss": 1.5}


def test_the_numpy_engine_keeps_within_its_memory_or_says_what_it_would_take() -> None:
    task, data = task_of("cnn", "cross_entropy"), data_of("cnn", "cross_entropy", 300)
    weights, engine = task.initial_weights(3), load_engine("numpy", task)
    plan = plan_of(task, batch_size=256, local_epochs=1)
    whole = engine.train(weights, data, plan)
    resident = rss_bytes(os.getpid())
    assert resident is not None
    room = memory_needed(task.model(), 20, (81,), plan.settings)  # type: ignore[arg-type]
    sizes: list[int] = []
    forward = numpy_engine.forward

    def seen(layer: Any, call: Any, x: Any) -> Any:
        sizes.append(len(x))
        return forward(layer, call, x)

    tight = replace(plan, memory_bytes=resident + room)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numpy_engine, "forward", seen)
        split = load_engine("numpy", task).train(weights, data, tight)
    # what the process holds may have moved by a page or two meanwhile
    assert 10 <= max(sizes) <= 20
    np.testing.assert_allclose(split.vector, whole.vector, rtol=1e-3, atol=2e-6)
    with pytest.raises(TrainingFailed, match=r"training takes \d+ MiB .* gives it 1 MiB"):
        engine.train(weights, data, replace(plan, memory_bytes=1 << 20))
