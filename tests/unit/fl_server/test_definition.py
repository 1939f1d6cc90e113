"""A run's definition: defaults, and errors that name the key and the choices."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from fl_server.runs.definition import RunDefinition, parse_definition
from runtime.errors import ConfigError


def parse(**values: Any) -> RunDefinition:
    return parse_definition({"task": "digits", **values}, "run.toml")


def test_the_defaults() -> None:
    definition = parse()
    assert definition.algorithm.name == "fedavg"
    plan = definition.plan("r", evaluators_online=True)
    assert (plan.rounds, plan.cohort_size, plan.quorum) == (10, 2, 2)
    assert plan.evaluate_on == "evaluators"


@pytest.mark.parametrize(("size", "quorum"), [(1, 1), (2, 2), (5, 3), (6, 4), (10, 6), (100, 60)])
def test_the_quorum_is_sixty_percent_unless_it_is_given(size: int, quorum: int) -> None:
    plan = parse(cohort={"size": size}).plan("r", evaluators_online=False)
    assert plan.quorum == quorum
    plan = parse(cohort={"size": size, "quorum": 1}).plan("r", evaluators_online=False)
    assert plan.quorum == 1


@pytest.mark.parametrize(
    ("on", "evaluators", "expected"),
    [
        ("auto", True, "evaluators"),
        ("auto", False, "devices"),
        ("none", True, "none"),
        ("evaluators", False, "evaluators"),
        ("devices", True, "devices"),
    ],
)
def test_who_evaluates(on: str, evaluators: bool, expected: str) -> None:
    plan = parse(evaluation={"on": on}).plan("r", evaluators_online=evaluators)
    assert plan.evaluate_on == expected


@pytest.mark.parametrize("name", ["fedavg", "fedadam", "fedprox", "fedbn", "ditto", "lora"])
def test_a_rule_goes_with_algorithms_whose_clients_send_an_update(name: str) -> None:
    rule = {"name": "multi_krum", "share": 0.1}
    definition = parse(rule=rule, algorithm={"name": name}, cohort={"size": 10})
    assert definition.composition.rule.needs_updates
    assert definition.rule.settings == {"share": 0.1}


def test_transforms_go_around_any_algorithm_in_their_order() -> None:
    transforms = [{"name": "sparsify", "share": 0.1}, {"name": "clip"}, {"name": "noise"}]
    definition = parse(transforms=transforms, algorithm={"name": "fedadam"})
    assert [each.name for each in definition.transforms] == ["sparsify", "clip", "noise"]
    assert definition.transforms[0].settings == {"share": 0.1}
    again = RunDefinition.model_validate_json(definition.model_dump_json())
    assert again == definition
    assert again.transforms[0].settings == {"share": 0.1}


def test_hyper_parameters_stand_beside_the_name() -> None:
    definition = parse(algorithm={"name": "fedprox", "mu": 0.5})
    assert definition.algorithm.settings == {"mu": 0.5}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"task": None}, "'task': Input should be a valid string"),
        ({"task": "No Such"}, "'task': String should match pattern"),
        ({"round": 3}, "unknown key 'round' (known: algorithm, best, bundle, cohort"),
        ({"rounds": 0}, "'rounds': Input should be greater than or equal to 1"),
        ({"rounds": "many"}, "'rounds': Input should be a valid integer"),
        ({"seed": -1}, "'seed': "),
        ({"cohort": {"sise": 3}}, "unknown key 'cohort.sise' (known: deadline_s, fit"),
        ({"cohort": {"size": 0}}, "'cohort.size': "),
        ({"cohort": {"size": 3, "quorum": 4}}, "'cohort': quorum 4 is more than the cohort's size"),
        ({"cohort": {"deadline_s": 0}}, "'cohort.deadline_s': "),
        ({"cohort": {"deadline_s": float("nan")}}, "'cohort.deadline_s': "),
        ({"cohort": {"over_selection": 0.5}}, "'cohort.over_selection': "),
        ({"cohort": "all"}, "'cohort': "),
        ({"evaluation": {"on": "moon"}}, "'evaluation.on': Input should be 'auto', 'evaluators'"),
        ({"aggregation": {"weight_bits": 40, "scale": 1}}, "unknown key 'aggregation'"),
        ({"models": {"keep": 1}}, "'models.keep': "),
        ({"algorithm": {"name": "fedavgg"}}, "no algorithm 'fedavgg'; did you mean 'fedavg'?"),
        ({"algorithm": {"name": "base"}}, "no algorithm 'base'"),
        ({"algorithm": {"name": "../x"}}, "no algorithm '../x'"),
        ({"algorithm": {"name": "fedprox", "nu": 1}}, "has no setting 'nu' (it has: "),
        ({"algorithm": {"name": "fedprox", "mu": "x"}}, "setting mu: "),
        ({"algorithm": "fedprox"}, "'algorithm': "),
        ({"rule": {"name": "medain"}}, "no rule 'medain'; did you mean 'median'?"),
        ({"rule": {"name": "../median"}}, "no rule '../median'"),
        ({"rule": {"name": "median", "share": 0.1}}, "rule median has no setting 'share'"),
        ({"rule": {"name": "krum"}, "cohort": {"size": 6}}, "rule krum needs 7 updates in every"),
        (
            {"rule": {"name": "krum"}, "cohort": {"size": 10}},
            "the quorum is 6; set cohort.quorum=7",
        ),
        (
            {"rule": {"name": "krum"}, "cohort": {"size": 1001}},
            "rule krum keeps every update of a round, at most 1000; cohort.size is 1001",
        ),
        (
            {"rule": {"name": "median"}, "algorithm": {"name": "scaffold"}},
            "rule median: the server of algorithm scaffold reckons with means of all that its",
        ),
        (
            {"rule": {"name": "median"}, "algorithm": {"name": "qfedavg"}},
            "(update, h); use rule.name=mean",
        ),
        (
            {"rule": {"name": "median"}, "algorithm": {"name": "term"}},
            "algorithm term weighs the updates, and a rule counts all alike; use rule.name=mean",
        ),
        (
            {"algorithm": {"name": "fedmgda"}, "cohort": {"size": 1001}},
            "algorithm fedmgda keeps every update of a round, at most 1000; cohort.size is 1001",
        ),
        (
            {"rule": {"name": "median"}, "algorithm": {"name": "fedmgda"}},
            "rule median: algorithm fedmgda combines the updates itself",
        ),
        (
            {"rule": {"name": "median"}, "algorithm": {"name": "heterofl", "widths": {"pi": 0.5}}},
            "rule median: clients of algorithm heterofl send parts of the model",
        ),
        ({"transforms": [{"name": "clop"}]}, "no transform 'clop'; did you mean 'clip'?"),
        ({"transforms": [{"norm": 1}]}, "'transforms.0.name': Field required"),
        ({"transforms": {"name": "clip"}}, "'transforms': "),
        ({"transforms": [{"name": "clip"}] * 9}, "'transforms': "),
        (
            {"transforms": [{"name": "clip"}, {"name": "clip", "norm": 2}]},
            "transform clip with algorithm fedavg: it stands in the list more than once",
        ),
        (
            {"transforms": [{"name": "noise"}]},
            "its size needs a bound of what is sent: put the transform clip last before it",
        ),
        (
            {"transforms": [{"name": "clip"}, {"name": "sparsify"}, {"name": "noise"}]},
            "put the transform clip last before it",
        ),
        (
            {"transforms": [{"name": "clip"}, {"name": "noise"}], "algorithm": {"name": "lora"}},
            "transform noise with algorithm lora: it is added to all weights",
        ),
        (
            {"transforms": [{"name": "clip"}, {"name": "noise"}], "algorithm": {"name": "fedbn"}},
            "its clients send a part of them",
        ),
        (
            {
                "transforms": [{"name": "clip"}, {"name": "noise"}],
                "algorithm": {"name": "scaffold"},
            },
            "it is added to the update alone, and its clients send more (update, control)",
        ),
        (
            {"transforms": [{"name": "clip"}, {"name": "noise"}], "rule": {"name": "median"}},
            "transform noise with algorithm fedavg: its size is that of a mean; rule median makes",
        ),
        (
            {"transforms": [{"name": "clip"}, {"name": "noise"}], "algorithm": {"name": "fedmgda"}},
            "its size is that of a mean; algorithm fedmgda makes none",
        ),
        (
            {
                "transforms": [{"name": "sparsify"}],
                "algorithm": {"name": "heterofl", "widths": {"pi": 0.5}},
            },
            "transform sparsify with algorithm heterofl: what a device leaves out is kept by place",
        ),
        ({"transforms": [{"name": "clip"}], "flow": "canary"}, "a run of kind canary has none"),
        ({"rule": {"name": "median"}, "flow": "canary"}, "a run of kind canary has none"),
        ({"training": 3}, "'training': "),
        ({"training": {"a": b"x"}}, "'training': a is a bytes, which settings cannot hold"),
        ({"training": {"a": 10**30}}, "'training': a must be within 64 bits"),
        ({"training": {"a": float("inf")}}, "'training': a must be a finite number"),
        ({"training": {str(n): n for n in range(129)}}, "'training': "),
        ({"flow_settings": {"a": {1: 2}}}, "'flow_settings': a has a key that is no text"),
        ({"algorithm": {"name": "fedprox", "mu": b"x"}}, "mu is a bytes"),
        ({"algorithm": {"server_learning_rate": 1e308}}, "server_learning_rate: must be within"),
        ({"evaluation": {"every": 1 << 63}}, "'evaluation.every': "),
        ({"evaluation": {"deadline_s": float("nan")}}, "'evaluation.deadline_s': "),
        ({"seed": 1 << 63}, "'seed': "),
    ],
)
def test_errors_name_the_key(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(**values)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_wrong_key_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(rounds=0, seed=-1, cohort={"size": 0}, extra=1)
    for key in ("'rounds'", "'seed'", "'cohort.size'", "unknown key 'extra'"):
        assert key in str(caught.value)
    assert str(caught.value).startswith("run.toml: ")


def test_a_missing_task_is_named() -> None:
    with pytest.raises(ConfigError, match="'task': Field required"):
        parse_definition({}, "run.toml")


def test_a_definition_does_not_change() -> None:
    with pytest.raises(ValidationError):
        parse().rounds = 3  # type: ignore[misc]


def test_a_definition_survives_the_journals_json() -> None:
    definition = parse(
        algorithm={"name": "fedprox", "mu": 0.25}, training={"local_epochs": 3}, seed=(1 << 63) - 1
    )
    again = RunDefinition.model_validate_json(definition.model_dump_json())
    assert again == definition
    assert again.algorithm.settings == {"mu": 0.25}


def test_the_number_format_that_runs_used_to_have_is_left_out() -> None:
    """Of every run that was journalled before, and of an operator's file."""
    old = {"aggregation": {"scale_bits": 30, "weight_bits": 22}}
    assert parse(**old) == parse()
    stored = parse(rounds=3).model_dump() | old
    assert RunDefinition.model_validate_json(json.dumps(stored)) == parse(rounds=3)
    assert "aggregation" not in parse(**old).model_dump()
