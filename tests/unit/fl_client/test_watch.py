"""The watch recordings: found, checked before they are opened, and cut into persons' files."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_client.datasets.device import Device
from fl_client.datasets.public import watch
from fl_client.datasets.public.watch import DATASET, MEMBER, recordings
from fl_client.engines.base import load_engine
from fl_client.tasks.registry import load_task
from runtime.errors import ConfigError, Corrupt


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of the published form, with ten persons' noise, and no other source."""
    generator = np.random.default_rng(0)
    rows = [(person, label) for person in range(1, 11) for label in range(7)]
    stored: dict[str, Any] = {
        "X": [generator.standard_normal((1020 + 100 * person, 6)) for person, _ in rows],
        "y": np.array([label for _, label in rows]),
        "subject": np.array([person for person, _ in rows]),
    }
    path = tmp_path / "watch.npy"
    with path.open("wb") as out:
        np.save(out, np.array(stored, dtype=object), allow_pickle=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(watch, "SHA256", digest)
    monkeypatch.setattr(watch, "_installed", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(DATASET.variable, str(path))
    return path


def test_a_person_has_the_same_recordings_from_file_wheel_and_cache(
    made_up: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = recordings(3)
    assert [label for _, label in first] == list(range(7))
    assert {samples.shape for samples, _ in first} == {(1320, 6)}
    wheel = made_up.with_suffix(".whl")
    with zipfile.ZipFile(wheel, "w") as out:
        out.write(made_up, MEMBER)
    cached = next(made_up.parent.glob("cache/rengo/*/watch-person-03.npz"))
    made_up.unlink()
    again = recordings(3)
    cached.unlink()
    monkeypatch.setenv(DATASET.variable, str(wheel))
    for other in (again, recordings(3)):
        for (one, _), (two, _) in zip(first, other, strict=True):
            assert one.tobytes() == two.tobytes()
    assert cached.is_file()


def test_a_folder_of_persons_is_enough(made_up: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made_up.parent / "persons"
    assert watch.main([str(made_up), str(folder)]) == 0
    assert len(list(folder.iterdir())) == 10
    monkeypatch.setenv(DATASET.variable, str(folder))
    made_up.unlink()
    assert len(recordings(10)) == 7
    monkeypatch.delenv(DATASET.variable)
    assert len(recordings(10, folder)) == 7
    assert not (made_up.parent / "cache").exists()


def test_another_file_is_refused_before_it_is_unpickled(
    made_up: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(np, "load", lambda *given, **_: opened.append(given))
    made_up.write_bytes(made_up.read_bytes()[:-1] + b"!")
    with pytest.raises(Corrupt, match="have sha256"):
        recordings(1)
    assert not opened


def test_what_is_missing_is_told_in_one_line(
    made_up: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATASET.variable, str(made_up.parent / "nowhere"))
    with pytest.raises(ConfigError, match=r"nowhere has no watch-person-01\.npz"):
        recordings(1)
    monkeypatch.delenv(DATASET.variable)
    with pytest.raises(ConfigError) as caught:
        load_task("watch").data(Device("d"))
    assert str(caught.value) == DATASET.how
    assert "\n" not in DATASET.how


def test_a_damaged_person_is_told(made_up: Path) -> None:
    recordings(1)
    cached = next(made_up.parent.glob("cache/rengo/*/watch-person-01.npz"))
    for damage in (cached.read_bytes()[:-40], b"", bytes(200)):
        cached.write_bytes(damage)
        with pytest.raises(Corrupt, match="cannot be read"):
            recordings(1)


def test_without_a_cache_it_works_all_the_same(
    made_up: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(made_up))  # a file: no folder can be made in it
    assert len(recordings(2)) == 7
    assert "no cache of the watch recordings" in caplog.text


def test_a_device_has_one_person_and_an_evaluator_an_unseen_one(made_up: Path) -> None:
    task = load_task("watch")
    sizes = set()
    for index in range(9):
        train, held_out = task.data(Device(f"d{index}", index, 9))
        assert train is not None
        assert held_out is not None
        assert train[0].shape[1:] == (6, 100)
        assert train[0].dtype == np.float32
        sizes.add(len(train[0]))
    _, unseen = task.data(Device("judge", role="evaluator"))
    assert unseen is not None
    # the persons' lengths differ, so that their sizes tell them apart
    assert len(sizes) == 9


@pytest.mark.parametrize("name", ["watch", "watch_mlp"])
def test_both_models_train_on_it(made_up: Path, name: str) -> None:
    task = load_task(name)
    train, _ = task.data(Device("d"))
    loss, gradients = load_engine("numpy", task).gradients(task.initial_weights(0), train)
    assert 1 < loss < 4
    assert all(np.abs(gradient).max() > 0 for gradient in gradients.values())


def test_persons_are_the_only_partition(made_up: Path) -> None:
    task = load_task("watch")
    plain, _ = task.data(Device("d", 2, 9))
    natural, _ = task.data(Device("d", 2, 9, partition="natural"))
    assert np.array_equal(plain[0], natural[0])
    with pytest.raises(ConfigError, match=r"divided by persons.*not by 'iid'"):
        task.data(Device("d", 2, 9, partition="iid"))
