"""``rengo algorithms`` lists and explains algorithms, and what goes around them."""

from __future__ import annotations

import argparse
import json

import pytest

from algorithms.transforms import TRANSFORMS
from fl_server.aggregation.rules import RULES
from rengo.cli.machine.algorithms import show
from runtime.errors import ConfigError


def shown(capsys: pytest.CaptureFixture[str], name: str | None = None, **options: str) -> str:
    assert show(argparse.Namespace(name=name, json=options.get("json"))) == 0
    return capsys.readouterr().out


def test_the_list_has_algorithms_rules_and_transforms(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys).splitlines()
    first = {line.split()[0] for line in lines if line}
    assert {"fedavg", "fedmgda", *RULES.names(), *TRANSFORMS.names()} <= first


def test_a_rule_and_a_transform_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    rule = shown(capsys, "krum")
    assert "Blanchard" in rule
    assert "rule.share  0.2      at least 0 and below 0.5" in rule
    transform = shown(capsys, "clip")
    assert "norm     1.0      above 0" in transform
    assert "uploads" in shown(capsys, "fedavg")


def test_the_document_has_them_by_kind(capsys: pytest.CaptureFixture[str]) -> None:
    whole = json.loads(shown(capsys, json="-"))
    assert {each["name"] for each in whole["rules"]} == set(RULES.names())
    assert {each["name"] for each in whole["transforms"]} == set(TRANSFORMS.names())
    one = json.loads(shown(capsys, "median", json="-"))
    assert [len(one[kind]) for kind in ("algorithms", "rules", "transforms")] == [0, 1, 0]


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no algorithm 'fedavgg'; did you mean 'fedavg'"):
        show(argparse.Namespace(name="fedavgg", json=None))
