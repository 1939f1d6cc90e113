"""What accelerators a machine has, told by its drivers' files and tools; none is needed here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fl_client import accelerators
from fl_client.accelerators import CPU, Accelerator, Machine, chosen, find, for_orders
from runtime.errors import ConfigError

GIB = 1 << 30
TWO = (
    "print('NVIDIA H100 PCIe, GPU-aaaa-1, 81559 MiB, 9.0');"
    "print('Tesla T4, GPU-bbbb-2, 15360 MiB, 7.5')"
)


def linux(root: Path, *, query: str = "raise SystemExit(9)", **environ: str) -> Machine:
    command = (sys.executable, "-c", query)
    return Machine(root, environ, command, system="linux", machine="x86_64")


def with_nvidia(root: Path) -> Path:
    for bus, model, uuid in (("0000:01:00.0", "H100", "GPU-aaaa-1"), ("0000:02:00.0", "T4", "?")):
        folder = root / "proc/driver/nvidia/gpus" / bus
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {model}\nGPU UUID: \t {uuid}\n")
    return root


def test_a_machine_without_any_has_none(tmp_path: Path) -> None:
    assert find(linux(tmp_path)) == []


def test_nvidia_devices_are_told_by_their_tool(tmp_path: Path) -> None:
    found = find(linux(with_nvidia(tmp_path), query=TWO))
    assert [str(each) for each in found] == ["cuda:0 NVIDIA H100 PCIe", "cuda:1 Tesla T4"]
    assert found[0].memory_bytes == 81559 << 20
    assert [each.capability for each in found] == ["9.0", "7.5"]
    assert [each.precisions[0] for each in found] == ["bfloat16", "float16"]
    assert found[1].environment["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb-2"


def test_without_the_tool_the_driver_still_names_them(tmp_path: Path) -> None:
    found = find(linux(with_nvidia(tmp_path)))
    assert [str(each) for each in found] == ["cuda:0 H100", "cuda:1 T4"]
    # the second one's UUID is masked, so its number stands for it
    assert [each.handle for each in found] == ["GPU-aaaa-1", "1"]
    assert found[0].precisions == ["float32"]


@pytest.mark.parametrize(
    ("variable", "models"),
    [
        ("1", ["Tesla T4"]),
        ("1,0", ["Tesla T4", "NVIDIA H100 PCIe"]),
        ("GPU-bbbb", ["Tesla T4"]),
        ("", []),
        ("0,7,1", ["NVIDIA H100 PCIe"]),
    ],
)
def test_what_the_agent_itself_may_not_see_is_not_found(
    tmp_path: Path, variable: str, models: list[str]
) -> None:
    found = find(linux(with_nvidia(tmp_path), query=TWO, CUDA_VISIBLE_DEVICES=variable))
    assert [each.model for each in found] == models
    assert [each.name for each in found] == [f"cuda:{index}" for index in range(len(models))]


def test_amd_devices_are_told_by_the_kernel(tmp_path: Path) -> None:
    nodes = tmp_path / "sys/class/kfd/kfd/topology/nodes"
    for number, facts in (("0", "simd_count 0"), ("1", "simd_count 440\ngfx_target_version 90010")):
        bank = nodes / number / "mem_banks/0"
        bank.mkdir(parents=True)
        (nodes / number / "properties").write_text(f"cpu_cores_count 0\n{facts}\n")
        (bank / "properties").write_text(f"heap_type 1\nsize_in_bytes {64 * GIB}\n")
    (one,) = find(linux(tmp_path))
    assert (one.name, one.capability, one.memory_bytes) == ("rocm:0", "gfx90a", 64 * GIB)
    assert one.environment == {"HIP_VISIBLE_DEVICES": "0"}
    assert find(linux(tmp_path, HIP_VISIBLE_DEVICES="")) == []


def test_a_mac_has_its_own() -> None:
    (one,) = find(Machine(Path("/none"), {}, system="darwin", machine="arm64"))
    assert one.name == "mps"


H100, T4 = Accelerator("cuda:0", handle="a"), Accelerator("cuda:1", handle="b")


def test_auto_is_the_first_where_the_profile_allows_it() -> None:
    assert chosen("auto", [H100, T4], idle=False) == H100
    assert chosen("auto", [H100, T4], idle=True) == CPU
    assert chosen("auto", [], idle=False) == CPU


def test_a_name_is_taken_whatever_the_profile() -> None:
    assert chosen("cuda:1", [H100, T4], idle=True) == T4
    assert chosen("cpu", [H100], idle=False) == CPU
    assert chosen("cpu:1", [], idle=True).kind == "cpu"


@pytest.mark.parametrize("name", ["cuda:2", "mps"])
def test_a_name_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"there are: cuda:0, cuda:1, cpu"):
        chosen(name, [H100, T4], idle=False)


def test_numpy_takes_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "of_this_machine", lambda: [H100])
    assert for_orders("auto", profile="gpu", engine="numpy") == CPU
    assert for_orders("auto", profile="gpu", engine="torch") == H100
    assert for_orders("auto", profile="cpu", engine="torch") == CPU
    with pytest.raises(ConfigError, match="numpy engine trains on the CPU"):
        for_orders("cuda:0", profile="gpu", engine="numpy")


def test_what_no_driver_tells_of_is_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "of_this_machine", list)
    untold = for_orders("auto", profile="gpu", engine="torch")
    assert (untold.name, untold.environment) == ("", {})


def test_a_process_for_the_cpu_sees_no_accelerator() -> None:
    assert set(CPU.environment.values()) == {""}
