"""Rengo's wheel, built from a copy: no build folder is left in the tree, or taken from it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
_FILES = ("pyproject.toml", "README.md", "LICENSE", "rengo_start.py")


def build_wheel(folder: Path) -> Path:
    """Build the wheel into ``folder`` and return it; needs the package index for setuptools."""
    text = (REPOSITORY / "pyproject.toml").read_text()
    patterns = tomllib.loads(text)["tool"]["setuptools"]["packages"]["find"]["include"]
    with tempfile.TemporaryDirectory(prefix="rengo-wheel-") as copy:
        for name in (*_FILES, *(each.rstrip("*") for each in patterns)):
            source, target = REPOSITORY / name, Path(copy) / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
                *("--wheel-dir", str(folder), copy),
            ],
            check=True,
            capture_output=True,
        )
    (wheel,) = folder.glob("rengo-*.whl")
    return wheel
