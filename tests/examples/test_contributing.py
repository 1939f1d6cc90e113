"""The worked example of CONTRIBUTING.md, done as the page says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples import pages

ALGORITHM = "algorithms/fedmom.py"
TEST = "tests/unit/algorithms/test_fedmom.py"


ROOMS = ("algorithms", "broker", "fl_client", "fl_server", "iot", "rengo", "runtime", "storage")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the code, with the page's two files added."""
    for room in ROOMS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(pages.ROOT / room, tmp_path / room, ignore=ignored)
    shutil.copy(pages.ROOT / "rengo_start.py", tmp_path)
    for path, text in pages.files("CONTRIBUTING.md").items():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return tmp_path


def python(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=tree, capture_output=True, text=True, check=False
    )


def run(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(tree, "-m", *arguments)


def test_the_page_has_the_algorithm_and_its_test() -> None:
    assert set(pages.files("CONTRIBUTING.md")) == {ALGORITHM, TEST}


def test_the_file_alone_adds_the_algorithm_and_its_test_passes(tree: Path) -> None:
    done = run(tree, "pytest", "-q", "-p", "no:cacheprovider", TEST)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_the_command_lists_and_explains_it(tree: Path) -> None:
    assert "\nfedmom " in run(tree, "rengo", "algorithms").stdout
    explained = run(tree, "rengo", "algorithms", "fedmom").stdout
    assert "algorithm.server_momentum  0.9      at least 0 and below 1" in explained
    assert "and the server 1 vector of its size" in explained


def test_a_package_of_somebody_else_s_adds_it_too(tree: Path, tmp_path: Path) -> None:
    package, metadata = tmp_path / "site" / "elsewhere", tmp_path / "site" / "elsewhere.dist-info"
    package.mkdir(parents=True)
    metadata.mkdir()
    (tree / ALGORITHM).rename(package / "momentum.py")
    (package / "__init__.py").touch()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        "[rengo.algorithms]\nfedmom = elsewhere.momentum:FedMom\nbroken = elsewhere.nothing:X\n"
    )
    code = (
        f"import sys; sys.path[:0] = [{str(package.parent)!r}, {str(tree)!r}]\n"
        "import algorithms\n"
        "assert {'fedavg', 'fedmom', 'broken'} <= set(algorithms.names())\n"
        "print(algorithms.load('fedmom', {'server_momentum': 0.5}))\n"
        "algorithms.load('broken')\n"
    )
    done = python(tree, "-c", code)
    assert done.stdout == "FedMom(server_momentum=0.5)\n"
    assert "ConfigError: algorithm broken (elsewhere.nothing:X)" in done.stderr


def test_its_test_can_fail(tree: Path) -> None:
    source = (tree / ALGORITHM).read_text(encoding="utf-8")
    broken = source.replace("self.server_momentum * (v - ", "(v - ")
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
