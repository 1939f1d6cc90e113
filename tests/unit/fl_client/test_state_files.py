"""What the training process leaves for its agent, and when that is on the disk."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fl_client.training.frames import TrainingJob
from fl_client.training.work import _write_state


def test_a_state_is_on_the_disk_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result that counts on it leaves next, and a power cut may take a name alone."""
    seen: list[str] = []
    replace, fsync = Path.replace, os.fsync

    def replaced(path: Path, target: Path) -> Path:
        seen.append(f"named {target.name}")
        return replace(path, target)

    def forced(descriptor: int) -> None:
        seen.append(f"forced {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    monkeypatch.setattr(Path, "replace", replaced)
    monkeypatch.setattr(os, "fsync", forced)
    folder = tmp_path / "state"
    folder.mkdir()
    job = TrainingJob(
        run_id="r",
        round=1,
        attempt=1,
        device_id="d",
        model_path="m",
        base_sha256="a" * 64,
        state_path=str(folder / "r.safetensors"),
        next_state_path=str(folder / "r.1-1.next"),
    )
    state = {"counted": np.ones(1, np.float32)}
    _write_state(job, state)
    assert seen == ["forced r.1-1.next.part", "named r.1-1.next", "forced state"]
