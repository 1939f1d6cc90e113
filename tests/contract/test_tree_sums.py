"""A tree's model is the flat one bit for bit, for every algorithm and any grouping."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import algorithms
from fl_server.aggregation.aggregator import Refused
from fl_server.aggregation.rules import RULES
from tests.contract.test_algorithms import EARLY, ON_BOTH, Rows
from tests.in_process import InProcessRun
from tests.in_process_tree import Grouping, Tree

GROUPINGS: dict[str, Grouping] = {
    "two domains": ((0, 1), (2, 3)),
    "one domain and devices": (0, (3, 1), 2),
    "depth 3": (((0,), (1, 2)), 3),
    "all below one": (((0, (1, 2, 3)),),),
}


def run_of(folder: Path, name: str) -> InProcessRun:
    engine = "numpy" if name in ON_BOTH else "torch"
    folder.mkdir()
    return InProcessRun(folder, Rows(), name, EARLY.get(name, {}), engines=(engine,) * 4)


# what needs the single updates is not summed: a domain passes them on
SUMMED = [name for name in algorithms.names() if not algorithms.load(name).needs_updates]


@pytest.mark.parametrize("name", SUMMED)
def test_a_tree_s_model_is_the_flat_one_for_every_algorithm(tmp_path: Path, name: str) -> None:
    run = run_of(tmp_path / "flat", name)
    algorithm = algorithms.load(run.algorithm, run.settings)
    tree = Tree(tmp_path / "tree", run.store, algorithm, restarts=True)
    hiding = Tree(tmp_path / "hiding", run.store, algorithm, name_of=hidden)
    unnamed = run.models[0]
    for number, grouping in enumerate(GROUPINGS.values()):
        updates = [run.train(index) for index in range(len(run.devices))]
        found = tree.next_model(run.models[-1], updates, grouping)
        # by hidden names a device is the same one as long as it stays below the same domain
        unnamed = hiding.next_model(unnamed, updates, GROUPINGS["depth 3"])
        run.commit(updates)
        flat = run.models[-1]
        assert (found.sha256, found.state_sha256) == (flat.sha256, flat.state_sha256), number
        assert found.scalars == flat.scalars
        assert (unnamed.sha256, unnamed.state_sha256) == (flat.sha256, flat.state_sha256), number


@pytest.mark.parametrize("rule", ["median", "krum", "trimmed_mean", "geometric_median", "fedmgda"])
def test_where_single_updates_are_needed_domains_pass_them_on(tmp_path: Path, rule: str) -> None:
    name, chosen = ("fedmgda", "mean") if rule == "fedmgda" else ("fedavg", rule)
    run = run_of(tmp_path / "flat", name)
    algorithm = algorithms.load(run.algorithm, run.settings)
    loaded = RULES.load(chosen, {})
    trees = {
        way: Tree(tmp_path / way, run.store, algorithm, rule=loaded, singly=way != "flat")
        for way in ("flat", "tree")
    }
    base = run.models[0]
    for grouping in GROUPINGS.values():
        updates = [run.train(index) for index in range(len(run.devices))]
        found = trees["tree"].next_model(base, updates, grouping)
        flat = trees["flat"].next_model(base, updates, range(4))
        assert (found.sha256, found.scalars) == (flat.sha256, flat.scalars)
        run.models.append(flat)
        base = flat


def test_a_sum_is_no_use_where_single_updates_are_needed(tmp_path: Path) -> None:
    run = run_of(tmp_path / "flat", "fedavg")
    rule = RULES.load("median", {})
    tree = Tree(tmp_path / "tree", run.store, algorithms.load("fedavg", {}), rule=rule)
    updates = [run.train(index) for index in range(4)]
    with pytest.raises(Refused, match="a domain sends their sum"):
        tree.next_model(run.models[0], updates, GROUPINGS["two domains"])


def hidden(device_id: str) -> str:
    return hashlib.sha256(device_id.encode()).hexdigest()[:8]
