"""Domains as real processes: a tree's model is the flat one, whoever dies on the way."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.trees import RunningTree, expected


def test_a_platform_a_domain_with_two_edges_and_an_edge(tmp_path: Path) -> None:
    with RunningTree(tmp_path) as tree:
        domain = tree.add_domain("lab", tree.platform)
        tree.add_edges(domain, [0, 1], 3)
        tree.add_edges(tree.platform, [2], 3)
        tree.wait_ready(tree.platform, "lab", "d-2")
        run_id = tree.submit(2, 3)
        found = tree.finished(run_id)
        assert found["model_sha256"] == expected(tmp_path / "flat", 3, 3)[-1]
        assert found["accuracy"] is not None
        below = domain.client.call("runs_show", {"run_id": run_id})
        assert [row["included"] for row in below["history"]] == [["d-0", "d-1"]] * 3
