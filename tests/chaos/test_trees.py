"""Domains as real processes: a tree's model is the flat one, whoever dies on the way."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

import algorithms
from broker.wire.messages import TreeSummary
from fl_client.tasks.digits import Digits
from fl_server.aggregation.rules import RULES
from fl_server.rounds.facts import RoundCommitted, RoundStarted, UpdateAccepted
from runtime.broker_url import parse_url
from storage.store.s3 import S3Store
from storage.versions.keys import RunKeys
from storage.weights import read_safetensors
from tests.chaos.arena import wait_for
from tests.chaos.trees import Link, Node, RunningTree, assert_as_flat, expected, info_of
from tests.in_process import InProcessRun
from tests.in_process_tree import Tree

LONG = (pytest.mark.soak, pytest.mark.timeout(900))


def test_a_platform_a_domain_with_two_edges_and_an_edge(tmp_path: Path) -> None:
    with RunningTree(tmp_path) as tree:
        domain = tree.add_domain("lab", tree.platform)
        tree.add_edges(domain, [0, 1], 3)
        tree.add_edges(tree.platform, [2], 3)
        tree.wait_ready(tree.platform, "lab", "d-2")
        run_id = tree.submit(2, 3)
        wait_for(lambda: domain.has(run_id, UpdateAccepted, round=2), "an update below", tree.story)
        domain.kill()
        found = tree.finished(run_id)
        assert found["model_sha256"] == expected(tmp_path / "flat", 3, 3)[-1]
        assert found["accuracy"] is not None
        below = domain.client.call("runs_show", {"run_id": run_id})
        assert [row["included"] for row in below["history"] if row["outcome"] == "committed"] == [
            ["d-0", "d-1"]
        ] * 3
        wait_for(
            lambda: domain.client.call("runs_show", {"run_id": run_id})["status"] == "completed",
            "the run ends below, too",
            tree.story,
        )
        keys, store = RunKeys("default", run_id), S3Store(domain.site.store.settings)
        wait_for(
            lambda: not list(store.list(keys.prefix)), "nothing of it is left below", tree.story
        )


def hold(tree: RunningTree, node: Node, edge: str, number: signal.Signals) -> None:
    child = node.site.children[edge]
    assert child.pid is not None
    os.kill(child.pid, number)


@pytest.mark.parametrize(
    "where",
    [
        pytest.param(where, marks=LONG)
        for where in ("domain", "platform", "edge", "domain and platform", "broker", "store")
    ],
)
@pytest.mark.parametrize("phase", ["collecting below", "after the sums"])
def test_it_is_killed_and_the_model_is_the_flat_one(tmp_path: Path, where: str, phase: str) -> None:
    with RunningTree(tmp_path) as tree:
        domain = tree.add_domain("lab", tree.platform, cohort={"size": 2, "quorum": 2})
        tree.add_edges(domain, [0, 1], 3)
        tree.add_edges(tree.platform, [2], 3)
        tree.wait_ready(tree.platform, "lab", "d-2")
        held = (domain, "d-1") if phase == "collecting below" else (tree.platform, "d-2")
        hold(tree, *held, signal.SIGSTOP)
        run_id = tree.submit(2, 3)

        def reached() -> bool:
            if phase == "collecting below":
                return domain.has(run_id, UpdateAccepted, round=1, device_id="d-0")
            return domain.has(run_id, RoundCommitted, round=1)

        wait_for(reached, "the moment of the kill", tree.story)
        victims = {
            "domain": [(domain, "server")],
            "platform": [(tree.platform, "server")],
            "edge": [(domain, "d-0")],
            "domain and platform": [(domain, "server"), (tree.platform, "server")],
            "broker": [(domain, "broker")],
            "store": [(domain, "store")],
        }[where]
        for node, name in victims:
            node.kill(name)
        hold(tree, *held, signal.SIGCONT)
        found = tree.finished(run_id)
        assert found["model_sha256"] == expected(tmp_path / "flat", 3, 3)[-1]


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_the_founding_sketch(tmp_path: Path) -> None:
    with RunningTree(tmp_path) as tree:
        tree.add_domain("a", tree.platform)
        b, c = tree.add_domain("b", tree.platform), tree.add_domain("c", tree.platform)
        tree.add_edges(b, [0, 1], 6)
        tree.add_edges(c, [2, 3], 6)
        tree.add_edges(tree.platform, [4, 5], 6)
        tree.wait_ready(tree.platform, "b", "c", "d-4", "d-5")
        assert tree.platform.online()["a"] == "draining", "nobody is below it"
        run_id = tree.submit(4, 3)
        found = tree.finished(run_id)
        assert [row["included"] for row in found["history"]] == [["b", "c", "d-4", "d-5"]] * 3
        assert found["model_sha256"] == expected(tmp_path / "flat", 6, 3)[-1]


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_four_levels_with_scaffold(tmp_path: Path) -> None:
    with RunningTree(tmp_path) as tree:
        one = tree.add_domain("one", tree.platform, names=True)
        two = tree.add_domain("two", one, names=True)
        three = tree.add_domain("three", two, names=True)
        tree.add_edges(three, [0, 1], 4)
        tree.add_edges(one, [2], 4)
        tree.add_edges(tree.platform, [3], 4)
        tree.wait_ready(two, "three")
        tree.wait_ready(one, "two", "d-2")
        tree.wait_ready(tree.platform, "one", "d-3")
        run_id = tree.submit(2, 3, algorithm={"name": "scaffold"})
        found = tree.finished(run_id)
        flat = expected(tmp_path / "flat", 4, 3, "scaffold")[-1]
        assert found["model_sha256"] == flat, tree.story()


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_link_that_is_cut_for_three_rounds(tmp_path: Path) -> None:
    with RunningTree(tmp_path) as tree, Link(parse_url(tree.platform.site.public_url)) as link:
        lab = tree.add_domain("lab", tree.platform, lambda _: link.place, cohort={"size": 2})
        tree.add_edges(lab, [0, 1], 3)
        tree.add_edges(tree.platform, [2], 3)
        tree.wait_ready(tree.platform, "lab", "d-2")
        hold(tree, lab, "d-1", signal.SIGSTOP)
        run_id = tree.submit({"size": 2, "quorum": 1, "gather_s": 1.0}, 40)
        wait_for(lambda: lab.has(run_id, RoundStarted, round=1), "it began below", tree.story)
        link.cut()
        hold(tree, lab, "d-1", signal.SIGCONT)
        wait_for(
            lambda: lab.has(run_id, RoundCommitted, round=1),
            "it works on while its parent is away",
            tree.story,
        )
        wait_for(
            lambda: tree.platform.has(run_id, RoundCommitted, round=3), "three rounds", tree.story
        )
        link.mend()
        tree.finished(run_id)
        parts = assert_as_flat(tree, run_id, tmp_path / "flat", 3, 40)
        assert parts[:3] == [[2]] * 3
        assert [0, 1, 2] in parts, "it is back before the end"
        outbox = tmp_path / "lab" / "parent" / "agent" / "updates"
        wait_for(lambda: not list(outbox.iterdir()), "it owes nothing any more", tree.story)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_domain_joins_and_one_leaves_within_a_run(tmp_path: Path) -> None:
    with RunningTree(tmp_path) as tree:
        one = tree.add_domain("one", tree.platform)
        tree.add_edges(one, [0], 3)
        tree.add_edges(tree.platform, [2], 3)
        tree.wait_ready(tree.platform, "one", "d-2")
        run_id = tree.submit({"size": 3, "quorum": 1, "gather_s": 1.0}, 60)
        two = tree.add_domain("two", tree.platform)
        tree.add_edges(two, [1], 3)
        wait_for(lambda: two.has(run_id, RoundCommitted), "the new one takes part", tree.story)
        one.site.stop()
        tree.finished(run_id)
        parts = assert_as_flat(tree, run_id, tmp_path / "flat", 3, 60)
        assert parts[0] == [0, 2]
        assert [0, 1, 2] in parts
        assert parts[-1] == [1, 2]


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_two_local_rounds_for_each_of_the_parents(tmp_path: Path) -> None:
    with RunningTree(tmp_path) as tree:
        lab = tree.add_domain("lab", tree.platform, local_rounds=2, cohort={"size": 2})
        tree.add_edges(lab, [0, 1], 2)
        tree.wait_ready(tree.platform, "lab")
        hold(tree, lab, "d-1", signal.SIGSTOP)
        run_id = tree.submit(1, 2)
        wait_for(
            lambda: lab.has(run_id, UpdateAccepted, round=1, device_id="d-0"), "round 1", tree.story
        )
        lab.kill()
        hold(tree, lab, "d-1", signal.SIGCONT)
        found = tree.finished(run_id)
        # one domain alone: its changes are those of four rounds of a flat run, but for rounding
        (tmp_path / "flat").mkdir()
        run = InProcessRun(tmp_path / "flat", Digits(), "fedavg", engines=("numpy",) * 2)
        for _ in range(4):
            run.round()
        path = tmp_path / "tree.safetensors"
        store = S3Store(tree.platform.site.store.settings)
        with store.open(found["model_key"]) as stream:
            path.write_bytes(stream.read(1 << 30))
        np.testing.assert_allclose(
            read_safetensors(path).vector, run.weights.vector, rtol=1e-5, atol=1e-6
        )
        for number in (1, 2, 3, 4):
            assert lab.has(run_id, RoundCommitted, round=number)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_names_are_told_where_all_owners_let_them(tmp_path: Path) -> None:
    with RunningTree(tmp_path) as tree:
        open_one = tree.add_domain("open", tree.platform, names=True)
        hiding = tree.add_domain("hiding", tree.platform)
        below = tree.add_domain("below", hiding, names=True)
        tree.add_edges(open_one, [0], 2)
        tree.add_edges(below, [1], 2)
        tree.wait_ready(tree.platform, "open", "hiding")

        def told(name: str) -> TreeSummary | None:
            info = info_of(tree.platform, name)
            return None if info is None else info.tree

        def is_whole() -> bool:
            one, other = told("open"), told("hiding")
            told_all = other is not None and (other.online, other.depth) == (1, 2)
            return bool(one and one.members and told_all)

        wait_for(is_whole, "both have told what is below", tree.story)
        one, other = told("open"), told("hiding")
        assert one is not None
        assert other is not None
        assert [each.path for each in one.members] == [["d-0"]]
        assert (other.members, other.devices, other.domains) == ([], 1, 1)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_rule_that_needs_the_single_updates(tmp_path: Path) -> None:
    with RunningTree(tmp_path) as tree:
        lab = tree.add_domain("lab", tree.platform, cohort={"size": 2})
        tree.add_edges(lab, [0, 1], 3)
        tree.add_edges(tree.platform, [2], 3)
        tree.wait_ready(tree.platform, "lab", "d-2")
        run_id = tree.submit(2, 2, rule={"name": "median"})
        found = tree.finished(run_id)
        (tmp_path / "flat").mkdir()
        run = InProcessRun(tmp_path / "flat", Digits(), "fedavg", engines=("numpy",) * 3)
        algorithm, median = algorithms.load("fedavg", {}), RULES.load("median", {})
        flat = Tree(tmp_path / "flat", run.store, algorithm, rule=median)
        for _ in range(2):
            updates = [run.train(index) for index in range(3)]
            run.models.append(flat.next_model(run.models[-1], updates, range(3)))
        assert found["model_sha256"] == run.models[-1].sha256
