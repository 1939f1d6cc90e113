"""The job that every simulator does, as files that each reads in its own environment.

No module here imports Rengo but ``ours``: they run where only a peer is installed.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np


class Job:
    """The data, the model and the cohorts of a job; ``report`` tells what came of it."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.__dict__.update(json.loads((self.folder / "job.json").read_text()))
        load = lambda name: np.load(self.folder / f"{name}.npy", mmap_mode="r")  # noqa: E731
        self.x, self.y, self.starts = load("x"), load("y"), load("starts")
        self.test_x, self.test_y = load("test_x"), load("test_y")
        with np.load(self.folder / "weights.npz") as weights:
            self.weights = {name: weights[name] for name in self.names}
        self._round_s, self._first_s, self._last = [], None, None

    def client(self, number):
        """Return a client's inputs and targets, copied into memory."""
        part = slice(self.starts[number], self.starts[number + 1])
        return np.array(self.x[part]), np.array(self.y[part])

    def clients(self):
        return [self.client(number) for number in range(len(self.starts) - 1)]

    def begin_round(self):
        self._last = time.perf_counter()

    def end_round(self):
        now = time.perf_counter()
        if self._first_s is None:
            self._first_s = time.time() - float(os.environ["BENCH_BEGUN"])
        self._round_s.append(now - self._last)
        self._last = now

    def report(self, predict, version=""):
        """Write the figures; ``predict`` returns the class scores of a batch of inputs."""
        batches = range(0, len(self.test_x), 1000)
        right = [
            np.argmax(predict(np.array(self.test_x[at : at + 1000])), 1)
            == self.test_y[at : at + 1000]
            for at in batches
        ]
        self.write(float(np.concatenate(right).mean()), version)

    def write(self, accuracy, version=""):
        found = {
            "round_s": self._round_s,
            "first_s": self._first_s,
            "accuracy": accuracy,
            "version": version,
        }
        Path(sys.argv[2]).write_text(json.dumps(found))


def job():
    return Job(sys.argv[1])


def torch_model(given):
    """Return the job's model with its first weights."""
    import torch

    made = {
        "linear": torch.nn.Linear,
        "conv": lambda inputs, outputs, kernel, padding: torch.nn.Conv2d(
            inputs, outputs, kernel, padding=padding
        ),
        "relu": torch.nn.ReLU,
        "reshape": lambda *shape: torch.nn.Identity(),
        "pool": torch.nn.MaxPool2d,
        "flatten": torch.nn.Flatten,
    }
    model = torch.nn.Sequential(*(made[kind](*sizes) for kind, *sizes in given.layers))
    with torch.no_grad():
        for parameter, array in zip(model.parameters(), given.weights.values(), strict=True):
            parameter.copy_(torch.from_numpy(array))
    return model


def torch_predict(model):
    import torch

    def predict(inputs):
        with torch.no_grad():
            return model(torch.from_numpy(inputs)).numpy()

    return predict


def allow_torchvision():
    """Let torchvision be imported beside a torch without CUDA, which lacks its operators."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    names = [
        "nms",
        "qnms",
        "roi_align",
        "qroi_align",
        "roi_pool",
        "ps_roi_align",
        "ps_roi_pool",
        "deform_conv2d",
    ]
    backward = [f"_{name}_backward" for name in names[2:] if name != "qroi_align"]
    for name in [*names, *backward]:
        library.define(f"{name}(Tensor input) -> Tensor")
    return library
