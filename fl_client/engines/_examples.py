"""What a task's data may be for an engine: one check for all engines, in the same words.

It comes before the first step: numpy and torch convert, broadcast or refuse each in its own way,
and a model would learn the wrong thing without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fl_client.models.layers import Embedding, Layers
from fl_client.tasks.user_code import wrong
from runtime.errors import ConfigError

if TYPE_CHECKING:
    from fl_client.models.settings import Objective, TrainingSettings
    from fl_client.tasks.base import Task
    from fl_client.tasks.split import Split

Shape = tuple[int, ...]
IGNORED = -100
"""The class number that torch's cross entropy leaves out."""
_NUMBERS = "biuf"
_SUM_OF_PROBABILITIES = 1e-3


def as_pair(data: Split, task: Task) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Return inputs and targets when ``data`` is two arrays, None when it is anything else.

    Raises:
        ConfigError: two arrays of different lengths, or of something else than numbers.
    """
    if not (isinstance(data, tuple | list) and len(data) == 2):
        return None
    inputs = _numbers(data[0], "inputs", task)
    targets = _numbers(data[1], "targets", task)
    if inputs.shape[:1] != targets.shape[:1] or not inputs.ndim:
        raise wrong(
            task,
            "data",
            f"gave inputs of shape {inputs.shape} but targets of shape {targets.shape}",
        )
    return inputs, targets


def _numbers(given: Any, what: str, task: Task) -> NDArray[Any]:
    """Return an array of numbers in the machine's byte order."""
    try:
        array = np.asarray(given)
    except (ValueError, TypeError, RuntimeError) as error:
        raise wrong(task, "data", f"gave {what} that are no array: {error}") from error
    kind = array.dtype.kind
    if kind not in _NUMBERS and kind != "c":
        words = {"O": "Python objects", "U": "text", "S": "text", "M": "dates", "m": "durations"}
        raise wrong(
            task,
            "data",
            f"gave {what} of type {array.dtype} ({words.get(kind, 'no plain numbers')}); convert "
            "them to numbers, for example with .astype(np.float32)",
        )
    if isinstance(given, np.ma.MaskedArray) and np.ma.getmaskarray(given).any():
        raise wrong(
            task,
            "data",
            f"gave {what} with masked values, which no engine leaves out: fill them in or drop "
            "these examples",
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def require_inputs(inputs: NDArray[Any], model: Layers, task: Task) -> None:
    """Raise ConfigError for inputs that a list of layers would take for something else.

    Of complex numbers it would take the real part, and no engine has a vector for a number that
    an embedding does not know.
    """
    if inputs.dtype.kind == "c":
        raise wrong(
            task,
            "data",
            f"gave inputs of type {inputs.dtype}; layers take real numbers, so give the parts as "
            "channels",
        )
    if model and isinstance(model[0], Embedding) and inputs.size:
        count = model[0].count
        known = (inputs >= 0) & (inputs < count)
        if inputs.dtype.kind == "f":
            known &= inputs == np.floor(inputs)
        if not known.all():
            at = tuple(np.argwhere(~known)[0])
            raise wrong(
                task,
                "data",
                f"gave the input {inputs[at].item()} in example {int(at[0])}; the embedding takes "
                f"whole numbers from 0 to {count - 1}",
            )


def fitted(
    task: Task, targets: NDArray[Any], outputs: Shape, *, leaves_out: bool = False
) -> NDArray[Any]:
    """Return targets as the loss of the task's objective takes them.

    Args:
        targets: of any number of examples.
        outputs: the shape of one example's outputs.
        leaves_out: whether class number ``IGNORED`` is allowed.

    Returns:
        For cross entropy int64 class numbers with the outputs' shape less its classes, or class
        probabilities of the outputs' shape. For the others, an array of the outputs' shape.

    Raises:
        ConfigError: no such targets; the text says what is expected, and which example is wrong.
    """
    try:
        return _FITTED[task.objective](targets, outputs, leaves_out)
    except ConfigError as error:
        raise wrong(
            task, "data", f"gave targets that {task.objective} does not take: {error}"
        ) from error


def class_weights_of(
    task: Task, settings: TrainingSettings, classes: int
) -> NDArray[np.float64] | None:
    """Return the weight of each class in the loss that is trained, None where all count alike.

    Raises:
        ConfigError: there are not as many as the model has classes.
    """
    weights = np.array(settings.class_weights, np.float64)
    if not len(weights):
        return None
    if len(weights) != classes:
        raise ConfigError(
            f"training.class_weights has {len(weights)} numbers, and the model of task {task.name} "
            f"gives {classes} classes"
        )
    return weights


def _fitted_numbers(targets: NDArray[Any], outputs: Shape, leaves_out: bool) -> NDArray[Any]:
    del leaves_out
    _require_finite(targets)
    if _without_ones(targets.shape[1:]) != _without_ones(outputs):
        raise ConfigError(
            f"the model gives an array of shape {outputs} for each example, but the targets have "
            f"{targets.shape[1:]}"
        )
    wide = targets if targets.dtype.kind == "f" else targets.astype(np.float32)
    return wide.reshape(len(targets), *outputs)


def _fitted_labels(targets: NDArray[Any], outputs: Shape, leaves_out: bool) -> NDArray[Any]:
    """Return for each output whether it applies, 0 or 1, or how probable that is."""
    found = _fitted_numbers(targets, outputs, leaves_out)
    _require((found >= 0) & (found <= 1), found, "is no probability from 0 to 1")
    return found


def _fitted_classes(targets: NDArray[Any], outputs: Shape, leaves_out: bool) -> NDArray[Any]:
    if not outputs or outputs[0] < 2:
        raise ConfigError(
            f"the model gives an array of shape {outputs} for each example, and classes need two "
            'outputs or more; for a number as target set objective = "mean_squared_error"'
        )
    _require_finite(targets)
    if targets.shape[1:] == outputs:
        return _probabilities(targets)
    places = outputs[1:]
    if _without_ones(targets.shape[1:]) != _without_ones(places):
        raise ConfigError(
            f"the model gives an array of shape {outputs} for each example, so the targets are "
            f"class numbers of shape {places}, or class probabilities of shape {outputs}; they "
            f"have {targets.shape[1:]}"
        )
    classes, found = outputs[0], targets.reshape(len(targets), *places)
    if found.dtype.kind == "f":
        _require(found == np.floor(found), found, "is no class number: it is not whole")
    allowed = (found >= 0) & (found < classes)
    if leaves_out:
        allowed |= found == IGNORED
    _require(allowed, found, f"is no class number: the model has the classes 0 to {classes - 1}")
    return found.astype(np.int64, copy=False)


def _probabilities(targets: NDArray[Any]) -> NDArray[Any]:
    """Return class probabilities, of which one-hot rows are a kind, as floats."""
    wide = targets if targets.dtype.kind == "f" else targets.astype(np.float32)
    sums = wide.sum(1, dtype=np.float64)
    right = (wide >= 0).all(1) & (np.abs(sums - 1) <= _SUM_OF_PROBABILITIES)
    _require(
        right,
        sums,
        "is the sum of its class probabilities, which are 0 or more and sum to 1; where several "
        'classes may apply, set objective = "binary_cross_entropy"',
    )
    return wide


def _require_finite(targets: NDArray[Any]) -> None:
    if targets.dtype.kind == "c":
        raise ConfigError(f"the targets are of type {targets.dtype}, and must be real numbers")
    if targets.dtype.kind == "f":
        _require(np.isfinite(targets), targets, "is not a finite number")


def _require(right: NDArray[np.bool_], values: NDArray[Any], what: str) -> None:
    if right.all():
        return
    at = tuple(np.argwhere(~right)[0])
    raise ConfigError(f"the target of example {int(at[0])}: {values[at].item()} {what}")


def _without_ones(shape: Shape) -> Shape:
    return tuple(side for side in shape if side != 1)


_FITTED: dict[Objective, Callable[[NDArray[Any], Shape, bool], NDArray[Any]]] = {
    "cross_entropy": _fitted_classes,
    "binary_cross_entropy": _fitted_labels,
    "mean_squared_error": _fitted_numbers,
}
