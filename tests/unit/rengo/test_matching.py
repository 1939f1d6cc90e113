"""Foreign weights as a task's: what is taken, and each line of what is not."""

from __future__ import annotations

import numpy as np
import pytest

from rengo.cli.main import exit_code, one_line
from rengo.operator.layout_match import fit
from runtime.errors import Mismatch
from storage.weights import Layout, TensorSpec, Weights

MODEL = Layout(
    (
        TensorSpec("0.weight", (2, 3)),
        TensorSpec("0.bias", (2,), "F16"),
        TensorSpec("steps", (), "I64"),
        TensorSpec("mask", (2,), "BOOL"),
    )
)
GOOD = {
    "mask": np.array([True, False]),
    "steps": np.array(7, np.int32),
    "0.bias": np.array([0.5, -2.0], np.float64),
    "0.weight": np.arange(6, dtype=np.float16).reshape(2, 3),
}


def fitted(arrays: dict[str, np.ndarray], dtypes: dict[str, str] | None = None) -> Weights:
    return fit(Weights.from_arrays(arrays, dtypes), MODEL, "my.safetensors", "the model")


def mismatch(**changes: np.ndarray | None) -> list[str]:
    arrays = {name: array for name, array in {**GOOD, **changes}.items() if array is not None}
    with pytest.raises(Mismatch) as caught:
        fitted(arrays)
    return list(caught.value.lines)


def test_another_order_and_other_types_become_the_model_s() -> None:
    found = fitted(GOOD)
    assert found.layout == MODEL
    assert found.vector.tolist() == [0, 1, 2, 3, 4, 5, 0.5, -2.0]
    assert found.others["steps"] == 7
    assert found.others["steps"].dtype == np.int64
    assert found.others["mask"].tolist() == [True, False]


def test_bfloat16_is_taken() -> None:
    arrays = {**GOOD, "0.weight": np.full((2, 3), 1.5, np.float32)}
    assert fitted(arrays, {"0.weight": "BF16"}).vector[:6].tolist() == [1.5] * 6


def test_weights_that_fit_already_are_not_copied() -> None:
    weights = fitted(GOOD)
    assert fit(weights, MODEL, "it", "the model") is weights


def test_each_difference_has_its_line() -> None:
    changes = {
        "0.weight": np.zeros((3, 2), np.float32),
        "0.bias": None,
        "steps": np.array(7.0, np.float32),
        "mask": np.array([1, 0], np.int8),
        "more": np.zeros(4, np.float16),
    }
    assert mismatch(**changes) == [
        "missing     0.bias: F16 [2]",
        "unexpected  more: F16 [4]",
        "shape       0.weight: F32 [3, 2], the model has F32 [2, 3]",
        "type        steps: F32 [], the model has I64 []",
        "type        mask: I8 [2], the model has BOOL [2]",
    ]


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("0.bias", np.array([1, 2])),
        ("0.bias", np.array([1.0, 70_000.0], np.float32)),
        ("steps", np.array(1 << 63, np.uint64)),
        ("steps", np.array(True)),
    ],
)
def test_a_type_that_cannot_be_taken(name: str, array: np.ndarray) -> None:
    (line,) = mismatch(**{name: array})
    assert line.startswith(f"type        {name}: ")


def test_infinity_is_a_value_of_every_float_type() -> None:
    found = fitted({**GOOD, "0.bias": np.array([np.inf, np.nan], np.float32)})
    assert found.vector[6] == np.inf


def test_a_long_list_ends_and_says_how_much_is_left() -> None:
    lines = mismatch(**{f"more.{number}": np.zeros(1, np.float32) for number in range(205)})
    assert len(lines) == 201
    assert lines[-1] == "and 5 more"


def test_a_stranger_s_name_cannot_steer_the_terminal() -> None:
    (line,) = mismatch(**{"\x1b[2J": np.zeros(1, np.float32)})
    assert "\x1b" not in line


def test_a_person_sees_one_difference_a_line_and_a_script_exit_code_2() -> None:
    error = Mismatch("a does not fit b", ["missing  w", "unexpected  v"])
    assert one_line(error) == "a does not fit b:\n  missing  w\n  unexpected  v"
    assert exit_code(error) == 2
