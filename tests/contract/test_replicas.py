"""Several accelerators in one order: the steps are those of one, and the same every time.

The CPU stands for all of them here: its workers are threads, as those of CUDA devices are.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.fedavg import FedAvg
from algorithms.fedprox import FedProx
from fl_client.engines._torch_loss import TaskLoss
from fl_client.engines._torch_replicas import Replicas, seed_devices
from fl_client.engines._torch_training import TorchData, TorchTraining
from fl_client.engines._torch_tuning import MixedPrecision
from fl_client.engines.base import TrainingFailed, Tuning, load_engine, pieces
from fl_client.models.layers import Conv2d, Dropout, Flatten, LayerNorm, Linear, ReLU, Reshape
from fl_client.models.local_round import LocalRound
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.base import Task
from fl_client.torch_models.parts import parts_of_module
from tests.contract.test_engine_steps import Kept, OwnAdam, PowerCutError
from tests.contract.test_engines import Declarative, Normed, Rows, data_of, plan_of, task_of
from tests.updates import change_of


def workers(count: int, **more: Any) -> Tuning:
    return Tuning(accelerators=tuple(f"cpu:{index}" for index in range(count)), **more)


def after(count: int, task: Task, data: Any, plan: LocalRound, **more: Any) -> dict[str, Any]:
    """Return the weights in float64 that so many workers come to."""
    seen: dict[str, Any] = {}

    class Seen(type(plan.algorithm)):  # type: ignore[misc]
        def finish(self, w: Any, got: Any, state: Any, local: Any) -> Any:
            seen.update({name: tensor.numpy(force=True).copy() for name, tensor in w.items()})
            return super().finish(w, got, state, local)

    engine = load_engine("torch", task, dtype="float64", tuning=workers(count, **more))
    watched = replace(plan, algorithm=Seen(**asdict(plan.algorithm)))
    update = engine.train(task.initial_weights(3), data, watched)
    return {**seen, "train_loss": update.metrics["train_loss"]}


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=1e-13)


def moved(task: Task, weights: dict[str, Any]) -> float:
    first = task.initial_weights(3).arrays()
    return max(float(np.abs(weights[name] - first[name]).max()) for name in first)


class Dropping(Declarative):
    layers: ClassVar = [
        Linear(12, 9),
        ReLU(),
        Dropout(0.4),
        LayerNorm((9,)),
        Dropout(0.2),
        Linear(9, 4),
    ]


class Wide(Declarative):
    layers: ClassVar = [
        Reshape((1, 9, 9)),
        Conv2d(1, 3, 3, padding=1),
        ReLU(),
        Dropout(0.3),
        Flatten(),
        Linear(243, 4),
    ]


@dataclass(frozen=True)
class Pulled(FedProx):
    """FedProx by its loss, whose anchor is a client's state."""

    needs = ("loss",)

    def start(self, got: Any, state: Any, local: Any) -> Any:
        anchor = {name: tensor * 1 for name, tensor in got.weights.items()}
        return got.weights, {**state, "anchor": anchor}

    def direction(self, batch: Any, w: Any, got: Any, state: Any, local: Any) -> Any:
        return batch.gradient(w), state

    def loss(self, forward: Any, w: Any, got: Any, state: Any, local: Any) -> Any:
        # half of the pull towards the global model, half towards the state that says the same
        halves = [got.weights, state["anchor"]]
        pulls = (((w[n] - at[n]) ** 2).sum() for at in halves for n in got.weights)
        return forward.loss + self.mu / 4 * sum(pulls)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": 0.9},
        {"optimizer": "adam", "learning_rate": 0.01},
        {"micro_batch": 3},
        {"micro_batch": 5, "optimizer": "adam", "learning_rate": 0.01},
    ],
    ids=str,
)
@pytest.mark.parametrize("algorithm", [FedAvg(), FedProx(mu=0.5), Pulled(mu=0.5)], ids=str)
@pytest.mark.parametrize("count", [2, 3])
def test_the_weights_are_those_of_one_worker(
    count: int, algorithm: FedAvg, changes: dict[str, Any]
) -> None:
    # batches of 8, 8 and 4: three workers have 3, 3 and 2 examples, or two of them 2
    for task, model in ((task_of("cnn", "cross_entropy"), "cnn"), (Dropping(), "mlp")):
        data = data_of(model, "cross_entropy")
        plan = replace(plan_of(task, **changes), algorithm=algorithm)
        one = after(1, task, data, plan)
        assert moved(task, one) > 0.01
        same(after(count, task, data, plan), one)


def test_a_loss_of_the_algorithm_s_own_is_differentiated_by_every_worker() -> None:
    task, data = task_of("mlp", "cross_entropy"), data_of("mlp", "cross_entropy")
    by_gradient = after(2, task, data, replace(plan_of(task), algorithm=FedProx(mu=0.5)))
    by_loss = after(2, task, data, replace(plan_of(task), algorithm=Pulled(mu=0.5)))
    # the loss that is told is the task's own in both
    same(by_loss, by_gradient)
    without = after(2, task, data, plan_of(task))
    assert np.abs(without["0.weight"] - by_loss["0.weight"]).max() > 1e-3


@settings(deadline=None, max_examples=40)
@given(
    examples=st.integers(1, 13),
    batch=st.integers(1, 9),
    micro=st.integers(0, 9),
    count=st.integers(2, 5),
    model=st.sampled_from([Dropping, Wide]),
)
def test_so_it_is_for_batches_of_any_size(
    examples: int, batch: int, micro: int, count: int, model: type[Declarative]
) -> None:
    task = model()
    data = data_of("mlp" if model is Dropping else "cnn", "cross_entropy", examples)
    plan = plan_of(task, batch_size=batch, micro_batch=micro, local_epochs=2)
    same(after(count, task, data, plan), after(1, task, data, plan))


class Plain(Task):
    """A torch module with a tied weight, whose step is its own."""

    training = TrainingSettings(local_epochs=2, batch_size=8, learning_rate=0.1, momentum=0.5)

    def model(self) -> torch.nn.Module:
        first, last = torch.nn.Linear(6, 6), torch.nn.Linear(6, 3)
        return torch.nn.Sequential(first, torch.nn.Tanh(), first, torch.nn.Tanh(), last)

    def training_step(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        return torch.nn.functional.cross_entropy(model(x.to(next(model.parameters()).dtype)), y)


class PlainAdam(Plain):
    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=0.01)


@pytest.mark.parametrize("task", [Plain(), PlainAdam()], ids=["engine's", "own"])
@pytest.mark.parametrize("threads", [0, 3])
def test_a_torch_module_and_a_dataset_are_trained_alike(task: Task, threads: int) -> None:
    one = after(1, task, Rows(), plan_of(task))
    assert moved(task, one) > 0.01
    same(after(2, task, Rows(), plan_of(task), loader_threads=threads), one)


# --- the same every time --------------------------------------------------------------------------


def trained(count: int, task: Task, plan: LocalRound, **more: Any) -> bytes:
    engine = load_engine("torch", task, tuning=workers(count, **more))
    return engine.train(task.initial_weights(3), Rows(), plan).vector.tobytes()


@pytest.mark.parametrize("task", [Normed(), OwnAdam()], ids=["engine's", "own"])
def test_with_random_numbers_and_buffers_it_is_a_function_of_the_number(task: Task) -> None:
    plan = plan_of(task)
    found = [trained(count, task, plan) for count in (1, 2, 3)]
    assert found == [trained(count, task, plan) for count in (1, 2, 3)]
    assert len(set(found)) == 3


@pytest.mark.parametrize("task", [Normed(), OwnAdam(), Plain()], ids=["normed", "own", "plain"])
@pytest.mark.parametrize("cut_after", [1, 3, 4])
def test_training_of_two_that_is_cut_goes_on_bit_equal(task: Task, cut_after: int) -> None:
    kept = Kept(cut_after)
    cut = plan_of(task, optimizer="adam", learning_rate=0.01)
    undisturbed = trained(2, task, cut)
    cut = replace(cut, checkpoint=kept)
    with pytest.raises(PowerCutError):
        trained(2, task, cut)
    kept.steps = cut_after  # no second cut
    assert trained(2, task, cut) == undisturbed


def test_what_another_number_of_them_saved_is_not_continued() -> None:
    task, kept = Normed(), Kept(3)
    plan = plan_of(task)
    with pytest.raises(PowerCutError):
        trained(2, task, replace(plan, checkpoint=kept))
    kept.steps = 3
    for count in (1, 3):
        assert trained(count, task, replace(plan, checkpoint=kept)) == trained(count, task, plan)


def test_the_running_means_are_those_of_the_first_worker_s_parts() -> None:
    task, plan = Normed(), plan_of(Normed(), local_epochs=1, max_steps=1, batch_size=5)
    weights = task.initial_weights(3)
    update = load_engine("torch", task, tuning=workers(2)).train(weights, Rows(), plan)
    mean = weights.with_vector(weights.vector + change_of(update)).arrays()["1.running_mean"]
    order = np.random.default_rng(plan.local_seed).permutation(20)[:5]
    x = torch.stack([Rows()[int(index)][0] for index in order[:3]]).numpy()
    linear = x @ weights.arrays()["0.weight"].T + weights.arrays()["0.bias"]
    np.testing.assert_allclose(mean, 0.1 * linear.mean(0), rtol=1e-5, atol=1e-6)


# --- who computes ---------------------------------------------------------------------------------


class Watched(Plain):
    """Tells which threads compute, and when they must do so at once."""

    def __init__(self, meet_after: int = 10**6) -> None:
        self.calls: list[str] = []
        self._meet_after, self._both = meet_after, threading.Barrier(2, timeout=20)

    def training_step(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        self.calls.append(threading.current_thread().name)
        if len(self.calls) > self._meet_after:
            self._both.wait()
        return super().training_step(model, batch)


def test_workers_compute_at_the_same_time_once_they_are_known_to_draw_nothing() -> None:
    # batches of 8, 8, 4 and again: the first and the third are sizes that had not been seen
    task = Watched(meet_after=10**6)
    trained(2, task, plan_of(task))
    main = threading.current_thread().name
    assert Counter(task.calls)[main] == 4
    meeting = Watched(meet_after=2)
    trained(2, meeting, plan_of(meeting, max_steps=2))
    assert meeting.calls[:2] == [main, main]
    assert {name.rpartition("_")[0] for name in meeting.calls[2:]} == {"replica"}


class Drawing(Watched):
    def __init__(self, first_at: int) -> None:
        super().__init__()
        self._first_at = first_at

    def training_step(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        loss = super().training_step(model, batch)
        return loss * (1 + torch.rand(())) if len(self.calls) > self._first_at else loss


def test_workers_that_draw_random_numbers_take_turns(caplog: pytest.LogCaptureFixture) -> None:
    task = Drawing(first_at=0)
    trained(2, task, plan_of(task))
    assert set(task.calls) == {threading.current_thread().name}
    assert [record.message for record in caplog.records] == [
        "the model draws random numbers on the CPU: its replicas take turns"
    ]


def test_random_numbers_that_come_late_are_an_error_not_another_model() -> None:
    task = Drawing(first_at=2)
    with pytest.raises(TrainingFailed, match="at some steps only"):
        trained(2, task, plan_of(task))


def test_a_batch_that_is_smaller_than_the_workers_are_takes_fewer() -> None:
    task = Watched()
    trained(2, task, plan_of(task, batch_size=1, local_epochs=1))
    assert len(task.calls) == 20


def test_an_error_of_a_worker_is_the_training_s() -> None:
    class Failing(Watched):
        def training_step(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
            loss = super().training_step(model, batch)
            if threading.current_thread().name.startswith("replica"):
                raise MemoryError("no more")
            return loss

    with pytest.raises(MemoryError, match="no more"):
        trained(2, Failing(), plan_of(Failing()))
    assert not [each for each in threading.enumerate() if each.name.startswith("replica")]


@pytest.mark.parametrize("count", [2, 3])
def test_an_evaluation_is_the_same_to_the_last_bit(count: int) -> None:
    task, data = task_of("mlp", "cross_entropy"), data_of("mlp", "cross_entropy", 1500)
    weights = task.initial_weights(3)
    one, several = (
        load_engine("torch", task, tuning=workers(number)).evaluate(weights, data)
        for number in (1, count)
    )
    assert one.num_examples == 1500
    assert several == one


# --- the rest of the tuning -----------------------------------------------------------------------


def test_a_scale_is_shared_and_an_overflow_is_one_for_all() -> None:
    task, data = task_of("mlp", "cross_entropy"), data_of("mlp", "cross_entropy")
    weights, plan = task.initial_weights(3), plan_of(task)
    one, two, again = (
        load_engine("torch", task, tuning=workers(count, precision="float16"))
        .train(weights, data, plan)
        .vector
        for count in (1, 2, 2)
    )
    assert np.array_equal(two, again)
    assert np.linalg.norm(one - two) < 0.02 * np.linalg.norm(one)

    class Overflowing(type(task)):  # type: ignore[misc]
        """The second worker's gradient is infinite in the first step."""

        steps = 0

        def training_step(self, model: Any, batch: Any) -> Any:
            Overflowing.steps += 1
            loss = super().training_step(model, batch)
            return loss * 1e38 if Overflowing.steps == 2 else loss

    first = replace(plan, settings=replace(plan.settings, max_steps=1))
    engine = load_engine("torch", Overflowing(), tuning=workers(2, precision="float16"))
    assert not engine.train(weights, data, first).vector.any()
    assert Overflowing.steps == 2


def test_compiled_workers_train_the_same_weights() -> None:
    task, data = task_of("mlp", "cross_entropy"), data_of("mlp", "cross_entropy")
    one = after(1, task, data, plan_of(task))
    same(after(2, task, data, plan_of(task), compile="eager"), one)


def test_cuda_devices_but_the_first_draw_numbers_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeded: list[tuple[str, int]] = []
    at: list[str] = []

    class On:
        def __init__(self, device: torch.device) -> None:
            self._device = device

        def __enter__(self) -> None:
            at.append(str(self._device))

        def __exit__(self, *_: object) -> None:
            at.pop()

    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeded.append(("all", seed)))
    monkeypatch.setattr(torch.cuda, "device", On)
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: seeded.append((at[-1], seed)))
    seed_devices(2**64 - 1, [torch.device("cuda", index) for index in range(3)])
    assert seeded == [("all", 2**64 - 1), ("cuda:1", 0), ("cuda:2", 1)]


def test_a_checkpoint_keeps_the_random_numbers_of_every_cuda_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = {index: torch.full((16,), index, dtype=torch.uint8) for index in range(3)}
    given: dict[int, torch.Tensor] = {}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device.index])
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: given.update({device.index: state})
    )

    def training(count: int) -> TorchTraining:
        # no step is taken: the models may lie elsewhere
        task, mixed = Plain(), MixedPrecision(torch.device("cuda", 0), None, replicas=count)
        devices = [torch.device("cuda", index) for index in range(count)]
        replicas = Replicas([task.model() for _ in devices], devices)
        data = TorchData(1, lambda chosen: chosen, TaskLoss(task, None, leaves_out=False))
        parts = parts_of_module(replicas.models[0])
        return TorchTraining(data, replicas, plan_of(task), {}, parts, mixed)

    kept = training(2).capture()
    assert training(2).restore(kept)
    assert {index: state.tolist() for index, state in given.items()} == {0: [0] * 16, 1: [1] * 16}
    given.clear()
    assert not training(3).restore(kept)
    assert not given


def test_parts_are_of_nearly_one_size_and_in_order() -> None:
    model = torch.nn.Linear(1, 1)
    with Replicas([model] * 3, [torch.device("cpu")] * 3) as three:
        assert [part.tolist() for part in three.parts(np.arange(7))] == [[0, 1, 2], [3, 4], [5, 6]]
        assert [part.tolist() for part in three.parts(np.arange(5))] == [[0, 1, 2], [3, 4]]
        # batch normalisation takes no single example, unless there is but one
        assert [part.tolist() for part in three.parts(np.arange(3))] == [[0, 1, 2]]
        assert [part.tolist() for part in three.parts(np.arange(1))] == [[0]]
    chosen = np.arange(8)
    shares = [share for _, share in pieces(chosen, TrainingSettings(micro_batch=3))]
    assert shares == [3 / 8, 3 / 8, 2 / 8]
