"""A device's own data: sources, store, split and figures, each with what real files do to them."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from broker.wire.messages import TaskData
from fl_client.collectors.mqtt import MessageRate, decode
from fl_client.collectors.owned import OwnData
from fl_client.datasets.dataset import Dataset
from fl_client.datasets.device import Device
from fl_client.datasets.reporting import DataReports, report_path
from fl_client.datasets.sample import BadSample, NoData, Sample, SampleReader, digest
from fl_client.datasets.settings import (
    DataPlace,
    DataSettings,
    MqttSource,
    SampleStoreSettings,
    Schema,
    read_sections,
)
from fl_client.datasets.store import open_store, store_path, stored_refusals, stored_samples
from fl_client.settings import AgentSettings
from rengo.terminal.drift import drift_lines
from runtime.errors import ConfigError
from tests.examples import pages

HEADER = "at,session,rms,peak,state\n"
CSV = {
    "kind": "csv",
    "features": ["rms", {"name": "peak", "least": 0, "most": 100}],
    "label": "state",
}
CLASSES = ["ok", "worn"]


def place(folder: Path, source: dict[str, Any], **more: Any) -> DataPlace:
    given = {"source": source, "classes": CLASSES, **more}
    return DataPlace(
        task="pump", folder=folder / "own", settings=DataSettings.model_validate(given)
    )


def line(number: int, state: str = "ok", session: int = 0) -> str:
    return f"{1_700_000_000 + number},s{session},{number / 7:.3f},{number % 90},{state}\n"


# --- records ----------------------------------------------------------------------------------


def reader(**more: Any) -> SampleReader:
    return SampleReader(Schema.model_validate({"features": ["a"], "label": "c", **more}), CLASSES)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"c": "ok"}, "missing"),
        ({"a": "1", "c": "ok"}, "type"),
        ({"a": True, "c": "ok"}, "type"),
        ({"a": float("nan"), "c": "ok"}, "type"),
        ({"a": 10**400, "c": "ok"}, "type"),
        ({"a": 1e300, "c": "ok"}, "type"),
        ({"a": [1, 2], "c": "ok"}, "length"),
        ({"a": 1, "c": "burnt"}, "class"),
        ({"a": 1, "c": ["ok"]}, "class"),
        ({"a": 7, "c": "ok"}, "bounds"),
        ({"a": 1, "c": "ok", "t": "noon"}, "time"),
        ({"a": 1, "c": "ok", "t": 1e30}, "time"),
    ],
)
def test_a_record_that_is_no_sample_says_why(record: dict[str, Any], reason: str) -> None:
    schema = {"features": [{"name": "a", "most": 5}], "time": "t", "group_by_day": True}
    with pytest.raises(BadSample) as refused:
        reader(**schema).read({"t": 0, **record})
    assert refused.value.reason == reason


def test_an_example_is_the_same_whatever_its_label_and_the_order_of_its_fields() -> None:
    first = reader().read({"a": 1, "b": 2, "c": "ok"})
    mended = reader().read({"c": "worn", "b": 2, "a": 1})
    assert first.id == mended.id
    assert (first.label, mended.label) == (0.0, 1.0)
    assert reader().read({"a": 1, "b": 3, "c": "ok"}).id != first.id


def test_a_day_is_that_of_utc_in_either_notation() -> None:
    by_day = reader(time="t", group_by_day=True)
    moments = [
        1_700_000_000,
        "1700000000",
        "2023-11-14T22:13:20+00:00",
        "2023-11-15T00:13:20+02:00",
    ]
    assert {by_day.read({"a": 1, "c": "ok", "t": each}).group for each in moments} == {
        " 2023-11-14"
    }


# --- sources ----------------------------------------------------------------------------------


def test_a_csv_file_grows_and_examples_stay_on_their_side(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(HEADER + "".join(line(number) for number in range(40)))
    dataset = Dataset(place(tmp_path, {**CSV, "path": str(path)}))
    train, held_out = dataset.splits()
    assert train is not None
    assert held_out is not None
    assert train[0].dtype == np.float32
    assert train[1].dtype == np.int64
    assert len(train[0]) + len(held_out[0]) == 40
    with path.open("a") as file:
        file.write("".join(line(number, "worn") for number in range(40, 90)))
        file.write("1700000999,s0,5.0,")  # a line that is being written
    more_train, more_held_out = dataset.splits()
    assert more_train is not None
    assert more_held_out is not None
    assert len(more_train[0]) + len(more_held_out[0]) == 90
    np.testing.assert_array_equal(more_train[0][: len(train[0])], train[0])
    np.testing.assert_array_equal(more_held_out[0][: len(held_out[0])], held_out[0])
    assert not dataset.refused


def test_lines_that_are_no_samples_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    bad = "1,s0,x,1,ok\n1,s0,1\n1,s0,1,500,ok\n1,s0,1,1,burnt\n\0,\xff,1,1,ok\n"
    path.write_text(HEADER + line(1) + bad + line(2), "latin-1")
    dataset = Dataset(place(tmp_path, {**CSV, "path": str(path), "group": "session"}))
    assert len(dataset.samples()) >= 2
    assert dataset.refused["type"] == dataset.refused["length"] == 1
    assert dataset.refused["bounds"] == dataset.refused["class"] == 1


def test_of_a_folder_of_csv_files_the_newest_lines_are_kept(tmp_path: Path) -> None:
    for number, name in enumerate(["b.csv", "a.csv"]):
        path = tmp_path / name
        path.write_text(HEADER + "".join(line(10 * number + each) for each in range(10)))
        os.utime(path, (1000 + number, 1000 + number))
    store = {"max_examples": 12}
    dataset = Dataset(place(tmp_path, {**CSV, "path": str(tmp_path)}, store=store))
    found = [round(float(sample.features[0]) * 7) for sample in dataset.samples()]
    assert found == [8, 9, *range(10, 20)]


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("at,rms\n1,2\n")
    with pytest.raises(ConfigError, match="no column peak, state; its columns are: at, rms"):
        Dataset(place(tmp_path, {**CSV, "path": str(path)})).samples()
    with pytest.raises(NoData, match="is not there"):
        Dataset(place(tmp_path, {**CSV, "path": str(tmp_path / "no.csv")})).samples()


def test_sessions_stay_together(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    rows = [line(number, session=number // 10) for number in range(300)]
    path.write_text(HEADER + "".join(rows))
    source = {**CSV, "path": str(path), "group": "session", "features": ["rms"]}
    train, held_out = Dataset(place(tmp_path, source)).splits()
    assert train is not None
    assert held_out is not None
    sessions = [
        {round(float(each) * 7) // 10 for each in part[0][:, 0]} for part in (train, held_out)
    ]
    assert not sessions[0] & sessions[1]
    assert len(sessions[0] | sessions[1]) == 30


def test_a_table_of_sqlite_is_read_while_another_program_writes(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute('CREATE TABLE "the log" (n INTEGER PRIMARY KEY, wave, state TEXT)')
    rows = [(None, np.full(4, each, np.float32).tobytes(), "ok") for each in range(30)]
    writer.executemany('INSERT INTO "the log" VALUES (?, ?, ?)', rows)
    writer.execute("""INSERT INTO "the log" VALUES (NULL, '1 2 3', 'ok')""")
    source = {
        "kind": "sqlite",
        "path": str(path),
        "table": "the log",
        "rowid": "n",
        "features": [{"name": "wave", "length": 4}],
        "label": "state",
    }
    dataset = Dataset(place(tmp_path, source))
    first = dataset.samples()
    assert [sample.features[0] for sample in first] == list(range(30))
    assert dataset.refused == Counter(length=1)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("""INSERT INTO "the log" VALUES (NULL, '[9, 9, 9, 9]', 'worn')""")
    assert len(dataset.samples()) == 30
    writer.execute("COMMIT")
    assert [sample.id for sample in dataset.samples()][:30] == [sample.id for sample in first]
    assert dataset.samples()[-1].label == 1.0
    writer.close()
    with pytest.raises(ConfigError, match="no column other"):
        Dataset(place(tmp_path, {**source, "label": "other"})).samples()


def test_a_folder_of_arrays_with_a_class_a_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number, name in enumerate(CLASSES):
        (data / name).mkdir(parents=True)
        for each in range(5):
            np.save(data / name / f"s{each}.npy", np.full((2, 3), 10 * number + each))
    np.savez(data / "batch.npz", x=np.arange(12).reshape(2, 2, 3), y=np.array([0, 1]))
    (data / "ok" / "half.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (data / "ok" / "half.npz").write_bytes(b"PK\x03\x04")
    np.save(data / "ok" / "text.npy", np.array([["a"]]))
    np.save(data / "ok" / "object.npy", np.array([{}], object), allow_pickle=True)
    np.save(data / "ok" / "nan.npy", np.full((2, 3), np.nan))
    np.save(data / "ok" / "other_shape.npy", np.zeros(3))
    os.utime(data / "ok" / "other_shape.npy", (1, 1))
    dataset = Dataset(place(tmp_path, {"kind": "folder", "path": str(data)}))
    samples = dataset.samples()
    assert len(samples) == 12
    assert sum(sample.label for sample in samples) == 6
    assert dataset.refused == Counter(unreadable=3, type=2, shape=1)
    before = {sample.id: sample.label for sample in samples}
    (data / "ok" / "s1.npy").rename(data / "worn" / "was_ok.npy")
    after = {sample.id: sample.label for sample in dataset.samples()}
    assert after.keys() == before.keys()
    assert sum(after.values()) == 7


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_a_file_is_never_unpickled(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / name
    if name == "a.npy":
        path.write_bytes(pickle.dumps(Trap()))
    else:
        np.savez(path, x=np.array([Trap()], object))
    dataset = Dataset(place(tmp_path, {"kind": "folder", "path": str(path.parent)}))
    assert dataset.samples() == []
    assert dataset.refused["unreadable"] == 1
    assert not (tmp_path / "sprung").exists()


def test_pictures_are_brought_to_one_size(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "data" / "ok").mkdir(parents=True)
    for number, size in enumerate([(8, 6), (20, 30)]):
        picture = image.new("RGB", size, (255, 0, 10 * number))
        picture.save(tmp_path / "data" / "ok" / f"walk_{number}.png")
    source = {"kind": "folder", "path": str(tmp_path / "data"), "image_size": [5, 4]}
    samples = Dataset(place(tmp_path, {**source, "group": "prefix"})).samples()
    assert [sample.features.shape for sample in samples] == [(3, 4, 5)] * 2
    assert {sample.group for sample in samples} == {"walk"}
    assert samples[0].features.max() == 1.0


# --- the store --------------------------------------------------------------------------------


def make(number: int, size: int = 4) -> Sample:
    return Sample(digest("id", str(number)), "", 0.0, [float(number)] * size)


def kept(folder: Path) -> list[int]:
    found = stored_samples(store_path(folder), 1 << 30)
    return [int(sample.features[0]) for sample in found][::-1]


def test_the_store_is_a_ring(tmp_path: Path) -> None:
    store = open_store(tmp_path, SampleStoreSettings(max_examples=10))
    assert store.add([make(number) for number in range(8)], 0.0, 0.0) == 8
    assert store.add([make(number) for number in range(6, 15)], 0.0, 0.0, {"type": 3}) == 7
    assert kept(tmp_path) == list(range(5, 15))
    store.add([], 0.0, 0.0, {"type": 1, "flood": 2})
    assert stored_refusals(store_path(tmp_path)) == 6
    store.close()
    assert kept(tmp_path) == list(range(5, 15))


def test_a_store_that_is_being_made_is_empty(tmp_path: Path) -> None:
    store_path(tmp_path).touch()
    assert kept(tmp_path) == []
    assert stored_refusals(store_path(tmp_path)) == 0


def test_the_file_stays_within_its_bound(tmp_path: Path) -> None:
    store = open_store(tmp_path, SampleStoreSettings(max_mib=0.5))
    for start in range(0, 3000, 100):
        store.add([make(number, 100) for number in range(start, start + 100)], 0.0, 0.0)
    store.close()
    assert store_path(tmp_path).stat().st_size <= 0.6 * (1 << 20)
    assert kept(tmp_path)[-1] == 2999
    assert len(kept(tmp_path)) > 500


def test_a_clock_that_jumps_does_not_empty_the_store(tmp_path: Path) -> None:
    store = open_store(tmp_path, SampleStoreSettings(max_age_days=1))
    store.add([make(0), make(1)], 1000.0, 0.0)
    years = 1000.0 + 10 * 365 * 86400
    store.add([], years, 10.0)
    assert kept(tmp_path) == [0, 1]
    store.add([], years, 20.0)
    assert kept(tmp_path) == [0, 1]
    # who says so for an hour is believed
    store.add([], years, 3700.0)
    assert kept(tmp_path) == []
    store.close()


def test_what_is_old_goes(tmp_path: Path) -> None:
    store = open_store(tmp_path, SampleStoreSettings(max_age_days=1))
    store.add([make(0)], 0.0, 0.0)
    store.add([make(1), make(2)], 90_000.0, 1.0)
    assert kept(tmp_path) == [1, 2]
    store.close()


def test_a_damaged_store_is_set_aside_and_an_altered_sample_left_out(tmp_path: Path) -> None:
    store = open_store(tmp_path, SampleStoreSettings())
    store.add([make(number) for number in range(5)], 0.0, 0.0)
    store.close()
    path = store_path(tmp_path)
    db = sqlite3.connect(path)
    db.execute("UPDATE samples SET label = 1 WHERE seq = 3")
    db.commit()
    db.close()
    assert kept(tmp_path) == [0, 1, 3, 4]
    content = bytearray(path.read_bytes())
    content[4096 : 4096 + 2000] = bytes(2000)
    path.write_bytes(content)
    kept(tmp_path)
    store = open_store(tmp_path, SampleStoreSettings())
    assert len(store) == 0
    assert path.with_name("samples.sqlite.damaged").exists()
    store.close()


WRITER = """
import sys
from pathlib import Path
from fl_client.datasets.sample import Sample, digest
from fl_client.datasets.settings import SampleStoreSettings
from fl_client.datasets.store import open_store
store = open_store(Path(sys.argv[1]), SampleStoreSettings(max_examples=200))
for number in range(10**9):
    store.add([Sample(digest("id", str(number)), "", 0.0, [float(number)] * 50)], 0.0, 0.0)
    print(number, flush=True)
"""


def test_what_was_written_outlives_a_kill(tmp_path: Path) -> None:
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        said = 0
        for text in process.stdout:
            said = int(text)
            if said > 150:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        said = [said, *map(int, process.stdout)][-1]  # it went on until the signal
        process.stdout.close()
        assert said in kept(tmp_path)
        store = open_store(tmp_path, SampleStoreSettings(max_examples=200))
        assert not store_path(tmp_path).with_name("samples.sqlite.damaged").exists()
        store.close()
        store_path(tmp_path).unlink()


# --- MQTT payloads ----------------------------------------------------------------------------

MQTT = TypeAdapter(MqttSource).validate_python(
    {
        "kind": "mqtt",
        "features": ["a"],
        "host": "h",
        "username": "u",
        "password_file": "p",
        "client_id": "c",
        "topics": ["t"],
        "max_payload_bytes": 100_000,
    }
)


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b"", "json"),
        (b"[1]", "json"),
        (b"[" * 99_000, "json"),
        (b"\xff\xfe", "json"),
        (b'{"a": 1}', "msgpack"),
        (b"\x81\x01\x01", "msgpack"),
        (b"\xc1", "msgpack"),
        (b'{"a": 1, "b": "%s"}' % (b"x" * 100_000), "json"),
    ],
)
def test_a_payload_that_is_none_is_refused(payload: bytes, kind: str) -> None:
    with pytest.raises(BadSample):
        decode(payload, MQTT.model_copy(update={"payload": kind}))


def test_payloads_of_both_kinds() -> None:
    assert decode(b'{"a": 1.5}', MQTT) == {"a": 1.5}
    packed = MQTT.model_copy(update={"payload": "msgpack"})
    assert decode(b"\x81\xa1a\x01", packed) == {"a": 1}


def test_a_flood_is_held_to_its_allowance() -> None:
    rate = MessageRate(2.0)
    assert sum(rate.allow(0.0) for _ in range(100)) == 20
    assert sum(rate.allow(1.0) for _ in range(100)) == 2
    assert not rate.allow(0.5)


# --- figures ----------------------------------------------------------------------------------


def described(tmp_path: Path, rows: list[tuple[float, str]], **drift: Any) -> TaskData | None:
    """Let the device read these rows and return what it would send."""
    path = tmp_path / "log.csv"
    lines = [f"{at},s0,{rms},1,{state}\n" for at, (rms, state) in enumerate(rows)]
    path.write_text(HEADER + "".join(lines))
    settings = {"every_s": 0, "min_count": 20, "window": max(20, len(rows)), **drift}
    where = place(tmp_path, {**CSV, "path": str(path), "features": ["rms"]}, drift=settings)
    Dataset(where).splits()
    latest = DataReports([where]).latest()
    assert latest is not None
    return latest.tasks[0] if latest.tasks else None


def test_nothing_is_told_of_fewer_than_the_minimum(tmp_path: Path) -> None:
    assert described(tmp_path, [(1.0, "ok")] * 19) is None
    assert not report_path(tmp_path / "own").exists()
    assert described(tmp_path, [(1.0, "ok")] * 20, report=False) is None
    assert described(tmp_path, [(1.0, "ok")] * 20) is not None


def test_a_change_is_seen_and_no_value_is_told(tmp_path: Path) -> None:
    chooser = np.random.default_rng(3)
    calm = [(float(value), "ok") for value in chooser.normal(5, 1, 400)]
    first = described(tmp_path, calm)
    assert first is not None
    assert [each.psi_reference for each in first.quantities] == [None, None]
    same = described(tmp_path, [(float(v), "ok") for v in chooser.normal(5, 1, 400)])
    assert same is not None
    assert all(each.psi_reference is not None for each in same.quantities)
    label, rms = same.quantities
    assert label.psi_reference == 0
    assert rms.psi_reference is not None
    assert rms.psi_reference < 0.2
    shaken = [(float(v), "worn" if v > 7 else "ok") for v in chooser.normal(7, 1, 400)]
    changed = described(tmp_path, shaken)
    assert changed is not None
    assert all((each.psi_reference or 0) > 0.2 for each in changed.quantities)
    lines = drift_lines({"tasks": [changed.model_dump()]})
    assert sum("WARNING" in text for text in lines) == 2
    text = changed.model_dump_json()
    assert not any(f"{value:.2f}" in text for value, _ in shaken[:50] if value > 9)
    counts = [bar.count for each in changed.quantities for bar in each.bars]
    assert all(count >= 20 and count % 20 == 0 for count in counts)
    # the report before was of the calm: both comparisons see it
    settled = described(tmp_path, shaken)
    assert settled is not None
    assert [each.psi_previous for each in settled.quantities] == [0.0, 0.0]


def test_a_constant_that_moves_is_seen(tmp_path: Path) -> None:
    described(tmp_path, [(1.0, "ok")] * 200)
    moved = described(tmp_path, [(2.0, "ok")] * 200)
    assert moved is not None
    assert (moved.quantities[1].psi_reference or 0) > 0.2


def test_agreed_edges_are_named_and_rare_classes_are_pooled(tmp_path: Path) -> None:
    rows = [(float(each % 10), "ok" if each else "worn") for each in range(300)]
    told = described(tmp_path, rows, bins={"rms": [2, 5, 9.5]})
    assert told is not None
    label, rms = told.quantities
    assert [(bar.name, bar.count) for bar in rms.bars] == [
        ("below 2", 60),
        ("2 to 5", 80),
        ("from 5", 140),
    ]
    # one worn example: pooled with the only other class, so that it cannot be worked out
    assert [(bar.name, bar.count) for bar in label.bars] == [("(others)", 300)]


def test_a_damaged_reference_is_begun_anew(tmp_path: Path) -> None:
    rows = [(float(each), "ok") for each in range(200)]
    described(tmp_path, rows)
    (tmp_path / "own" / "figures.json").write_bytes(b"\0" * 100)
    again = described(tmp_path, rows)
    assert again is not None
    assert again.quantities[0].psi_reference is None


def test_a_report_that_was_forbidden_is_replaced_by_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(HEADER + "".join(line(number) for number in range(60)))
    source = {**CSV, "path": str(path)}
    Dataset(place(tmp_path, source)).splits()
    open_hand = DataReports([place(tmp_path, source)])
    assert open_hand.changed() is not None
    assert open_hand.changed() is None
    closed = DataReports([place(tmp_path, source, drift={"report": False})]).latest()
    assert closed is not None
    assert closed.tasks == []


# --- settings ---------------------------------------------------------------------------------


def test_a_section_that_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match=r"data\.pump\.source\.csv\.features"):
        read_sections({"pump": {"source": {"kind": "csv", "path": "x", "features": []}}})
    with pytest.raises(ValueError, match=r"data\.pump\.held"):
        read_sections({"pump": {"source": {**CSV, "path": "x"}, "held": 1}})


def test_a_section_of_no_task_here_is_refused(tmp_path: Path) -> None:
    section = {"source": {**CSV, "path": "x"}}
    settings = AgentSettings(
        identity=tmp_path / "unused", data_dir=tmp_path, data={"pmup": section}
    )
    with pytest.raises(ConfigError, match=r"\[data.pmup\] is of no task .*tasks: pump"):
        OwnData("d-1", settings, {"pump": "pump.py:Pump"})


def test_a_window_never_holds_less_than_the_minimum() -> None:
    with pytest.raises(ValueError, match=r"data\.pump\.drift: .*window"):
        read_sections({"pump": {"source": {**CSV, "path": "x"}, "drift": {"window": 10}}})


def test_a_device_without_data_of_its_own_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"\[data.TASK\]"):
        Device("d-1").dataset()


def test_the_place_goes_to_the_training_process_and_back(tmp_path: Path) -> None:
    where = place(tmp_path, {**CSV, "path": "x.csv"}, drift={"bins": {"rms": [1, 2]}})
    assert DataPlace.model_validate_json(where.model_dump_json()) == where
    assert json.loads(where.model_dump_json())["task"] == "pump"


def test_what_the_page_shows_is_read() -> None:
    whole, *parts = (tomllib.loads(text) for text in pages.blocks("docs/device-data.md", "toml"))
    assert len(parts) == 3
    for part in parts:
        read_sections({"pump": {**whole["data"]["pump"], **part["data"]["pump"]}})
