"""A bundle's environment: real venvs, and packages that real pip gets from a folder or an index."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from fl_client.bundles.environment import environment
from fl_client.bundles.policy import BundleSettings
from runtime.errors import ConfigError
from storage.bundles.bundle import Dependency
from storage.transfer.files import Cancelled


def write_wheel(folder: Path, name: str, number: str, source: str, *needs: str) -> Path:
    """Write a package of one module into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{number}-py3-none-any.whl"
    info = f"{name}-{number}.dist-info"
    about = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {number}"]
    tags = "Root-Is-Purelib: true\nTag: py3-none-any\n"
    files = {
        f"{name}.py": source,
        f"{info}/METADATA": "\n".join([*about, *(f"Requires-Dist: {each}" for each in needs)])
        + "\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\n{tags}",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as made:
        for member, text in files.items():
            # of no date, so that what is written again is the same
            made.writestr(zipfile.ZipInfo(member), text)
    return path


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(python: Path, code: str) -> str:
    argv = [python, "-P", "-c", code]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A package that the agent has not, version 1.0, in a folder of its own."""
    return write_wheel(tmp_path / "wheels", "rengotoy", "1.0", "answer = 42\n")


def made(wheel: Path, requirement: str, *hashes: str, install: str = "offline") -> Path:
    settings = BundleSettings.model_validate({"install": install, "wheels": wheel.parent})
    needs = [Dependency(requirement=requirement, hashes=list(hashes))]
    return environment(wheel.parent.parent / "venv", needs, settings, threading.Event())


def test_a_package_comes_from_the_folder_and_the_agent_s_are_seen(wheel: Path) -> None:
    right = sha256_of(wheel)
    python = made(wheel, "rengotoy==1.0", right)
    code = "import rengotoy, numpy, fl_client.training.process; print(rengotoy.answer)"
    assert run(python, code) == "42\n"
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


# --- from an index --------------------------------------------------------------------------------


class Index:
    """A package index as PEP 503 has it: a folder for each project, served on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        asked = self.asked

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
                del format, arguments
                asked.append(self.path)

        handler = functools.partial(Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"

    def offer(self, name: str, number: str, source: str, *needs: str) -> Path:
        """Put a package there; the page of its project names its sha256."""
        project = self.folder / name
        path = write_wheel(project, name, number, source, *needs)
        links = [
            f'<a href="{each.name}#sha256={sha256_of(each)}">{each.name}</a>'
            for each in sorted(project.glob("*.whl"))
        ]
        (project / "index.html").write_text(f"<!DOCTYPE html>\n{'<br>'.join(links)}\n")
        return path

    def fetched(self) -> list[str]:
        """Return the packages that were downloaded."""
        return [path.rpartition("/")[2] for path in self.asked if path.endswith(".whl")]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """An index that this machine's pip is configured for, and no other."""
    with contextlib.ExitStack() as stack:
        made = Index(tmp_path / "index")
        stack.callback(made.server.server_close)
        thread = threading.Thread(target=made.server.serve_forever)
        thread.start()
        stack.callback(thread.join)
        stack.callback(made.server.shutdown)
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", made.url)
        monkeypatch.setenv("PIP_RETRIES", "0")
        for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
            monkeypatch.delenv(name, raising=False)
        yield made


def got(tmp_path: Path, *needs: Dependency) -> Path:
    """Return the interpreter for which pip got packages as this machine's pip is configured."""
    settings = BundleSettings(install="pip")
    return environment(tmp_path / "venv", needs, settings, threading.Event())


def test_packages_come_from_the_index_that_pip_is_configured_for(
    index: Index, tmp_path: Path
) -> None:
    index.offer(
        "rengotoy", "1.0", "import rengopart\nanswer = rengopart.half * 2\n", "rengopart>=2"
    )
    index.offer("rengopart", "1.0", "half = 0\n")
    index.offer("rengopart", "2.1", "half = 21\n")
    python = got(tmp_path, Dependency(requirement="rengotoy", hashes=[]))
    assert run(python, "import rengotoy; print(rengotoy.answer)") == "42\n"
    assert sorted(index.fetched()) == [
        "rengopart-2.1-py3-none-any.whl",
        "rengotoy-1.0-py3-none-any.whl",
    ]
    index.asked.clear()
    assert got(tmp_path, Dependency(requirement="rengotoy", hashes=[])) == python
    assert index.asked == [], "what is there is not asked for again"


def test_another_version_of_a_package_of_the_agent_is_the_bundle_s_alone(
    index: Index, tmp_path: Path
) -> None:
    here = version("packaging")
    index.offer("packaging", "999.0", "new = True\n")
    python = got(tmp_path, Dependency(requirement="packaging==999.0", hashes=[]))
    code = "from importlib.metadata import version; print(version('packaging'))"
    assert run(python, f"import packaging; assert packaging.new; {code}") == "999.0\n"
    assert version("packaging") == here
    assert list((tmp_path / "venv").rglob("packaging-999.0.dist-info"))


def test_an_index_must_bring_the_bytes_that_the_author_signed(index: Index, tmp_path: Path) -> None:
    signed = sha256_of(index.offer("rengotoy", "1.0", "answer = 42\n"))
    pinned = Dependency(requirement="rengotoy==1.0", hashes=[signed])
    # whoever holds the index has other bytes under the same name, and says so on the page
    index.offer("rengotoy", "1.0", "answer = 43\n")
    with pytest.raises(ConfigError, match=r"rengotoy==1\.0, which cannot be installed: .*") as told:
        got(tmp_path, pinned)
    assert "HASH" in str(told.value).upper(), told.value
    assert not (tmp_path / "venv" / "rengo-environment.json").exists()
    assert not list((tmp_path / "venv").rglob("rengotoy.py"))
    # the same device, once the index is mended
    index.offer("rengotoy", "1.0", "answer = 42\n")
    python = got(tmp_path, pinned)
    assert run(python, "import rengotoy; print(rengotoy.answer)") == "42\n"


def test_what_a_pinned_package_needs_must_be_pinned_too(index: Index, tmp_path: Path) -> None:
    toy = index.offer("rengotoy", "1.0", "import rengopart\n", "rengopart==2.1")
    part = index.offer("rengopart", "2.1", "half = 21\n")
    first = Dependency(requirement="rengotoy==1.0", hashes=[sha256_of(toy)])
    with pytest.raises(ConfigError, match="cannot be installed"):
        got(tmp_path, first)
    assert not list((tmp_path / "venv").rglob("rengo*.py")), "nothing of it is installed"
    second = Dependency(requirement="rengopart==2.1", hashes=[sha256_of(part)])
    assert run(got(tmp_path, first, second), "import rengotoy") == ""


def test_an_index_that_has_it_not_or_does_not_answer_is_told_in_a_line(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.offer("rengotoy", "1.0", "answer = 42\n")
    wanted = Dependency(requirement="rengotoy>=2", hashes=[])
    with pytest.raises(ConfigError, match=r"cannot be installed: .*rengotoy>=2"):
        got(tmp_path, wanted)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    with pytest.raises(ConfigError, match=r"cannot be installed: .*[A-Za-z]"):
        got(tmp_path, wanted)


def test_code_of_an_index_does_not_run_when_it_is_installed(index: Index, tmp_path: Path) -> None:
    """A source distribution would run its setup.py as the agent's user."""
    project = index.folder / "rengotoy"
    project.mkdir(parents=True)
    (project / "rengotoy-1.0.tar.gz").write_bytes(b"never opened")
    (project / "index.html").write_text('<a href="rengotoy-1.0.tar.gz">rengotoy-1.0.tar.gz</a>')
    with pytest.raises(ConfigError, match=r"cannot be installed: .*rengotoy"):
        got(tmp_path, Dependency(requirement="rengotoy==1.0", hashes=[]))
    assert "/rengotoy/rengotoy-1.0.tar.gz" not in index.asked


def test_what_is_installed_is_on_the_disk_before_its_mark(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mark that outlives a power cut alone would vouch for packages that are empty."""
    marked: list[bool] = []
    mark = wheel.parent.parent / "venv" / "rengo-environment.json"
    monkeypatch.setattr("os.sync", lambda: marked.append(mark.exists()))
    made(wheel, "rengotoy==1.0")
    assert marked == [False]
    assert mark.exists()
