"""An algorithm that cannot run with a task is refused before the run, with what to do."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

import algorithms
from fl_client.models.layers import BatchNorm, Layers, Linear, ReLU
from fl_client.tasks.base import Task
from fl_client.training.algorithm_match import parts_of, require_match, require_transforms
from runtime.errors import ConfigError


class TwoLayers(Task):
    def model(self) -> Layers:
        return [Linear(4, 3), ReLU(), Linear(3, 2)]


class Adapted(Task):
    def model(self) -> Layers:
        return [Linear(4, 3, rank=2), ReLU(), Linear(3, 2)]


class OneLayer(Task):
    def model(self) -> Layers:
        return [Linear(4, 2)]


class Normed(Task):
    def model(self) -> Layers:
        return [Linear(4, 3), BatchNorm(3), Linear(3, 2)]


class Module(Task):
    def model(self) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(4, 3), torch.nn.GroupNorm(1, 3), torch.nn.Linear(3, 2)
        )


class Named(Normed):
    head = ("1.", "2.")


class Elsewhere(TwoLayers):
    head = ("9.",)


class OwnUpdate(TwoLayers):
    def local_update(self, weights: Any, context: Any) -> Any:
        return weights, 1, {}


class OwnStep(TwoLayers):
    def training_step(self, model: Any, batch: Any) -> Any:
        return self.loss(*self.predict(model, batch))


class Lossy(algorithms.algorithm_class("fedavg")):  # type: ignore[misc]
    needs: ClassVar = ("loss",)


def match(task: Task, name: str) -> None:
    require_match(task, name, algorithms.load(name))


@pytest.mark.parametrize("kind", [TwoLayers, Normed, Module, Named])
@pytest.mark.parametrize("name", ["fedavg", "scaffold", "fedper", "ditto", "ifca"])
def test_what_can_run(kind: type[Task], name: str) -> None:
    match(kind(), name)


@pytest.mark.parametrize("name", ["lora", "ffalora", "fedavg"])
def test_adapters_can_be_trained_alone_and_with_all_else(name: str) -> None:
    match(Adapted(), name)


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        (TwoLayers, "lora", "task two_layers has none: they are weights .*rank=4"),
        (Module, "ffalora", "algorithm ffalora trains low-rank adapters alone"),
        (OneLayer, "fedper", "is the whole model; name its weights in .* `head`"),
        (Elsewhere, "fedrep", "is empty; name its weights"),
        (TwoLayers, "fedbn", "the model of task two_layers has none"),
        (OwnUpdate, "scaffold", "overrides local_update"),
        (OwnUpdate, "ditto", "use fedavg, or let an engine train"),
    ],
)
def test_what_cannot_is_refused_with_the_reason(kind: type[Task], name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        match(kind(), name)


def test_a_loss_of_the_algorithm_s_own_replaces_no_training_step() -> None:
    require_match(TwoLayers(), "lossy", Lossy())
    with pytest.raises(ConfigError, match="overrides training_step"):
        require_match(OwnStep(), "lossy", Lossy())


def test_own_training_goes_with_plain_averaging() -> None:
    match(OwnUpdate(), "fedavg")
    match(OwnUpdate(), "fedadam")


def test_the_parts_of_a_model() -> None:
    layers, module = parts_of(Normed()), parts_of(Module())
    assert layers.head == module.head == {"2.weight", "2.bias"}
    assert layers.norms == {"1.weight", "1.bias", "1.running_mean", "1.running_var"}
    assert module.norms == {"1.weight", "1.bias"}
    assert parts_of(Named()).head == {"1.weight", "1.bias", "2.weight", "2.bias"}


def test_noise_goes_with_no_model_that_sends_running_statistics() -> None:
    require_transforms(Normed(), ["clip", "sparsify"])
    require_transforms(Module(), ["clip", "noise"])
    with pytest.raises(ConfigError, match="the model of task normed has running statistics"):
        require_transforms(Normed(), ["clip", "noise"])
