"""A partition is one setting; a wrong one is told with the choices, before anything starts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fl_client.datasets.device import Device
from fl_client.datasets.splits.partitions import divided
from fl_client.datasets.splits.scheme import KINDS, Examples, Scheme, parse
from fl_client.settings import AgentSettings
from fl_client.training import process
from fl_client.training.child import ChildSettings
from runtime.errors import ConfigError

LABELS = np.random.default_rng(0).integers(0, 10, 600)


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("iid", Scheme("iid")),
        ("dirichlet", Scheme("dirichlet", 0.5)),
        ("dirichlet:0.1", Scheme("dirichlet", 0.1)),
        ("shards:3", Scheme("shards", 3)),
        ("quantity:2", Scheme("quantity", 2.0)),
        ("natural", Scheme("natural")),
        ("iid+turned", Scheme("iid", None, "turned")),
        ("dirichlet:1e-2+domains", Scheme("dirichlet", 0.01, "domains")),
    ],
)
def test_a_setting_says_kind_number_and_shift(text: str, scheme: Scheme) -> None:
    assert parse(text) == scheme


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is none of iid, dirichlet"),
        ("dirichlett", "did you mean 'dirichlet'?"),
        ("iid:3", "takes no number"),
        ("dirichlet:", "'' is not a number above 0"),
        ("dirichlet:0", "not a number above 0"),
        ("dirichlet:nan", "not a number above 0"),
        ("dirichlet:-1", "not a number above 0"),
        ("shards:1.5", "not a whole number above 0"),
        ("shards:inf", "not a whole number above 0"),
        ("iid+", "'' is none of turned"),
        ("iid+turn", "did you mean 'turned'?"),
    ],
)
def test_a_wrong_setting_is_told_with_the_choices(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse(text)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_divides_by_its_setting(kind: str) -> None:
    examples = Examples(LABELS, owners=np.arange(600) // 50)
    found = divided(parse(kind), examples, 5, 0)
    assert sorted(np.concatenate(found).tolist()) == list(range(600))


def test_without_owners_there_is_no_natural_partition() -> None:
    with pytest.raises(ConfigError, match="does not say whose an example is"):
        divided(parse("natural"), Examples(LABELS), 5, 0)


def test_a_device_finds_its_own_part_alone() -> None:
    parts = [Device(f"d{i}", i, 4, partition="shards:2").part_of(LABELS) for i in range(4)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(600))
    own = Device("d", 1, 4).part_of(LABELS, default="quantity:0.3")
    again = Device("other", 1, 4, partition="quantity:0.3").part_of(LABELS)
    assert own.tolist() == again.tolist()


def test_an_agent_refuses_a_partition_that_there_is_not(tmp_path: Path) -> None:
    given = {"identity": tmp_path / "id", "data_dir": tmp_path}
    assert AgentSettings(**given, partition="dirichlet:0.1").partition == "dirichlet:0.1"
    with pytest.raises(ValueError, match="none of iid, dirichlet"):
        AgentSettings(**given, partition="even")


def test_a_training_process_is_told_the_partition_only_where_there_is_one() -> None:
    plain = ChildSettings("digits", "numpy", "d").argv()
    assert "--partition" not in plain
    named = ChildSettings("digits", "numpy", "d", partition="iid+turned").argv()
    assert named[-2:] == ["--partition", "iid+turned"]


def test_a_training_process_gives_its_task_the_partition() -> None:
    argv = ChildSettings("digits", "numpy", "d", 1, 4, partition="shards:3").argv()
    options = process._parser().parse_args(argv[argv.index("--task") :])
    assert process._device(options) == Device("d", 1, 4, partition="shards:3")
