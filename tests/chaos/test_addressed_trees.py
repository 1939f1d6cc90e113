"""A tree of real processes as its operator sees and addresses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.arena import wait_for
from tests.chaos.trees import RunningTree


@pytest.mark.soak
def test_a_run_is_addressed_to_a_domain_and_the_topology_nests_it(tmp_path: Path) -> None:
    with RunningTree(tmp_path) as tree:
        lab = tree.add_domain("lab", tree.platform, names=True, labels={"floor": "3"})
        tree.add_domain("empty", tree.platform)
        tree.add_edges(lab, [0, 1], 3)
        tree.add_edges(tree.platform, [2], 3)
        tree.wait_ready(tree.platform, "lab", "d-2")
        client = tree.platform.client
        for target in ({"target": ["lab"]}, {"where": ["kind=domain", "floor>=3"]}):
            found = tree.finished(tree.submit(1, 1, **target))
            assert [row["included"] for row in found["history"]] == [["lab"]]
        run_id = tree.submit(1, 1, where=["kind=domain", "floor>=4"])
        told = client.call("runs_devices", {"run_id": run_id})
        assert {each["id"]: each["reason"] for each in told["first"]} == {
            "d-2": "kind is device, not domain",
            "empty": "has not task 'digits'; its tasks: none",
            "lab": "floor is 3, not >= 4",
        }
        client.call("runs_stop", {"run_id": run_id})

        def nodes() -> dict[str, dict[str, object]]:
            return {each["path"]: each for each in client.call("topology")["nodes"]}

        wait_for(lambda: "platform/lab/d-1" in nodes(), "the domain tells its devices", tree.story)
        shown = nodes()
        assert (shown["platform/lab"]["kind"], shown["platform/lab"]["devices"]) == ("domain", 2)
        assert shown["platform/lab"]["bytes_up"] != 0
        assert shown["platform/lab/d-0"]["status"] in {"ready", "training"}
        assert (shown["platform/empty"]["kind"], shown["platform/empty"]["status"]) == (
            "domain",
            "draining",
        )
        assert shown["platform/d-2"]["kind"] == "device"
        assert (shown["platform"]["devices"], shown["platform"]["online"]) == (3, 3)
