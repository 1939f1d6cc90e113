"""A domain's own parts: its rounds on request, its evaluations, what it tells its parent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from algorithms.registry import load as load_algorithm
from broker.wire.messages import (
    TREE_VERSION,
    Ancestor,
    DeviceInfo,
    DeviceState,
    Order,
    TreePosition,
)
from fl_server.flows.commands import IssueOrder, ReportResult, SendReceipt
from fl_server.flows.events import (
    DeviceAnswered,
    DeviceDeclined,
    DeviceJoined,
    DeviceLeft,
    ReportedUpdate,
    StopRequested,
    TimerFired,
)
from fl_server.members.presence import PresenceTable
from fl_server.rounds.commands import ReportRound
from fl_server.rounds.events import (
    AggregationFinished,
    CompletionReported,
    RoundRequested,
    UpdateVerified,
)
from fl_server.rounds.model import Model, Update
from fl_server.runs.definition import RunDefinition
from fl_server.runs.record import FactRecord, RunRecord
from fl_server.server import Server
from rengo.domain.evaluation import EvaluationRequested, VersionEvaluated
from rengo.domain.flow import (
    FLOW,
    ChangeMade,
    DomainFlow,
    DomainKind,
    RoundGivenUp,
    require_averaging,
)
from rengo.domain.process import Domain, seams_of
from rengo.domain.runs import DomainRuns
from rengo.domain.settings import DomainCohort, ParentSection
from rengo.domain.tree import hidden_name, view_of
from runtime.errors import ConfigError
from runtime.security.identity import Identity, new_identity
from storage.store.memory import MemoryStore
from tests.messages import DOMAIN_INFO, KEY, SAMPLES
from tests.unit.fl_server.test_run import data_plane

TRAINING = {"learning_rate": 0.5}


def base(version: int) -> Model:
    return Model(version, f"base/{version}", f"{version:02d}" * 32, 9)


@dataclass
class Running:
    """A domain's flow whose facts are kept, as a journal keeps them."""

    local_rounds: int = 1
    facts: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        values: dict[str, Any] = {
            "flow": FLOW,
            "task": "digits",
            "seed": 7,
            "cohort": {"size": 2, "quorum": 1, "gather_s": 0.0},
            "evaluation": {"on": "none"},
        }
        if self.local_rounds > 1:
            values["flow_settings"] = {"local_rounds": self.local_rounds}
        definition = RunDefinition.model_validate(values)
        services = SimpleNamespace(presence=PresenceTable())
        plan = DomainKind().plan("r", definition, services)  # type: ignore[arg-type]
        self.record = RunRecord("r", definition, plan, base(0), 0.0)
        self.restart()

    def restart(self) -> None:
        kept = [FactRecord(fact, 0.0) for fact in self.facts]
        self.flow = DomainFlow(self.record, kept, data_plane(MemoryStore()))

    def handle(self, event: object) -> list[Any]:
        step = self.flow.handle(event)
        self.facts += step.facts
        return list(step.commands)

    def results(self, event: object) -> list[object]:
        return [each.result for each in self.handle(event) if isinstance(each, ReportResult)]

    def requested(self, number: int, model: Model) -> list[IssueOrder]:
        request = RoundRequested(number, model, TRAINING, 33.0)
        return [each for each in self.handle(request) if isinstance(each, IssueOrder)]

    def answered(self, number: int, *names: str) -> None:
        for name in names:
            key = self.flow.keys.update(number, 1, name)
            self.handle(
                DeviceAnswered(name, "train", number, 1, 10, update=ReportedUpdate(key, 9, ""))
            )
            self.handle(UpdateVerified(name, number, 1, Update(key, 9, "", 10)))


def test_devices_are_told_the_parents_training_also_after_a_restart() -> None:
    run = Running()
    run.handle(DeviceJoined("d-1"))
    run.handle(DeviceJoined("d-2"))
    orders = run.requested(5, base(4))
    assert [each.device_id for each in orders] == ["d-1", "d-2"]
    assert [each.settings.training for each in orders] == [TRAINING] * 2
    assert {each.settings.seed for each in orders} == {7}
    run.restart()
    [again] = [each for each in run.handle(DeviceJoined("d-1")) if isinstance(each, IssueOrder)]
    assert (again.settings.training, again.round, again.model) == (TRAINING, 5, orders[0].model)


def test_a_round_ends_with_what_the_parent_gets_and_is_told_again() -> None:
    run = Running()
    run.handle(DeviceJoined("d-1"))
    run.handle(DeviceJoined("d-2"))
    run.requested(1, base(0))
    run.answered(1, "d-1", "d-2")
    made = Model(1, "partial/1", "ab" * 32, 50)
    assert run.results(AggregationFinished(1, 1, made)) == [ReportRound(1, made)]
    run.restart()
    assert ReportResult(ReportRound(1, made)) in run.flow.resume().commands
    assert run.results(RoundRequested(1, base(0), TRAINING, 33.0)) == [ReportRound(1, made)]


def test_several_local_rounds_make_one_change() -> None:
    run = Running(local_rounds=3)
    run.handle(DeviceJoined("d-1"))
    run.handle(DeviceJoined("d-2"))
    assert len(run.requested(4, base(3))) == 2, "the parent's round 2"
    for number in (4, 5, 6):
        run.answered(number, "d-1", "d-2")
        made = Model(number, f"m/{number}", f"{number:02d}" * 32, 9)
        step = run.flow.handle(AggregationFinished(number, 1, made))
        run.facts += step.facts
        told = [each.result for each in step.commands if isinstance(each, ReportResult)]
        orders = [each for each in step.commands if isinstance(each, IssueOrder)]
        if number < 6:
            assert told == []
            assert {(each.round, each.model.key) for each in orders if each.model} == {
                (number + 1, made.key)
            }
            assert {str(each.settings.training) for each in orders} == {str(TRAINING)}
        else:
            assert told == [ChangeMade(6, made, 20, 2)]
            assert orders == []
    assert run.flow.parent_round(6) == 2


@pytest.mark.parametrize("name", ["scaffold", "fedavgm", "fednova", "term"])
def test_local_rounds_are_for_algorithms_whose_server_averages(name: str) -> None:
    with pytest.raises(ConfigError, match=f"not; set parent.local_rounds = 1|{name}"):
        require_averaging(load_algorithm(name, {}), name)
    require_averaging(load_algorithm("fedprox", {}), "fedprox")


def test_a_round_that_nobody_can_do_is_given_up_and_a_run_that_failed_for_good() -> None:
    run = Running()
    run.handle(DeviceJoined("d-1"))
    run.requested(1, base(0))
    run.handle(TimerFired("gather", 1, 1))
    run.handle(DeviceLeft("d-1"))
    [given_up] = run.results(TimerFired("return", 1, 1))
    assert isinstance(given_up, RoundGivenUp)
    assert (given_up.round, given_up.permanent) == (1, False)
    [over] = run.results(StopRequested("the owner stopped it"))
    assert over == RoundGivenUp(1, "the owner stopped it", permanent=True)


def test_a_run_that_has_ended_above_is_complete_here() -> None:
    run = Running()
    run.handle(CompletionReported("the parent's run has ended"))
    assert run.flow.ended
    assert run.flow.document(1).status == "completed"


# --- evaluation ---------------------------------------------------------------------------------


def asked(run: Running, on: str = "devices") -> list[Any]:
    return run.handle(EvaluationRequested(3, base(3), on, TRAINING, 20.0))  # type: ignore[arg-type]


def measured(name: str, examples: int, **metrics: float) -> DeviceAnswered:
    return DeviceAnswered(name, "evaluate", 3, 1, examples, metrics)


def test_metrics_are_means_by_examples_of_those_that_have_them() -> None:
    run = Running()
    run.handle(DeviceJoined("d-1"))
    run.handle(DeviceJoined("lab", domain=True))
    orders = [each for each in asked(run) if isinstance(each, IssueOrder)]
    assert [(each.device_id, each.evaluators) for each in orders] == [
        ("d-1", ""),
        ("lab", "devices"),
    ]
    [receipt] = run.handle(measured("d-1", 10, accuracy=0.5, loss=2.0))
    assert isinstance(receipt, SendReceipt)
    assert receipt.status == "accepted"
    [found] = run.results(measured("lab", 30, accuracy=0.9))
    assert isinstance(found, VersionEvaluated)
    assert (found.version, found.num_examples) == (3, 40)
    assert found.metrics == {"accuracy": pytest.approx(0.8), "loss": 2.0}


def test_who_leaves_or_declines_is_not_waited_for_and_nobody_at_all_is_said() -> None:
    run = Running()
    run.handle(DeviceJoined("d-1"))
    run.handle(DeviceJoined("d-2"))
    asked(run)
    assert run.results(DeviceLeft("d-1")) == []
    [found] = run.results(DeviceDeclined("d-2", "evaluate", 3, 1, "no data"))
    assert found == VersionEvaluated(3, 0, {}, "it went away; no data")
    [nobody] = [each.result for each in asked(run, "evaluators")]
    assert nobody.reason == "nobody here is to evaluate it"


def test_at_the_deadline_those_that_answered_are_enough() -> None:
    run = Running()
    run.handle(DeviceJoined("d-1"))
    run.handle(DeviceJoined("d-2"))
    asked(run)
    run.handle(measured("d-1", 10, loss=1.0))
    assert run.results(TimerFired("measure", 3, 1)) == [VersionEvaluated(3, 10, {"loss": 1.0})]
    assert run.results(TimerFired("measure", 3, 1)) == [], "once"


# --- what is below and above --------------------------------------------------------------------


def site(**devices: bool) -> Server:
    """Return as much of a server as is looked at: its devices, and whether each is a domain."""
    table = PresenceTable()
    for name, is_domain in devices.items():
        device_id = name.replace("_", "-")
        state = DeviceState(status="ready", boot_id="a-b", tasks=["digits"], domain=is_domain)
        info = DOMAIN_INFO if is_domain else plain_info()
        table.store_info(device_id, info)
        table.apply_state(device_id, state)
    names = [name.replace("_", "-") for name in devices]
    members = {name: SimpleNamespace(id=name, status="active") for name in [*names, "never-seen"]}
    found = SimpleNamespace(
        domain="lab",
        members=SimpleNamespace(devices=members, key_text=KEY.public.text),
        presence=table,
        gate=SimpleNamespace(refused={"signature": 2}),
        runner=SimpleNamespace(of=lambda _: {}),
    )
    return cast(Server, found)


def plain_info() -> DeviceInfo:
    return DOMAIN_INFO.model_copy(update={"tree": None, "versions": {"rengo": "0.2"}})


def test_what_is_below_is_summed_over_all_levels() -> None:
    view = view_of(site(d_1=False, d_2=False, house=True), names=False)
    told = view.summary
    # DOMAIN_INFO: two devices, one of them online, a domain, two levels, three refused
    assert (told.devices, told.online, told.domains, told.depth) == (3 + 2, 2 + 1, 1 + 1, 3)
    assert (told.versions, told.refused) == ({"0.2": 2, "0.1": 2}, 5)
    assert told.members == [], "unless the owner lets names be told"
    assert (view.tasks, view.accepting) == (("digits",), True)
    named = view_of(site(d_1=False, house=True), names=True).summary.members
    assert [each.path for each in named] == [
        ["d-1"],
        ["house"],
        ["house", "floor"],
        ["house", "floor", "d-1"],
    ]


def test_a_domain_without_devices_takes_no_orders() -> None:
    view = view_of(site(), names=False)
    assert (view.tasks, view.accepting, view.summary.devices) == ((), False, 1)


def test_a_hidden_name_is_the_same_one_each_time_and_tells_nothing() -> None:
    one = hidden_name(KEY, "r", "d-1")
    assert one == hidden_name(KEY, "r", "d-1")
    assert len({one, hidden_name(KEY, "r", "d-2"), hidden_name(KEY, "s", "d-1")}) == 3
    assert "d-1" not in one


def identities() -> tuple[Identity, Identity]:
    server = new_identity("server", "lab", "server", host="h", port=1)
    parent = new_identity("server", "home", "server", host="h", port=2)
    device = new_identity(
        "device", "home", "lab", host="h", port=2, server_key=parent.secret_key.public
    )
    return server, device


def domain_of(**changes: Any) -> Domain:
    server, device = identities()
    parent = ParentSection.model_validate({"identity": "/i.json", "data_dir": "/d"})
    calls: list[Callable[[], None]] = []
    fake = site()
    fake.call = calls.append  # type: ignore[method-assign, assignment]
    fake.positions = SimpleNamespace(  # type: ignore[assignment]
        stand_below=lambda above, names: calls.append((above, names))  # type: ignore[arg-type]
    )
    device = device.model_copy(update=changes)
    return Domain(fake, seams_of(server, parent), parent, device, lambda: None)  # type: ignore[arg-type, return-value]


def above(*names: str, version: int = TREE_VERSION) -> TreePosition:
    other = dict.fromkeys(("lab",), KEY.public.text)
    rows = [Ancestor(domain=name, server=other.get(name, "cd" * 32)) for name in names]
    return TreePosition(version=version, ancestors=rows)


@pytest.mark.parametrize(
    ("position", "said"),
    [
        (above("home", "lab", "root"), r"stands below itself \(lab < home < lab < root\)"),
        (above("home", version=TREE_VERSION + 1), "install the same version of Rengo on both"),
        (above(*(f"d-{number}" for number in range(8))), "a tree has at most 8 levels"),
    ],
)
def test_where_a_domain_cannot_stand_is_one_line(position: TreePosition, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as told:
        domain_of()._stand_at(position)
    assert "\n" not in str(told.value)


def test_a_domain_is_not_its_own_parent() -> None:
    with pytest.raises(ConfigError, match="'lab' is its own parent"):
        domain_of(server_key=KEY.public.text)


def test_nobody_submits_a_run_of_a_parents() -> None:
    definition = RunDefinition(task="digits", flow=FLOW)
    with pytest.raises(ConfigError, match="submit the run there"):
        DomainKind().check(definition)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"local_rounds": 0}, "local_rounds"),
        ({"cohort": {"size": 2, "quorum": 3}}, "quorum 3 is more than size 2"),
        ({"cohort": {"people": 2}}, "people"),
    ],
)
def test_settings_that_do_not_fit_name_the_key(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ParentSection.model_validate({"identity": "/i.json", "data_dir": "/d", **section})


def test_a_run_below_is_made_of_the_parents_order() -> None:
    runs = DomainRuns(site(), DomainCohort(quorum=2), 1, "lab", lambda _: None)
    order = cast(Order, SAMPLES["order"]).model_copy(
        update={"transforms": [{"name": "clip", "norm": 1.0}], "singly": True}
    )
    made = runs._definition(order)
    assert (made.flow, made.task, made.seed) == (FLOW, "digits", order.seed)
    assert (made.algorithm.name, made.algorithm.settings) == ("fedprox", {"mu": 0.1})
    assert [(each.name, each.settings) for each in made.transforms] == [("clip", {"norm": 1.0})]
    assert made.flow_settings == {"singly": True}
    assert (made.cohort.quorum, made.evaluation.on) == (2, "none")
    assert runs._definition(cast(Order, SAMPLES["order"])).flow_settings == {}


@pytest.mark.parametrize("change", [{"singly": True}, {"transforms": [{"name": "clip"}]}])
def test_local_rounds_do_not_go_with_rules_and_transforms(change: dict[str, Any]) -> None:
    runs = DomainRuns(site(), DomainCohort(), 3, "lab", lambda _: None)
    order = cast(Order, SAMPLES["order"]).model_copy(update=change)
    services = SimpleNamespace(presence=PresenceTable())
    with pytest.raises(ConfigError, match="runs without transforms whose rule is the mean"):
        DomainKind().plan("r", runs._definition(order), services)  # type: ignore[arg-type]
