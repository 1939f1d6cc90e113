"""Mixed precision, compiling and loaders of the torch engine, as far as a CPU can show them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from algorithms.fedavg import FedAvg
from fl_client.datasets.device import Device
from fl_client.engines import torch as torch_engine
from fl_client.engines._torch_tuning import MixedPrecision, devices_of, half_of
from fl_client.engines.base import Tuning, load_engine
from fl_client.models import layers as ls
from fl_client.models.local_round import LocalRound
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.base import Task
from fl_client.tasks.split import Split
from runtime.errors import ConfigError
from tests.contract.test_engine_steps import Kept, PowerCutError


class Small(Task):
    """A task whose gradients are small enough to vanish in float16."""

    training = TrainingSettings(local_epochs=3, batch_size=8, learning_rate=0.1, momentum=0.9)

    def model(self) -> ls.Layers:
        return [ls.Linear(6, 16), ls.ReLU(), ls.Linear(16, 3)]

    def data(self, device: Device) -> tuple[Split, Split]:
        del device
        generator = np.random.default_rng(5)
        x = generator.normal(size=(40, 6)).astype(np.float32)
        return (x, x[:, :3].argmax(1)), None


TASK = Small()
DATA = TASK.data(Device("d"))[0]


def plan(**changes: Any) -> LocalRound:
    return replace(LocalRound(FedAvg(), TASK.training, 0, 1, "d"), **changes)


def trained(tuning: Tuning, **changes: Any) -> np.ndarray[Any, Any]:
    engine = load_engine("torch", TASK, tuning=tuning)
    return engine.train(TASK.initial_weights(1), DATA, plan(**changes)).vector


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_nearly_the_same_and_not_the_very_same(precision: Any) -> None:
    whole, half = trained(Tuning()), trained(Tuning(precision=precision))
    assert not np.array_equal(whole, half)
    assert np.linalg.norm(whole - half) < 0.05 * np.linalg.norm(whole)


def test_the_cpu_computes_in_the_weights_own_precision_unless_told() -> None:
    assert np.array_equal(trained(Tuning()), trained(Tuning(precision="float32")))
    assert np.array_equal(trained(Tuning()), trained(Tuning(accelerators=("cpu:1",))))


def test_the_scale_keeps_gradients_that_float16_would_lose() -> None:
    weight, x = torch.nn.Parameter(torch.ones(2, 4)), torch.ones(3, 4)
    mixed = MixedPrecision(torch.device("cpu"), torch.float16)

    def objective() -> torch.Tensor:
        # on its way back the gradient 1e-9 meets a product in half, where it is 0
        with mixed.cast():
            return (x @ weight.T).float().sum() * 1e-9

    (lost,) = torch.autograd.grad(objective(), [weight])
    assert not lost.any()
    kept = mixed.gradients(objective(), {"w": weight})["w"]
    assert torch.allclose(kept, torch.full((2, 4), 3e-9), rtol=1e-2)


def test_a_step_that_overflows_is_left_out_and_the_scale_is_halved() -> None:
    mixed = MixedPrecision(torch.device("cpu"), torch.float16)
    before = mixed.scale
    assert mixed.overflowed({"w": torch.tensor([1.0, float("inf")])})
    assert mixed.scale == before / 2
    for _ in range(2_000):
        assert not mixed.overflowed({"w": torch.ones(2)})
    assert mixed.scale == before


def test_without_float16_there_is_no_scale_to_keep() -> None:
    mixed = MixedPrecision(torch.device("cpu"), torch.bfloat16)
    assert not mixed.overflowed({"w": torch.tensor([float("inf")])})
    assert mixed.capture() == {}


def test_training_in_float16_that_is_cut_goes_on_bit_equal() -> None:
    tuning = Tuning(precision="float16")
    undisturbed, kept = trained(tuning), Kept(cut_after=4)
    with pytest.raises(PowerCutError):
        trained(tuning, checkpoint=kept)
    assert kept.saved is not None
    assert "scale" in kept.saved
    kept.steps = 4  # no second cut
    assert np.array_equal(trained(tuning, checkpoint=kept), undisturbed)
    # a state without a scale is of another precision: training begins anew
    assert np.array_equal(trained(Tuning(), checkpoint=kept), trained(Tuning()))


def test_a_compiled_model_trains_the_same_weights() -> None:
    assert np.allclose(trained(Tuning(compile="eager")), trained(Tuning()), atol=1e-6)


class Rows(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return len(DATA[0])  # type: ignore[index,arg-type]

    def __getitem__(self, index: int) -> Any:
        x, y = DATA  # type: ignore[misc]
        return torch.from_numpy(x[index]), int(y[index])


def test_threads_read_a_dataset_in_the_order_of_the_batch() -> None:
    first, second = (
        load_engine("torch", TASK, tuning=Tuning(loader_threads=threads))
        .train(TASK.initial_weights(1), Rows(), plan())
        .vector
        for threads in (0, 4)
    )
    assert np.array_equal(first, second)


def test_an_accelerator_that_torch_does_not_see_is_an_error_not_a_slow_round() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(ConfigError, match="does not see that"):
        devices_of("gpu", Tuning(accelerators=("cuda:0",)))
    assert devices_of("gpu", Tuning()) == [torch.device("cpu")]
    told = Tuning(accelerators=("cpu",))
    assert torch_engine.engine(TASK, profile="gpu", tuning=told) is not None


def test_several_devices_are_the_first_ones_that_the_process_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capabilities = {0: (9, 0), 1: (7, 5), 2: (8, 0), 3: (6, 1)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: capabilities[device.index]
    )
    cuda = [torch.device("cuda", index) for index in capabilities]
    for names in (("cuda:3", "cuda:1"), ("rocm:0", "rocm:1")):
        assert devices_of("gpu", Tuning(accelerators=names)) == cuda[:2]
    assert devices_of("gpu", Tuning(accelerators=("cuda:1",))) == [torch.device("cuda")]
    with pytest.raises(ConfigError, match="trains on cuda:0, cuda:1, cuda:2, but"):
        devices_of("gpu", Tuning(accelerators=("cuda:0", "cuda:1", "cuda:2")))
    workers = devices_of("cpu", Tuning(accelerators=("cpu:0", "cpu:1")))
    assert workers == [torch.device("cpu")] * 2
    # the half that all are made for
    assert half_of(cuda[:1], "auto") == half_of([cuda[0], cuda[2]], "auto") == torch.bfloat16
    assert half_of(cuda[:2], "auto") == torch.float16
    assert half_of(cuda, "auto") is half_of(workers, "auto") is None
    assert half_of(cuda, "bfloat16") == torch.bfloat16
