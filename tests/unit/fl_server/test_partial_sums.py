"""Sums that come from domains: what a server makes of them, and what it does not believe."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest

from algorithms.base import UPDATE
from fl_server.aggregation.aggregator import AggregatedRun, Refused, RunAggregator, SubmittedUpdate
from fl_server.aggregation.model_cache import ModelCache
from fl_server.aggregation.partial import SumUp
from fl_server.flows.events import DeviceAnswered, DeviceJoined, ReportedUpdate
from fl_server.flows.flow import Step
from fl_server.rounds.commands import Aggregate
from fl_server.rounds.events import ResultReceived, UpdateVerified
from fl_server.rounds.facts import RoundStarted
from fl_server.rounds.machine import RoundMachine
from fl_server.rounds.model import Model, Update
from fl_server.rounds.plan import Plan
from storage.updates.header import read_header
from storage.versions.keys import RunKeys
from tests.in_process_tree import submitted
from tests.unit.fl_server.test_run import run_of
from tests.unit.fl_server.test_sections import Named, submit
from tests.unit.fl_server.test_streaming import KEYS, Bench, KeepLatest, vector


def domain_of(bench: Bench, **changes: Any) -> RunAggregator:
    run = AggregatedRun(RunKeys("lab", KEYS.run_id), Named(), 0, 4)
    return RunAggregator(
        replace(run, **changes),
        KeepLatest(2),
        bench.store,
        ModelCache(bench.folder / "lab", bench.store),
        bench.budget,
    )


def sent_by(
    domain: RunAggregator, bench: Bench, *updates: SubmittedUpdate, name: str = "lab"
) -> SubmittedUpdate:
    for each in updates:
        domain.verify(each, bench.model)
        domain.fold(each, bench.model)
    included = tuple(sorted(each.device_id for each in updates))
    key = (bench.model.version + 1, 1)
    told = domain.sum_up(key, included, bench.model, SumUp(len(updates) + 1))
    domain.forget(key)
    return submitted(bench.store, told, bench.model, name, len(updates) + 1, KEYS)


def four(bench: Bench) -> list[SubmittedUpdate]:
    one, two = vector(1), vector(2)
    return [
        submit(bench, "a", {UPDATE: one, "second": two}, 1.0),
        submit(bench, "b", {UPDATE: two}, 3.0),
        submit(bench, "c", {UPDATE: two, "second": one}, 0.5),
        submit(bench, "d", {UPDATE: one}, 0.25),
    ]


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_only_some_send_is_summed_and_weighted_as_without_the_domain(
    tmp_path: Path, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_memory:
        monkeypatch.setattr("fl_server.aggregation.sums.MEMORY_SUMS_MAX", 1)
    bench = Bench(tmp_path, Named())
    free = bench.budget._left
    updates = four(bench)
    bench.fold(*updates)
    flat = bench.aggregate(*updates)
    bench.run.forget((1, 1))
    domain = domain_of(bench)
    bench.restart()
    summed = sent_by(domain, bench, *updates[:3])
    bench.fold(summed, updates[3])
    found = bench.aggregate(summed, updates[3])
    assert found == flat
    bench.run.forget((1, 1))
    assert bench.budget._left == free


def test_two_domains_whose_devices_have_one_name_count_both(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Named())
    one, two = vector(1), vector(2)
    here = submit(bench, "a", {UPDATE: one}, 1.0)
    first = sent_by(domain_of(bench), bench, here, name="lab")
    there = submit(bench, "a", {UPDATE: two}, 3.0)
    second = sent_by(domain_of(bench), bench, there, name="yard")
    bench.fold(first, second)
    found = dict(bench.aggregate(first, second).scalars)
    assert found["updates"] == 2
    losses = sorted(value for name, value in found.items() if name.startswith("loss of "))
    assert losses == [1.0, 3.0]


def test_a_domain_of_another_version_of_the_algorithm_is_told_apart(tmp_path: Path) -> None:
    class Other(Named):
        def weight(self, *_: Any) -> float:
            return 7.0

    bench = Bench(tmp_path, Named())
    summed = sent_by(domain_of(bench, algorithm=Other()), bench, four(bench)[0])
    with pytest.raises(Refused, match="one version of the algorithm"):
        bench.fold(summed)
    good = submit(bench, "e", {UPDATE: vector(1)}, 1.0)
    bench.fold(good)
    assert bench.aggregate(good).version == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_examples": 11}, "num_examples or population differ"),
        ({"population": 99}, "num_examples or population differ"),
    ],
)
def test_the_result_message_and_the_sums_say_the_same(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    bench = Bench(tmp_path, Named())
    summed = sent_by(domain_of(bench), bench, *four(bench)[:2])
    with pytest.raises(Refused, match=said):
        bench.fold(replace(summed, update=replace(summed.update, **changes)))


def test_sums_of_what_the_algorithm_does_not_have_are_refused(tmp_path: Path) -> None:
    class More(Named):
        @property
        def sends(self) -> tuple[str, ...]:
            return (UPDATE, "second", "third")

    bench = Bench(tmp_path, Named())
    update = submit(bench, "a", {UPDATE: vector(1), "third": vector(2)}, 1.0)
    summed = sent_by(domain_of(bench, algorithm=More()), bench, update)
    with pytest.raises(Refused, match="a sum 'third'"):
        bench.fold(summed)


def test_sums_are_not_of_another_base_or_round(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Named())
    summed = sent_by(domain_of(bench), bench, four(bench)[0])
    with pytest.raises(Refused, match="its attempt is 1, expected 2"):
        bench.fold(replace(summed, attempt=2))


def test_names_are_hidden_where_the_domain_s_owner_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Named())
    summed = sent_by(domain_of(bench, name_of=lambda name: f"x-{name}"), bench, *four(bench)[:2])
    with bench.store.open(summed.update.key) as stream:
        header = read_header(stream, header_sha256=summed.update.header_sha256, max_bytes=1 << 30)
    assert header.sums is not None
    assert set(header.sums.reports.devices) == {"x-a", "x-b"}


def test_the_devices_below_domains_are_of_the_population() -> None:
    plan = Plan("r", rounds=2, cohort_size=2, quorum=2, evaluate_on="none")
    machine = RoundMachine(plan, Model(0, "m", "ab" * 32, 4))
    machine.handle(DeviceJoined("lab", domain=True))
    machine.handle(DeviceJoined("d-1"))
    assert machine.is_domain("lab")
    assert not machine.is_domain("d-1")

    def answer(name: str, population: int) -> list[Any]:
        update = Update(f"k-{name}", 9, "cd" * 32, 10, population=population)
        machine.handle(ResultReceived(name, 1, 1, update))
        return machine.handle(UpdateVerified(name, 1, 1, update)).commands

    answer("lab", 5)
    asked = [each for each in answer("d-1", 1) if isinstance(each, Aggregate)]
    assert [each.population for each in asked] == [6]


# --- updates that are passed on -----------------------------------------------------------------


def passed_on(bench: Bench, *updates: SubmittedUpdate, name: str = "lab") -> SubmittedUpdate:
    domain, population = domain_of(bench), sum(each.update.population for each in updates)
    told = domain.pass_on(
        (bench.model.version + 1, 1),
        {each.device_id: each.update for each in updates},
        bench.model,
        SumUp(population),
    )
    return submitted(bench.store, told, bench.model, name, population, KEYS)


def changed(bench: Bench, sent: SubmittedUpdate, change: Any) -> SubmittedUpdate:
    """Return a container whose header was changed by the domain that signs it."""
    with bench.store.open(sent.update.key) as stream:
        data = stream.read(1 << 30)
    length = int.from_bytes(data[4:8], "big")
    fields = msgpack.unpackb(data[8 : 8 + length])
    change(fields)
    text = msgpack.packb(fields)
    start = data[:4] + len(text).to_bytes(4, "big") + text
    bench.store.put(sent.update.key, start + data[8 + length :])
    size, digest = len(start) + len(data) - 8 - length, hashlib.sha256(start).hexdigest()
    update = replace(sent.update, size_bytes=size, header_sha256=digest)
    return replace(sent, update=update)


def test_updates_that_are_passed_on_count_as_if_they_had_come_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Named())
    updates = four(bench)
    bench.fold(*updates)
    flat = bench.aggregate(*updates)
    free = bench.budget._left
    bench.restart()
    inner = passed_on(bench, *updates[:2], name="yard")
    outer = passed_on(bench, inner, updates[2])
    bench.fold(outer, updates[3])
    assert bench.aggregate(outer, updates[3]) == flat
    bench.run.forget((1, 1))
    assert bench.budget._left == free


def set_entry(name: str, value: Any) -> Any:
    def change(fields: dict[str, Any]) -> None:
        fields["forwarded"]["entries"][0][name] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_entry("device_id", "c"), "its device_id is 'a', expected 'c'"),
        (set_entry("device_id", "b"), "two updates are of one device"),
        (set_entry("attempt", 7), "its attempt is 1, expected 7"),
        (set_entry("header_sha256", "0" * 64), "the header has sha256"),
        (set_entry("num_examples", 99), "num_examples differs from what the domain says"),
        (set_entry("size", 1), "the chunks are not the updates"),
        (lambda fields: fields.update(forwarded=None), "holds updates if it is of that kind"),
        (lambda fields: fields.update(kind="sums"), "sums if it is of that kind"),
        (lambda fields: fields.update(base_sha256="0" * 64), "its base_sha256 is"),
    ],
)
def test_what_a_domain_passes_on_is_checked_piece_by_piece(
    tmp_path: Path, change: Any, said: str
) -> None:
    bench = Bench(tmp_path, Named())
    free = bench.budget._left
    sent = changed(bench, passed_on(bench, *four(bench)[:2]), change)
    with pytest.raises(Refused, match=said):
        bench.fold(sent)
    assert bench.budget._left == free


def test_who_has_not_said_that_it_is_a_domain_answers_for_itself_alone() -> None:
    run = run_of(RoundStarted(1, 1, ("d-1",), 1))
    reported = ReportedUpdate(run.keys.update(1, 1, "d-1"), 9, "ab" * 32)
    several = DeviceAnswered("d-1", "train", 1, 1, 10, update=reported, population=5)
    run.handle(DeviceJoined("d-1"))
    assert run.handle(several) == Step(), "no receipt: a domain sends it again"
    run.handle(DeviceJoined("d-1", domain=True))
    assert run.handle(several).commands
