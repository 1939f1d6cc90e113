"""``rengo doctor`` says what of a folder takes how much disk."""

from __future__ import annotations

from pathlib import Path

from rengo.doctor.disk_use import check_disk_use, disk_use


def write(path: Path, kib: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * (kib << 10))


def test_each_part_is_told_and_the_journal_by_itself(tmp_path: Path) -> None:
    write(tmp_path / "store" / "a" / "block", 2048)
    write(tmp_path / "server" / "journal.sqlite", 512)
    write(tmp_path / "server" / "journal.sqlite-wal", 512)
    write(tmp_path / "server" / "work" / "spool", 64)
    write(tmp_path / "site.json", 4)
    assert disk_use(tmp_path) == {
        "store": 2048 << 10,
        "server/journal.sqlite": 1024 << 10,
        "server": 64 << 10,
        "site.json": 4 << 10,
    }
    (check,) = check_disk_use(tmp_path)
    assert check.ok
    assert check.detail == (
        f"3.1 MiB in {tmp_path}: store 2.0 MiB, server/journal.sqlite 1.0 MiB, server 64 KiB, "
        "site.json 4 KiB"
    )


def test_a_folder_that_is_not_there_takes_nothing(tmp_path: Path) -> None:
    assert check_disk_use(tmp_path / "none") == []
    (check,) = check_disk_use(tmp_path)
    assert check.detail == f"0 KiB in {tmp_path}"


def test_many_parts_are_told_in_one_line(tmp_path: Path) -> None:
    for number in range(20):
        write(tmp_path / f"part-{number}", 4)
    (check,) = check_disk_use(tmp_path)
    assert check.detail.endswith(", and 8 more")
