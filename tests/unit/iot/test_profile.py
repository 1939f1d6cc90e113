"""Profiles and what a site sets over them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from iot.profile import PRESETS, Budget, budget_of, preset_of
from iot.settings import DeviceSettings, PiSettings
from runtime.config import load
from runtime.errors import ConfigError


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        ("Raspberry Pi Zero 2 W Rev 1.0\0", "pi-zero2"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3\0", "pi3"),
        ("Raspberry Pi 4 Model B Rev 1.5\0", "pi4"),
        ("Raspberry Pi 400 Rev 1.0\0", "pi4"),
        ("Raspberry Pi 5 Model B Rev 1.0\0", "pi5"),
        ("Some other board\0", "pi3"),
        (None, "pi3"),
    ],
)
def test_the_board_tells_its_profile(tmp_path: Path, model: str | None, preset: str) -> None:
    if model is not None:
        path = tmp_path / "proc/device-tree/model"
        path.parent.mkdir(parents=True)
        path.write_text(model)
    assert preset_of("pi", tmp_path) == preset


def test_a_site_sets_single_lines_over_a_preset() -> None:
    own = Budget.model_validate({"memory": "96MiB", "hours": ["22:00-06:00"]})
    budget = budget_of("pi4", own)
    assert budget.memory == 96 << 20
    assert budget.hours == ["22:00-06:00"]
    assert budget.pause_at_c == PRESETS["pi4"].pause_at_c


def test_a_budget_that_contradicts_the_preset_is_refused_by_name() -> None:
    own = Budget.model_validate({"resume_at_c": 80})
    with pytest.raises(ConfigError, match="resume_at_c 80 is not below pause_at_c 75"):
        budget_of("pi4", own)


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(ConfigError, match="no profile 'pi9'; there are: pi, pi-zero2"):
        budget_of("pi9", Budget())


@pytest.mark.parametrize(
    "values",
    [
        {"hours": ["22-6"]},
        {"hours": ["24:00-06:00"]},
        {"memory": "much"},
        {"memory": -1},
        {"cpu_share": 0},
        {"threads": 0},
        {"pause_at_c": 60, "resume_at_c": 60},
        {"metered": "maybe"},
        {"colour": "red"},
    ],
)
def test_what_is_no_budget_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Budget.model_validate(values)


def test_the_section_comes_from_the_file_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(
        f'identity = "{tmp_path}/d.json"\ndata_dir = "{tmp_path}"\n'
        '[budget]\ndata_per_day = "200MB"\n[health]\nreport_s = 60\n'
    )
    monkeypatch.setenv("RENGO_AGENT_BUDGET__HOURS", "22:00-06:00,12:00-13:00")
    settings = load(DeviceSettings, file, "RENGO_AGENT")
    assert settings.budget.data_per_day == 200_000_000
    assert settings.budget.hours == ["22:00-06:00", "12:00-13:00"]
    assert settings.health.report_s == 60


def test_a_pi_is_a_pi_to_its_tasks_whatever_the_board(tmp_path: Path) -> None:
    given = {"identity": tmp_path / "d.json", "data_dir": tmp_path}
    assert PiSettings.model_validate(given).family == "pi"
    assert PiSettings.model_validate({**given, "profile": "pi-zero2"}).family == "pi"
    assert DeviceSettings.model_validate(given).family == "cpu"
