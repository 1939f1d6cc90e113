"""The learning rate of each round: torch's own schedulers are the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from fl_client.models.layers import Linear
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.base import Task
from fl_server.rounds.facts import RoundStarted
from fl_server.rounds.model import Model
from fl_server.rounds.workload import OrderWork
from fl_server.runs.definition import ScheduleSection, parse_definition
from fl_server.runs.record import RunRecord
from fl_server.runs.schedule import factor, training_of
from rengo.operator.definitions import check_definition
from runtime.errors import ConfigError
from tests.unit.fl_server.test_run import opened, order_of

ROUNDS = 12


def torch_rates(make: Any, warmup: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = make(optimizer)
    if warmup:
        first = schedulers.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
        schedule = schedulers.SequentialLR(optimizer, [first, schedule], [warmup])
    rates = []
    for _ in range(ROUNDS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize(
    ("values", "make"),
    [
        ({}, lambda o: schedulers.ConstantLR(o, 1.0)),
        (
            {"name": "step", "decay": 0.3, "every": 4},
            lambda o: schedulers.StepLR(o, 4, gamma=0.3),
        ),
        ({"name": "exponential", "decay": 0.9}, lambda o: schedulers.ExponentialLR(o, 0.9)),
        ({"name": "cosine", "least": 0.1}, None),
    ],
    ids=["constant", "step", "exponential", "cosine"],
)
def test_a_schedule_is_that_of_torch(values: dict[str, Any], make: Any, warmup: int) -> None:
    make = make or (lambda o: schedulers.CosineAnnealingLR(o, T_max=ROUNDS - warmup, eta_min=0.1))
    schedule = ScheduleSection(**values, warmup_rounds=warmup)
    found = [factor(schedule, number, ROUNDS) for number in range(1, ROUNDS + 1)]
    assert found == pytest.approx(torch_rates(make, warmup))
    assert schedule.is_constant == (not values and not warmup)


def test_it_never_goes_below_its_least_nor_to_nothing() -> None:
    steep = {"name": "exponential", "decay": 0.1}
    assert factor(ScheduleSection(**steep, least=0.2), 900, 1000) == 0.2
    assert 0 < factor(ScheduleSection(**steep), 900, 1000) < 1e-8


def definition(**values: Any) -> Any:
    return parse_definition({"task": "t", "rounds": ROUNDS, **values}, "test")


HALVED = {"name": "exponential", "decay": 0.5}


def test_orders_carry_the_rate_of_their_round_and_what_fits_the_device() -> None:
    values = {"schedule": HALVED, "training": {"learning_rate": 1, "batch_size": 4}}
    found = definition(**values, cohort={"size": 1})
    assert training_of(found, 3) == {"learning_rate": 0.25, "batch_size": 4}
    assert found.training["learning_rate"] == 1, "the definition stays as it is"
    plan = found.plan("r", evaluators_online=False)
    record = RunRecord("r", found, plan, Model(0, "k/0", "0" * 64, 1), 0.0)
    run = opened(record, RoundStarted(1, 1, ("d-1",), 1, {"d-1": OrderWork(7)}))
    assert order_of(run, place=(2, 1)).training == {
        "learning_rate": 0.5,
        "batch_size": 4,
        "max_steps": 7,
    }
    assert order_of(run, "evaluate").training == values["training"]


def test_without_a_schedule_orders_are_what_they_were() -> None:
    assert training_of(definition(training={"momentum": 0.5}), 4) == {"momentum": 0.5}
    assert training_of(definition(), 4) == {}


@pytest.mark.parametrize(
    ("schedule", "training", "said"),
    [
        ({"name": "step"}, {"learning_rate": 1}, "needs schedule.decay"),
        ({"name": "linear"}, {}, "'constant', 'step', 'exponential' or 'cosine'"),
        (HALVED, {}, "needs training.learning_rate"),
        (HALVED, {"learning_rate": True}, "needs training.learning_rate"),
        ({"warmup_rounds": ROUNDS}, {"learning_rate": 1}, "leaves nothing of 12 rounds"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(schedule: Any, training: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        definition(schedule=schedule, training=training)


class Plain(Task):
    training = TrainingSettings(learning_rate=0.3)

    def model(self) -> Any:
        return [Linear(2, 2)]


class OwnOptimizer(Plain):
    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1)


def test_the_task_gives_the_rate_that_it_begins_with_unless_the_run_does() -> None:
    assert check_definition(Plain(), {"schedule": HALVED})["training"] == {"learning_rate": 0.3}
    own = {"schedule": HALVED, "training": {"learning_rate": 2.0, "momentum": 0.1}}
    assert check_definition(Plain(), own) == own
    assert check_definition(Plain(), {"rounds": 3}) == {"rounds": 3}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"schedule": {"name": "cosine"}}, "schedule has no effect: task own_optimizer makes"),
        ({"training": {"momentum": 0.1}}, "training.momentum has no effect"),
        ({"training": {"weight_decay": 0.1}}, "training.weight_decay: task own_optimizer makes"),
    ],
)
def test_what_an_own_optimiser_passes_over_is_refused(values: Any, said: str) -> None:
    assert check_definition(Plain(), values)
    with pytest.raises(ConfigError, match=said):
        check_definition(OwnOptimizer(), values)
