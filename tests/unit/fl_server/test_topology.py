"""The tree of a site, as an operation tells it: who is up, who is waited for, what links moved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.wire.messages import DeviceInfo, RunEvent, TreeMember, TreeRun, TreeSummary
from fl_server.observers.base import ObservedFact
from fl_server.observers.traffic import LinkTraffic
from fl_server.operations.mqtt import PAGE_BYTES
from fl_server.operations.results.base import encoded_bytes
from fl_server.operations.results.topology import Topology
from fl_server.rounds.facts import EvaluationRecorded, RoundClosed, UpdateAccepted
from fl_server.rounds.model import Update
from tests.operations import Disk, Life
from tests.unit.fl_server.test_addressed import here, submit
from tests.unit.fl_server.test_addressing import info
from tests.unit.fl_server.test_operations import device


def tree(**changes: Any) -> DeviceInfo:
    member = TreeMember(path=["floor"], status="ready", domain=True)
    below = [
        TreeMember(path=["floor", "e-2"], status="lost"),
        TreeMember(path=["e-1"], status="training"),
    ]
    run = TreeRun(run_id="r", round=3, phase="collecting", cohort=3, answered=1)
    values = {"devices": 4, "online": 2, "domains": 1, "depth": 2, "runs": [run]}
    summary = TreeSummary.model_validate(
        {"server": "0" * 64, "members": [member, *below], **values, **changes}
    )
    return info().model_copy(update={"tree": summary})


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    made = Life(Disk(tmp_path))
    made.do("devices_admit", devices=[device(name) for name in ("b", "c", "d")])
    yield made
    made.end()


def nodes(life: Life, **arguments: Any) -> dict[str, dict[str, Any]]:
    return {each["path"]: each for each in life.do("topology", **arguments)["nodes"]}


def test_a_flat_site_is_a_platform_with_its_devices(life: Life) -> None:
    here(life, "b", info("pi"))
    here(life, "c", info("cpu"), status="offline")
    life.do("devices_group", device_ids=["b"], group="lab")
    found = nodes(life)
    assert list(found) == ["home", "home/b", "home/c", "home/d", "home/e-1"]
    top = found["home"]
    assert (top["kind"], top["devices"], top["online"], top["hidden"]) == ("platform", 4, 2, 0)
    assert top["statuses"] == {"ready": 2, "offline": 1, "enrolled": 1}
    b = found["home/b"]
    assert (b["status"], b["profile"], b["group"], b["kind"]) == ("ready", "pi", "lab", "device")
    assert found["home/d"]["status"] == "enrolled"


def test_it_says_who_is_waited_for_first(life: Life) -> None:
    for name in ("b", "c", "d"):
        here(life, name)
    run_id = submit(life, target=["c", "d"], cohort={"size": 2})
    found = nodes(life)
    assert list(found)[1:3] == ["home/c", "home/d"]
    [run] = found["home"]["runs"]
    assert (run["run_id"], run["round"], run["phase"]) == (run_id, 1, "collecting")
    assert (run["cohort"], run["answered"], run["waiting"]) == (2, 0, 2)
    assert run["waiting_for"] == ["c", "d"]
    assert (found["home/c"]["run_id"], found["home/c"]["doing"]) == (run_id, "owes")
    assert found["home/b"]["doing"] == ""


def test_domains_nest_by_what_they_say_is_below_them(life: Life) -> None:
    here(life, "b", tree())
    found = nodes(life)
    assert list(found)[:5] == ["home", "home/b", "home/b/e-1", "home/b/floor", "home/b/floor/e-2"]
    b = found["home/b"]
    assert (b["kind"], b["devices"], b["online"], b["hidden"]) == ("domain", 4, 2, 2)
    assert b["statuses"] == {"ready": 1, "training": 1}
    [run] = b["runs"]
    assert (run["round"], run["waiting"], run["waiting_for"]) == (3, 2, [])
    assert found["home/b/floor"]["kind"] == "domain"
    assert found["home/b/floor/e-2"]["parent"] == "home/b/floor"
    assert found["home"]["devices"] == 7, "c, d, e-1 and the four below b"


def test_a_domain_that_names_nobody_says_how_many_are_below(life: Life) -> None:
    here(life, "b", tree(members=[]))
    found = nodes(life)
    assert (found["home/b"]["hidden"], found["home/b"]["statuses"]) == (4, {})
    assert not any(path.startswith("home/b/") for path in found)


def test_a_revoked_device_is_not_of_the_tree(life: Life) -> None:
    life.do("devices_revoke", device_id="c")
    assert "home/c" not in nodes(life)


def test_ten_thousand_devices_are_counted_and_a_few_listed(life: Life) -> None:
    for number in range(10_000):
        here(life, f"n-{number:05}")
    result = Topology.read(life.do("topology", limit=20))
    assert len(result.nodes) == 21
    assert (result.nodes[0].hidden, result.nodes[0].devices) == (10_004 - 20, 10_004)
    assert encoded_bytes(result) < PAGE_BYTES / 10


def test_what_links_moved_is_counted_once_a_fact() -> None:
    traffic, usage = LinkTraffic(), {"bytes_up": 100.0, "bytes_down": 7.0}
    update = Update("k", 1, "0" * 64, 5, usage=usage)
    facts = [
        UpdateAccepted(1, 1, "b", update),
        EvaluationRecorded(1, "b", 5, {}, {"bytes_down": 3.0}),
        EvaluationRecorded(1, "c", 5, {}),
        RoundClosed(1, 1, ("b",)),
    ]
    for fact in facts:
        event = RunEvent(run_id="r", name="n", round=1, attempt=1, detail={})
        traffic.observe(ObservedFact("sync", fact, event))
    moved = traffic.of("b")
    assert (moved.up, moved.down) == (100, 10)
    assert (traffic.of("c").up, traffic.of("c").down) == (0, 0)


def test_bytes_stand_at_their_link(life: Life) -> None:
    update = Update("k", 1, "0" * 64, 5, usage={"bytes_up": 100.0, "bytes_down": 7.0})
    event = RunEvent(run_id="r", name="n", round=1, attempt=1, detail={})
    life.traffic.observe(ObservedFact("sync", UpdateAccepted(1, 1, "b", update), event))
    found = nodes(life)["home/b"]
    assert (found["bytes_up"], found["bytes_down"]) == (100, 7)
