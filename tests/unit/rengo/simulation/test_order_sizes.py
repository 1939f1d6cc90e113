"""What orders ask of devices, worked out by hand for the digits' perceptron of 64-32-10."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fl_client.models.settings import TrainingSettings
from rengo.simulation.backend import VirtualOrder
from rengo.simulation.clients import ClientsSpec, VirtualClients
from rengo.simulation.order_sizes import OrderSizes
from rengo.simulation.virtual.work import OrderSize

WEIGHTS = 64 * 32 + 32 + 32 * 10 + 10
FORWARD = 2 * 64 * 32 + 2 * 32 * 10


@pytest.fixture(scope="module")
def clients() -> VirtualClients:
    return VirtualClients(ClientsSpec("digits", 20, partition="iid"))


def size(clients: VirtualClients, share: float = 1.0, **settings: int) -> OrderSize:
    sizes = OrderSizes(clients, clients.task.initial_weights(0))
    chosen = replace(TrainingSettings(local_epochs=2, batch_size=10), **settings)
    order = VirtualOrder(3, clients.ids[3], 1, chosen)
    return sizes.training(order, (1, 2), share)


def test_an_order_to_train_by_hand(clients: VirtualClients):
    split, _ = clients.splits(3)
    assert isinstance(split, tuple)
    count, found = len(split[0]), size(clients)
    assert (found.examples, found.steps) == (2 * count, 2 * math.ceil(count / 10))
    assert found.flops_per_example == pytest.approx(3 * FORWARD, rel=0.05)
    # the model and one vector beside it; two vectors come back
    assert (found.bytes_down, found.bytes_up) == (2 * 4 * WEIGHTS, 2 * 4 * WEIGHTS)


def test_steps_may_be_fewer_than_the_epochs_have(clients: VirtualClients):
    found = size(clients, max_steps=3)
    assert (found.examples, found.steps) == (30, 3)


def test_a_part_of_the_model_costs_its_part(clients: VirtualClients):
    whole, half = size(clients), size(clients, share=0.5)
    assert half.bytes_up == whole.bytes_up / 2
    assert half.flops_per_example == whole.flops_per_example / 2


def test_an_order_to_evaluate_is_a_forward_pass(clients: VirtualClients):
    found = OrderSizes(clients, clients.task.initial_weights(0)).evaluation(50)
    assert (found.examples, found.steps, found.bytes_up) == (50, 0, 0)
    assert found.flops_per_example == pytest.approx(FORWARD, rel=0.05)
    assert found.bytes_down == 4 * WEIGHTS
