"""The ceiling of training's memory: what real processes take stays below it, and not far below."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fl_client.models.layers import (
    Conv1d,
    Conv2d,
    Flatten,
    Layers,
    Linear,
    MaxPool2d,
    ReLU,
    Reshape,
    Transpose,
)
from fl_client.models.memory import (
    evaluation_batch,
    largest_micro_batch,
    layer_costs,
    memory_needed,
)
from fl_client.models.settings import TrainingSettings
from runtime.errors import ConfigError

CHILD = """
import json, sys
from pathlib import Path
import numpy as np
import algorithms
from fl_client.models import layers, memory
from fl_client.engines.base import load_engine
from fl_client.models.local_round import LocalRound
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.base import Task

model, shape, given, algorithm = json.loads(sys.argv[1])
model = [eval(text, vars(layers)) for text in model]
settings = TrainingSettings(**given)

class Made(Task):
    objective = "mean_squared_error"
    training = settings
    def model(self):
        return model

def status(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024

task, generator = Made(), np.random.default_rng(0)
x = generator.standard_normal((2 * settings.batch_size, *shape)).astype(np.float32)
if isinstance(model[0], layers.Embedding):
    x = generator.integers(0, model[0].count, x.shape).astype(np.float32)
y = generator.standard_normal((len(x), *memory.layer_costs(model, shape)[-1].output))
y = y.astype(np.float32)
weights, engine = task.initial_weights(0), load_engine("numpy", task)
plan = LocalRound(algorithms.load(algorithm), settings, 0, 1, "d")
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here
before = status("VmRSS")
engine.train(weights, (x, y), plan)
engine.evaluate(weights, (x, y))
batch = settings.micro_batch or settings.batch_size
print(json.dumps([status("VmHWM") - before, memory.memory_needed(model, batch, shape, settings)]))
"""

IMAGES: Layers = [
    Conv2d(3, 16, 3, padding=1),
    ReLU(),
    MaxPool2d(2),
    Conv2d(16, 32, 3, padding=1),
    ReLU(),
    MaxPool2d(2),
    Flatten(),
    Linear(2048, 10),
]
WATCH: Layers = [Conv1d(6, 16, 9, stride=2), ReLU(), Flatten(), Linear(16 * 46, 7)]
CASES = {
    "images": ([repr(layer) for layer in IMAGES], (3, 32, 32)),
    "wide": (["Linear(512, 2048)", "Tanh()", "Linear(2048, 512)", "Sigmoid()"], (512,)),
    "normal": (
        [
            "Conv2d(2, 16, 3)",
            "BatchNorm(16)",
            "Tanh()",
            "Dropout(0.5)",
            "LayerNorm((30, 30))",
            "AvgPool2d(2)",
            "GlobalAvgPool()",
            "Linear(16, 4)",
        ],
        (2, 32, 32),
    ),
    "recurrent": (["Transpose()", "GRU(6, 64, sequence=True)", "GRU(64, 32)"], (6, 100)),
    "memory": (["Transpose()", "LSTM(6, 64, sequence=True)", "LSTM(64, 32)"], (6, 100)),
    "text": (["Embedding(200, 64)", "Linear(64, 64)", "Tanh()", "Flatten()"], (100,)),
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("name", "training", "algorithm"),
    [
        ("images", {"batch_size": 128, "momentum": 0.9}, "fedavg"),
        ("images", {"batch_size": 16, "weight_decay": 0.1, "clip_norm": 0.5}, "fedavg"),
        ("images", {"batch_size": 128, "micro_batch": 16, "optimizer": "adam"}, "fedprox"),
        ("wide", {"batch_size": 64, "optimizer": "adam"}, "fedprox"),
        ("wide", {"batch_size": 2048}, "fedavg"),
        ("normal", {"batch_size": 128}, "fedavg"),
        ("recurrent", {"batch_size": 256}, "fedavg"),
        ("memory", {"batch_size": 256}, "fedavg"),
        ("text", {"batch_size": 256}, "fedavg"),
    ],
)
def test_a_real_training_stays_below_its_ceiling(
    name: str, training: dict[str, object], algorithm: str
) -> None:
    given = json.dumps([*CASES[name], training, algorithm])
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, given], capture_output=True, text=True, check=True
    )
    grown, ceiling = json.loads(ran.stdout)
    print(f"{name}: {grown / 2**20:.1f} MiB of {ceiling / 2**20:.1f}")
    assert 0.4 * ceiling < grown <= ceiling


def test_the_micro_batch_that_fits_is_the_largest() -> None:
    settings = TrainingSettings(batch_size=128)
    shape = (3, 32, 32)
    assert largest_micro_batch(10**12, IMAGES, shape, settings) == 128
    assert (
        largest_micro_batch(10**12, IMAGES, shape, TrainingSettings(batch_size=128, micro_batch=5))
        == 5
    )
    assert largest_micro_batch(1000, IMAGES, shape, settings) is None
    limit = 16 << 20
    found = largest_micro_batch(limit, IMAGES, shape, settings)
    assert found is not None
    assert 1 < found < 128
    assert memory_needed(IMAGES, found, shape, settings) <= limit
    assert memory_needed(IMAGES, found + 1, shape, settings) > limit


def test_every_shape_follows_from_the_layers() -> None:
    shapes = [cost.output for cost in layer_costs(IMAGES, (3, 32, 32))]
    assert shapes[2:4] == [(16, 16, 16), (32, 16, 16)]
    assert shapes[-2:] == [(2048,), (10,)]
    assert layer_costs([Transpose(), Reshape((4, 3))], (2, 6))[1].output == (4, 3)


@pytest.mark.parametrize(
    ("model", "shape", "said"),
    [
        ([Conv1d(6, 2, 9)], (6, 5), "nothing is left"),
        ([Reshape((4, 4))], (6,), r"layer 0.*takes no input of shape \(6,\)"),
        ([ReLU(), Transpose()], (6,), "layer 1"),
    ],
)
def test_a_model_that_cannot_be_is_told(model: Layers, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        memory_needed(model, 1, shape, TrainingSettings())


def test_an_evaluation_takes_what_there_is_room_for() -> None:
    assert evaluation_batch([Linear(4, 2)], (4,)) == 256
    assert 1 <= evaluation_batch(IMAGES, (3, 32, 32)) < 16
    assert evaluation_batch([Linear(10**7, 1)], (10**7,)) == 1
