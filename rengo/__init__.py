"""Federated learning over MQTT and S3. Everything below loads when it is first used."""

from __future__ import annotations

import importlib
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl_client.datasets.device import Device
    from fl_client.datasets.indexed import arrays
    from fl_client.datasets.splits.partitions import dirichlet
    from fl_client.models.layers import (
        GRU,
        LSTM,
        AvgPool1d,
        AvgPool2d,
        BatchNorm,
        Conv1d,
        Conv2d,
        Dropout,
        Embedding,
        Flatten,
        GlobalAvgPool,
        LayerNorm,
        Linear,
        MaxPool1d,
        MaxPool2d,
        ReLU,
        Reshape,
        Sigmoid,
        Tanh,
        Transpose,
    )
    from fl_client.models.settings import TrainingSettings
    from fl_client.tasks.base import Task
    from fl_client.tasks.digits_anomaly import anomaly_threshold
    from rengo.device.production import ProductionModel, production_model
    from rengo.export.loading import load_model, load_state_dict
    from rengo.operator.result import RunResult
    from rengo.simulation.run import SimulationResult, simulate
    from rengo.site.site import Site

# before all else, and by its path: Rengo's packages come before a user's modules of the same names
runpy.run_path(str(Path(__file__).resolve().parent.parent / "rengo_start.py"))[
    "prefer_own_packages"
]()

__all__ = [
    "AvgPool1d",
    "AvgPool2d",
    "BatchNorm",
    "Conv1d",
    "Conv2d",
    "Device",
    "Dropout",
    "Embedding",
    "Flatten",
    "GRU",
    "GlobalAvgPool",
    "LSTM",
    "LayerNorm",
    "Linear",
    "MaxPool1d",
    "MaxPool2d",
    "ProductionModel",
    "ReLU",
    "Reshape",
    "RunResult",
    "Sigmoid",
    "SimulationResult",
    "Site",
    "Tanh",
    "Task",
    "TrainingSettings",
    "Transpose",
    "__version__",
    "anomaly_threshold",
    "arrays",
    "dirichlet",
    "load_model",
    "load_state_dict",
    "production_model",
    "simulate",
]

_LAYERS = (
    "AvgPool1d",
    "AvgPool2d",
    "BatchNorm",
    "Conv1d",
    "Conv2d",
    "Dropout",
    "Embedding",
    "Flatten",
    "GRU",
    "GlobalAvgPool",
    "LSTM",
    "LayerNorm",
    "Linear",
    "MaxPool1d",
    "MaxPool2d",
    "ReLU",
    "Reshape",
    "Sigmoid",
    "Tanh",
    "Transpose",
)
_HOMES = {
    **dict.fromkeys(_LAYERS, "fl_client.models.layers"),
    "anomaly_threshold": "fl_client.tasks.digits_anomaly",
    "arrays": "fl_client.datasets.indexed",
    "Device": "fl_client.datasets.device",
    "dirichlet": "fl_client.datasets.splits.partitions",
    "Task": "fl_client.tasks.base",
    "TrainingSettings": "fl_client.models.settings",
    **dict.fromkeys(("ProductionModel", "production_model"), "rengo.device.production"),
    **dict.fromkeys(("load_model", "load_state_dict"), "rengo.export.loading"),
    "RunResult": "rengo.operator.result",
    **dict.fromkeys(("SimulationResult", "simulate"), "rengo.simulation.run"),
    "Site": "rengo.site.site",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415  slow, and seldom asked for

        return version("rengo")
    if name not in _HOMES:
        raise AttributeError(f"module 'rengo' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
