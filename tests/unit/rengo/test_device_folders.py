"""A folder for each device: who gets which, and what is told before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from rengo.cli.main import main
from rengo.demo import fleet, placed
from rengo.site import device_process
from rengo.site.device_folders import device_folders
from rengo.site.device_process import DeviceSpec
from rengo.site.site import _fleet
from runtime.errors import ConfigError


def made(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def test_sub_folders_are_devices_in_the_order_of_their_names(tmp_path: Path) -> None:
    data = made(tmp_path / "data", "carol", "alice", "bob", ".hidden")
    (data / "readme.txt").write_text("no folder")
    found = device_folders(data)
    assert [path.name for path in found.trainers] == ["alice", "bob", "carol"]
    assert found.evaluator is None
    found = device_folders(made(data, "evaluator"))
    assert len(found.trainers) == 3
    assert found.evaluator == data / "evaluator"


def test_the_demo_s_devices_take_them_in_order(tmp_path: Path) -> None:
    data = made(tmp_path / "data", "alice", "bob", "carol")
    devices = placed(fleet(3), device_folders(data))
    assert [(each.name, each.folder and each.folder.name) for each in devices] == [
        ("edge-1", "alice"),
        ("gpu-1", "bob"),
        ("pi-1", "carol"),
    ]
    devices = placed(fleet(3), device_folders(made(data, "evaluator")))
    assert devices[-1].role == "evaluator"
    assert devices[-1].folder == data / "evaluator"


def test_a_site_starts_as_many_devices_as_there_are_folders(tmp_path: Path) -> None:
    assert [each.folder for each in _fleet(2, None)] == [None, None]
    data = made(tmp_path / "data", "alice", "bob", "carol")
    found = _fleet(2, device_folders(data))
    assert [(each.index, each.count) for each in found] == [(0, 3), (1, 3), (2, 3)]
    assert [each.folder for each in found] == [data / name for name in ("alice", "bob", "carol")]
    *trainers, judge = _fleet(2, device_folders(made(data, "evaluator")))
    assert trainers == found
    assert (judge.role, judge.folder) == ("evaluator", data / "evaluator")


@pytest.mark.parametrize("profile", ["cpu", "pi"])
def test_a_device_s_process_is_told_its_folder(
    tmp_path: Path, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_process, "Child", lambda name, argv, log: argv)
    spec = DeviceSpec("d", profile=profile, folder=tmp_path, partition="iid")  # type: ignore[arg-type]
    argv: list[str] = device_process.device_process(spec, tmp_path, tmp_path, "digits", tmp_path)
    assert argv[argv.index("--folder") + 1] == str(tmp_path)
    assert argv[argv.index("--partition") + 1] == "iid"
    plain = device_process.device_process(DeviceSpec("d"), tmp_path, tmp_path, "digits", tmp_path)
    assert "--folder" not in plain


def test_what_has_no_sub_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        device_folders(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="has no sub-folder"):
        device_folders(made(tmp_path / "data", "evaluator"))


def test_another_number_of_clients_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made(tmp_path / "data", "alice", "bob")
    words = ["demo", "--output", str(tmp_path / "out"), "--data", str(data), "--clients", "3"]
    assert main(words) == 2
    assert "has folders of 2 devices, and --clients says 3" in capsys.readouterr().err
