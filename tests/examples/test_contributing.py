"""The worked example of CONTRIBUTING.md, done as the page says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples import pages

ALGORITHM = "algorithms/fedavgm.py"
TEST = "tests/unit/algorithms/test_fedavgm.py"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what algorithms stand on, with the page's two files added."""
    for room in ("algorithms", "storage", "runtime"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(pages.ROOT / room, tmp_path / room, ignore=ignored)
    for path, text in pages.files("CONTRIBUTING.md").items():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return tmp_path


def run(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=tree, capture_output=True, text=True, check=False
    )


def test_the_page_has_the_algorithm_and_its_test() -> None:
    assert set(pages.files("CONTRIBUTING.md")) == {ALGORITHM, TEST}


def test_the_file_alone_adds_the_algorithm_and_its_test_passes(tree: Path) -> None:
    done = run(tree, "pytest", "-q", "-p", "no:cacheprovider", TEST)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_its_test_can_fail(tree: Path) -> None:
    source = (tree / ALGORITHM).read_text(encoding="utf-8")
    broken = source.replace("self.server_momentum * state", "state")
    assert broken != source
    (tree / ALGORITHM).write_text(broken, encoding="utf-8")
    done = run(tree, "pytest", "-q", "-p", "no:cacheprovider", TEST)
    assert "2 failed" in done.stdout


def test_it_keeps_to_the_house_style(tree: Path) -> None:
    shutil.copy(pages.ROOT / "pyproject.toml", tree)
    for arguments in (
        ("ruff", "check", ALGORITHM),
        ("ruff", "format", "--check", ALGORITHM),
        ("mypy", ALGORITHM),
    ):
        done = run(tree, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
