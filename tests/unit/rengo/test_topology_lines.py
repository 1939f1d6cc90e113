"""How the tree of a site is drawn: in lines, and in colours on a terminal."""

from __future__ import annotations

import io

import pytest

from fl_server.operations.results.topology import TopologyNode, TopologyRun
from rengo.terminal.live_tree import LiveTree, drawn
from rengo.terminal.topology import ASCII, UNICODE, table, tree_lines

RUN = TopologyRun(
    run_id="digits-1",
    task="digits",
    phase="collecting",
    round=3,
    rounds=10,
    cohort=3,
    answered=1,
    waiting=2,
    waiting_for=["domain-b", "edge-e"],
)


def node(path: str, kind: str = "device", status: str = "ready", **more: object) -> TopologyNode:
    parent, _, own = path.rpartition("/")
    values = {"path": path, "parent": parent, "id": own, "kind": kind, "status": status, **more}
    return TopologyNode.model_validate(values)


# the platform of the sketch: domain A with nobody, domain B with two edges, two edges of its own
SKETCH = [
    node("home", "platform", "online", devices=4, online=3, runs=[RUN]),
    node("home/edge-e", status="training", run_id="digits-1", doing="owes", profile="pi"),
    node("home/domain-a", "domain"),
    node(
        "home/domain-b",
        "domain",
        devices=2,
        online=1,
        bytes_up=2_400_000,
        bytes_down=1_000,
        runs=[RUN.model_copy(update={"waiting_for": [], "rounds": 0, "waiting": 1})],
    ),
    node("home/domain-b/edge-a", status="lost"),
    node("home/domain-b/edge-b", status="training"),
    node("home/edge-f", role="evaluator", group="lab", run_id="digits-1", doing="answered"),
]


def test_the_tree_is_drawn_in_columns() -> None:
    assert table(tree_lines(SKETCH)) == [
        "home          online    3 of 4 devices online",
        "│                       digits-1: round 3 of 10, collecting, 1 of 3 answered; "
        "waits for domain-b, edge-e",
        "├─ edge-e     training  pi; awaited by digits-1",
        "├─ domain-a   ready     0 of 0 devices online",
        "├─ domain-b   ready     1 of 2 devices online; 2.4 MB up, 1.0 kB down",
        "│  │                    digits-1: round 3, collecting, 1 of 3 answered; "
        "waits for 1 device",
        "│  ├─ edge-a  lost",
        "│  └─ edge-b  training",
        "└─ edge-f     ready     evaluator; group lab; has answered digits-1",
    ]


def test_a_terminal_without_such_letters_gets_others() -> None:
    lines = table(tree_lines(SKETCH, ASCII))
    assert lines[-1].startswith("`- edge-f")
    assert all(line.isascii() for line in lines)


def test_what_is_not_listed_is_counted() -> None:
    top = node(
        "home", "platform", "online", devices=90, hidden=88, statuses={"ready": 80, "lost": 10}
    )
    unnamed = node("home/b", "domain", devices=3, hidden=3)
    lines = table(tree_lines([top, unnamed, node("home/c")]))
    assert lines[2:] == [
        "│  └─ 3 devices that are not named",
        "├─ c  ready",
        "└─ and 88 more (in all 10 lost, 80 ready)",
    ]


def test_what_is_below_a_domain_that_is_not_told_of_hangs_at_the_one_above() -> None:
    lines = table(tree_lines([node("home", "platform", "online"), node("home/x/y/edge")]))
    assert lines[1] == "└─ edge  ready"


def test_many_that_are_awaited_are_counted() -> None:
    run = RUN.model_copy(update={"waiting": 9})
    [_, line] = table(tree_lines([node("home", "platform", "online", runs=[run])]))
    assert line.endswith("waits for domain-b, edge-e and 7 more")


@pytest.mark.parametrize("branches", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_colours_change_no_word(branches: object) -> None:
    lines = tree_lines(SKETCH, branches)  # type: ignore[arg-type]
    text = drawn(lines)
    assert text.plain.splitlines() == table(lines)
    painted = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert painted["lost"] == "red"
    assert painted["training"] == "cyan"


def test_a_device_that_is_called_like_a_status_is_not_painted_for_it() -> None:
    text = drawn(tree_lines([node("home", "platform", "online"), node("home/lost")]))
    [span] = [span for span in text.spans if text.plain[span.start : span.end] == "ready"]
    assert str(span.style) == "green"
    assert not any(text.plain[span.start : span.end] == "lost" for span in text.spans)


def test_it_is_redrawn_in_place() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with LiveTree(out) as shown:
        shown.update(tree_lines(SKETCH))
        shown.update(tree_lines(SKETCH[:1]))
    assert "domain-b" in out.getvalue()
