"""What can be known before the work is told before it, and what a killed site left is removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rengo.cli.main import main
from rengo.site.folder import SiteFolder
from rengo.site.temporary import sweep_temporary_sites, temporary_name
from runtime.errors import ConfigError
from runtime.files import require_writable

_HOLD = """\
import sys, time
from pathlib import Path
from rengo.site.folder import SiteFolder
folder = SiteFolder(Path(sys.argv[1]))
lock = folder.lock()
folder.record_with(domain="main", store="juicefs")
(folder.root / "identities").mkdir()
print("ready", flush=True)
time.sleep(600)
"""


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b")
    require_writable(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["demo"], ["run", "digits", "--follow"]])
@pytest.mark.parametrize("option", ["--output", "--json"])
def test_output_that_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], option: str
) -> None:
    (tmp_path / "file").write_text("")
    wrong = tmp_path / "file" / "below"
    site = ["--data-dir", str(tmp_path)] if words[0] == "run" else []
    assert main([*words, *site, option, str(wrong)]) == 2
    said = capsys.readouterr()
    assert str(tmp_path / "file") in said.err
    assert "Starting" not in said.out
    assert "no site" not in said.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="Permission denied"):
        require_writable(tmp_path / "out")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"nothing can be written to .*file.*: Not a directory"):
        require_writable(tmp_path / "file")


def test_the_folder_of_a_killed_site_goes_at_the_next_start(tmp_path: Path) -> None:
    alive, killed, young = (tmp_path / temporary_name() for _ in range(3))
    others = [tmp_path / "rengo-0123456789abcdefg", tmp_path / "rengo-output", tmp_path / "x"]
    for other in others:
        SiteFolder(other).record_with(domain="main", store="juicefs")
    young.mkdir()  # its process has not yet taken its lock
    holders = []
    for folder in (alive, killed):
        argv = [sys.executable, "-c", _HOLD, str(folder)]
        holder = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        holders.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
    try:
        holders[1].send_signal(signal.SIGKILL)
        holders[1].wait()
        sweep_temporary_sites(tmp_path)
        assert not killed.exists()
        assert all(each.exists() for each in (alive, young, *others))
        assert (alive / "identities").is_dir()
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
            assert holder.stdout is not None
            holder.stdout.close()
