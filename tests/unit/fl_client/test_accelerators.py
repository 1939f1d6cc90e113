"""What accelerators a machine has, told by its drivers' files and tools; none is needed here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fl_client.machine import accelerators
from fl_client.machine.accelerators import (
    CPU,
    Accelerator,
    MachineProbe,
    chosen,
    detect,
    environment,
    for_orders,
    precision,
)
from fl_client.settings import AgentSettings
from runtime.config import load
from runtime.errors import ConfigError

GIB = 1 << 30
TWO = (
    "print('NVIDIA H100 PCIe, GPU-aaaa-1, 81559 MiB, 9.0');"
    "print('Tesla T4, GPU-bbbb-2, 15360 MiB, 7.5')"
)


def linux(root: Path, *, query: str = "raise SystemExit(9)", **environ: str) -> MachineProbe:
    command = (sys.executable, "-c", query)
    return MachineProbe(root, environ, command, system="linux", machine="x86_64")


def with_nvidia(root: Path) -> Path:
    for bus, model, uuid in (("0000:01:00.0", "H100", "GPU-aaaa-1"), ("0000:02:00.0", "T4", "?")):
        folder = root / "proc/driver/nvidia/gpus" / bus
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {model}\nGPU UUID: \t {uuid}\n")
    return root


def test_a_machine_without_any_has_none(tmp_path: Path) -> None:
    assert detect(linux(tmp_path)) == []


def test_nvidia_devices_are_told_by_their_tool(tmp_path: Path) -> None:
    found = detect(linux(with_nvidia(tmp_path), query=TWO))
    assert [str(each) for each in found] == ["cuda:0 NVIDIA H100 PCIe", "cuda:1 Tesla T4"]
    assert found[0].memory_bytes == 81559 << 20
    assert [each.capability for each in found] == ["9.0", "7.5"]
    assert [each.precisions[0] for each in found] == ["bfloat16", "float16"]
    assert environment(found[1:])["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb-2"
    assert environment(found[::-1])["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb-2,GPU-aaaa-1"


def test_without_the_tool_the_driver_still_names_them(tmp_path: Path) -> None:
    found = detect(linux(with_nvidia(tmp_path)))
    assert [str(each) for each in found] == ["cuda:0 H100", "cuda:1 T4"]
    # the second one's UUID is masked, and CUDA reads a list of numbers or one of UUIDs
    assert [each.handle for each in found] == ["0", "1"]
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
    found = detect(linux(with_nvidia(tmp_path), query=TWO, CUDA_VISIBLE_DEVICES=variable))
    assert [each.model for each in found] == models
    assert [each.name for each in found] == [f"cuda:{index}" for index in range(len(models))]


def test_amd_devices_are_told_by_the_kernel(tmp_path: Path) -> None:
    nodes = tmp_path / "sys/class/kfd/kfd/topology/nodes"
    for number, facts in (("0", "simd_count 0"), ("1", "simd_count 440\ngfx_target_version 90010")):
        bank = nodes / number / "mem_banks/0"
        bank.mkdir(parents=True)
        (nodes / number / "properties").write_text(f"cpu_cores_count 0\n{facts}\n")
        (bank / "properties").write_text(f"heap_type 1\nsize_in_bytes {64 * GIB}\n")
    (one,) = detect(linux(tmp_path))
    assert (one.name, one.capability, one.memory_bytes) == ("rocm:0", "gfx90a", 64 * GIB)
    assert environment([one]) == {"HIP_VISIBLE_DEVICES": "0"}
    assert detect(linux(tmp_path, HIP_VISIBLE_DEVICES="")) == []


def test_a_mac_has_its_own() -> None:
    (one,) = detect(MachineProbe(Path("/none"), {}, system="darwin", machine="arm64"))
    assert one.name == "mps"


H100, T4 = Accelerator("cuda:0", handle="a"), Accelerator("cuda:1", handle="b")


def test_auto_is_the_first_where_the_profile_allows_it() -> None:
    assert chosen(["auto"], [H100, T4], idle=False) == (H100,)
    assert chosen(["auto"], [H100, T4], idle=True) == (CPU,)
    assert chosen(["auto"], [], idle=False) == (CPU,)


def test_all_are_those_of_the_first_one_s_kind() -> None:
    assert chosen(["all"], [H100, T4, Accelerator("rocm:0")], idle=True) == (H100, T4)
    assert chosen(["all"], [], idle=False) == (CPU,)


def test_a_name_is_taken_whatever_the_profile() -> None:
    assert chosen(["cuda:1"], [H100, T4], idle=True) == (T4,)
    assert chosen(["cuda:1", "cuda:0"], [H100, T4], idle=True) == (T4, H100)
    assert chosen(["cpu"], [H100], idle=False) == (CPU,)
    assert [each.name for each in chosen(["cpu:0", "cpu:1"], [], idle=True)] == ["cpu:0", "cpu:1"]


@pytest.mark.parametrize("names", [["cuda:2"], ["mps"], ["cuda:0", "cuda:2"]])
def test_a_name_that_is_not_there_is_refused(names: list[str]) -> None:
    with pytest.raises(ConfigError, match=rf"'{names[-1]}'.*there are: cuda:0, cuda:1, cpu"):
        chosen(names, [H100, T4], idle=False)


def test_numpy_takes_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "of_this_machine", lambda: [H100, T4])
    for unnamed in ("auto", "all"):
        assert for_orders([unnamed], profile="gpu", engine="numpy") == (CPU,)
    assert for_orders(["auto"], profile="gpu", engine="torch") == (H100,)
    assert for_orders(["all"], profile="gpu", engine="torch") == (H100, T4)
    assert for_orders(["auto"], profile="cpu", engine="torch") == (CPU,)
    assert for_orders(["cpu:1"], profile="cpu", engine="numpy")[0].name == "cpu:1"
    for names in (["cuda:0"], ["cpu:0", "cpu:1"]):
        with pytest.raises(ConfigError, match="numpy engine trains on one CPU, not on " + names[0]):
            for_orders(names, profile="gpu", engine="numpy")


def test_what_no_driver_tells_of_is_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "of_this_machine", list)
    for unnamed in ("auto", "all"):
        untold = for_orders([unnamed], profile="gpu", engine="torch")
        assert [each.name for each in untold] == [""]
        assert environment(untold) == {}


def test_a_process_for_the_cpu_sees_no_accelerator() -> None:
    assert set(environment([CPU]).values()) == {""}


def test_the_precision_of_several_is_one_that_all_are_made_for() -> None:
    new, old, older = (Accelerator("cuda:0", capability=each) for each in ("9.0", "7.5", "6.1"))
    assert precision([new, new]) == "bfloat16"
    assert precision([new, old]) == precision([old, new]) == "float16"
    assert precision([new, old, older]) == precision([CPU, CPU]) == "float32"


def told(value: object) -> AgentSettings:
    return AgentSettings.model_validate(
        {"identity": "d.json", "data_dir": "d", "accelerators": value}
    )


def test_settings_name_one_or_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told("all").accelerators == ["all"]
    assert told("cuda:0, cuda:1").accelerators == ["cuda:0", "cuda:1"]
    assert told(["cpu:0", "cpu:1"]).accelerators == ["cpu:0", "cpu:1"]
    file = tmp_path / "agent.toml"
    file.write_text('identity = "i"\ndata_dir = "d"\naccelerators = ["rocm:1", "rocm:0"]\n')
    assert load(AgentSettings, file, "RENGO_AGENT").accelerators == ["rocm:1", "rocm:0"]
    monkeypatch.setenv("RENGO_AGENT_ACCELERATORS", "cuda:0,cuda:3")
    assert load(AgentSettings, file, "RENGO_AGENT").accelerators == ["cuda:0", "cuda:3"]
    flag = {"accelerators": "cpu"}
    assert load(AgentSettings, file, "RENGO_AGENT", flag).accelerators == ["cpu"]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("cuda:0,cuda:0", "'accelerators': cuda:0 is named twice"),
        ("cpu,cpu:0", "'accelerators': cpu:0 is named twice"),
        ("mps,mps", "'accelerators': mps is named twice"),
        ("cuda:0,cpu:1", "'accelerators': accelerators of one kind, please, not of cpu and cuda"),
        ("cuda:0,all", "'accelerators': 'all' stands alone"),
        ("mps:1", "'accelerators.0': String should match"),
        ("tpu", "'accelerators.0': String should match"),
        ("", "'accelerators': List should have at least 1 item"),
    ],
)
def test_settings_that_cannot_be_meant_are_told(tmp_path: Path, value: str, what: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(f'identity = "i"\ndata_dir = "d"\naccelerators = "{value}"\n')
    with pytest.raises(ConfigError, match=what):
        load(AgentSettings, file, "RENGO_AGENT")
