"""The pages say what the code says, and their links lead somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from fl_client.session.events import Stage
from fl_server.rounds.events import FACTS, Phase
from fl_server.rounds.ledger import LEGAL
from tests import protocol_page

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page.relative_to(ROOT).as_posix() for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
)
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
_LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)#\s]+)?(#[^)\s]*)?\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def legal_table() -> str:
    """Return the table of phases and facts as the architecture page has to show it."""
    lines = ["| phase | facts that may follow |", "| --- | --- |"]
    for phase in get_args(Phase):
        facts = [f"`{name}`" for name, fact in FACTS.items() if fact in LEGAL[phase]]
        lines.append(f"| {phase} | {', '.join(facts) or 'none'} |")
    return "\n".join(lines)


def layers_table() -> str:
    """Return the layers of each room as the architecture page has to show them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = ["| room | layers, from the top |", "| --- | --- |"]
    for contract in settings["tool"]["importlinter"]["contracts"]:
        if contract["type"] == "layers" and "containers" in contract:
            (room,) = contract["containers"]
            layers = (layer.replace(" | ", " \\| ") for layer in contract["layers"])
            lines.append(f"| `{room}/` | {' → '.join(layers)} |")
    return "\n".join(lines)


def anchors(page: Path) -> set[str]:
    headings = _HEADING.findall(page.read_text(encoding="utf-8"))
    return {"#" + re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def test_the_table_of_legal_facts_is_the_code_s() -> None:
    assert legal_table() in ARCHITECTURE, "docs/architecture.md should show:\n" + legal_table()


def test_the_layers_are_those_that_are_checked() -> None:
    assert layers_table() in ARCHITECTURE, "docs/architecture.md should show:\n" + layers_table()


def test_the_protocol_page_is_the_code_s() -> None:
    shown = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    assert shown == protocol_page.render(), "python -m tests.protocol_page > docs/protocol.md"


@pytest.mark.parametrize("state", [*get_args(Phase), *get_args(Stage)])
def test_every_state_is_drawn(state: str) -> None:
    assert re.search(rf"^ +(\[\*\]|\w+) --> {state}\b", ARCHITECTURE, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target, anchor in _LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(path), f"{page} links to {target}{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_no_page_points_outside_the_repository(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target, _ in _LINK.findall(text):
        if not target.startswith(("http://", "https://")):
            assert ((ROOT / page).parent / target).resolve().is_relative_to(ROOT)
