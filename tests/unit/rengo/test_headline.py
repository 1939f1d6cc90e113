"""The metric that a task is compared by stands in its run's definition, tables, lines and plot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fl_client.models.layers import Linear
from fl_client.tasks.attributes import goals_of
from fl_client.tasks.base import Task
from fl_server.canary.state import is_lower_better
from fl_server.operations.results.runs import RunSummary
from fl_server.runs.definition import parse_definition
from rengo.operator.definitions import with_goals
from rengo.operator.progress import RunProgress
from rengo.terminal import format as wording
from rengo.terminal.event_lines import EventLines
from rengo.terminal.live import picture_of
from rengo.terminal.plot import draw_metric
from runtime.errors import ConfigError
from tests.unit.fl_server.test_canary import PLAN
from tests.unit.rengo.test_view import Play


class Regression(Task):
    objective = "mean_squared_error"

    def model(self) -> Any:
        return [Linear(2, 1)]


class Named(Regression):
    goals: ClassVar[Any] = {"mae": "lower", "r2": "higher"}


class Classes(Task):
    def model(self) -> Any:
        return [Linear(2, 2)]


@pytest.mark.parametrize(
    ("kind", "goals"),
    [
        (Regression, {"loss": "lower"}),
        (Named, {"mae": "lower", "r2": "higher"}),
        (Classes, {"accuracy": "higher"}),
    ],
)
def test_a_tasks_metrics_come_into_its_definition(kind: type[Task], goals: Any) -> None:
    assert goals_of(kind()) == goals
    filled = with_goals(kind(), {"task": "t", "evaluation": {"every": 2}})
    section = parse_definition(filled, "test").evaluation
    assert section.headline == next(iter(goals))
    assert section.every == 2
    # the usual metric is left out, so that older servers take the definition
    assert ("metrics" in filled["evaluation"]) == (kind is not Classes)


def test_what_the_operator_names_comes_first_and_nonsense_is_refused() -> None:
    named = {"evaluation": {"metrics": {"r2": "higher"}}}
    assert with_goals(Named(), named) == named
    with pytest.raises(ConfigError, match="higher"):
        parse_definition({"task": "t", "evaluation": {"metrics": {"r2": "up"}}}, "test")


def measured(play: Play, number: int, **metrics: float) -> None:
    play.event(
        "EvaluationRecorded", number, device_id="e", num_examples=10, metrics=metrics, usage={}
    )


def test_lines_and_pictures_show_the_headline_and_the_loss() -> None:
    play = Play()
    play.device("e", role="evaluator")
    play.know(headline="mae")
    play.document()
    play.round(1)
    measured(play, 1, mae=0.25, loss=0.125, accuracy=0.9)
    (line,) = EventLines().rounds(play.follower)
    assert line.text.endswith("  mae 0.2500  loss 0.1250")
    picture = picture_of(play.follower)
    assert (picture.headline, picture.measured) == ("mae", (0.25,))
    play.follower.headline = "loss"
    (line,) = EventLines().rounds(play.follower)
    assert line.text.endswith("down  loss 0.1250")
    assert wording.metrics_line("mae", None, None) == "mae -  loss -"


def test_a_version_that_lacks_the_headline_has_none() -> None:
    play = Play()
    play.round(1)
    measured(play, 1, loss=0.5)
    assert play.follower.measured == {}
    assert play.follower.means("loss") == {1: 0.5}


def test_a_server_that_knows_no_headline_means_accuracy() -> None:
    fields = RunSummary.model_fields
    assert fields["headline"].default == RunProgress("r").headline == "accuracy"
    assert fields["measured"].default is None


def test_the_plot_is_of_any_metric(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_metric({1: 0.5, 2: 0.25}, "mae", "a run", tmp_path / "metric.png")
    assert (tmp_path / "metric.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("metric", "goal", "lower"),
    [("perplexity", "lower", True), ("loss_ratio", "higher", False), ("val_loss", "", True)],
)
def test_a_canary_compares_in_the_direction_that_the_task_says(
    metric: str, goal: Any, lower: bool
) -> None:
    assert is_lower_better(replace(PLAN, metric=metric, goal=goal)) == lower
