"""A model as a torch state dict, and as ONNX checked with onnxruntime (extra ``export``)."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils import _pytree as pytree

from fl_client.datasets.device import Device, Role
from fl_client.engines.torch import TorchEngine
from fl_client.models import layers
from fl_client.tasks.base import Task
from fl_client.tasks.split import Split
from fl_client.tasks.user_code import TaskError, calling, model_of, splits_of
from fl_client.torch_models.weights import state_dict
from rengo.export.input_shape import example_shape
from rengo.export.onnx_check import OnnxCheck
from runtime.errors import ConfigError, MissingExtra, RengoError, RunNotCompleted
from runtime.files import whole_file
from storage.weights import Weights

LARGEST_DIFFERENCE = 1e-5
_TRACED_EXAMPLES = 3
_CHECKED_EXAMPLES = (64, 1)
# protobuf's limit of one file is 2 GB; the graph needs room too
_ONE_FILE_BYTES = 1_800_000_000
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
Call = dict[str, Any]


def save_state_dict(weights: Weights, path: Path) -> None:
    """Write what ``module.load_state_dict(torch.load(path), strict=True)`` takes, in own types."""
    with whole_file(path) as file:
        torch.save(state_dict(weights), file)


def save_onnx(weights: Weights, task: Task, path: Path) -> OnnxCheck:
    """Write the task's model with a free batch axis, in float32, once it was checked.

    Raises:
        MissingExtra: a package of the extra is not installed.
        ConfigError: the model cannot be exported, or there is nothing to call it with.
        RunNotCompleted: onnxruntime gives other outputs than torch; no file is left.
    """
    for package in _NEEDED:
        _require(package)
    engine = TorchEngine(task)
    model = engine.load_module(weights).float().eval()
    calls = _calls_by(engine, task, model)
    # beside the target, under its own name: a large model refers to a second file by name
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        made = Path(folder) / path.name
        external = weights.layout.size * 4 > _ONE_FILE_BYTES
        _export(task, model, calls.of(_TRACED_EXAMPLES), made, external=external)
        check = _check(model, made, calls)
        for each in sorted(made.parent.iterdir(), key=lambda each: each == made):
            each.replace(path.with_name(each.name))
    return check


@dataclass(frozen=True)
class _Calls:
    """What the model is called with, for any number of examples."""

    of: Callable[[int], Call]
    data: str


def _calls_by(engine: TorchEngine, task: Task, model: torch.nn.Module) -> _Calls:
    try:
        count, batch = engine.batches(_data(task))
    except ConfigError:
        declared = model_of(task)
        shape = (
            example_shape(cast("layers.Layers", declared))
            if layers.is_declarative(declared)
            else None
        )
        if shape is None:
            raise
        return _Calls(lambda size: _call(task, model, _random(shape, size)), "random inputs")
    what = f"examples of task {task.name}"
    return _Calls(lambda size: _call(task, model, batch(np.arange(size) % count)), what)


def _data(task: Task) -> Split:
    """Return examples of the task: those of an evaluator, else of a trainer.

    Raises:
        ConfigError: the task's code gave none.
    """
    roles: tuple[Role, ...] = ("evaluator", "trainer")
    for role in roles:
        try:
            trained, held_out = splits_of(task, Device("export", role=role))
        except RengoError as error:
            raise ConfigError(
                f"task {task.name} gives no examples to check the export with: {error}"
            ) from error
        if held_out is not None or trained is not None:
            return held_out if held_out is not None else trained
    raise ConfigError(f"task {task.name} gives no examples to check the export with")


def _random(shape: tuple[int, ...], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand((size, *shape), generator=generator), torch.zeros(size, dtype=torch.int64)


class _CalledError(Exception):
    """The model was called."""


def _call(task: Task, model: torch.nn.Module, batch: Any) -> Call:
    """Return the arguments by which ``task.predict`` calls the model."""
    seen: list[Call] = []

    def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments))
        raise _CalledError

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with calling(task, "predict"):
            task.predict(model, batch)
    except TaskError as error:
        if not isinstance(error.__cause__, _CalledError):
            raise
        return cast(Call, pytree.tree_map(_as_float32, seen[0]))
    finally:
        handle.remove()
    raise ConfigError(f"predict() of task {task.name} does not call the model: nothing to export")


def _as_float32(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.float()
    return value


def _export(task: Task, model: torch.nn.Module, call: Call, path: Path, *, external: bool) -> None:
    batch = torch.export.Dim("batch")
    free = pytree.tree_map(
        lambda value: (
            {0: batch}
            if isinstance(value, torch.Tensor) and value.dim() and len(value) == _TRACED_EXAMPLES
            else None
        ),
        call,
    )
    try:
        with _quiet():
            torch.onnx.export(
                model,
                kwargs=call,
                f=path,
                dynamo=True,
                dynamic_shapes=free,
                external_data=external,
                verbose=False,
            )
    except Exception as error:
        raise ConfigError(
            f"the model of task {task.name} cannot be exported to ONNX: {_reason(error)}"
        ) from error


def _check(model: torch.nn.Module, path: Path, calls: _Calls) -> OnnxCheck:
    runtime: Any = importlib.import_module("onnxruntime")
    quiet = runtime.SessionOptions()
    quiet.log_severity_level = 3
    differences: list[float] = []
    try:
        session = runtime.InferenceSession(
            os.fspath(path), quiet, providers=["CPUExecutionProvider"]
        )
        inputs = session.get_inputs()
        for size in _CHECKED_EXAMPLES:
            call = calls.of(size)
            leaves = [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, torch.Tensor)]
            feed = {each.name: leaf.numpy() for each, leaf in zip(inputs, leaves, strict=True)}
            differences += _differences(session.run(None, feed), model, call)
    except Exception as error:
        # onnxruntime's errors have no common base class
        raise RunNotCompleted(
            f"onnxruntime does not run the exported model: {_reason(error)}; no file was left"
        ) from error
    # numpy's max: a nan counts as the largest
    difference = float(np.max(differences))
    if not difference <= LARGEST_DIFFERENCE:
        raise RunNotCompleted(
            f"the exported model is not the model: on {calls.data} onnxruntime differs from torch "
            f"by {difference:.1e}, at most {LARGEST_DIFFERENCE:.0e} is allowed; no file was left"
        )
    shapes = tuple(f"{each.name} {each.type} {each.shape}" for each in inputs)
    return OnnxCheck(difference, sum(_CHECKED_EXAMPLES), calls.data, shapes)


def _differences(found: list[Any], model: torch.nn.Module, call: Call) -> Iterator[float]:
    """Yield how far each output is from torch's; infinite where it is another output."""
    with torch.no_grad():
        wanted = [leaf.numpy() for leaf in pytree.tree_leaves(model(**call))]
    for ours, theirs in zip(found, wanted, strict=True):
        if ours.shape != theirs.shape:
            yield float("inf")
        elif ours.size:
            wide = theirs.astype(np.float64)
            apart = np.abs(ours.astype(np.float64) - wide).max()
            yield float(apart / max(1.0, np.abs(wide).max()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's messages about its internals."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _reason(error: BaseException) -> str:
    """Return the first line of the cause of an exporter's error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _require(package: str) -> None:
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or package, "export") from error
