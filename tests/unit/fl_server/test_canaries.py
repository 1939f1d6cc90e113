"""Canaries among a server's flows and the production documents, on a registry in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from broker.wire.messages import ModelRequest, Order, ProductionDocument, Receipt, RunDocument
from fl_server.dataplane.urls import SharedUrls
from fl_server.deployment.canaries import Canaries, CanaryRequest, new_canary_id
from fl_server.deployment.production import ProductionDocuments
from fl_server.flows.events import (
    DeviceAnswered,
    DeviceDeclined,
    DeviceLeft,
    OrderRequested,
    ProductionMoved,
)
from fl_server.runs.definition import BundleSection
from runtime.errors import ConfigError, NotFound
from storage.versions.manifest import Manifest
from storage.versions.version import Version
from tests.flows import TOPICS, FlowServer
from tests.versions import KEY, stored

WANTED = CanaryRequest(share=1.0, metric="accuracy", max_drop=0.01, deadline_s=60.0)
EVALUATORS = ("e1", "e2", "e3")


class Ground(FlowServer):
    """One server's canaries."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.old, self.new = (self.commit(number) for number in (1, 2))

    def begin_life(self) -> None:
        super().begin_life()
        runner = self.runner
        self.canaries = Canaries(runner.services, runner.begin, runner.timers.left_s)

    def commit(self, number: int) -> Version:
        manifest: Manifest = stored(self.store, f"r-{number}", 1)
        return self.registry.commit(manifest)

    def online(self, *names: str, role: str = "evaluator", **said: Any) -> None:
        super().online(*names, role=role, **said)

    def begin(self, bundle: BundleSection | None = None, **changes: Any) -> str:
        """Begin a canary of the new version against the old one."""
        if self.registry.production("digits") is None:
            self.registry.promote(self.old, "first")
        wanted = CanaryRequest(**{**vars(WANTED), **changes})
        return self.canaries.begin(self.new, wanted, new_canary_id(), bundle)

    def answer(self, canary_id: str, name: str, candidate: float, production: float) -> None:
        for attempt, value in ((1, production), (2, candidate)):
            self.runner.handle(canary_id, result(name, attempt, value))

    def move_production(self, version: Version) -> None:
        """Have another version in production, and the flows told of it."""
        self.registry.promote(version, "now")
        self.runner.handle_of_task("digits", ProductionMoved(self.in_production()))

    def stage(self, version: Version) -> str:
        return self.now(version).record.stage

    def now(self, version: Version) -> Version:
        return self.registry.get(version.manifest.run_id, version.manifest.version)

    def in_production(self) -> str:
        version = self.registry.production("digits")
        return "" if version is None else version.name


def result(name: str, attempt: int, value: float, action: str = "evaluate") -> DeviceAnswered:
    return DeviceAnswered(name, action, 1, attempt, 10, {"accuracy": value})  # type: ignore[arg-type]


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    made = Ground(tmp_path)
    yield made
    made.close()


def test_a_good_candidate_is_promoted(ground: Ground) -> None:
    ground.online(*EVALUATORS)
    canary_id = ground.begin()
    assert ground.said(Order) == [], "it is marked first"
    ground.plane.run()
    assert ground.stage(ground.new) == "candidate"
    orders = ground.said(Order)
    assert len(orders) == 2 * len(EVALUATORS)
    assert {order.model.key for order in orders} == {
        ground.old.manifest.key,
        ground.new.manifest.key,
    }
    assert len({order.model.url for order in orders}) == 2, "a URL for all devices"
    for name in EVALUATORS:
        ground.answer(canary_id, name, 0.9, 0.9)
    ground.plane.run()
    assert (ground.in_production(), ground.moved) == (ground.new.name, ["digits"])
    shown = ground.canaries.show(canary_id)
    assert (shown["state"], shown["verdict"], shown["problem"]) == ("ended", "promoted", "")
    assert ground.now(ground.new).record.reason == shown["reason"]
    assert [act.act for act in ground.acts] == ["canary promoted"]
    closings = ground.said(RunDocument)
    assert {(each.run_id, each.status) for each in closings} == {(canary_id, "completed")}


def test_a_bad_candidate_is_archived(ground: Ground) -> None:
    ground.online(*EVALUATORS)
    canary_id = ground.begin()
    ground.plane.run()
    for name in EVALUATORS:
        ground.answer(canary_id, name, 0.5, 0.9)
    ground.plane.run()
    assert (ground.in_production(), ground.stage(ground.new)) == (ground.old.name, "archived")
    ground.answer(canary_id, "e1", 0.5, 0.9)
    assert ground.said(Receipt)[-1].status == "accepted", "what counted is receipted again"
    ground.runner.handle(canary_id, result("e1", 1, 0.1, action="train"))
    assert ground.said(Receipt)[-1].status == "refused"
    ground.runner.handle(canary_id, result("e9", 1, 0.1))
    assert ground.said(Receipt)[-1].status == "refused"


def test_a_crash_at_any_moment_loses_nothing(ground: Ground) -> None:
    ground.online(*EVALUATORS)
    canary_id = ground.begin()
    ground.crash()  # before the candidate was marked
    ground.online(*EVALUATORS)
    ground.plane.run()
    assert len(ground.said(Order)) == 6
    ground.answer(canary_id, "e1", 0.9, 0.9)
    ground.crash()
    ground.sent.messages.clear()
    ground.online(*EVALUATORS)
    assert len(ground.said(Order)) == 4, "what is owed is ordered again"
    assert all(order.epoch == 3 for order in ground.said(Order))
    for name in EVALUATORS[1:]:
        ground.answer(canary_id, name, 0.9, 0.9)
    ground.crash()  # judged, not promoted
    assert ground.in_production() == ground.old.name
    ground.plane.run()
    assert ground.in_production() == ground.new.name
    assert ground.canaries.show(canary_id)["pairs"] == 3


def test_a_crash_between_the_promotion_and_its_fact_promotes_once(ground: Ground) -> None:
    ground.online("e1")
    canary_id = ground.begin()
    ground.plane.run()
    ground.answer(canary_id, "e1", 0.9, 0.9)
    ground.registry.promote(ground.new, "what the task does before the crash")
    promotions = ground.now(ground.new).record.promotions
    ground.crash()
    ground.plane.run()
    assert ground.now(ground.new).record.promotions == promotions
    assert ground.canaries.show(canary_id)["problem"] == ""


def test_what_the_operator_promotes_meanwhile_ends_it(ground: Ground) -> None:
    ground.online("e1")
    canary_id = ground.begin()
    ground.plane.run()
    other = ground.commit(3)
    ground.move_production(other)
    ground.plane.run()
    shown = ground.canaries.show(canary_id)
    assert shown["verdict"] == "inconclusive"
    assert "r-3:1 is in production by now" in shown["reason"]
    assert (ground.in_production(), ground.stage(ground.new)) == (other.name, "archived")


def test_what_is_promoted_while_a_verdict_is_carried_out_stays(ground: Ground) -> None:
    ground.online("e1")
    canary_id = ground.begin()
    ground.plane.run()
    ground.answer(canary_id, "e1", 0.9, 0.9)
    other = ground.commit(3)
    ground.registry.promote(other, "now")
    ground.plane.run()
    assert "r-3:1 is in production by now" in ground.canaries.show(canary_id)["problem"]
    assert (ground.in_production(), ground.stage(ground.new)) == (other.name, "archived")


def test_a_production_that_moved_while_the_server_was_away_ends_it(ground: Ground) -> None:
    ground.online("e1")
    canary_id = ground.begin()
    ground.plane.run()
    ground.registry.promote(ground.commit(3), "now")
    ground.crash()
    ground.runner.handle_of_task("digits", ProductionMoved(ground.in_production()))
    assert ground.canaries.show(canary_id)["verdict"] == "inconclusive"


def test_a_candidate_that_is_gone_ends_it(ground: Ground) -> None:
    ground.online("e1")
    canary_id = ground.begin()
    ground.registry.remove(ground.new)
    ground.plane.run()
    shown = ground.canaries.show(canary_id)
    assert (shown["state"], shown["verdict"]) == ("ended", "inconclusive")
    assert "r-2" in shown["reason"]


def test_the_deadline(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 50.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    ground.online(*EVALUATORS)
    canary_id = ground.begin()
    ground.plane.run()
    assert ground.runner.timers.due_s() == now_s + WANTED.deadline_s
    ground.answer(canary_id, "e1", 0.9, 0.9)
    now_s += WANTED.deadline_s - 0.1
    ground.runner.handle_due()
    assert not ground.canaries.show(canary_id)["verdict"]
    now_s += 0.2
    ground.runner.handle_due()
    ground.plane.run()
    shown = ground.canaries.show(canary_id)
    assert (shown["state"], shown["verdict"]) == ("ended", "inconclusive")
    assert "1 of at least 2 evaluators" in shown["reason"]
    ground.answer(canary_id, "e2", 0.9, 0.9)
    assert ground.said(Receipt)[-1].status == "late"


def test_devices_measure_where_there_are_no_evaluators(ground: Ground) -> None:
    ground.online("t1", "t2", role="trainer")
    canary_id = ground.begin(share=0.5)
    shown = ground.canaries.show(canary_id)
    assert (shown["measured_by"], shown["cohort_size"]) == ("devices", 1)


def test_evaluators_measure_where_there_are_some(ground: Ground) -> None:
    ground.online("t1", "t2", role="trainer")
    ground.online("e1")
    assert ground.canaries.show(ground.begin())["cohort"] == ["e1"]


def test_who_comes_back_without_the_task_is_not_ordered(ground: Ground) -> None:
    ground.online("e1")
    ground.begin()
    ground.plane.run()
    ground.sent.messages.clear()
    ground.online("e1", tasks=["faces"], bundles=["digits"])
    assert ground.sent.messages == []


BUNDLE = BundleSection(sha256="b" * 64, size_bytes=321)


def test_who_takes_the_candidate_s_bundle_measures_with_it(ground: Ground) -> None:
    ground.online("e1")
    ground.online("e2", tasks=[], bundles=["digits"])
    ground.online("e3", tasks=["faces"], bundles=["faces"])
    canary_id = ground.begin(BUNDLE)
    assert ground.canaries.show(canary_id)["cohort"] == ["e1", "e2"]
    ground.plane.run()
    orders = ground.said(Order)
    assert len(orders) == 4
    for order in orders:
        assert (order.bundle.sha256, order.bundle.size_bytes) == ("b" * 64, 321)
        assert "b" * 64 in order.bundle.url
    # who comes back is ordered what it owes, also by the server's next life
    ground.crash()
    ground.sent.messages.clear()
    ground.online("e2", tasks=[], bundles=["*"])
    assert [order.bundle.sha256 for order in ground.said(Order)] == ["b" * 64] * 2
    ground.answer(canary_id, "e1", 0.9, 0.9)
    assert ground.canaries.needs("b" * 64) == canary_id
    assert ground.canaries.needs("c" * 64) == ""
    ground.answer(canary_id, "e2", 0.9, 0.9)
    ground.plane.run()
    assert ground.canaries.show(canary_id)["verdict"] == "promoted"
    assert ground.canaries.needs("b" * 64) == ""


def test_without_a_bundle_only_who_has_the_task_measures(ground: Ground) -> None:
    ground.online("e2", tasks=[], bundles=["digits"])
    with pytest.raises(ConfigError, match="no device with the task 'digits' is there"):
        ground.begin()
    ground.online("e2", tasks=[], bundles=["faces"])
    with pytest.raises(ConfigError, match="'digits', or that takes its bundle, is there"):
        ground.begin(BUNDLE)
    ground.online("e1")
    canary_id = ground.begin()
    ground.plane.run()
    assert ground.canaries.show(canary_id)["cohort"] == ["e1"]
    assert [order.bundle for order in ground.said(Order)] == [None, None]


def test_answers_to_orders(ground: Ground) -> None:
    ground.online("e1", "e2")
    canary_id = ground.begin()
    ground.plane.run()
    ground.sent.messages.clear()
    place = ("e1", "evaluate", 1, 2)
    ground.runner.handle(canary_id, OrderRequested(*place))
    [order] = ground.said(Order)
    assert order.attempt == 2
    ground.runner.handle(canary_id, DeviceDeclined(*place, "no data"))
    ground.answer(canary_id, "e2", 0.9, 0.9)
    assert ground.canaries.show(canary_id)["verdict"] == "promoted"
    ground.sent.messages.clear()
    ground.runner.handle(canary_id, OrderRequested(*place))
    assert [message.run_id for message in ground.said(RunDocument)] == [canary_id]
    assert all(retained for _, _, retained in ground.sent.messages)


def test_what_cannot_begin(ground: Ground) -> None:
    with pytest.raises(ConfigError, match="promote a first one without --canary"):
        ground.canaries.begin(ground.new, WANTED, new_canary_id())
    ground.registry.promote(ground.old, "first")
    with pytest.raises(ConfigError, match="in production already"):
        ground.canaries.begin(ground.old, WANTED, new_canary_id())
    with pytest.raises(ConfigError, match="no device with the task 'digits' is there"):
        ground.begin()
    ground.online("e1")
    canary_id = ground.begin()
    assert ground.begin() == canary_id, "the very same wish again"
    with pytest.raises(ConfigError, match="runs already"):
        ground.begin(max_drop=0.5)
    with pytest.raises(ConfigError, match="runs already"):
        ground.canaries.begin(ground.commit(3), WANTED, new_canary_id())
    with pytest.raises(ConfigError, match="is in a canary"):
        ground.canaries.require_free(ground.new.name)
    ground.canaries.require_free(ground.old.name)
    ground.runner.handle_presence(DeviceLeft("e1"), None)
    with pytest.raises(NotFound):
        ground.canaries.show("canary-none")


def test_the_documents_say_what_is_in_production(ground: Ground) -> None:
    retained: dict[str, ProductionDocument] = {}
    cleared: list[str] = []
    documents = ProductionDocuments(
        ground.registry,
        TOPICS,
        3,
        lambda topic, message: retained.update({topic: cast(ProductionDocument, message)}),
        cleared.append,
    )
    urls, topic = SharedUrls(ground.store), TOPICS.model("digits")
    documents.publish("digits")
    documents.publish_all()
    assert retained == {}
    numbers = []
    for version in (ground.old, ground.new):
        ground.registry.promote(version, "now")
        documents.publish_all()
        numbers.append(retained[topic].promotion)
        signed = Manifest.decode(retained[topic].manifest, KEY.public, "it")
        assert signed == version.manifest
        offer = documents.offer(ModelRequest(task="digits", sha256=signed.sha256), urls)
        assert offer is not None
        assert offer.model.key == version.manifest.key
    ground.registry.rollback("digits", "it was worse")
    documents.publish("digits")
    numbers.append(retained[topic].promotion)
    assert numbers == sorted(set(numbers)), "also a rollback goes forward"
    gone = ModelRequest(task="digits", sha256=ground.new.manifest.sha256)
    assert documents.offer(gone, urls) is None
    assert documents.offer(ModelRequest(task="faces", sha256="0" * 64), urls) is None
    assert cleared == [topic, topic], "as long as none was in production"
