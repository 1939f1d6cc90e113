"""LoRA against gradient descent of the adapters written out, and what it sends of a transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import algorithms
from fl_client.datasets.device import Device
from fl_client.engines._numpy_call import LayerCall
from fl_client.models.layers import Layers, Linear, ReLU
from fl_client.models.local_round import LocalRound
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.base import Task
from fl_client.tasks.split import Split
from fl_client.torch_models.transformer import transformer
from fl_client.training.participant import Participant
from storage.transfer.byte_ranges import length
from tests.in_process import InProcessRun
from tests.unit.algorithms.trained import SIZE, clients, trained

HALF = SIZE // 2


@pytest.mark.parametrize("name", ["lora", "ffalora"])
def test_the_adapters_alone_are_trained_and_averaged(name: str) -> None:
    of = clients()
    begin = trained(name, {}, of, rounds=0).weights
    after = trained(name, {}, of, rounds=3)
    shared = begin.copy()
    for _ in range(3):
        mean = np.zeros(HALF)
        for client in of:
            w = shared.copy()
            for _ in range(client.steps):
                g = client.a * (w - client.b)
                w[HALF:] -= client.learning_rate * g[HALF:]
            mean += client.num_examples / 6 * (w[HALF:] - shared[HALF:])
        shared[HALF:] += mean
    assert (after.weights[:HALF] == begin[:HALF]).all()
    np.testing.assert_allclose(after.weights, shared, rtol=1e-12)
    sent, _ = after.train(of[0], {})
    assert list(sent.vectors["update"]) == ["head"]


def test_ffa_lora_trains_the_matrix_b_alone() -> None:
    algorithm = algorithms.load("ffalora")
    (local,) = clients(1, adapters=frozenset({"q.lora_a", "q.lora_B.default.weight"}))
    frozen = [name for name in local.adapters if algorithm.is_frozen(name, local)]
    assert frozen == ["q.lora_a"]
    assert algorithm.is_frozen("q.weight", local)


class Adapted(Task):
    training = TrainingSettings(local_epochs=1, batch_size=8, learning_rate=0.3)

    def model(self) -> Layers:
        return [Linear(6, 8, rank=2), ReLU(), Linear(8, 3, rank=1)]

    def data(self, device: Device) -> tuple[Split, Split]:
        random = np.random.default_rng(device.index)
        x = random.standard_normal((40, 6)).astype(np.float32)
        return (x, random.integers(0, 3, 40)), (x, random.integers(0, 3, 40))


class Text(Adapted):
    """Random characters for a transformer."""

    training = TrainingSettings(batch_size=2, optimizer="adam", learning_rate=1e-2)

    def model(self) -> torch.nn.Module:  # type: ignore[override]
        return transformer(16, 12)

    def data(self, device: Device) -> tuple[Split, Split]:
        windows = np.random.default_rng(device.index).integers(0, 12, (4, 17))
        return (windows[:, :-1], windows[:, 1:]), (windows[:, :-1], windows[:, 1:])


def parts_changed(run: InProcessRun, before: Any) -> set[str]:
    after = run.weights.arrays()
    old = before.arrays()
    return {name for name in after if not np.array_equal(after[name], old[name])}


@pytest.mark.parametrize("engine", ["numpy", "torch"])
@pytest.mark.parametrize(("name", "trained_parts"), [("lora", {"a", "b"}), ("ffalora", {"b"})])
def test_of_a_model_of_layers_nothing_else_changes(
    engine: str, name: str, trained_parts: set[str], tmp_path: Path
) -> None:
    run = InProcessRun(tmp_path, Adapted(), name, engines=[engine] * 2)
    before = run.weights
    run.round()
    run.round()
    expected = {f"{layer}.lora_{part}" for layer in (0, 2) for part in trained_parts}
    assert parts_changed(run, before) == expected


def test_an_adapter_of_zeros_changes_nothing_of_what_a_model_gives() -> None:
    plain, adapted = transformer(16, 12), transformer(16, 12)
    adapted.load_state_dict(plain.state_dict())
    x = torch.arange(16)[None] % 12
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if name.endswith("lora_a"):
                weight.fill_(5)
        assert torch.equal(plain(x), adapted(x))
        for name, weight in adapted.named_parameters():
            if name.endswith("lora_b"):
                weight.fill_(0.1)
        assert not torch.allclose(plain(x), adapted(x))


def test_a_character_is_foretold_from_those_before_it_alone() -> None:
    model = transformer(16, 12)
    x = torch.arange(16)[None] % 12
    other = x.clone()
    other[0, 10:] = 3
    with torch.no_grad():
        one, two = model(x), model(other)
    assert torch.equal(one[:, :, :10], two[:, :, :10])
    assert not torch.equal(one[:, :, 10:], two[:, :, 10:])
    assert one.shape == (1, 12, 16)


def traffic(folder: Path, name: str) -> tuple[int, int, int]:
    """Return the bytes of an update, of what a device downloads then, and of the whole model."""
    folder.mkdir()
    run = InProcessRun(folder, Text(), name, engines=["torch"] * 2)
    run.commit([run.train(0), run.train(1)])
    model = run.models[-1]
    whole = model.size_bytes
    down = whole if model.changed is None else length(model.changed)
    run.commit([run.train(0)])
    return (folder / "update-0").stat().st_size, down, whole


def test_adapters_travel_alone_up_and_down(tmp_path: Path) -> None:
    full, lora, ffa = (traffic(tmp_path / n, n) for n in ("fedavg", "lora", "ffalora"))
    print(f"\nup, down, whole: fedavg {full}, lora {lora}, ffalora {ffa}")
    (up, down, whole), values = full, 3 * 2 * 4 * (128 + 128)
    assert (up > 0.99 * whole, down) == (True, whole)
    # four bytes a weight, and what a header says of each run of weights
    assert 4 * values <= lora[0] < 4 * values + 6_000
    assert lora[1] == 4 * values
    assert 2 * values <= ffa[0] < 2 * values + 6_000
    assert ffa[1] == 2 * values
    assert min(up / lora[0], down / lora[1]) > 70
    assert min(up / ffa[0], down / ffa[1]) > 120


def test_numpy_computes_no_product_of_a_frozen_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: set[str] = set()
    store = LayerCall.store_gradient

    def watched(self: LayerCall, part: str, value: Any) -> None:
        stored.add(f"{self.index}.{part}")
        store(self, part, value)

    monkeypatch.setattr(LayerCall, "store_gradient", watched)
    participant = Participant(Adapted(), Device("d", 0, 1), "numpy")
    weights, settings = participant.task.initial_weights(0), participant.task.training
    participant.train(weights, LocalRound(algorithms.load("lora"), settings, 0, 1, "d"))
    assert {"0.lora_a", "0.lora_b", "2.lora_a", "2.lora_b"} <= stored
    assert not {"0.weight", "2.weight"}.intersection(stored)


def test_no_gradient_of_a_frozen_weight_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    grad = torch.autograd.grad

    def watched(outputs: Any, inputs: Any, *more: Any, **named: Any) -> Any:
        inputs = list(inputs)
        seen.append(sum(each.numel() for each in inputs))
        return grad(outputs, inputs, *more, **named)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    participant = Participant(Text(), Device("d", 0, 1), "torch")
    weights = participant.task.initial_weights(0)
    sizes = {}
    for name in ("fedavg", "lora", "ffalora"):
        seen.clear()
        participant.train(
            weights, LocalRound(algorithms.load(name), participant.task.training, 0, 1, "d")
        )
        sizes[name] = set(seen)
    adapters = 3 * 2 * 4 * (128 + 128)
    assert sizes == {
        "fedavg": {weights.vector.size},
        "lora": {adapters},
        "ffalora": {adapters // 2},
    }
