"""A mistake in a task's own code is told with the file, the line and the rule."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest

import algorithms
from fl_client.collectors.order import CollectorOrder
from fl_client.collectors.process import Collector, SensorFeed, _feed
from fl_client.datasets.dataset import Dataset
from fl_client.datasets.device import Device
from fl_client.datasets.sample import NoData
from fl_client.datasets.settings import DataPlace, DataSettings
from fl_client.engines import base
from fl_client.models.local_round import LocalRound
from fl_client.tasks.base import Task
from fl_client.tasks.registry import load_task
from fl_client.tasks.user_code import TaskError, initial_weights_of, splits_of
from fl_client.training.frames import Failed, read_answer, write_frame
from fl_client.training.participant import Participant
from fl_client.training.process import _failure
from runtime.bounds import MAX_TRACEBACK_LINE, MAX_TRACEBACK_LINES
from runtime.errors import ConfigError, RengoError

HEAD = """
import numpy as np
from rengo import Linear, Task, TrainingSettings

class Mine(Task):
"""
MODEL = """
    def model(self):
        return [Linear(2, 2)]
"""
DATA = """
    def data(self, device):
        x = np.zeros((4, 2), np.float32), np.zeros(4, np.int64)
        return x, x
"""


def task_of(tmp_path: Path, body: str) -> Task:
    path = tmp_path / "mine.py"
    path.write_text(HEAD + body)
    return load_task(f"{path}:Mine")


def place(tmp_path: Path, body: str, mark: str) -> str:
    """Return the end of a message that names the line with ``mark``."""
    lines = (HEAD + body).splitlines()
    (number,) = (at for at, line in enumerate(lines, 1) if mark in line)
    return f"({tmp_path / 'mine.py'}:{number})"


# --- model() -----------------------------------------------------------

MODELS = {
    "a typo": ("return [Linaer(2, 2)]", r"model\(\) raised NameError: name 'Linaer'", "Linaer"),
    "an exit": ("raise SystemExit(3)", r"model\(\) raised SystemExit: 3", "SystemExit"),
    "nothing": ("pass", r"must return a list of layers or a torch module.*NoneType", "def model"),
    "a lazy layer": (
        "import torch; return torch.nn.Sequential(torch.nn.LazyLinear(3))",
        "lazy layer '0' .LazyLinear.*size of its input",
        "def model",
    ),
    "a lazy norm": (
        "import torch; return torch.nn.Sequential(torch.nn.LazyBatchNorm1d())",
        "lazy layer '0' .LazyBatchNorm1d",
        "def model",
    ),
    "an extra state": (
        "return Extra(2, 2)",
        "state '_extra_state' of type dict.*only tensors travel",
        "def model",
    ),
    "a failing extra state": (
        "return Failing(2, 2)",
        r"model\(\) raised ValueError: no state",
        "raise ValueError",
    ),
}
MODULES = """
import torch

class Extra(torch.nn.Linear):
    def get_extra_state(self):
        return {"a": 1}

class Failing(torch.nn.Linear):
    def get_extra_state(self):
        raise ValueError("no state")
"""


@pytest.mark.parametrize("case", MODELS)
def test_a_mistake_in_the_model_is_told_to_who_submits_and_to_who_trains(
    tmp_path: Path, case: str
) -> None:
    line, words, mark = MODELS[case]
    body = f"    def model(self):\n        {line}\n{DATA}{MODULES}"
    task = task_of(tmp_path, body)
    expected = re.compile(f"^task mine: .*{words}.*{re.escape(place(tmp_path, body, mark))}$")
    with pytest.raises(TaskError, match=expected):
        initial_weights_of(task, 0)
    participant = Participant(task, Device("d"), "torch")
    weights = task_of(tmp_path, MODEL).initial_weights(0)
    with pytest.raises(ConfigError, match=expected):
        participant.train(weights, LocalRound(algorithms.load("fedavg"), task.training, 0, 1, "d"))


# --- data() -----------------------------------------------------------

SPLITS = {
    "nothing": ("return None", r"nothing \(None\): it must return two splits"),
    "one pair": ("return np.zeros((4, 2)), np.zeros(4)", r"an array of shape \(4, 2\) as split 1"),
    "four": ("return 1, 2, 3, 4", "a tuple of 4: it must return two splits"),
    "a dict": ("return {'train': 1}", "a dict: it must return two splits"),
    "three in a split": ("return (1, 2, 3), None", "a tuple of 3 as split 1"),
    "a number": ("return None, 5", "a int as split 2"),
}


@pytest.mark.parametrize("case", SPLITS)
def test_data_that_are_no_two_splits_are_told_with_the_rule(tmp_path: Path, case: str) -> None:
    line, words = SPLITS[case]
    body = f"{MODEL}    def data(self, device):\n        {line}\n"
    task = task_of(tmp_path, body)
    at = re.escape(place(tmp_path, body, "def data"))
    with pytest.raises(TaskError, match=rf"^task mine: data\(\) returned {words}.*{at}$"):
        Participant(task, Device("d"), "numpy").train_split  # noqa: B018  a property


def test_an_error_in_data_is_told_where_it_was_raised(tmp_path: Path) -> None:
    body = MODEL + "    def data(self, device):\n        return open('/nowhere/x.csv')\n"
    task = task_of(tmp_path, body)
    with pytest.raises(TaskError, match=re.escape(place(tmp_path, body, "nowhere"))) as error:
        splits_of(task, Device("d"))
    failed = _failure(error.value, Path("x"))
    assert failed.reason == str(error.value)
    assert not failed.retryable
    assert failed.traceback[-1].startswith("FileNotFoundError: ")
    assert [line for line in failed.traceback if "return open('/nowhere/x.csv')" in line]
    body = MODEL + "    def data(self, device):\n        raise MemoryError\n"
    with pytest.raises(TaskError) as short:
        splits_of(task_of(tmp_path, body), Device("d"))
    assert _failure(short.value, Path("x")).out_of_memory


@pytest.mark.parametrize("where", ["data", "a hook of the engine"])
def test_what_a_task_raises_fits_into_a_frame_whatever_it_is(tmp_path: Path, where: str) -> None:
    """Halves of characters come of the name of a file that is not UTF-8."""
    deep = "".join(f"\ndef f{at}():\n    return f{at + 1}()\n" for at in range(30))
    body = f"{MODEL}    def data(self, device):\n        return f0()\n{deep}\ndef f30():\n"
    task = task_of(tmp_path, body + "    raise OSError('\\udcff' + 'long ' * 1000)\n")
    with pytest.raises(TaskError) as error:
        splits_of(task, Device("d"))
    raised = error.value if where == "data" else error.value.__cause__
    assert raised is not None
    frames = io.BytesIO()
    write_frame(frames, _failure(raised, tmp_path / f"{'long' * 500}.py"))
    frames.seek(0)
    failed = read_answer(frames)
    assert isinstance(failed, Failed)
    assert "OSError: \\udcfflong long" in failed.reason
    assert len(failed.traceback) == MAX_TRACEBACK_LINES
    assert failed.traceback[-1].startswith("OSError: \\udcfflong long")
    assert len(failed.traceback[-1]) == MAX_TRACEBACK_LINE


def test_an_error_of_ours_has_no_traceback(tmp_path: Path) -> None:
    assert _failure(ConfigError("a setting"), tmp_path).traceback == []


# --- what counts -----------------------------------------------------------

METRICS = {
    "integer names": ("{1: 0.5}", "the name 1, which must be text"),
    "none": ("{'f1': None}", "None for the metric 'f1', which must be a number"),
    "text": ("{'f1': '0.5'}", "'0.5' for the metric 'f1'"),
    "an array": ("{'f1': np.zeros(3)}", "for the metric 'f1'"),
    "a list": ("[0.5]", "a list of 1 for metrics, which are a dict"),
    "nothing": ("None", r"nothing \(None\) for metrics"),
}


@pytest.mark.parametrize("engine", base.names())
@pytest.mark.parametrize("case", METRICS)
def test_metrics_that_are_no_numbers_by_name_are_told(
    tmp_path: Path, case: str, engine: str
) -> None:
    given, words = METRICS[case]
    body = f"{MODEL}{DATA}    def metrics(self, outputs, targets):\n        return {given}\n"
    task = task_of(tmp_path, body)
    plan = LocalRound(algorithms.load("fedavg"), task.training, 0, 1, "d")
    at = re.escape(place(tmp_path, body, "def metrics"))
    with pytest.raises(TaskError, match=rf"metrics\(\) gave .*{words}.*{at}$"):
        Participant(task, Device("d"), engine).evaluate(task.initial_weights(0), plan)


@pytest.mark.parametrize(
    "value", ["np.float32(0.5)", "np.array(0.5)", "np.bool_(True)", "torch.tensor(0.5)", "1"]
)
def test_metrics_of_every_kind_of_number_count(tmp_path: Path, value: str) -> None:
    body = (
        f"{MODEL}{DATA}    def metrics(self, outputs, targets):\n        return {{'a': {value}}}\n"
    )
    task = task_of(tmp_path, body + "import torch\n")
    plan = LocalRound(algorithms.load("fedavg"), task.training, 0, 1, "d")
    found = Participant(task, Device("d"), "numpy").evaluate(task.initial_weights(0), plan)
    assert type(found.metrics["a"]) is float
    assert found.metrics["a"] in {0.5, 1.0}


OWN = {
    ("local_update", "weights"): "a ndarray: it must return the vector to send",
    ("local_update", "(weights, 3)"): "a tuple: it must return the vector to send",
    ("local_update", "(weights, 3.5, {})"): "a float for num_examples",
    ("local_update", "('x', 3, {})"): "no vector of numbers",
    ("local_update", "(weights, 3, {2: 1})"): "the name 2",
    ("evaluate", "{'accuracy': 1.0}"): "a dict: it must return the number of held-out examples",
    ("evaluate", "('x', {})"): "a str first",
    ("evaluate", "(3, {'a': None})"): "None for the metric 'a'",
}


@pytest.mark.parametrize("case", OWN)
def test_what_an_own_update_or_evaluation_returns_is_checked(
    tmp_path: Path, case: tuple[str, str]
) -> None:
    method, given = case
    body = f"{MODEL}{DATA}    def {method}(self, weights, context):\n        return {given}\n"
    task = task_of(tmp_path, body)
    plan = LocalRound(algorithms.load("fedavg"), task.training, 0, 1, "d")
    participant = Participant(task, Device("d"), "numpy")
    call: Any = participant.train if method == "local_update" else participant.evaluate
    at = re.escape(place(tmp_path, body, f"def {method}"))
    with pytest.raises(TaskError, match=rf"{method}\(\) gave .*{OWN[case]}.*{at}$"):
        call(task.initial_weights(0), plan)


# --- loading -----------------------------------------------------------

ATTRIBUTES = {
    "objective = 'mse'": "objective = 'mse' is none of 'cross_entropy', 'binary_cross_entropy', "
    "'mean_squared_error'; "
    "did you mean 'mean_squared_error'?",
    "objective = 'crossentropy'": "did you mean 'cross_entropy'?",
    "objective = None": "objective = None is none of 'cross_entropy', 'binary_cross_entropy', "
    "'mean_squared_error'$",
    "objective = 'multi-label'": "did you mean 'binary_cross_entropy'",
    "training = {'local_epochs': 3}": "training is a dict, and must be TrainingSettings",
    "training = TrainingSettings(learning_rate=-1)": "learning_rate: must be above 0",
    "training = TrainingSettings(optimizer='rmsprop')": "must be one of 'sgd', 'adam'",
    "name = 'My Task'": "the name 'My Task' must be 1 to 64",
    "name = 7": "the name 7 must be 1 to 64",
    "goals = ['mae']": "must be a dict of metric names and 'higher' or 'lower'",
    "goals = {'mae': 'min'}": "goals: 'mae' is 'min', and must be one of 'higher', 'lower'",
}


@pytest.mark.parametrize("line", ATTRIBUTES)
def test_a_class_attribute_that_is_none_is_refused_with_the_choices(
    tmp_path: Path, line: str
) -> None:
    with pytest.raises(ConfigError, match=ATTRIBUTES[line]):
        task_of(tmp_path, f"    {line}\n{MODEL}{DATA}")


def test_an_error_in_the_constructor_is_told_where_it_was_raised(tmp_path: Path) -> None:
    body = f"{MODEL}{DATA}    def __init__(self):\n        self.table = {{}}['x']\n"
    with pytest.raises(ConfigError, match=re.escape(place(tmp_path, body, "self.table"))):
        task_of(tmp_path, body)


# --- data of the device's own -----------------------------------------------------------


def test_records_that_are_refused_are_told_with_their_reasons(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("x,state\n1,odd\n2,odd\n,ok\nabc,ok\n")
    settings = DataSettings.model_validate(
        {
            "source": {"kind": "csv", "path": str(path), "features": ["x"], "label": "state"},
            "classes": ["ok"],
        }
    )
    with pytest.raises(NoData, match="4 records refused: 2 class, 1 missing, 1 type"):
        Dataset(DataPlace(task="t", folder=tmp_path / "own", settings=settings)).splits()


def test_an_error_in_samples_ends_the_collector_with_its_place(tmp_path: Path) -> None:
    body = f"{MODEL}    def samples(self, device):\n        yield 1 / 0\n"
    task_of(tmp_path, body)
    settings = DataSettings.model_validate({"source": {"kind": "sensor", "features": ["x"]}})
    settings_place = DataPlace(task="mine", folder=tmp_path / "own", settings=settings)
    order = CollectorOrder(spec=f"{tmp_path / 'mine.py'}:Mine", place=settings_place, device_id="d")
    collector = Collector(settings_place, settings.source)  # type: ignore[arg-type]
    feed = _feed(order, settings.source, collector)  # type: ignore[arg-type]
    assert isinstance(feed, SensorFeed)
    feed.start()
    at = re.escape(place(tmp_path, body, "1 / 0"))
    with pytest.raises(RengoError, match=rf"samples\(\) raised ZeroDivisionError: .*{at}$"):
        collector.run()
