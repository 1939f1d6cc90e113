"""The pages say what the code says, and their links lead somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from fl_client.session.events import Stage
from fl_server.rounds.facts import FACTS
from fl_server.rounds.ledger import LEGAL
from fl_server.rounds.plan import Phase
from tests import algorithms_page, protocol_page, run_settings_page
from tests.examples import pages

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page.relative_to(ROOT).as_posix() for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
)
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
_LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)#\s]+)?(#[^)\s]*)?\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ROOMS = SETTINGS["tool"]["importlinter"]["root_packages"]
# What users read; the pages about the code's own structure show its modules.
FOR_USERS = [
    page
    for page in PAGES
    if page == "README.md" or (page.count("/") == 1 and page != "docs/architecture.md")
]
_IMPORT = re.compile(r"^\s*(?:>>> )?(?:from|import) +([\w.]+)", re.MULTILINE)
_CHANGE = re.compile(r"^\| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
_PATH = re.compile(r"`([\w<>./]+\.\w+)`")


def legal_table() -> str:
    """Return the table of phases and facts as the architecture page has to show it."""
    lines = ["| phase | facts that may follow |", "| --- | --- |"]
    for phase in get_args(Phase):
        facts = [f"`{name}`" for name, fact in FACTS.items() if fact in LEGAL[phase]]
        lines.append(f"| {phase} | {', '.join(facts) or 'none'} |")
    return "\n".join(lines)


def layers_table() -> str:
    """Return the layers of each room as the architecture page has to show them."""
    lines = ["| room | layers, from the top |", "| --- | --- |"]
    for contract in SETTINGS["tool"]["importlinter"]["contracts"]:
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


def test_the_page_of_a_run_s_settings_is_the_code_s() -> None:
    shown = (ROOT / "docs" / "run-settings.md").read_text(encoding="utf-8")
    command = "python -m tests.run_settings_page > docs/run-settings.md"
    assert shown == run_settings_page.render(), command


def test_the_page_of_algorithms_is_the_code_s() -> None:
    shown = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    assert shown == algorithms_page.render(), "python -m tests.algorithms_page > docs/algorithms.md"


def test_a_key_of_a_run_that_says_nothing_is_noticed() -> None:
    class Section(BaseModel):
        said: int = 1
        """One that says
        what it is for."""
        silent: int = 2

    assert run_settings_page.meanings_of(Section) == {"said": "One that says what it is for."}


def foreign_imports(code: str) -> list[str]:
    """Return the modules that code imports from a room, or a part of one, that is not ``rengo``."""
    named = _IMPORT.findall(code)
    return [name for name in named if name != "rengo" and name.partition(".")[0] in ROOMS]


@pytest.mark.parametrize("page", FOR_USERS)
def test_users_import_rengo_alone(page: str) -> None:
    assert [name for code in pages.blocks(page) for name in foreign_imports(code)] == []


def test_an_import_of_another_room_is_noticed() -> None:
    code = "import rengo\n    from storage.weights import Weights\nimport rengo.export.formats\n"
    assert foreign_imports(code) == ["storage.weights", "rengo.export.formats"]


def changes() -> dict[str, list[str]]:
    """Return the paths that CONTRIBUTING's table names for each change."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## What a change touches\n")[2].partition("\n## ")[0]
    return {change: _PATH.findall(files) for change, files in _CHANGE.findall(section)[2:]}


def test_the_files_that_a_change_touches_are_there() -> None:
    assert len(changes()) >= 20
    named = [path for paths in changes().values() for path in paths]
    assert [path for path in named if not [*ROOT.glob(path.replace("<name>", "[!_]*"))]] == []


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
