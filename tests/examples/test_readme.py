"""What README.md shows is what the repository holds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fl_client.tasks.registry import load_task
from storage.weights import write_safetensors
from tests.examples import pages

README = (pages.ROOT / "README.md").read_text(encoding="utf-8")


def test_the_task_shown_is_the_example_s_file() -> None:
    shown = pages.files("README.md")["examples/my_task.py"]
    assert shown == (pages.ROOT / "examples" / "my_task.py").read_text(encoding="utf-8")


def test_the_three_lines_that_load_a_model_run(tmp_path: Path) -> None:
    (snippet,) = [body for body in pages.blocks("README.md", "python") if "load_model" in body]

    weights = load_task(f"{pages.ROOT / 'examples' / 'my_task.py'}:MyTask").initial_weights(0)
    with (tmp_path / "model.safetensors").open("wb") as file:
        write_safetensors(weights, file)
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'0.weight': (32, 2)" in done.stdout


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/coming-from-fedml.md"])
def test_every_python_block_compiles(page: str) -> None:
    found = pages.blocks(page, "python")
    assert found
    for body in found:
        compile(body, page, "exec")


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", README, re.MULTILINE))
def test_every_make_command_exists(target: str) -> None:
    done = subprocess.run(
        ["make", "-n", target], cwd=pages.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
