"""A bundle's environment: real venvs, and packages that real pip installs from a folder."""

from __future__ import annotations

import hashlib
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest

from fl_client.bundle_environment import environment
from fl_client.bundle_policy import BundleSettings
from runtime.errors import ConfigError
from storage.bundle import Dependency
from storage.transfers import Cancelled


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A package that the agent has not, version 1.0, in a folder of its own."""
    path = tmp_path / "wheels" / "rengotoy-1.0-py3-none-any.whl"
    path.parent.mkdir()
    info = "rengotoy-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("rengotoy.py", "answer = 42\n")
        made.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: rengotoy\nVersion: 1.0\n")
        tags = "Root-Is-Purelib: true\nTag: py3-none-any\n"
        made.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\n{tags}")
        made.writestr(f"{info}/RECORD", "")
    return path


def made(wheel: Path, requirement: str, *hashes: str, install: str = "offline") -> Path:
    settings = BundleSettings.model_validate({"install": install, "wheels": wheel.parent})
    needs = [Dependency(requirement=requirement, hashes=list(hashes))]
    return environment(wheel.parent.parent / "venv", needs, settings, threading.Event())


def test_a_package_comes_from_the_folder_and_the_agent_s_are_seen(wheel: Path) -> None:
    right = hashlib.sha256(wheel.read_bytes()).hexdigest()
    python = made(wheel, "rengotoy==1.0", right)
    code = "import rengotoy, numpy, fl_client.training; print(rengotoy.answer)"
    done = subprocess.run([python, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "42\n"
    # what is there is not installed again: nothing could be, without the folder
    wheel.unlink()
    assert made(wheel, "rengotoy==1.0", right) == python


@pytest.mark.parametrize(
    ("requirement", "hashes"), [("rengotoy==2.0", []), ("rengotoy==1.0", ["0" * 64])]
)
def test_what_cannot_be_had_is_told_in_a_line(
    wheel: Path, requirement: str, hashes: list[str]
) -> None:
    with pytest.raises(ConfigError, match=r"cannot be installed: .*[A-Za-z]") as caught:
        made(wheel, requirement, *hashes)
    assert "[" not in str(caught.value).partition("installed: ")[2][:1]
    assert not (wheel.parent.parent / "venv" / "rengo-environment.json").exists()


def test_nothing_is_installed_where_the_device_says_never(wheel: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs rengotoy==1\.0; this device installs nothing"):
        made(wheel, "rengotoy==1.0", install="never")
    assert not (wheel.parent.parent / "venv").exists()


def test_an_installation_can_be_cancelled(wheel: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    settings = BundleSettings(install="offline", wheels=wheel.parent)
    needs = [Dependency(requirement="rengotoy==1.0", hashes=[])]
    with pytest.raises(Cancelled):
        environment(wheel.parent.parent / "venv", needs, settings, cancel)
