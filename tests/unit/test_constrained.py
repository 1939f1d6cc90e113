"""The parts of the constrained and the emulated proofs that need no root."""

from __future__ import annotations

from pathlib import Path

from benchmarks import cage, constrained
from tests.emulated.rootfs import ARCHITECTURES, missing, pins

TWO_MOUNTS = "9:name=systemd:/\n4:memory:/job/7\n2:cpu,cpuacct:/\n0::/\n"


def test_groups_lie_below_this_process_own() -> None:
    folders = cage.group_folders(TWO_MOUNTS, "rengo-1", Path("/cg"))
    assert folders == {
        "memory": Path("/cg/memory/job/7/rengo-1"),
        "cpu": Path("/cg/cpu/rengo-1"),
        "cpuacct": Path("/cg/cpuacct/rengo-1"),
    }


def test_a_machine_without_cgroup_v1_or_root_is_told_what_is_missing() -> None:
    said = "\n".join(cage.missing("0::/user.slice\n", root=False))
    assert "root" in said
    for controller in ("memory", "cpu", "cpuacct"):
        assert f"the {controller} controller" in said


def test_packets_are_lost_each_way() -> None:
    rules = cage.loss_rules("link0", 0.1)
    assert rules.count("numgen random mod 1000 < 100") == 2
    assert "hook ingress device link0" in rules
    assert "hook egress device link0" in rules


def test_a_table_has_a_column_for_each_device() -> None:
    row = constrained.Row(
        *("numpy", "digits", 96, True, "5/5", 40.0, 45.0, 85.0, 50.0, 96.0),
        *(0, 12.0, 80, 90, 400, "3.0 2.9", 0.9, ""),
    )
    lines = constrained.table([row, row]).splitlines()
    assert lines[0] == "| case | numpy | numpy |"
    assert "| oom_kills | 0 | 0 |" in lines
    assert len({line.count("|") for line in lines}) == 1


def test_what_debian_has_is_not_pinned() -> None:
    lines = ["# all", "numpy==2.4.6", "PyNaCl==1.6.2", "pydantic_core==2.5", "torch==2; a < 'b'"]
    assert list(pins(lines, ["numpy", "pynacl", "pydantic-core"])) == [lines[0], lines[4]]


def test_a_machine_without_qemu_is_told_how_to_get_it(tmp_path: Path) -> None:
    said = "\n".join(missing(ARCHITECTURES["armhf"], root=True, registry=tmp_path))
    assert "qemu-user-static" in said
    assert "sudo" not in said
    (tmp_path / "qemu-arm").touch()
    said = "\n".join(missing(ARCHITECTURES["armhf"], root=True, registry=tmp_path))
    assert "qemu-user-static" not in said
